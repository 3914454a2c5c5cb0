"""A-GEM: gradients that do not raise, to first order, the loss on records of earlier tasks."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import optax

from jaxemb.checks import checked
from jaxemb.transforms.base import Context, Task, Trained, Transform, Variables
from jaxemb.transforms.continual.replay import (
    COLUMNS,
    Reservoir,
    at_least_one,
    column_shapes,
    flat_columns,
    replayed,
    reservoir,
    reservoir_insert,
)
from jaxemb.trees import PyTree


@checked()
def agem(
    capacity: int, minibatch: int, example: Mapping[str, PyTree], *, columns: Sequence[str] = COLUMNS
) -> Transform:
    """Averaged gradient episodic memory: projects the gradient of all that is trained by `without_conflict`.

    The reference gradient is that of the objective's mean loss on a minibatch of a reservoir, which takes the data of
    a task when that ends: the first task is plain training. Other terms of the loss have no part in the reference.

    Args:
      capacity, minibatch, example, columns: as for `experience_replay`.

    Raises:
      ValueError: as `experience_replay`; at the end of a task, if the loop has no data to give.

    Source: Chaudhry et al. 2019, arXiv 1812.00420, equation 11.
    """
    at_least_one(capacity=capacity, minibatch=minibatch)
    if minibatch > capacity:
        raise ValueError(f"minibatch must be at most the capacity, {capacity}; got {minibatch}")
    shapes = column_shapes(example, columns)
    insert = jax.jit(reservoir_insert, donate_argnums=0)

    def gradients(grads: Trained, context: Context, params: PyTree, state: Reservoir) -> Trained:
        def loss(trained: Trained) -> jax.Array:
            model = context.apply(trained)
            of_memory = lambda context, batch, key: context.objective(model, batch, key)[0]
            return replayed(context._replace(trained=trained), state, minibatch, 0, of_memory)

        return without_conflict(grads, jax.grad(loss)(context.trained))

    def end_task(task: Task, context: Context, params: PyTree, state: Reservoir) -> tuple[Trained, Reservoir]:
        if task.batches is None:
            raise ValueError("agem fills its memory at the end of a task; the loop gives it no data of the task")
        state = jax.tree.map(jnp.copy, state)  # to be overwritten batch by batch; the caller keeps its own
        for batch in task.batches():
            state = insert(state, flat_columns(batch, shapes))
        return context.trained, state

    return Transform(
        init=lambda key, model: Variables(state=reservoir(key, capacity, shapes)),
        gradients=gradients,
        end_task=end_task,
    )


def without_conflict(gradient: PyTree, reference: PyTree) -> PyTree:
    """`g - (g·r / r·r) r` where `g·r < 0`, else g: the nearest gradient with `g·r >= 0`; trees of one structure."""
    along, square = optax.tree.vdot(gradient, reference), optax.tree.vdot(reference, reference)
    scale = jnp.where(along < 0, along / jnp.where(square > 0, square, 1.0), 0.0)
    return jax.tree.map(lambda g, r: (g - scale * r).astype(g.dtype), gradient, reference)
