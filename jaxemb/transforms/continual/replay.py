"""Replay: a reservoir of earlier records, and the methods that train on it (ER, DER, DER++, ER-ACE)."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxemb.checks import checked
from jaxemb.nn.classes import class_cross_entropy
from jaxemb.objectives.classification import competing
from jaxemb.transforms.base import Context, Transform, Variables, output_of
from jaxemb.trees import PyTree

COLUMNS = ("input", "label")


class Reservoir(NamedTuple):
    """A uniform sample of all records that were ever offered.

    Attributes:
      records: columns with M rows each; rows from `seen` on are still zeros.
      seen: number of records offered, int32 scalar.
      key: that of all the draws; the draw for the n-th record depends on it and on n alone.
    """

    records: dict[str, PyTree]
    seen: jax.Array
    key: jax.Array


def reservoir(key: jax.Array, capacity: int, example: Mapping[str, PyTree]) -> Reservoir:
    """The empty reservoir of `capacity` rows.

    Args:
      key: of the draws.
      capacity: M, at least 1.
      example: columns whose rows are like those to be kept, arrays or shapes (`jax.ShapeDtypeStruct`) `[N, ...]`.

    Raises:
      ValueError: for a capacity below 1.
    """
    at_least_one(capacity=capacity)
    empty = lambda leaf: jnp.zeros((capacity, *leaf.shape[1:]), leaf.dtype)
    return Reservoir(jax.tree.map(empty, dict(example)), jnp.zeros((), jnp.int32), key)


def reservoir_insert(state: Reservoir, records: Mapping[str, PyTree]) -> Reservoir:
    """Offers N records, one after another: the n-th record of all (from 0) goes to slot n if n < M, else to a slot r,
    uniform in 0..n, if r < M. After n records each of them is kept with probability M / n.

    The result does not depend on how the records are split into batches, nor on devices or hosts.

    Args:
      state: capacity M.
      records: the columns of `state.records`, with N rows each.

    Source: Vitter 1985, algorithm R.
    """
    capacity = jax.tree.leaves(state.records)[0].shape[0]
    count = jax.tree.leaves(records)[0].shape[0]
    number = state.seen + jnp.arange(count, dtype=jnp.int32)
    draw = jax.vmap(lambda n: jax.random.randint(jax.random.fold_in(state.key, n), (), 0, n + 1))
    slot = jnp.where(number < capacity, number, draw(number))
    # Of several records that go to one slot the last one stays; the others go past the end, where nothing is written.
    place = jnp.arange(count, dtype=jnp.int32)
    last = jnp.full(capacity, -1, jnp.int32).at[slot].max(place, mode="drop")
    target = jnp.where(last.at[slot].get(mode="fill", fill_value=-1) == place, slot, capacity + place)

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        # In place, where `state` may be overwritten: only the rows of the new records are touched.
        return old.at[target].set(jnp.asarray(new).astype(old.dtype), mode="drop", unique_indices=True)

    return Reservoir(jax.tree.map(put, state.records, dict(records)), state.seen + count, state.key)


def draw_records(
    key: jax.Array, records: Mapping[str, PyTree], filled: jax.Array, count: int
) -> tuple[dict[str, PyTree], jax.Array]:
    """`count` random rows of those for which `filled` (bool `[M]`) holds, without replacement.

    Returns:
      The rows, and their weights, f32 `[count]`: 1, but 0 for repetitions, where fewer rows than `count` are filled.
    """
    capacity = filled.shape[0]
    order = jnp.argsort(jnp.where(filled, jax.random.uniform(key, (capacity,)), 2.0))
    available = jnp.sum(filled)
    place = jnp.arange(count)
    rows = order[place % jnp.maximum(available, 1) % capacity]
    return jax.tree.map(lambda leaf: leaf[rows], dict(records)), (place < available).astype(jnp.float32)


@checked()
def experience_replay(
    capacity: int,
    minibatch: int,
    example: Mapping[str, PyTree],
    *,
    columns: Sequence[str] = COLUMNS,
    weight: float = 1.0,
) -> Transform:
    """ER: `loss + weight * mean over a minibatch of the reservoir of the objective's losses`.

    The reservoir takes every batch after the step on it. It keeps `columns`, and the "id" of records if the example has
    it; what else the objective reads, such as the "classes" that compete, is that of the current batch. Where classes
    compete by task, keep "classes" too: each record then competes among those of its own time. Inputs are kept as they
    come, so augment in the objective.

    With minibatches as large as the batch and half of the learning rate, it is training on the two concatenated.

    Args:
      capacity: M, records that are kept.
      minibatch: records that are replayed in a step, at most M.
      example: a batch, or its shapes; only the shapes and types of `columns` count.
      columns: see above.
      weight: > 0.

    Raises:
      ValueError: for a capacity or minibatch below 1, a minibatch above the capacity, a weight that is not positive,
        or an example that lacks one of the columns.

    Source: Chaudhry et al. 2019, arXiv 1902.10486; Riemer et al. 2019, arXiv 1810.11910.
    """
    shapes = _prepare(capacity, minibatch, example, columns)
    _positive(weight=weight)

    def auxiliary_loss(context: Context, params: PyTree, state: Reservoir) -> jax.Array:
        return weight * replayed(context, state, minibatch, 0, plain_loss)

    return Transform(
        init=lambda key, model: Variables(state=reservoir(key, capacity, shapes)),
        auxiliary_loss=auxiliary_loss,
        after_step=lambda context, params, state: reservoir_insert(state, flat_columns(context.raw_batch, shapes)),
    )


@checked()
def der(
    capacity: int,
    minibatch: int,
    example: Mapping[str, PyTree],
    dim: int,
    *,
    alpha: float = 0.5,
    beta: float = 0.0,
    output: str = "logits",
    columns: Sequence[str] = COLUMNS,
) -> Transform:
    """Dark experience replay: the model is held to what it said when it first saw a record.

        loss + alpha * mean_{n,c} (z_n,c - z'_n,c)^2 + beta * mean over other records of the objective's losses

    z is the objective's `output` of a replayed record and z' the one it had in the step in which the record was
    inserted, never refreshed; the two minibatches are drawn independently. With beta > 0 it is DER++.

    Args:
      capacity, minibatch, example, columns: as for `experience_replay`.
      dim: C, of the output, `[N, C]`; "features" and any other output that the objective returns will do.
      alpha: > 0.
      beta: >= 0.
      output: name of the objective's output.

    Raises:
      ValueError: as `experience_replay`; for a dim below 1, an alpha that is not positive or a negative beta; in the
        first step, if the objective has no such output or its shape is another.

    Source: Buzzega et al. 2020, arXiv 2004.07211, section 3.
    """
    shapes = _prepare(capacity, minibatch, example, columns)
    at_least_one(dim=dim)
    _positive(alpha=alpha)
    if beta < 0:
        raise ValueError(f"beta must be >= 0; got {beta}")

    def init(key: jax.Array, model: PyTree) -> Variables:
        remembered = jax.ShapeDtypeStruct((1, dim), jnp.float32)
        return Variables(state=reservoir(key, capacity, {**shapes, _OUTPUT: remembered}))

    def distil(context: Context, batch: Mapping[str, PyTree], key: jax.Array) -> jax.Array:
        now = context.objective(context.model, batch, key)[1][output]
        return jnp.mean(jnp.square(now.astype(jnp.float32) - batch[_OUTPUT]), axis=-1)

    def auxiliary_loss(context: Context, params: PyTree, state: Reservoir) -> jax.Array:
        output_of(context, output, "replay", dim)
        term = alpha * replayed(context, state, minibatch, 0, distil)
        return term + beta * replayed(context, state, minibatch, 1, plain_loss) if beta else term

    def after_step(context: Context, params: PyTree, state: Reservoir) -> Reservoir:
        said = jax.lax.stop_gradient(context.outputs[output]).reshape(-1, dim)
        return reservoir_insert(state, {**flat_columns(context.raw_batch, shapes), _OUTPUT: said})

    return Transform(init=init, auxiliary_loss=auxiliary_loss, after_step=after_step)


@checked()
def der_plus_plus(
    capacity: int, minibatch: int, example: Mapping[str, PyTree], dim: int, *, beta: float = 0.5, **options: Any
) -> Transform:
    """DER++: `der`, whose `options` it takes, with the replayed records' own losses too, weighted by beta > 0."""
    _positive(beta=beta)
    return der(capacity, minibatch, example, dim, beta=beta, **options)


class AceState(NamedTuple):
    """The reservoir, and the classes seen before this step, bool `[C]`."""

    memory: Reservoir
    seen: jax.Array


@checked()
def er_ace(
    capacity: int,
    minibatch: int,
    example: Mapping[str, PyTree],
    classes: int,
    *,
    columns: Sequence[str] = COLUMNS,
) -> Transform:
    """ER with asymmetric cross-entropy, for the objective `classification()`, whose loss it replaces.

    In the softmax of the current batch only its own classes compete, and those never seen so far: old classes, which
    the batch lacks, are not pushed down. In that of the replayed records all of the batch's "classes" compete.

    Args:
      capacity, minibatch, example, columns: as for `experience_replay`.
      classes: C, of the logits `[N, C]`.

    Raises:
      ValueError: as `experience_replay`; in the first step, if the objective has no logits `[N, C]`.

    Source: Caccia et al. 2022, arXiv 2104.05025, section 4.
    """
    shapes = _prepare(capacity, minibatch, example, columns)
    at_least_one(classes=classes)

    def init(key: jax.Array, model: PyTree) -> Variables:
        return Variables(state=AceState(reservoir(key, capacity, shapes), jnp.zeros(classes, bool)))

    def present(labels: jax.Array) -> jax.Array:
        return jnp.zeros(classes, bool).at[labels.reshape(-1)].set(True)

    def loss(losses: jax.Array, context: Context, params: PyTree, state: AceState) -> jax.Array:
        labels = context.batch["label"]
        logits = competing(output_of(context, "logits", "er_ace", classes), context.batch.get("classes"))
        asymmetric = competing(logits, present(labels) | ~state.seen)
        return class_cross_entropy(asymmetric, labels)

    def auxiliary_loss(context: Context, params: PyTree, state: AceState) -> jax.Array:
        return replayed(context, state.memory, minibatch, 0, plain_loss)

    def after_step(context: Context, params: PyTree, state: AceState) -> AceState:
        memory = reservoir_insert(state.memory, flat_columns(context.raw_batch, shapes))
        return AceState(memory, state.seen | present(context.batch["label"]))

    return Transform(init=init, loss=loss, auxiliary_loss=auxiliary_loss, after_step=after_step)


def replayed(
    context: Context,
    state: Reservoir,
    minibatch: int,
    draw: int,
    losses: Callable[[Context, Mapping[str, PyTree], jax.Array], jax.Array],
) -> jax.Array:
    """The mean of `losses(context, batch, key) -> [minibatch]` over a draw from the reservoir; 0 while it is empty.

    Columns that the reservoir does not keep are those of the current batch (where micro-batches come stacked, of the
    first). Draws of other numbers are independent.
    """
    key_rows, key_model = replay_keys(context.key, draw)
    capacity = jax.tree.leaves(state.records)[0].shape[0]
    rows, weights = draw_records(key_rows, state.records, jnp.arange(capacity) < state.seen, minibatch)
    others = jax.tree.map(lambda leaf: leaf[0], context.raw_batch) if context.stacked else context.raw_batch
    others = {**others, "id": -1 - jnp.arange(minibatch)}  # as many, and no records of the batch, if it keeps no ids

    def mean() -> jax.Array:
        batch = context.prepare({**others, **rows}, context.trained, key_model)
        values = losses(context, batch, key_model)
        return jnp.sum(values.astype(jnp.float32) * weights) / jnp.sum(weights)

    return jax.lax.cond(state.seen > 0, mean, lambda: jnp.zeros(()))


def replay_keys(key: jax.Array, draw: int = 0) -> jax.Array:
    """Keys of a step's draw of records and of the model on them; different for every number of a draw."""
    return jax.random.split(jax.random.fold_in(key, draw))


def plain_loss(context: Context, batch: Mapping[str, PyTree], key: jax.Array) -> jax.Array:
    """The objective's own losses of the current model."""
    return context.objective(context.model, batch, key)[0]


def flat_columns(batch: Mapping[str, PyTree], shapes: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """The columns of `shapes` with one row per record: micro-batches, which come stacked, one after another.

    Raises:
      ValueError: if the batch lacks one of the columns, or its rows have another shape.
    """
    if missing := [name for name in shapes if name not in batch]:
        raise ValueError(f"the memory keeps {', '.join(missing)}; the batch has {', '.join(sorted(batch))}")
    leading = lambda leaf, like: math.prod(leaf.shape[: leaf.ndim - like.ndim + 1])
    rows = max(jax.tree.leaves({name: jax.tree.map(leading, batch[name], shapes[name]) for name in shapes}))

    def flat(name: str, leaf: jax.Array, like: Any) -> jax.Array:
        row = tuple(like.shape[1:])
        if leaf.shape == row:  # one for the whole batch, such as the classes that compete
            leaf = jnp.broadcast_to(leaf, (rows, *row))
        if leaf.shape[leaf.ndim - len(row) :] != row:
            raise ValueError(f"the memory keeps {name} of shape [N, {', '.join(map(str, row))}]; got {leaf.shape}")
        return leaf.reshape(-1, *row)

    return {
        name: jax.tree.map(lambda leaf, like, name=name: flat(name, leaf, like), batch[name], shapes[name])
        for name in shapes
    }


def column_shapes(example: Mapping[str, PyTree], columns: Sequence[str]) -> dict[str, PyTree]:
    """Shapes and types `[N, ...]` of the example's columns, and of its "id" if it has it.

    Classes `[C]` that compete in a batch become `[1, C]`.

    Raises:
      ValueError: if the example lacks one of them.
    """
    if missing := [name for name in columns if name not in example]:
        has = f"the example has {', '.join(sorted(example))}, but no {', '.join(missing)}"
        raise ValueError(f"{has}; name the columns to keep: columns=(...)")

    def shape(leaf: Any, name: str) -> jax.ShapeDtypeStruct:
        leaf = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else np.asarray(leaf)
        dims = (1, *leaf.shape) if name == "classes" and len(leaf.shape) == 1 else leaf.shape
        return jax.ShapeDtypeStruct(dims, jax.dtypes.canonicalize_dtype(leaf.dtype))

    kept = dict.fromkeys([*columns, *({"id"} & example.keys())])
    return {name: jax.tree.map(lambda leaf, name=name: shape(leaf, name), example[name]) for name in kept}


_OUTPUT = "remembered output"


def _prepare(capacity: int, minibatch: int, example: Mapping[str, PyTree], columns: Sequence[str]) -> dict[str, PyTree]:
    at_least_one(capacity=capacity, minibatch=minibatch)
    if minibatch > capacity:
        raise ValueError(f"minibatch must be at most the capacity, {capacity}; got {minibatch}")
    return column_shapes(example, columns)


def at_least_one(**values: int) -> None:
    """Raises ValueError for an argument below 1, by its name."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be > 0; got {value}")
