"""Batches from sources: shuffled, mixed, tokenised, sharded over processes, resumable at any batch.

The order of batches is a pure function of the seed: batch i is computed from i alone, so the position of an
iterator is one number, and resuming is exact. Work is done ahead of its use by a thread (or worker processes).
"""

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxemb.data import packing
from jaxemb.data.records import RecordError, Source, concatenate
from jaxemb.data.samplers import Epochs, Sampler
from jaxemb.data.tokenizer import Tokenizer
from jaxemb.packages import remedy
from jaxemb.types import Tokens

if TYPE_CHECKING:
    import grain

Batch = dict[str, Tokens | np.ndarray]


@dataclasses.dataclass(frozen=True)
class Text:
    """A column of texts, or of lists of K texts each.

    Attributes:
      max_length: longest text in tokens; None takes that of the batches.
      prompt: text to put in front of each, such as E5's "query: ".
    """

    max_length: int | None = None
    prompt: str = ""


@dataclasses.dataclass(frozen=True)
class Number:
    """A column of numbers: scores, labels.

    Attributes:
      dtype: of the array; None takes int32 where the first record has an int or a bool, else float32.
    """

    dtype: str | None = None


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Sources to draw batches from, each batch from one source. Made by `mixture`.

    Attributes:
      sources: at least one.
      weights: the share of batches of each source; they sum to 1.
    """

    sources: tuple[Source, ...]
    weights: tuple[float, ...]


def mixture(sources: Sequence[Source], weights: Sequence[float] | None = None, *, temperature: float = 1.0) -> Mixture:
    """A mixture of `sources` in which every batch comes from one of them: its in-batch negatives are of one task.

    The share of a source of n records is proportional to `n ** (1 / temperature)`: 1 is proportional mixing, more lifts
    the small sources, and `math.inf` gives equal shares, which is round robin.

    Args:
      sources: whose records have the same columns. See `merge_small` for those with few records.
      weights: other shares of batches, positive, in any unit.
      temperature: > 0.

    Raises:
      ValueError: no sources, an empty one, weights that do not fit them, a temperature that is not positive, or one
        beside weights.

    References:
      Arivazhagan et al. 2019, "Massively Multilingual Neural Machine Translation in the Wild" (temperature).
    """
    if not sources:
        raise ValueError("sources: a mixture needs at least one source")
    for source in sources:
        _require_records(source)
    if not temperature > 0 or (weights is not None and temperature != 1):
        raise ValueError(f"temperature must be positive, and 1 beside weights; got {temperature}")
    weights = [len(source) ** (1 / temperature) for source in sources] if weights is None else list(weights)
    if len(weights) != len(sources):
        raise ValueError(f"weights: expected one for each of {len(sources)} sources; got {len(weights)}")
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(f"weights must be positive and finite; got {weights}")
    return Mixture(tuple(sources), tuple(weight / math.fsum(weights) for weight in weights))


def merge_small(sources: Sequence[Source], *, small_threshold: int, drop_threshold: int = 0) -> list[Source]:
    """The sources of at least `small_threshold` records, then all smaller ones as one source.

    A small source alone gives the same few batches again and again, or none. The merged source is left out if it has
    less than `drop_threshold` records, or none.

    References:
      FlagEmbedding's same-dataset batches (`small_threshold`, `drop_threshold`).
    """
    large = [source for source in sources if len(source) >= small_threshold]
    small = [source for source in sources if len(source) < small_threshold]
    records = sum(map(len, small))
    return [*large, concatenate(small)] if records >= max(drop_threshold, 1) else large


def batches(
    source: Source | Mixture,
    tokenizer: Tokenizer,
    columns: Sequence[str] | Mapping[str, Text | Number],
    *,
    batch_size: int,
    max_length: int,
    seed: int = 0,
    epochs: int | None = None,
    shuffle: bool = True,
    drop_remainder: bool = True,
    sampler: Sampler | None = None,
    pack: bool | int = False,
    buckets: Sequence[int] = packing.COARSE,
    row_multiple: int = 1,
    process_index: int | None = None,
    process_count: int | None = None,
    workers: int = 0,
    prefetch: int = 4,
) -> "grain.IterDataset[Batch]":
    """Training batches. `iter(...)` gives an iterator with `get_state() -> dict` and `set_state(dict)`.

    A batch is a dict of the columns, `Tokens` of N texts for a text column, of N*K texts (record-major) for a column
    of lists, an array `[N]` for a column of numbers; with "id" int32 `[N]`, the records' indices in their source, and
    for a mixture "source" int32 `[N]`, the source's index in the mixture. Every record comes once an epoch.

    A `sampler` decides, within each source, which records share a batch: `NoDuplicates()`, `GroupByLabel()`.

    Batch i is the same whatever the number of processes: a process gets the i-th batch's rows that are its own.
    As shapes must agree, each process makes the whole batch, unless `buckets` is one length (and `pack` is off): then
    shapes do not depend on the texts and a process reads its own records alone.

    A mixture takes its sources in a fixed rotation that follows the weights closely at every point (their ratios are
    rounded to 1 %); its epochs end when the first of its sources has been seen `epochs` times.

    Args:
      source: the records.
      tokenizer: texts to ids.
      columns: the columns to use, in their order; kinds are taken from the first record unless given.
      batch_size: records N per batch, over all processes.
      max_length: longest text in tokens; longer ones are cut.
      seed: of the order.
      epochs: how often each record comes; None for endless batches.
      shuffle: whether the order is random, and another one in each epoch.
      drop_remainder: leave out the last, smaller batch of an epoch (of several, if a sampler makes several).
      sampler: what records must have in common, or not, to share a batch; None puts any together. It reads every record
        once in advance and holds ids of the records in memory.
      pack: put several texts into a row of `max_length` (or the given number of) tokens; for short texts.
      buckets: row lengths that padded columns may have, ascending; `(512,)` makes each as long as its `max_length`.
      row_multiple: the number of packed rows is a multiple of this, such as the number of devices.
      process_index: which part of each batch to return; None takes JAX's.
      process_count: into how many parts batches are divided; None takes JAX's.
      workers: worker processes that make batches; 0 uses a thread, enough where tokenising keeps up. They are spawned,
        so the program's own code must stand under `if __name__ == "__main__":`, and what they need is pickled.
      prefetch: batches to have ready in advance (by each worker).

    Raises:
      ValueError: unusable arguments, an empty source, one smaller than a batch, or one of which the sampler can make
        no batch (this may show when the first batch is made).
      ModuleNotFoundError: without the package grain.
      RecordError: the first record lacks a column, or another record (when its batch is made) has a value of the
        wrong kind there; names source, record and column.
    """
    with remedy():
        import grain

    index = jax.process_index() if process_index is None else process_index
    count = jax.process_count() if process_count is None else process_count
    _check_arguments(batch_size, max_length, epochs, drop_remainder, index, count)
    mixed = source if isinstance(source, Mixture) else Mixture((source,), (1.0,))
    parts = []
    for number, part in enumerate(mixed.sources):
        _require_records(part)
        if drop_remainder and len(part) < batch_size:
            raise ValueError(f"batch_size: {part.name} has {len(part)} records, less than a batch of {batch_size}")
        make = _Make(
            source=part,
            number=number if isinstance(source, Mixture) else None,
            tokenizer=tokenizer,
            columns=_kinds(part, columns),
            max_length=max_length,
            pack=max(int(pack), max_length) if pack else None,
            buckets=tuple(buckets),
            row_multiple=math.lcm(row_multiple, count),
            process_index=index,
            process_count=count,
        )
        make.check(part[0])
        order = (seed, number) if shuffle else None
        parts.append(_rows(make, sampler, batch_size, epochs, order, drop_remainder).map(make))
    return _read_ahead(parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, mixed.weights), workers, prefetch)


def _rows(
    make: "_Make",
    sampler: Sampler | None,
    batch_size: int,
    epochs: int | None,
    order: tuple[int, int] | None,
    drop_remainder: bool,
) -> "grain.MapDataset":
    """The record indices of every batch; `order` is the seed and the source's number, None for no shuffling."""
    import grain

    source = make.source
    if sampler is None:
        records = grain.MapDataset.range(len(source))
        if order is not None:
            # Hashed, as grain's order of epoch e depends on seed + e: neighbouring seeds and sources must not meet.
            records = records.shuffle(seed=int(np.random.SeedSequence(list(order)).generate_state(1)[0]))
        return records.batch(batch_size, drop_remainder=drop_remainder).repeat(epochs)
    texts = [name for name, kind in make.columns.items() if isinstance(kind, Text)]
    plan = sampler.plan(source, texts, batch_size, drop_remainder)
    drawn = Epochs(plan, source.name, batch_size, drop_remainder, order)
    # Where an epoch has fewer batches than it could, there is None, which grain passes over.
    return grain.MapDataset.range(plan.most * epochs if epochs else sys.maxsize).map(drawn)


