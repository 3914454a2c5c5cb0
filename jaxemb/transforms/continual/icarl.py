"""iCaRL: exemplars chosen by herding, distillation of old classes, and prediction by nearest means of exemplars."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxemb.checks import check_finite, checked, shapes
from jaxemb.classifiers import NMCState, nmc_init, nmc_update
from jaxemb.nn import unit
from jaxemb.nn.classes import one_hot
from jaxemb.similarity import unit_rows
from jaxemb.transforms.base import Context, Task, Trained, Transform, Variables, output_of
from jaxemb.transforms.continual.replay import (
    COLUMNS,
    at_least_one,
    column_shapes,
    draw_records,
    flat_columns,
    replay_keys,
)
from jaxemb.trees import PyTree


class IcarlState(NamedTuple):
    """What iCaRL carries.

    Attributes:
      records: the exemplars, columns with M rows, those of one class together, in the order of herding.
      owner: the class of each row, int32 `[M]`; -1 for rows that are still empty.
      means: sums and numbers of the exemplars' features in unit length, by the model after the last task.
      teacher: that model.
      old, current: the classes of earlier tasks and of this one, bool `[C]`.
    """

    records: dict[str, PyTree]
    owner: jax.Array
    means: NMCState
    teacher: PyTree
    old: jax.Array
    current: jax.Array


@checked()
def icarl(
    capacity: int,
    minibatch: int,
    example: Mapping[str, PyTree],
    classes: int,
    dim: int,
    *,
    columns: Sequence[str] = COLUMNS,
) -> Transform:
    """Incremental classifier and representation learning, for the objective `classification()`, whose loss it replaces.

    The loss is the mean over the batch with a minibatch of exemplars, and over all classes seen so far, of the sigmoid
    cross-entropy. Its target is `sigmoid(teacher's logit)` for an old class, the teacher being the model after the last
    task, and whether the record is of it for a new one. At the end of a task with K classes seen so far each class has
    the first M // K of its exemplars, in the order of `herding`.

    Predictions are `nmc_logits(find_state(state, NMCState), features, "cosine")` of the features of
    `apply_transform(transform, state)`: the nearest mean of exemplars' features in unit length. Between the ends of
    tasks the means are those of the last end.

    Args:
      capacity, minibatch, example, columns: as for `experience_replay`; "label" must be among the columns.
      classes: C, of the whole stream.
      dim: D of the objective's "features".

    Raises:
      ValueError: as `experience_replay`; for columns without "label"; at the beginning of a task without classes, at
        its end without data or if the memory has fewer than one exemplar for each class.

    Source: Rebuffi et al. 2017, arXiv 1611.07725, algorithms 1 to 5.
    """
    at_least_one(capacity=capacity, minibatch=minibatch, classes=classes, dim=dim)
    if minibatch > capacity:
        raise ValueError(f"minibatch must be at most the capacity, {capacity}; got {minibatch}")
    if "label" not in columns:
        raise ValueError(f"columns must have 'label'; got {', '.join(columns)}")
    shapes = column_shapes(example, columns)

    def init(key: jax.Array, model: PyTree) -> Variables:
        empty = lambda leaf: jnp.zeros((capacity, *leaf.shape[1:]), leaf.dtype)
        records, nothing = jax.tree.map(empty, shapes), jnp.zeros(classes, bool)
        owner = jnp.full(capacity, -1, jnp.int32)
        return Variables(state=IcarlState(records, owner, nmc_init(classes, dim), model, nothing, nothing))

    def begin_task(task: Task, context: Context, params: PyTree, state: IcarlState) -> tuple[Trained, IcarlState]:
        if task.classes is None:
            raise ValueError("icarl needs the classes of a task; the loop gives none")
        return context.trained, state._replace(current=jnp.asarray(task.classes) & ~state.old)

    def loss(losses: jax.Array, context: Context, params: PyTree, state: IcarlState) -> jax.Array:
        filled = state.owner >= 0
        key_rows, key_model = replay_keys(context.key)
        rows, weights = draw_records(key_rows, state.records, filled, minibatch)

        def of(batch: PyTree, logits: jax.Array) -> jax.Array:
            taught = context.objective(state.teacher, batch, None)[1]["logits"]
            return icarl_loss(logits, taught, batch["label"], state.old, state.current)

        def of_exemplars() -> jax.Array:
            batch = context.prepare({**context.raw_batch, **rows}, context.trained, key_model)
            return weights * of(batch, context.objective(context.model, batch, key_model)[1]["logits"])

        new = of(context.batch, output_of(context, "logits", "icarl", classes))
        old = jax.lax.cond(filled.any(), of_exemplars, lambda: jnp.zeros_like(weights))
        together = jnp.concatenate([new, old])
        counted = len(new) + jnp.where(filled.any(), jnp.sum(weights), 0.0)
        return together * (len(together) / counted)

    @functools.partial(jax.jit, static_argnums=0)  # once, not once per task
    def features_by(objective: Callable, model: PyTree, batch: PyTree) -> jax.Array:
        return unit(objective(model, batch, None)[1]["features"])

    def end_task(task: Task, context: Context, params: PyTree, state: IcarlState) -> tuple[Trained, IcarlState]:
        if task.batches is None:
            raise ValueError("icarl chooses exemplars at the end of a task; the loop gives it no data of the task")
        model = context.apply(context.trained)
        features = functools.partial(features_by, context.objective, model)
        batches = list(task.batches())
        found = np.concatenate([np.asarray(features(batch)) for batch in batches])
        host = [jax.tree.map(np.asarray, flat_columns(batch, shapes)) for batch in batches]
        data = jax.tree.map(lambda *parts: np.concatenate(parts), *host)

        records, owner = _exemplars(state, data, found)
        batch = {**batches[0], **records}
        means = nmc_update(nmc_init(classes, dim), features(batch), jnp.asarray(owner), jnp.asarray(owner >= 0))
        nothing = jnp.zeros(classes, bool)
        kept = jax.tree.map(jnp.asarray, records)
        return context.trained, IcarlState(kept, jnp.asarray(owner), means, model, state.old | state.current, nothing)

    return Transform(init=init, begin_task=begin_task, loss=loss, end_task=end_task)


def _exemplars(
    state: IcarlState, data: dict[str, PyTree], features: np.ndarray
) -> tuple[dict[str, PyTree], np.ndarray]:
    """The records of M // K exemplars of each class seen, and their classes; those of new classes by herding."""
    old, seen = np.asarray(state.owner), np.flatnonzero(state.old | state.current)
    if (each := len(old) // len(seen)) < 1:
        raise ValueError(f"a memory of {len(old)} has no place for an exemplar of each of {len(seen)} classes")
    parts, owners = [], []
    for c in seen:
        if state.old[c]:
            source, rows = state.records, np.flatnonzero(old == c)[:each]
        else:
            own = np.flatnonzero(data["label"] == c)
            source, rows = data, own[herding(features[own], min(each, len(own)))]
        parts.append(jax.tree.map(lambda leaf, rows=rows: np.asarray(leaf)[rows], source))
        owners.append(np.full(len(rows), c, np.int32))
    count = sum(map(len, owners))
    padded = lambda old, *new: np.concatenate([*new, np.zeros_like(np.asarray(old)[count:])])
    records = jax.tree.map(padded, state.records, *parts)
    return records, np.concatenate([*owners, np.full(len(old) - count, -1, np.int32)])


def icarl_loss(
    logits: jax.Array, taught: jax.Array, labels: jax.Array, old: jax.Array, current: jax.Array
) -> jax.Array:
    """`mean over c in old and current of BCE(sigmoid(z_c), t_c)`, `t_c` = sigmoid(taught_c) if c is old, else [c = y].

    Args:
      logits, taught: of the model and of its teacher, `[N, C]`.
      labels: int `[N]`.
      old, current: classes, bool `[C]`.

    Returns:
      f32 `[N]`.
    """
    targets = jnp.where(old, jax.nn.sigmoid(taught), one_hot(labels, logits.shape[-1]))
    values = optax.losses.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), jax.lax.stop_gradient(targets))
    seen = old | current
    return jnp.sum(jnp.where(seen, values, 0.0), axis=-1) / jnp.maximum(jnp.sum(seen), 1)


