"""Progressive learning: the weights of a batch's records change as training advances (PEG)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxemb.transforms.base import Context, Transform, Variables
from jaxemb.trees import PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WithAlpha:
    """A model, and beside it the alpha that objectives may hand to `losses.progressive_info_nce`.

    Attributes:
      model: what is called when this is.
      alpha: f32 scalar; < 0 favours easy records, > 0 difficult ones.
    """

    model: Any
    alpha: jax.Array

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.model(*args, **options)


def progressive_learning(alpha: optax.Schedule) -> Transform:
    """Gives the objective the model as `WithAlpha(model, alpha(step))`.

        progressive_learning(optax.linear_schedule(-2.0, 2.0, steps))  # from easy to difficult records
        progressive_learning(optax.linear_schedule(0.0, -8.0, steps))  # trusts noisy pairs less and less

    Args:
      alpha: from the number of finished optimiser steps, an int32 scalar, to alpha.

    Raises:
      TypeError: unless alpha is a function.

    References:
      Wu et al. 2023 (PEG), arXiv 2311.11691; the schedules are ours.
    """
    if not callable(alpha):
        raise TypeError(f"alpha must be a schedule, a function of the step; got {alpha!r}")

    def init(key: jax.Array, model: PyTree) -> Variables:
        return Variables(state=jnp.int32(0))

    def model(model: PyTree, params: PyTree, step: jax.Array) -> WithAlpha:
        return WithAlpha(model, jnp.asarray(alpha(step), jnp.float32))

    def after_step(context: Context, params: PyTree, step: jax.Array) -> jax.Array:
        return step + 1

    return Transform(init=init, model=model, after_step=after_step)
