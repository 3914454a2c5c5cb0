"""Batch samplers: which records share a batch, beyond drawing them at random.

`batches(..., sampler=NoDuplicates())` uses one. The work is done by pure functions of arrays (`no_duplicates`,
`group_by_label`, `group_by_length`) that put row numbers into batches. An epoch's batches are a function of (seed,
epoch) alone, so the position of an iterator stays one number; only ids of the records are in memory, never their texts.
Batches of one task each, and the mixing of sources, are `mixture`'s.
"""

import dataclasses
import functools
import hashlib
import heapq
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from jaxemb.checks import check_types, whole
from jaxemb.data.files import Record, RecordError
from jaxemb.data.records import Source

logger = logging.getLogger(__name__)

_CHUNK = 8192  # records that are read at a time


@dataclasses.dataclass(frozen=True)
class RowBatches:
    """Row numbers in batches: batch b is `rows[bounds[b] : bounds[b + 1]]`."""

    rows: np.ndarray
    bounds: np.ndarray

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, b: int) -> np.ndarray:
        if not 0 <= b < len(self):
            raise IndexError(f"batch {b} of {len(self)}")
        return self.rows[self.bounds[b] : self.bounds[b + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return map(self.__getitem__, range(len(self)))

    def only(self, size: int) -> "RowBatches":
        """The batches of exactly `size` rows."""
        sizes = np.diff(self.bounds)
        rows = self.rows[np.repeat(sizes == size, sizes)]
        return RowBatches(rows, np.arange(0, len(rows) + 1, size))


Draw = Callable[[np.random.Generator | None], RowBatches]
"""Makes the batches of an epoch; without a generator, in the order of the source."""


class Plan(NamedTuple):
    """What a sampler makes of a source.

    Attributes:
      draw: the batches of an epoch.
      most: how many batches an epoch can have at most.
    """

    draw: Draw
    most: int


@runtime_checkable
class Sampler(Protocol):
    """Decides which records of a source share a batch."""

    def plan(self, source: Source, texts: Sequence[str], batch_size: int, drop_remainder: bool) -> Plan:
        """Reads what it needs to know of the records once; `texts` names the text columns of the batches."""
        ...


# No duplicates


@dataclasses.dataclass(frozen=True)
class NoDuplicates:
    """No text comes twice in a batch, whichever columns it stands in: it would be a negative of its own record.

    A record that shares a text with its batch waits for the next one; see `no_duplicates`. Texts are compared by 64-bit
    hashes, those of a column of lists one by one.

    Attributes:
      columns: which to compare (numbers are compared as they are printed); None takes the text columns of the batches.
    """

    columns: Sequence[str] | None = None

    def __post_init__(self):
        check_types(self)

    def plan(self, source: Source, texts: Sequence[str], batch_size: int, drop_remainder: bool) -> Plan:
        columns = texts if self.columns is None else self.columns
        _require_columns(source, columns)
        counts = np.zeros(len(source), np.int64)
        digests: list[bytes] = []
        for row, record in _records(source):
            values = [_digest(value) for column in columns for value in _listed(record.get(column))]
            counts[row] = len(values)
            digests += values
        hashes = np.frombuffer(b"".join(digests), np.uint64)
        shared = SharedValues.of(np.repeat(np.arange(len(source)), counts), hashes, len(source))
        most = len(source) // batch_size + (0 if drop_remainder else shared.most_conflicts + 1)
        return Plan(functools.partial(_draw_no_duplicates, shared, batch_size), most)


@dataclasses.dataclass(frozen=True)
class SharedValues:
    """The values that rows have in common: those of row r are `values[starts[r] : starts[r + 1]]`.

    Values that stand in one row only are left out, as they conflict with nothing.

    Attributes:
      starts: `[N + 1]`.
      values: numbers of the values, `[M]`.
      most_conflicts: the largest number of other rows that a row shares a value with, counted once for each value.
    """

    starts: np.ndarray
    values: np.ndarray
    most_conflicts: int

    @classmethod
    def of(cls, rows: np.ndarray, values: np.ndarray, size: int) -> "SharedValues":
        """From pairs of a row number and a value in it, `[P]` each, and the number N of rows."""
        order = np.lexsort((rows, values))
        rows, values = rows[order], values[order]
        new_value = np.append(True, values[1:] != values[:-1])[: len(values)]
        new_pair = new_value.copy()
        new_pair[1:] |= rows[1:] != rows[:-1]
        rows, numbers = rows[new_pair], np.cumsum(new_value)[new_pair] - 1
        others = np.bincount(numbers)[numbers] - 1
        rows, numbers, others = (array[others > 0] for array in (rows, numbers, others))
        order = np.argsort(rows, kind="stable")
        starts = np.append(0, np.cumsum(np.bincount(rows, minlength=size)))
        conflicts = np.bincount(rows, others)
        return cls(starts, numbers[order], int(conflicts.max(initial=0)))


def no_duplicates(order: np.ndarray, shared: SharedValues, batch_size: int) -> RowBatches:
    """The rows in batches without common values: each batch takes, in `order`, the first rows that fit together.

    Every row comes once. A batch is smaller than `batch_size` where each row left conflicts with one of it; that is at
    the end, when the rows of the commonest values are what remains.

    A row that does not fit waits for the value that it shares with the batch, and of the rows that wait for a value one
    at a time is tried again: the work is O(N log N) for rows that share values of one column each, where trying all
    waiting rows for each batch is quadratic.

    Args:
      order: a permutation of the row numbers, or some of them, `[n]`.
      shared: the values that rows have in common.
      batch_size: most rows of a batch.

    Returns:
      The batches of sentence-transformers' NoDuplicatesBatchSampler for the same permutation.
    """
    n = len(order)
    rows, filled, bounds = np.empty_like(order), 0, [0]
    starts, values = shared.starts.data, shared.values.data  # their elements are Python ints: faster
    contested = np.append(np.flatnonzero(np.diff(shared.starts)[order]), n).data
    next_contested, fresh = 0, 0  # rows from position `fresh` on have not been looked at
    waiting: dict[int, list[int]] = {}  # by value: positions of the rows that wait for it, a heap
    ready: list[tuple[int, int]] = []  # a heap: positions to try again, and the value that each waited for

    def try_next(value: int) -> None:
        if queue := waiting.get(value):
            heapq.heappush(ready, (heapq.heappop(queue), value))
            if not queue:
                del waiting[value]

    while filled < n:
        taken: set[int] = set()
        end = filled + batch_size
        while filled < end:
            if ready:
                position, waited_for = heapq.heappop(ready)
            elif fresh < contested[next_contested]:  # a run of rows that conflict with nothing
                run = order[fresh : min(contested[next_contested], fresh + end - filled)]
                rows[filled : filled + len(run)] = run
                filled, fresh = filled + len(run), fresh + len(run)
                continue
            elif fresh < n:
                position, waited_for = fresh, -1
                next_contested, fresh = next_contested + 1, fresh + 1
            else:
                break
            row = int(order[position])
            own = values[starts[row] : starts[row + 1]].tolist()
            conflict = next((value for value in own if value in taken), None)
            if conflict is None:
                rows[filled] = row
                filled += 1
                taken.update(own)
            else:
                heapq.heappush(waiting.setdefault(conflict, []), position)
                if waited_for not in taken:  # it is free, but this row was not: the next of those who wait may fit
                    try_next(waited_for)
        bounds.append(filled)
        for value in taken:
            try_next(value)
    return RowBatches(rows, np.array(bounds))


def _draw_no_duplicates(shared: SharedValues, batch_size: int, random: np.random.Generator | None) -> RowBatches:
    size = len(shared.starts) - 1
    return no_duplicates(np.arange(size) if random is None else random.permutation(size), shared, batch_size)


# Labels


@dataclasses.dataclass(frozen=True)
class GroupByLabel:
    """Every batch holds several labels, and of each at least two records; see `group_by_label`. For triplet losses.

    Attributes:
      column: the labels, numbers or texts. It need not be a column of the batches.
    """

    column: str = "label"

    def __post_init__(self):
        check_types(self)

    def plan(self, source: Source, texts: Sequence[str], batch_size: int, drop_remainder: bool) -> Plan:
        _require_columns(source, (self.column,))
        codes: dict = {}
        labels = np.zeros(len(source), np.int64)
        for row, record in _records(source):
            label = record.get(self.column)
            if not isinstance(label, str | int | float | np.number):
                got = f"{type(label).__name__} {label!r:.60}"
                raise RecordError(f"{source.name}: record {row}, column {self.column!r}: expected a label; got {got}")
            labels[row] = codes.setdefault(label, len(codes))
        try:
            most, rest = divmod(len(group_by_label(labels, batch_size).rows), batch_size)
        except ValueError as error:
            raise ValueError(f"{source.name}, column {self.column!r}: {error}") from error
        most += bool(rest) and not drop_remainder
        return Plan(functools.partial(group_by_label, labels, batch_size), most)


def group_by_label(labels: np.ndarray, batch_size: int, random: np.random.Generator | None = None) -> RowBatches:
    """The rows in batches of at least two labels, with two or more rows of each that occurs.

    In each round every label that has two rows left gives two of them; rounds follow each other as long as at least
    two labels have. The labels of a round are in random order, but never does the last of a round begin the next.
    So balanced, what a dominant label has more than others is left out, another part in each epoch.

    Args:
      labels: int `[N]`, from 0.
      batch_size: even, at least 4.
      random: of rows and of labels; None keeps rows in their order, and labels in that of their numbers.

    Returns:
      Batches of `batch_size` rows, and a smaller one of at least 4 at the end. Their numbers and sizes, and how many
      rows of each label there are, are those of sentence-transformers' GroupByLabelBatchSampler.

    Raises:
      ValueError: an odd or too small batch, or fewer than two labels with two rows each.
    """
    if batch_size < 4 or batch_size % 2:
        raise ValueError(f"batch_size must be even and at least 4; got {batch_size}")
    pairs_of = np.bincount(labels) // 2
    if (qualified := np.count_nonzero(pairs_of)) < 2:
        raise ValueError(f"expected at least 2 labels with at least 2 records each; got {qualified}")
    rounds = np.sort(pairs_of)[-2]

    shuffled = np.arange(len(labels)) if random is None else random.permutation(len(labels))
    grouped = shuffled[np.argsort(labels[shuffled], kind="stable")]
    ends = np.cumsum(np.bincount(labels))
    rank = np.arange(len(grouped)) - np.append(0, ends)[labels[grouped]]  # of a row within its label
    grouped = grouped[rank < 2 * np.minimum(pairs_of, rounds)[labels[grouped]]]
    pairs = grouped.reshape(-1, 2)
    label = labels[pairs[:, 0]]
    number = np.arange(len(pairs)) - np.searchsorted(label, label)  # of a pair within its label: its round
    order = np.lexsort((label if random is None else random.permutation(len(pairs)), number))
    label = label[order]
    for start in np.searchsorted(number[order], np.arange(1, rounds)).tolist():
        if label[start] == label[start - 1]:
            swapped = [start + 1, start]
            order[start : start + 2], label[start : start + 2] = order[swapped], label[swapped]
    rows = pairs[order].ravel()
    rest = len(rows) % batch_size
    if 0 < rest < 4:  # two rows: one label
        rows, rest = rows[:-rest], 0
    bounds = np.arange(0, len(rows) + 1, batch_size)
    return RowBatches(rows, np.append(bounds, len(rows)) if rest else bounds)


# Lengths


@dataclasses.dataclass(frozen=True)
class GroupByLength:
    """Every batch holds records whose texts are about as long, so that little of a padded batch is padding.

    See `group_by_length`. Lengths are in characters, of all texts of a record together.

    Attributes:
      columns: whose texts; None takes the text columns of the batches.
      batches: how many batches' records are sorted together: the more, the less padding, and the less chance.
    """

    columns: Sequence[str] | None = None
    batches: int = 50

    def __post_init__(self):
        check_types(self)
        whole("batches", self.batches, 1)

    def plan(self, source: Source, texts: Sequence[str], batch_size: int, drop_remainder: bool) -> Plan:
        columns = texts if self.columns is None else self.columns
        _require_columns(source, columns)
        lengths = np.zeros(len(source), np.int64)
        for row, record in _records(source):
            lengths[row] = sum(len(str(value)) for column in columns for value in _listed(record.get(column)))
        most = len(source) // batch_size + (not drop_remainder and len(source) % batch_size > 0)
        return Plan(functools.partial(group_by_length, lengths, batch_size, self.batches), most)


def group_by_length(
    lengths: np.ndarray, batch_size: int, batches: int, random: np.random.Generator | None = None
) -> RowBatches:
    """The rows, in random order, cut into groups of `batches` batches; each is sorted by length and cut into batches.

    The batches come in random order, but for a last one of less than `batch_size` rows.

    Args:
      lengths: `[N]`.
      batch_size: rows of a batch.
      batches: of a group.
      random: of rows and of batches; None keeps the order of rows, but for sorting, and that of batches.

    References:
      transformers' LengthGroupedSampler.
    """
    n = len(lengths)
    order = np.arange(n) if random is None else random.permutation(n)
    group = np.arange(n) // (batch_size * batches)
    order = order[np.lexsort((-lengths[order], group))]
    whole = n // batch_size
    numbers = np.arange(whole) if random is None else random.permutation(whole)
    rows = np.append(order[: whole * batch_size].reshape(whole, batch_size)[numbers], order[whole * batch_size :])
    bounds = np.arange(0, n + 1, batch_size)
    return RowBatches(rows, bounds if bounds[-1] == n else np.append(bounds, n))


# What `batches` does with a sampler


class Epochs:
    """The rows of batch number i, counted over all epochs with `plan.most` each; None where an epoch has fewer."""

    def __init__(self, plan: Plan, name: str, batch_size: int, drop_remainder: bool, seed: Sequence[int] | None):
        self.plan, self.name, self.batch_size, self.drop_remainder = plan, name, batch_size, drop_remainder
        self.seed = seed
        self._require(plan.most)
        self._last: tuple[int, RowBatches] | None = None  # batches are asked for in order: one epoch is enough

    def __call__(self, i: int) -> np.ndarray | None:
        epoch, number = divmod(i, self.plan.most)
        last = self._last
        if last is None or last[0] != epoch:
            self._last = last = epoch, self._draw(epoch)
        return last[1][number] if number < len(last[1]) else None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_last": None}

    def _draw(self, epoch: int) -> RowBatches:
        random = None if self.seed is None else np.random.default_rng([*self.seed, epoch])
        drawn = self.plan.draw(random)
        if not self.drop_remainder:
            return drawn
        full = drawn.only(self.batch_size)
        self._require(len(full))
        left_out = len(drawn.rows) - len(full.rows)
        if left_out >= self.batch_size and epoch == 0:
            logger.warning(
                "%s: %d of %d records fit into no full batch of %d in an epoch",
                *(self.name, left_out, len(drawn.rows), self.batch_size),
            )
        return full

    def _require(self, batches: int) -> None:
        if not batches:
            raise ValueError(f"{self.name}: no batch of {self.batch_size} records meets the sampler's condition")


def _records(source: Source) -> Iterator[tuple[int, Record]]:
    for start in range(0, len(source), _CHUNK):
        yield from enumerate(source.__getitems__(range(start, min(start + _CHUNK, len(source)))), start)


def _require_columns(source: Source, columns: Sequence[str]) -> None:
    if isinstance(columns, str) or not columns:
        raise ValueError(f"columns must be a sequence of names, not empty; got {columns!r}")
    if missing := [column for column in columns if column not in source[0]]:
        raise RecordError(f"{source.name}: record 0 has no column {missing[0]!r}; it has {sorted(source[0])}")


def _listed(value) -> Sequence:
    return value if isinstance(value, list | tuple) else (value,)


def _digest(value) -> bytes:
    return hashlib.blake2b(str(value).encode("utf-8", "surrogatepass"), digest_size=8).digest()
