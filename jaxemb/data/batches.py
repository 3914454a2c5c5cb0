"""Batches from sources: shuffled, mixed, tokenised, sharded over processes, resumable at any batch.

The order of batches is a pure function of the seed: of records by index, batch i is computed from i alone, so that the
position of an iterator is one number; of a stream, from the window of records that it comes from. Resuming is exact.
Work is done ahead of its use by a thread (or worker processes).
"""

import contextlib
import dataclasses
import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxemb.checks import at_least, checked, size, whole
from jaxemb.data import packing
from jaxemb.data.collation import Batch, Collator, LazyBatches, complete, planned_rows, sample_of
from jaxemb.data.columns import Column, Columns, Layout
from jaxemb.data.files import Record, RecordError
from jaxemb.data.mixtures import Mixture
from jaxemb.data.records import Source, from_list
from jaxemb.data.samplers import Epochs, RowBatches, Sampler
from jaxemb.data.streams import Stream
from jaxemb.data.tokenizer import Tokenizer
from jaxemb.packages import remedy

if TYPE_CHECKING:
    import grain

    from jaxemb.data.windows import Window

_MOST_WORKERS = 4096  # processes of one machine


@checked(
    batch_size=at_least(1),
    max_length=at_least(1),
    epochs=at_least(1),
    row_multiple=size,
    window=at_least(1),
    prefetch=at_least(0),
)
def batches(
    source: Source | Stream | Mixture,
    tokenizer: Tokenizer | None,
    columns: Columns | Mapping[str, Columns],
    *,
    batch_size: int,
    max_length: int,
    seed: int = 0,
    epochs: int | None = None,
    shuffle: bool = True,
    drop_remainder: bool = True,
    sampler: Sampler | Mapping[str, Sampler | None] | None = None,
    pack: bool | int = False,
    rows: int | Mapping[str, int] | None = None,
    buckets: Sequence[int] = packing.COARSE,
    row_multiple: int = 1,
    window: int = 8192,
    process_index: int | None = None,
    process_count: int | None = None,
    workers: int = 0,
    prefetch: int = 4,
) -> "grain.IterDataset[Batch]":
    """Training batches. `iter(...)` gives an iterator with `get_state() -> dict` and `set_state(dict)`.

    A batch is a dict of the columns: `Tokens` of N texts for a text column, of N*K texts (record-major) for a column of
    lists of K texts, an array `[N]` for a column of numbers, `[N, D]` for one of lists of D numbers; see
    `jaxemb.data.columns`. With "id" int32 `[N]`, the records' numbers in their source, and for a mixture "source" int32
    `[N]`, the source's number in the mixture; if its sources have names, "source_name" holds that as static data.
    Every record comes once an epoch.

    A `sampler` decides, within each source, which records share a batch: `NoDuplicates()`, `GroupByLabel()`,
    `GroupByLength()`.

    Batch i is the same whatever the number of processes: a process gets the i-th batch's rows that are its own.
    As shapes must agree, each process makes the whole batch, unless `buckets` is one length (and `pack` is off): then
    shapes do not depend on the texts and a process reads its own records alone. (See `Stream.shard` for more.)

    Packed, every batch of a source has the same number of rows, so that one program serves all. A sample of the source
    tells how many are needed; records of batches that need more change places with some of the next batches that need
    less. Where that does not help, which is rare, or where a sampler has put the batches together, a batch has more
    rows, which is another program.

    A stream is read in windows: records are shuffled, and put together by the sampler, within a window of them. What
    fits into none of its batches is left out in this epoch.

    A mixture takes its sources in a fixed rotation that follows the weights closely at every point (their ratios are
    rounded to 1 %); its epochs end when the first of its sources has been seen `epochs` times.

    Args:
      source: the records.
      tokenizer: texts to ids; None where no column is of texts.
      columns: the columns to use, in their order; kinds are taken from the first records unless given. For a mixture of
        sources with names also by source, `{"nli": ("query", "document"), ...}`.
      batch_size: records N per batch, over all processes.
      max_length: longest text in tokens; longer ones are cut.
      seed: of the order.
      epochs: how often each record comes; None for endless batches.
      shuffle: whether the order is random, and another one in each epoch.
      drop_remainder: leave out the last, smaller batch of an epoch (of several, if a sampler makes several; of the last
        window, or with a sampler each window, of a stream).
      sampler: what records must have in common, or not, to share a batch; None puts any together. It reads every record
        of a source (or window) once in advance and holds ids of the records in memory. By name for a mixture whose
        sources have names.
      pack: put several texts into a row of `max_length` (or the given number of) tokens; for short texts.
      rows: of packed columns, how many a batch has, over all processes; also by column. A batch that does not fit is an
        error then.
      buckets: row lengths that padded columns may have, ascending; `(512,)` makes each as long as its `max_length`.
      row_multiple: the number of packed rows is a multiple of this, such as the number of devices.
      window: records of a stream that are in memory at a time; rounded down to a multiple of the batch size.
      process_index: which part of each batch to return; None takes JAX's.
      process_count: into how many parts batches are divided; None takes JAX's.
      workers: worker processes that make batches; 0 uses a thread, enough where tokenising keeps up. They are spawned,
        so the program's own code must stand under `if __name__ == "__main__":`, and what they need is pickled. In a
        mixture with streams or packed columns each source has so many.
      prefetch: batches to have ready in advance (by each worker).

    Raises:
      ValueError: unusable arguments, an empty source, one smaller than a batch, or one of which the sampler can make
        no batch (this may show when the first batch is made).
      ModuleNotFoundError: without the package grain.
      RecordError: the first record lacks a column, or another record (when its batch is made) has a value of the
        wrong kind there; names source, record and column.
    """
    with remedy():
        import grain  # noqa: F401  (missed before any record is read)

    index = jax.process_index() if process_index is None else process_index
    count = jax.process_count() if process_count is None else process_count
    _check_arguments(batch_size, drop_remainder, index, count)
    if rows is not None and not pack:
        raise ValueError(f"rows are those of packed columns, but pack is off; got {rows}")
    row_length = max(int(pack), max_length) if pack else None
    if row_length is not None:
        size("pack", int(pack))
    whole("workers", workers, 0, _MOST_WORKERS)
    layout = Layout(tokenizer, max_length, row_length, tuple(buckets), math.lcm(row_multiple, count))
    mixed = source if isinstance(source, Mixture) else Mixture((source,), (1.0,))
    names, recipes = mixed.names, []
    for number, part in enumerate(mixed.sources):
        name = names[number] if names else None
        recipe = _Recipe(
            source=part,
            collator=Collator(
                part.name,
                columns={},
                layout=layout,
                batch_size=batch_size,
                number=number if isinstance(source, Mixture) else None,
                name=name,
                exact=rows is not None,
                process_index=index,
                process_count=count,
            ),
            sampler=_own(sampler, name, names, "sampler") if isinstance(sampler, Mapping) else sampler,
            epochs=epochs,
            order=(seed, number) if shuffle else None,
            drop_remainder=drop_remainder,
            window=max(window // batch_size, 1) * batch_size,
        )
        with _hinting(mixed):
            recipes.append(recipe.completed(_columns_of(columns, name, names), rows))
    return _drawn(recipes, mixed.weights, workers, prefetch)


@contextlib.contextmanager
def _hinting(mixed: Mixture) -> Iterator[None]:
    """Says how sources of a mixture have columns of their own, where one of several lacks a column."""
    try:
        yield
    except RecordError as error:
        if len(mixed.sources) == 1:
            raise
        raise RecordError(f"{error}; {_OWN_COLUMNS}") from error


_OWN_COLUMNS = (
    'sources with columns of their own: mixture({"a": source, "b": source}) with columns={"a": (...), "b": (...)}'
)


@dataclasses.dataclass(frozen=True)
class _Recipe:
    """How batches of one source are made.

    Attributes:
      order: what seeds the order, None for that of the source.
      together: how many packed batches exchange records; 0 for none.
    """

    source: Source | Stream
    collator: Collator
    sampler: Sampler | None
    epochs: int | None
    order: tuple[int, int] | None
    drop_remainder: bool
    window: int
    together: int = 0

    def completed(self, columns: Columns, rows: int | Mapping[str, int] | None) -> "_Recipe":
        """Looks at some records: meets what is wrong with arguments and columns before training, and plans rows."""
        source, collator, batch_size = self.source, self.collator, self.collator.batch_size
        if isinstance(source, Stream):
            needed = batch_size if self.sampler is None and collator.layout.row_length is None else self.window
            seen = list(itertools.islice(source, needed))
            size = len(seen)
        else:
            size = len(source)
            seen = [source[0]] if size else []
        if not size:
            raise ValueError(f"{source.name} has no records")
        if self.drop_remainder and size < batch_size:
            raise ValueError(f"batch_size: {source.name} has {size} records, less than a batch of {batch_size}")
        records = seen if isinstance(source, Stream) else source
        collator = dataclasses.replace(collator, columns=complete(source.name, columns, records))
        collator.whole(seen[:1], np.zeros(1, int))
        recipe = dataclasses.replace(self, collator=collator)
        if isinstance(source, Stream) and self.sampler is not None and not len(recipe.rows_of(seen, 0, None)):
            raise ValueError(f"{source.name}: no batch of {batch_size} records meets the sampler's condition")
        if collator.layout.row_length is None or not collator.text_columns:
            return recipe
        together = 0 if self.sampler is not None else min(max(-(-2048 // batch_size), 2), 64)
        if isinstance(source, Source) and rows is None:
            seen = source.__getitems__(sample_of(size))
        planned = planned_rows(
            collator,
            seen[:: -(-len(seen) // 2048)],
            together=max(together, 1),
            size=size if isinstance(source, Source) or size < self.window else math.inf,
            given=rows,
        )
        return dataclasses.replace(recipe, together=together, collator=dataclasses.replace(collator, rows=planned))

    def by_index(self) -> "grain.MapDataset[Batch]":
        """Batch i from i alone."""
        assert isinstance(self.source, Source)
        return self.indices().map(_FromIndices(self.source, self.collator))

    def one_by_one(self, workers: int, prefetch: int) -> "grain.IterDataset[Batch]":
        """Batches one after another, several of which are made of the same records."""
        import grain

        from jaxemb.data import windows  # defines subclasses of the package's

        if isinstance(self.source, Stream):
            cut = windows.Windows(self.source, self.window, self.epochs).map(self.cut)
            return windows.one_by_one(cut, workers)
        if not self.together:
            return _read_ahead(self.by_index(), workers, prefetch if workers else 0)
        size, batch_size = len(self.source), self.collator.batch_size
        per_epoch = size // batch_size if self.drop_remainder else -(-size // batch_size)
        groups = _Groups(self.source, self.collator, self.indices(), per_epoch, self.together)
        length = groups.per_epoch * self.epochs if self.epochs else sys.maxsize
        # Not read ahead: made by the thread or process that takes them apart.
        read = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        return windows.one_by_one(grain.MapDataset.range(length).map(groups).to_iter_dataset(read), workers)

    def indices(self) -> "grain.MapDataset[np.ndarray]":
        """The record indices of every batch."""
        import grain

        source, batch_size = self.source, self.collator.batch_size
        assert isinstance(source, Source)
        if self.sampler is None:
            records = grain.MapDataset.range(len(source))
            if self.order is not None:
                # Hashed, as grain's order of epoch e depends on seed + e: neighbouring seeds and sources must not meet.
                records = records.shuffle(seed=int(np.random.SeedSequence(list(self.order)).generate_state(1)[0]))
            return records.batch(batch_size, drop_remainder=self.drop_remainder).repeat(self.epochs)
        plan = self.sampler.plan(source, self.collator.text_columns, batch_size, self.drop_remainder)
        drawn = Epochs(plan, source.name, batch_size, self.drop_remainder, self.order)
        # Where an epoch has fewer batches than it could, there is None, which grain passes over.
        return grain.MapDataset.range(plan.most * self.epochs if self.epochs else sys.maxsize).map(drawn)

    def cut(self, window: "Window") -> LazyBatches:
        """The batches of a window of a stream."""
        assert isinstance(self.source, Stream)
        random = None
        if self.order is not None:
            random = np.random.default_rng([*self.order, window.epoch, window.number])
        index, count = self.source.part
        ids = (window.first + np.arange(len(window.records), dtype=np.int64)) * count + index
        batches = list(self.rows_of(window.records, window.first, random))
        return LazyBatches(self.collator, window.records, ids, batches, self.together)

    def rows_of(self, records: Sequence[Record], first: int, random: np.random.Generator | None) -> RowBatches:
        """The rows of `records`, of which number `first` is the first, that share a batch."""
        batch_size = self.collator.batch_size
        if self.sampler is None:
            order = np.arange(len(records)) if random is None else random.permutation(len(records))
            bounds = np.arange(0, len(order) + 1, batch_size)
            drawn = RowBatches(order, bounds if bounds[-1] == len(order) else np.append(bounds, len(order)))
        else:
            here = from_list(records, name=f"{self.source.name}, records from {first} on")
            try:
                plan = self.sampler.plan(here, self.collator.text_columns, batch_size, self.drop_remainder)
            except RecordError:
                raise
            except ValueError:  # such as too few labels in what is left at the end
                if first == 0:
                    raise
                return RowBatches(np.zeros(0, int), np.zeros(1, int))
            drawn = plan.draw(random)
        return drawn.only(batch_size) if self.drop_remainder else drawn


@dataclasses.dataclass(frozen=True)
class _FromIndices:
    """From the record indices of a batch, over all processes, to this process's part of it."""

    source: Source
    collator: Collator

    def __call__(self, indices: np.ndarray) -> Batch:
        return self.collator.read(self.source, indices)


def _drawn(
    recipes: Sequence[_Recipe], weights: Sequence[float], workers: int, prefetch: int
) -> "grain.IterDataset[Batch]":
    """The batches of some sources, each of one of them, made in advance."""
    import grain

    if workers:
        _parse_flags()
    if not any(isinstance(recipe.source, Stream) or recipe.together for recipe in recipes):
        parts = [recipe.by_index() for recipe in recipes]
        return _read_ahead(parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights), workers, prefetch)
    pieces = [recipe.one_by_one(workers, prefetch) for recipe in recipes]
    dataset = pieces[0] if len(pieces) == 1 else grain.IterDataset.mix(pieces, weights)
    if workers or not prefetch:
        return dataset
    ahead = max(prefetch, *(recipe.together for recipe in recipes))  # as many as are made at once
    return grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=ahead)


class _Groups:
    """Batches that exchange records: number i, counted over all epochs, of the groups of `together` batches."""

    def __init__(self, source: Source, collator: Collator, indices: "grain.MapDataset", batches: int, together: int):
        self.source, self.collator, self.indices = source, collator, indices
        self.batches, self.together = batches, together  # of an epoch, of a group
        self.per_epoch = -(-batches // together)

    def __call__(self, i: int) -> LazyBatches:
        epoch, number = divmod(i, self.per_epoch)
        numbers = range(number * self.together, min((number + 1) * self.together, self.batches))
        of_batches = [self.indices[epoch * self.batches + batch] for batch in numbers]
        ids = np.concatenate(of_batches)
        rows = np.split(np.arange(len(ids)), np.cumsum([len(indices) for indices in of_batches])[:-1])
        return LazyBatches(self.collator, self.source.__getitems__(ids.tolist()), ids, rows, self.together)


def _read_ahead(dataset: "grain.MapDataset", workers: int, prefetch: int) -> "grain.IterDataset[Batch]":
    """The batches one after another, made in advance by worker processes or a thread."""
    import grain

    if not workers:
        return dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch))
    # No threads in the workers: they are the parallelism.
    read = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch)
    return dataset.to_iter_dataset(read).mp_prefetch(options)


def _parse_flags() -> None:
    """grain's workers read flags, which programs without absl's `app` never parse."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _columns_of(columns: Any, name: str | None, names: tuple[str, ...] | None) -> Columns:
    """The columns of one source."""
    of_one = not isinstance(columns, Mapping) or any(isinstance(column, Column) for column in columns.values())
    if of_one or (names is None and not any(isinstance(of, Mapping | list | tuple) for of in columns.values())):
        return columns
    return _own(columns, name, names, "columns")


def _own(by_source: Mapping[str, Any], name: str | None, names: tuple[str, ...] | None, argument: str) -> Any:
    """What is given for one of the sources of a mixture."""
    if names is None:
        raise ValueError(f"{argument} of each source need a mixture of sources with names; {_OWN_COLUMNS}")
    if set(by_source) != set(names):
        raise ValueError(f"{argument}: expected one for each source of a mixture, {list(names)}; got {list(by_source)}")
    return by_source[name or ""]


def _check_arguments(batch_size, drop_remainder, index, count) -> None:
    if not 0 <= index < count:
        raise ValueError(f"process_index must be in [0, process_count); got {index} of {count}")
    if batch_size % count:
        raise ValueError(f"batch_size must be a multiple of process_count, {count}; got {batch_size}")
    if count > 1 and not drop_remainder:
        raise ValueError(f"drop_remainder must be true with {count} processes: a smaller batch does not divide")
