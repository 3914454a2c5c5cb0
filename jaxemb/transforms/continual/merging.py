"""Merging at the end of every task: the model of this task with those before it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxemb.checks import checked
from jaxemb.transforms.base import Context, Task, Trained, Transform, Variables
from jaxemb.trees import PyTree


class TaskModels(NamedTuple):
    """What there is to merge at the end of a task.

    Attributes:
      initial: the model before the first task.
      previous: the model at the start of this task: for all tasks before, merged.
      current: the model at its end.
      number: that of the task, from 0.
    """

    initial: PyTree
    previous: PyTree
    current: PyTree
    number: int


class MergeState(NamedTuple):
    """The models before the first and before this task."""

    initial: PyTree
    previous: PyTree


@checked()
def merge_after_task(merge: Callable[[TaskModels], PyTree], *, first: bool = False) -> Transform:
    """Replaces the model by `merge(TaskModels(...))` at the end of every task; training within tasks is left unchanged.

        running average   merge_average([m.current, m.previous], [1, m.number])
        SLERP             merge_slerp(m.previous, m.current, 0.5)
        TIES              merge_ties(m.initial, [task_vector(x, m.initial) for x in (m.previous, m.current)])

    with `m` the `TaskModels` and the functions of `jaxemb.merging`. Tensors that only this task trained (the logits of
    its classes) are better left out of an average (`include`), which leaves them as in the first model it is given.

    It is the stored model that is merged, without the parameters of other transforms of a chain.

    Args:
      merge: gives a model like `current`.
      first: also merge at the end of task 0, whose `previous` is `initial`.

    Raises:
      ValueError: at the end of a task, if what `merge` gives has another structure, shape or dtype than the model.
    """

    def init(key: jax.Array, model: PyTree) -> Variables:
        return Variables(state=MergeState(model, model))

    def begin_task(task: Task, context: Context, params: PyTree, state: MergeState) -> tuple[Trained, MergeState]:
        return context.trained, state._replace(previous=context.trained.model)

    def end_task(task: Task, context: Context, params: PyTree, state: MergeState) -> tuple[Trained, MergeState]:
        if task.number == 0 and not first:
            return context.trained, state
        current = context.trained.model
        merged = merge(TaskModels(state.initial, state.previous, current, task.number))
        if _kind(merged) != _kind(current):
            raise ValueError("merge must give a model with the structure, shapes and dtypes of the current one")
        return context.trained._replace(model=merged), state

    return Transform(init=init, begin_task=begin_task, end_task=end_task)


def _kind(model: PyTree):
    return jax.tree.structure(model), [(jnp.shape(x), jnp.result_type(x)) for x in jax.tree.leaves(model)]