@checked(shapes(features="N D"), features=check_finite)
def herding(features: np.ndarray, count: int) -> np.ndarray:
    """Rows whose means approach the mean of all as fast as they can, best first: every prefix is a good choice too.

    With `f_i` the features in unit length, mu their mean and `w = mu`, repeatedly: take the i not yet taken with the
    largest `w·f_i`, then `w <- w + mu - f_i`.

    Args:
      features: `[N, D]`.
      count: rows to choose, 0..N.

    Returns:
      Row numbers, int `[count]`; the first of equal ones is taken.

    Raises:
      ValueError: for a count outside 0..N or features that are not finite.

    Source: Welling 2009; Rebuffi et al. 2017, algorithm 4, whose argmin is this argmax for features of unit length.
    """
    if not 0 <= count <= len(features):
        raise ValueError(f"count must be in 0..{len(features)}; got {count}")
    x = unit_rows(np.asarray(features, np.float64))
    mean = x.mean(axis=0) if len(x) else x.sum(axis=0)
    w, free, chosen = mean.copy(), np.ones(len(x), bool), np.zeros(count, np.int64)
    for k in range(count):
        chosen[k] = best = int(np.argmax(np.where(free, x @ w, -np.inf)))
        free[best] = False
        w += mean - x[best]
    return chosen
