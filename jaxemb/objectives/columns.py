"""Objectives that encode the text columns of a batch and compare their embeddings."""

import dataclasses
import functools
import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxemb.checks import checked
from jaxemb.objectives.chunks import in_chunks
from jaxemb.types import Tokens, concatenate

Batch = dict[str, Any]
Objective = Callable[[Any, Batch, jax.Array | None], tuple[jax.Array, dict[str, jax.Array]]]

Embeddings = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class ColumnsObjective:
    """An `Objective` in two halves, so that what changes the embeddings that a loss sees can stand between them.

    Attributes:
      embed: `(model, batch, key) -> {column: [N, K, D]}`, the embeddings of the K texts of each record; objectives that
        want several layers put an axis of layers before D.
      losses: `(embeddings, batch, key) -> [N]`.
      output: of a column's embeddings, those that the model gives when it is called, `[N, K, D]`.
    """

    embed: Callable[[Any, Batch, jax.Array | None], Embeddings]
    losses: Callable[[Embeddings, Batch, jax.Array | None], jax.Array]
    output: Callable[[jax.Array], jax.Array] = lambda embeddings: embeddings

    def __call__(self, model, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, Embeddings]:
        embeddings = self.embed(model, batch, key)
        outputs = {name: self.output(e) for name, e in embeddings.items()}
        return self.losses(embeddings, batch, key), {n: e[:, 0] if e.shape[1] == 1 else e for n, e in outputs.items()}


@checked()
def on_columns(
    loss: Callable[..., jax.Array],
    *columns: str,
    others: Sequence[str] | Mapping[str, str] = (),
    chunk: int | None = None,
    **named_columns: str,
) -> ColumnsObjective:
    """The objective `loss(embeddings of each column, ..., name=batch[name] for the others)`.

        on_columns(cosent, "first", "second", others={"scores": "score"})  # the argument: the column
        on_columns(info_nce, "query", "document", negatives="negative", chunk=128)
        on_columns(margin_mse, "query", "document", "negatives", others={"teacher_scores": "scores"})

    Every use of a column has dropout of its own: a column that is named twice is encoded twice, and the two embeddings
    of a text differ, as SimCSE wants, where a key is given and the model drops out. Without a key they are the same and
    it is encoded once. Columns whose rows have the same length go through the model together, which compiles it once
    and fills larger matrices. With K texts per record a column's embeddings are `[N, K, D]`. A positional column with
    one text per record gives `[N, D]`; a named column always gives `[N, K, D]`, also for K = 1.

        on_columns(functools.partial(info_nce, temperature=0.05), "text", "text")  # SimCSE

    Args:
      loss: embeddings to one value per record, `[N]`.
      columns: names of the text columns, in the order of the loss's positional arguments.
      others: names of the batch's arrays (scores, labels) that the loss takes as keyword arguments of the same name; or
        the names of its keyword arguments = those of the arrays.
      chunk: rows of tokens that go through the model at a time, so that memory does not grow with the batch (see
        `in_chunks`); None for all of them at once.
      named_columns: the loss's keyword argument = name of the text column that it takes.

    Returns:
      An `Objective`. Its outputs are the embeddings by column name, those of further uses as "text#2", "text#3". It can
      be made to train several sizes of the model at once, see `matryoshka`, `adaptive_layers`, `matryoshka_2d` and
      `starbucks`.

    Raises:
      TypeError: if the loss does not take these arguments, or needs others.
      ValueError: when called, if the batch lacks a column, a column's number of texts is no multiple of the number of
        records, or the loss does not give one value per record.
    """
    uses = _uses((*columns, *named_columns.values()))
    wanted = tuple(dict.fromkeys(uses.values()))
    arrays = dict(others) if isinstance(others, Mapping) else {name: name for name in others}
    if not wanted:
        raise ValueError("on_columns needs at least one text column")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1 row; got {chunk}")
    _check_arguments(loss, columns, {**named_columns, **arrays})

    def embed(model, batch: Batch, key: jax.Array | None) -> Embeddings:
        if missing := [name for name in (*wanted, *arrays.values(), "id") if name not in batch]:
            raise ValueError(f"the batch has no {', '.join(missing)}; it has {', '.join(sorted(batch))}")
        if others_named := [name for name in wanted if not isinstance(batch[name], Tokens)]:
            name = others_named[0]
            raise ValueError(f"columns must be texts; of numbers, give others={{'argument of the loss': {name!r}}}")
        if texts := [name for name in arrays.values() if isinstance(batch[name], Tokens)]:
            raise ValueError(
                f"others must be numbers; column {texts[0]!r} has texts, as the numbers of csv and tsv files are, too, "
                f"unless they are read with types={{{texts[0]!r}: float}}"
            )
        records = batch["id"].shape[0]
        if key is None:  # one encoding, whatever the number of uses
            found = _embed({name: batch[name] for name in wanted}, model, None, chunk)
            found = {use: found[name] for use, name in uses.items()}
        else:
            found = _embed({use: batch[name] for use, name in uses.items()}, model, key, chunk)
        return {use: _by_record(e, records, uses[use]) for use, e in found.items()}

    def losses_of(embeddings: Embeddings, batch: Batch, key: jax.Array | None) -> jax.Array:
        in_order = [embeddings[use] for use in uses]
        positional = [e[:, 0] if e.shape[1] == 1 else e for e in in_order[: len(columns)]]
        keyword = dict(zip(named_columns, in_order[len(columns) :], strict=True))
        losses = loss(*positional, **keyword, **{argument: batch[name] for argument, name in arrays.items()})
        if jnp.shape(losses) != batch["id"].shape:
            expected = f"the loss must give one value per record, {batch['id'].shape}"
            given = [f"{list(e.shape)}" for e in positional] + [f"{n} {list(e.shape)}" for n, e in keyword.items()]
            hint = ": leave the mean to the train step" if jnp.ndim(losses) == 0 else f", of {', '.join(given)}"
            raise ValueError(f"{expected}; got {jnp.shape(losses)}{hint}")
        return losses

    return ColumnsObjective(embed, losses_of)


