"""The running statistics of batch norm."""

import jax
import jax.numpy as jnp

from jaxemb.checks import checked
from jaxemb.encoders.convolutional import Statistics
from jaxemb.transforms.base import Context, Trained, Transform, output_of
from jaxemb.trees import PyTree


@checked()
def running_statistics(momentum: float = 0.1) -> Transform:
    """Moves the running statistics of the model's batch norms: `running <- running + momentum (batch - running)`.

    They are arrays of the model that the optimiser does not train; what the batch gave comes from the objective, in its
    output "statistics", as `objectives.classification` returns it. They move whatever other transforms freeze.

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

    def trains(model: PyTree) -> PyTree:
        frozen = lambda node: jax.tree.map(lambda _: not _is_one(node), node)
        return jax.tree.map(frozen, model, is_leaf=_is_one)

    def updates(updates: Trained, context: Context, params: PyTree, state: PyTree) -> Trained:
        new, old = _all(output_of(context, "statistics", "running_statistics")), _all(context.stored)
        if len(new) != len(old):
            raise ValueError(f"the model has {len(old)} batch norms; the objective's output has {len(new)} statistics")
        # Micro-batches of accumulated steps come stacked.
        move = lambda n, o: momentum * (jnp.reshape(n, (-1, *o.shape)).mean(0) - o)
        moves = iter([jax.tree.map(move, *pair) for pair in zip(new, old, strict=True)])
        replace = lambda node: next(moves) if _is_one(node) else node
        return updates._replace(model=jax.tree.map(replace, updates.model, is_leaf=_is_one))

    return Transform(trains=trains, updates=updates)


def _is_one(node: PyTree) -> bool:
    return isinstance(node, Statistics)


def _all(tree: PyTree) -> list[Statistics]:
    return [node for node in jax.tree.leaves(tree, is_leaf=_is_one) if _is_one(node)]
