"""A temperature that is trained with the model, as CLIP's is."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxemb.transforms.base import Transform, Variables
from jaxemb.trees import PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WithTemperature:
    """A model, and beside it the temperature that objectives may hand to their loss.

    Attributes:
      model: what is called when this is.
      temperature: f32 scalar > 0.
    """

    model: Any
    temperature: jax.Array

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.model(*args, **options)


def trained_temperature(initial: float = 0.07, *, lowest: float = 0.01) -> Transform:
    """Trains `t`, and gives the objective the model as `WithTemperature(model, temperature = exp(-t))`.

    After each update t is cut to `log(1 / lowest)`, so that the temperature never falls below `lowest`.

    Args:
      initial: temperature at the start; 0.07 is CLIP's.
      lowest: > 0; CLIP's logits are scaled by at most 100.

    Raises:
      ValueError: unless 0 < lowest <= initial.

    References:
      Radford et al. 2021, arXiv 2103.00020, section 2.5.
    """
    if not 0 < lowest <= initial:
        raise ValueError(f"lowest must be > 0 and at most initial; got {lowest} and {initial}")

    def init(key: jax.Array, model: PyTree) -> Variables:
        return Variables(params=jnp.float32(-math.log(initial)))

    def model(model: PyTree, params: jax.Array, state: PyTree) -> WithTemperature:
        return WithTemperature(model, jnp.exp(-params))

    def updates(trained, context, params, state):
        highest = jnp.float32(-math.log(lowest))
        return trained._replace(params=jnp.minimum(params + trained.params, highest) - params)

    return Transform(init=init, model=model, updates=updates)
