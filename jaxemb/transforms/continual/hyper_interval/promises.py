"""The promise of a record, and who keeps it: HyperInterval's guarantee over time.

When task t has just been learnt, with the parameters that are kept and the full gamma, the *promise* of each of its
records (x, y) is the worst-case loss over the task's box of weights,

    promise(x, y) = CE(ẑ(x), y),  ẑ_j the lower bound of the logit for j = y, else the upper.

It is one number a record; no data are stored. `run_stream` gives the records of an epoch's whole batches; what is left
out of them has no promise. At any later time, `CE(f(x; theta), y) <= promise(x, y)` for all weights
theta in the box as it was: for those of every embedding in the intersection of the nested boxes as long as the
hypernetwork maps task t's box to the same box of weights (`HyperIntervalState.residual` 0). Where it has moved, only
`promise_report` can tell. The worst case *recomputed* with the present hypernetwork always bounds the present loss, and
says nothing about forgetting. Without nesting, with the "relaxed" target, or for `radius="official"`, nothing is
guaranteed.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxemb.checks import checked, having_keys, non_negative
from jaxemb.transforms.base import Context, Task, Transform, find_state
from jaxemb.transforms.continual.hyper_interval.boxes import present_weights
from jaxemb.transforms.continual.hyper_interval.config import (
    HyperIntervalConfig,
    HyperIntervalParams,
    HyperIntervalState,
)
from jaxemb.transforms.continual.hyper_interval.losses import box_losses, cross_entropy
from jaxemb.transforms.continual.hyper_interval.universal import TRAINED
from jaxemb.trees import PyTree


class PromiseReport(NamedTuple):
    """How a model keeps the promises of some records.

    Attributes:
      kept_share: part of the records whose loss is at most their promise.
      max_excess: the largest loss minus its promise; negative if all are kept with a margin.
      residual: the largest of `HyperIntervalState.residual`; with 0, and weights in the box, the share must be 1.
      records: number of records that have a promise.
    """

    kept_share: float
    max_excess: float
    residual: float
    records: int


def recorded(
    config: HyperIntervalConfig, task: Task, context: Context, params: HyperIntervalParams, state: HyperIntervalState
) -> jax.Array:
    """`HyperIntervalState.promises` with those of a task that has just been learnt; `params` are those that are kept.

    Raises:
      ValueError: if the loop gives the task no batches, they have no "id", or one that is not below `config.records`.
    """
    if not config.records:
        return state.promises
    if task.batches is None:
        raise ValueError(f"records = {config.records} stores promises, which need the batches of the task; got none")
    state = state.for_task(jnp.asarray(task.number, jnp.int32))
    model = context.apply(context.trained._replace(params=params))
    promises = np.array(state.promises)
    for batch in task.batches():
        if "id" not in batch:
            raise ValueError(f"promises need the column 'id'; the batch has {', '.join(sorted(batch))}")
        if (ids := np.asarray(batch["id"])).min() < 0 or ids.max() >= config.records:
            raise ValueError(f"ids must be in [0, {config.records}), the config's records; got {ids.max()}")
        promises[ids] = _worst_case_losses(config, model, context.stored, params, state, batch)
    return jnp.asarray(promises)


@functools.partial(jax.jit, static_argnums=0)
def _worst_case_losses(config: HyperIntervalConfig, model: PyTree, stored: PyTree, params, state, batch) -> jax.Array:
    return box_losses(config, model, stored, present_weights(config, params, state, stored), batch, kappa=0.0)


@checked(state=TRAINED, tolerance=non_negative)
def promise_report(
    config: HyperIntervalConfig,
    transform: Transform,
    state: PyTree,
    records: Mapping[str, Any],
    *,
    tolerance: float = 1e-4,
) -> PromiseReport:
    """Compares the losses of records, with the model that the state applies, with their stored promises.

    Args:
      config: that of the method, with `records`.
      transform: the method, or a chain with it.
      state: the train state: `at_task(state, t)`, `at_universal(config, state, radius="point")`, ...
      records: columns: inputs, labels, "id" int `[N]`, and the classes that compete, as when the task was learnt.
      tolerance: of float32, in loss.

    Raises:
      ValueError: if none of the records has a promise, or they lack a column.
    """
    having_keys("id", config.input, config.label)("records", records)
    found = find_state(state.method_state, HyperIntervalState)
    ids = np.asarray(records["id"])
    if not config.records or ids.min() < 0 or ids.max() >= config.records:
        raise ValueError(f"ids must be in [0, {config.records}), the config's records; got {ids.min()} to {ids.max()}")
    promises = np.asarray(found.promises)[ids]
    if not (known := ~np.isnan(promises)).any():
        raise ValueError("none of the records has a promise: their tasks have not ended")
    classes = records.get(config.classes)
    losses = np.asarray(_losses(transform, state, records[config.input], records[config.label], classes))
    excess = (losses - promises)[known]
    residual = float(found.residual.max())
    return PromiseReport(float(np.mean(excess <= tolerance)), float(excess.max()), residual, int(known.sum()))


@functools.partial(jax.jit, static_argnums=0)
def _losses(transform: Transform, state, inputs: PyTree, labels: jax.Array, classes: jax.Array | None) -> jax.Array:
    model = transform.model(state.model, state.method_params, state.method_state)
    return cross_entropy(model(inputs), labels, classes)
