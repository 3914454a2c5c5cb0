"""One model for all tasks: from an embedding in the intersection of their boxes."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from jaxemb.checks import checked, having
from jaxemb.interval import CentredBox
from jaxemb.transforms.base import find_state
from jaxemb.transforms.continual import hypernetwork as hyper
from jaxemb.transforms.continual.hyper_interval.boxes import task_boxes, weight_boxes
from jaxemb.transforms.continual.hyper_interval.config import (
    HyperIntervalConfig,
    HyperIntervalParams,
    HyperIntervalState,
)
from jaxemb.trees import PyTree

TRAINED = having("model", "method_params", "method_state")
"""The check of a train state."""


def boxes_of(config: HyperIntervalConfig, state: PyTree, tasks: Sequence[int] | None = None) -> CentredBox:
    """The boxes of embeddings, `[tasks, d]`, of tasks that have begun, by default all of those.

    Raises:
      ValueError: for a task that has not begun, or no tasks.
    """
    begun = int(find_state(state, HyperIntervalState).begun)
    tasks = range(begun) if tasks is None else tasks
    if not len(tasks):
        raise ValueError("tasks must not be empty; no task has begun" if not begun else "tasks must not be empty")
    for number in tasks:
        hyper.check_begun(begun, number)
    return _rows(task_boxes(config, _params(state), config.gamma), jnp.asarray(tasks))


@jax.jit
def _rows(box: CentredBox, tasks: jax.Array) -> CentredBox:
    return jax.tree.map(lambda x: x[tasks], box)


@jax.jit
def intersect_boxes(centres: jax.Array, radii: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Ends `[D]` of the intersection of boxes `[T, D]`; where it is empty, the middle of the gap twice."""
    lower, upper = jnp.max(centres - radii, axis=0), jnp.min(centres + radii, axis=0)
    middle = (lower + upper) / 2
    return jnp.where(lower <= upper, lower, middle), jnp.where(lower <= upper, upper, middle)


def universal_box(
    config: HyperIntervalConfig,
    state: PyTree,
    tasks: Sequence[int] | None = None,
    radius: Literal["official", "intersection", "point"] = "official",
) -> CentredBox:
    """The box of embeddings, `[d]`, in the middle of the intersection of the tasks' boxes.

    Args:
      config: that of the method.
      state: the train state.
      tasks: those whose boxes intersect; by default all that have begun.
      radius: "official": `gamma / d`, which may reach out of the intersection. "intersection": the intersection's own.
        "point": 0; its one weight vector lies in the weight boxes of all the tasks, if their intersection is not empty.

    Raises:
      ValueError: as `boxes_of`, or for another radius.
    """
    lower, upper = intersect_boxes(*boxes_of(config, state, tasks))
    radii = {
        "official": jnp.full_like(lower, config.gamma / config.embed_dim),
        "intersection": (upper - lower) / 2,
        "point": jnp.zeros_like(lower),
    }
    if radius not in radii:
        raise ValueError(f"radius must be one of {sorted(radii)}; got {radius!r}")
    return CentredBox((lower + upper) / 2, radii[radius])


def at_box(state: PyTree, box: CentredBox) -> PyTree:
    """The train state whose applied model has the middle weights of this box of embeddings, `[d]`."""
    find_state(state, HyperIntervalState)
    is_state = lambda node: isinstance(node, HyperIntervalState)
    change = lambda node: node._replace(given=(box, jnp.ones((), bool))) if is_state(node) else node
    return jax.tree.map(change, state, is_leaf=is_state)


@checked(state=TRAINED)
def at_universal(
    config: HyperIntervalConfig,
    state: PyTree,
    tasks: Sequence[int] | None = None,
    radius: Literal["official", "intersection", "point"] = "official",
) -> PyTree:
    """The train state whose applied model is the one for all the tasks: `at_box` of their `universal_box`.

    If the hypernetwork still maps the boxes of past tasks to the same boxes of weights (`residual` 0), then every
    embedding in the intersection makes weights in all of them, whose loss on a record is at most its promise. That is
    so for "intersection" and "point"; with a residual, `promises.promise_report` counts the promises that are kept.

    Raises:
      ValueError: as `universal_box`.
    """
    return at_box(state, universal_box(config, state, tasks, radius))


def generated_weights(config: HyperIntervalConfig, state: PyTree, tasks: Sequence[int] | None = None) -> CentredBox:
    """The boxes of weights, `[tasks, P]`, of tasks that have begun; to compare with those of a later state."""
    return weight_boxes(config, _params(state), boxes_of(config, state, tasks), state.model)


def _params(state: PyTree) -> HyperIntervalParams:
    return find_state(state.method_params, HyperIntervalParams)