def _check_arguments(loss: Callable[..., jax.Array], columns: Sequence[str], named: Mapping[str, str]) -> None:
    try:
        signature = inspect.signature(loss)
    except (TypeError, ValueError):  # it has none
        return
    try:
        signature.bind(*columns, **named)
    except TypeError as error:
        function = loss.func if isinstance(loss, functools.partial) else loss
        name = getattr(function, "__name__", type(function).__name__)
        raise TypeError(
            f"columns: {error}; the loss is {name}({', '.join(signature.parameters)}), and "
            "others={'argument': 'column'} gives an argument the numbers of a column"
        ) from None


def text_column(batch: Batch, column: str) -> Tokens:
    """The texts of a column with one text per record.

    Raises:
      ValueError: if the batch has no such column, or the column another number of texts.
    """
    if column not in batch:
        raise ValueError(f"the batch has no {column}; it has {', '.join(sorted(batch))}")
    tokens = batch[column]
    if tokens.count != len(batch["id"]):
        raise ValueError(f"column {column!r} must have one text per record; got {tokens.count}, {len(batch['id'])}")
    return tokens


def _uses(names: Sequence[str]) -> dict[str, str]:
    """What each use of a column is called, in order: by the column's name, the second one "name#2"."""
    seen: Counter[str] = Counter()
    uses = {}
    for name in names:
        seen[name] += 1
        uses[name if seen[name] == 1 else f"{name}#{seen[name]}"] = name
    return uses


def _embed(columns: dict[str, Tokens], model, key: jax.Array | None, chunk: int | None) -> dict[str, jax.Array]:
    """The embeddings of every column, one call of the model for all that have the same layout of rows."""
    groups: dict[Any, list[str]] = {}
    for name, tokens in columns.items():
        groups.setdefault((tokens.ids.shape[1:], tokens.texts_per_row, tokens.type_ids is None), []).append(name)
    keys = [None] * len(groups) if key is None else jax.random.split(key, len(groups))
    embeddings: dict[str, jax.Array] = {}
    for names, group_key in zip(groups.values(), keys, strict=True):
        tokens = concatenate([columns[name] for name in names])
        if chunk is None:
            together = model(tokens, key=group_key)
        else:
            slots = dataclasses.replace(tokens, slots=None)
            together = in_chunks(lambda model, rows, key: model(rows, key=key), chunk)(model, slots, group_key)
            together = together if tokens.slots is None else together[tokens.slots]
        ends = np.cumsum([columns[name].count for name in names])
        embeddings |= dict(zip(names, jnp.split(together, ends[:-1]), strict=True))
    return {name: embeddings[name] for name in columns}


def _by_record(embeddings: jax.Array, records: int, name: str) -> jax.Array:
    """`[N * K, ..., D]` to `[N, K, ..., D]`."""
    texts, *rest = embeddings.shape
    if texts % records:
        raise ValueError(f"column {name!r} has {texts} texts, which is no multiple of the {records} records")
    return embeddings.reshape(records, texts // records, *rest)
