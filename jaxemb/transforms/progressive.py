"""Progressive learning: the weights of a batch's records change as training advances (PEG)."""

import jax.numpy as jnp
import optax

from jaxemb.checks import checked
from jaxemb.transforms.base import Context, Transform, with_column
from jaxemb.trees import PyTree


@checked()
def progressive_learning(alpha: optax.Schedule, *, column: str = "alpha") -> Transform:
    """Gives the objective `alpha(step)`, f32 scalar, as a column of the batch, for `losses.progressive_info_nce`.

        progressive_learning(optax.linear_schedule(-2.0, 2.0, steps))  # from easy to difficult records
        progressive_learning(optax.linear_schedule(0.0, -8.0, steps))  # trusts noisy pairs less and less

    Args:
      alpha: from the number of finished optimiser steps, an int32 scalar, to alpha; < 0 favours easy records, > 0
        difficult ones.
      column: its name in the batch.

    Raises:
      TypeError: unless alpha is a function.
      ValueError: in the first step, if the batch has that column already.

    References:
      Wu et al. 2023 (PEG), arXiv 2311.11691; the schedules are ours.
    """

    def batch(batch: PyTree, context: Context, params: PyTree, state: PyTree) -> PyTree:
        return with_column(batch, column, jnp.asarray(alpha(context.step), jnp.float32), "progressive_learning")

    return Transform(batch=batch)
