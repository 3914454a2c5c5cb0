"""The running statistics of batch norm."""

import jax
import jax.numpy as jnp

from jaxemb.encoders.convolutional import Statistics
from jaxemb.transforms.base import Context, Trained, Transform
from jaxemb.trees import PyTree


def running_statistics(momentum: float = 0.1) -> Transform:
    """Moves the running statistics of the model's batch norms: `running <- running + momentum (batch - running)`.

    They are arrays of the model without a gradient, and what the batch gave comes from the objective, in its output
    "statistics", as `objectives.classification` returns it. Whatever the optimiser would do to them, such as weight
    decay, is replaced, so in a chain place this transform last.

    Args:
      momentum: in (0, 1], of the batch, as in PyTorch.

    Raises:
      ValueError: for another momentum; in the first step, if the objective returns no statistics, or not one for each
        batch norm of the model.

    References:
      Ioffe and Szegedy 2015, arXiv 1502.03167.
    """
    if not 0 < momentum <= 1:
        raise ValueError(f"momentum must be in (0, 1]; got {momentum}")

    def updates(updates: Trained, context: Context, params: PyTree, state: PyTree) -> Trained:
        if not isinstance(context.outputs, dict) or "statistics" not in context.outputs:
            raise ValueError("running_statistics needs the objective's output 'statistics'; it returns none")
        new = jax.tree.leaves(context.outputs["statistics"], is_leaf=_is_statistics)
        old = [n for n in jax.tree.leaves(context.trained.model, is_leaf=_is_statistics) if _is_statistics(n)]
        if len(new) != len(old):
            raise ValueError(f"the model has {len(old)} batch norms; the objective's output has {len(new)} statistics")
        # Micro-batches of accumulated steps come stacked.
        moves = [
            jax.tree.map(lambda n, o: momentum * (jnp.reshape(n, (-1, *o.shape)).mean(0) - o), *pair)
            for pair in zip(new, old, strict=True)
        ]
        rest = iter(moves)
        replace = lambda node: next(rest) if _is_statistics(node) else node
        return updates._replace(model=jax.tree.map(replace, updates.model, is_leaf=_is_statistics))

    return Transform(updates=updates)


def _is_statistics(node: PyTree) -> bool:
    return isinstance(node, Statistics)
