"""A temperature that is trained with the model, as CLIP's is."""

import math

import jax
import jax.numpy as jnp

from jaxemb.checks import checked
from jaxemb.transforms.base import Context, Trained, Transform, Variables, with_column
from jaxemb.trees import PyTree


@checked()
def trained_temperature(initial: float = 0.07, *, lowest: float = 0.01, column: str = "temperature") -> Transform:
    """Trains `t`, and gives the objective the temperature `exp(-t)`, f32 scalar, as a column of the batch.

        on_columns(info_nce, "query", "document", others=["temperature"])

    After each update t is cut to `log(1 / lowest)`, so that the temperature never falls below `lowest`.

    Args:
      initial: temperature at the start; 0.07 is CLIP's.
      lowest: > 0; CLIP's logits are scaled by at most 100.
      column: its name in the batch.

    Raises:
      ValueError: unless 0 < lowest <= initial; in the first step, if the batch has that column already.

    References:
      Radford et al. 2021, arXiv 2103.00020, section 2.5.
    """
    if not 0 < lowest <= initial:
        raise ValueError(f"lowest must be > 0 and at most initial; got {lowest} and {initial}")

    def init(key: jax.Array, model: PyTree) -> Variables:
        return Variables(params=jnp.float32(-math.log(initial)))

    def batch(batch: PyTree, context: Context, params: jax.Array, state: PyTree) -> PyTree:
        return with_column(batch, column, jnp.exp(-params), "trained_temperature")

    def updates(updates: Trained, context: Context, params: jax.Array, state: PyTree) -> Trained:
        highest = jnp.float32(-math.log(lowest))
        return updates._replace(params=jnp.minimum(params + updates.params, highest) - params)

    return Transform(init=init, batch=batch, updates=updates)