def _read_ahead(dataset: "grain.MapDataset", workers: int, prefetch: int) -> "grain.IterDataset[Batch]":
    """The batches one after another, made in advance by worker processes or a thread."""
    import grain

    if not workers:
        return dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch))
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain's workers read flags, which programs without absl's `app` never parse
    # No threads in the workers: they are the parallelism.
    read = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch)
    return dataset.to_iter_dataset(read).mp_prefetch(options)


@dataclasses.dataclass(frozen=True)
class _Make:
    """From the record indices of a batch, over all processes, to this process's part of it."""

    source: Source
    number: int | None
    tokenizer: Tokenizer
    columns: Mapping[str, Text | Number]
    max_length: int
    pack: int | None
    buckets: tuple[int, ...]
    row_multiple: int
    process_index: int
    process_count: int

    def __call__(self, indices: np.ndarray) -> Batch:
        if self.pack is None and len(self.buckets) == 1:
            return self.whole(self.part(indices))
        return jax.tree.map(self.part, self.whole(indices))

    def part(self, array: np.ndarray) -> np.ndarray:
        size = len(array) // self.process_count
        return array[self.process_index * size : (self.process_index + 1) * size]

    def whole(self, indices: np.ndarray) -> Batch:
        records = self.source.__getitems__(indices.tolist())
        batch: Batch = {
            name: self.text(name, kind, records, indices)
            if isinstance(kind, Text)
            else self.numbers(name, kind, records, indices)
            for name, kind in self.columns.items()
        }
        batch["id"] = np.asarray(indices, np.int32)
        if self.number is not None:
            batch["source"] = np.full(len(indices), self.number, np.int32)
        return batch

    def check(self, record: Mapping[str, Any]) -> None:
        """Meets what is wrong with arguments and columns before training, on one record."""
        for name, kind in self.columns.items():
            if isinstance(kind, Text):
                self.text(name, kind, [record], np.zeros(1, int))
            else:
                self.numbers(name, kind, [record], np.zeros(1, int))

    def text(self, name: str, kind: Text, records: Sequence[Mapping], indices: np.ndarray) -> Tokens:
        values = [record.get(name) for record in records]
        nested = any(isinstance(value, list | tuple) for value in values)
        texts = (self.flat if nested else self.single)(name, values, indices)
        max_length = kind.max_length or self.max_length
        ids = self.tokenizer([kind.prompt + text for text in texts] if kind.prompt else texts, max_length)
        if self.pack is not None:
            # Eight tokens a text: shorter ones are rare, and a fixed number keeps the shape.
            row_length = max(self.pack, max_length)
            return packing.pack(
                ids, row_length=row_length, texts_per_row=-(-row_length // 8), row_multiple=self.row_multiple
            )
        longest = max(map(len, ids))
        return packing.pad(ids, length=min(packing.bucket(longest, self.buckets), max_length))

    def single(self, name: str, values: Sequence, indices: np.ndarray) -> list[str]:
        """The texts of a column of one text per record."""
        for value, index in zip(values, indices, strict=True):
            if not isinstance(value, str):
                raise self.error(index, name, f"expected a str; got {_described(value)}")
        return list(values)

    def flat(self, name: str, values: Sequence, indices: np.ndarray) -> list[str]:
        """The texts of a column of lists, record by record."""
        texts: list[str] = []
        size = next(len(value) for value in values if isinstance(value, list | tuple))
        for value, index in zip(values, indices, strict=True):
            if not isinstance(value, list | tuple) or len(value) != size or size == 0:
                got = f"{len(value)}" if isinstance(value, list | tuple) else _described(value)
                raise self.error(index, name, f"expected a list of {size or 'some'} texts, as in its batch; got {got}")
            for i, text in enumerate(value):
                if not isinstance(text, str):
                    raise self.error(index, name, f"expected a list of str; got {_described(text)} at {i}")
            texts.extend(value)
        return texts

    def numbers(self, name: str, kind: Number, records: Sequence[Mapping], indices: np.ndarray) -> np.ndarray:
        values = [record.get(name) for record in records]
        for value, index in zip(values, indices, strict=True):
            if not isinstance(value, int | float | np.number) or not math.isfinite(value):
                raise self.error(index, name, f"expected a finite number; got {_described(value)}")
            if np.issubdtype(kind.dtype, np.integer) and value != int(value):
                raise self.error(index, name, f"expected an integer ({kind.dtype}); got {_described(value)}")
        return np.asarray(values, kind.dtype)

    def error(self, index: int, column: str, message: str) -> RecordError:
        return RecordError(f"{self.source.name}: record {int(index)}, column {column!r}: {message}")


def _kinds(source: Source, columns: Sequence[str] | Mapping[str, Text | Number]) -> dict[str, Text | Number]:
    """The kind of every column, from `columns` or else from the first record."""
    if isinstance(columns, str) or not columns:
        raise ValueError(f"columns must be a mapping or a sequence of names, not empty; got {columns!r}")
    first = source[0]
    kinds: dict[str, Text | Number] = {}
    for name in columns:
        if name in ("id", "source"):
            raise ValueError(f"columns: the name {name!r} is taken for the records' numbers; rename the column")
        if name not in first:
            raise RecordError(f"{source.name}: record 0 has no column {name!r}; it has {sorted(first)}")
        kind = columns[name] if isinstance(columns, Mapping) else None
        value = first[name]
        if kind is None:
            kind = Number() if isinstance(value, int | float | np.number) else Text()
        if isinstance(kind, Number) and kind.dtype is None:
            kind = Number("float32" if isinstance(value, float | np.floating) else "int32")
        kinds[name] = kind
    return kinds


def _check_arguments(batch_size, max_length, epochs, drop_remainder, index, count) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive; got {batch_size}")
    if max_length < 1:
        raise ValueError(f"max_length must be positive; got {max_length}")
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs must be positive, or None for endless batches; got {epochs}")
    if not 0 <= index < count:
        raise ValueError(f"process_index must be in [0, process_count); got {index} of {count}")
    if batch_size % count:
        raise ValueError(f"batch_size must be a multiple of the {count} processes; got {batch_size}")
    if count > 1 and not drop_remainder:
        raise ValueError(f"drop_remainder must be true with {count} processes: a smaller batch does not divide")


def _require_records(source: Source) -> None:
    if not len(source):
        raise ValueError(f"{source.name} has no records")


def _described(value: Any) -> str:
    return f"{type(value).__name__} {value!r:.60}"
