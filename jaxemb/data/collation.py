"""From records to batches: columns checked and collated, packed columns in a fixed number of rows."""

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any, overload

import jax
import numpy as np

from jaxemb.data import fixed_rows, packing
from jaxemb.data.columns import Column, Columns, Layout, Texts, kind_of, tells, typical
from jaxemb.data.files import Record, RecordError
from jaxemb.data.records import Source
from jaxemb.data.tokenizer import Encoded
from jaxemb.types import SourceName

logger = logging.getLogger(__name__)

Batch = dict[str, Any]

_FEW = 64  # records that tell the kind of a column whose first value does not
_SAMPLE = 2048  # records whose lengths decide how many packed rows there are


@dataclasses.dataclass(frozen=True)
class Collator:
    """Makes batches of a source's records: this process's part of each.

    Attributes:
      source: what messages call it.
      columns: completed.
      layout: how values become arrays.
      batch_size: records of a batch, over all processes.
      number: of the source in a mixture, or None.
      name: of the source in a mixture, or None.
      rows: of the packed columns, how many rows a whole batch has.
      exact: to raise an error where these are too few, instead of taking more.
      process_index, process_count: which part, and of how many.
    """

    source: str
    columns: Mapping[str, Column]
    layout: Layout
    batch_size: int
    number: int | None = None
    name: str | None = None
    rows: Mapping[str, int] = dataclasses.field(default_factory=dict)
    exact: bool = False
    process_index: int = 0
    process_count: int = 1

    def __call__(self, records: Sequence[Record], ids: np.ndarray) -> Batch:
        """The batch of `records`, which have the numbers `ids`."""
        if self._independent:
            return self.whole(self._part(records), self._part(ids))
        return self._parted(self.whole(records, ids))

    def read(self, source: Source, indices: np.ndarray) -> Batch:
        """The batch of a source's records at `indices`; reads no others."""
        if self._independent:
            own = self._part(indices)
            return self.whole(source.__getitems__(own.tolist()), own)
        return self(source.__getitems__(indices.tolist()), indices)

    @property
    def text_columns(self) -> list[str]:
        """The records' fields that are texts."""
        texts = [(name, column) for name, column in self.columns.items() if isinstance(column, Texts)]
        return [field for name, column in texts for field in getattr(column, "fields", None) or (name,)]

    @property
    def _independent(self) -> bool:
        """Whether shapes do not depend on the texts, and so not on those of other processes."""
        return self.layout.row_length is None and len(self.layout.buckets) == 1

    def whole(self, records: Sequence[Record], ids: np.ndarray) -> Batch:
        """The batch, all processes' parts of it."""
        values = {name: self.values(name, records, ids) for name in self.columns}
        return self._batch(values, self._encoded(values), {}, ids)

    def leveled(self, records: Sequence[Record], ids: np.ndarray, batches: Sequence[np.ndarray]) -> list[Batch]:
        """Several batches, given as rows of `records`, which exchange some records so that each fits into its rows."""
        values = {name: self.values(name, records, ids) for name in self.columns}
        encoded = self._encoded(values)
        packed = {
            name: self._texts(name).packed(found, self.layout, len(records), self.rows[name])
            for name, found in encoded.items()
        }
        whole = [rows for rows in batches if len(rows) == self.batch_size]
        rest: list[tuple[np.ndarray, dict]] = [
            (rows, {}) for rows in batches if len(rows) != self.batch_size
        ]  # the last one, if any
        made = []
        for rows, placements in [*fixed_rows.level(whole, packed), *rest]:
            own = {name: [found[row] for row in rows] for name, found in values.items()}
            texts = {name: _taken(found, rows, len(records)) for name, found in encoded.items()}
            made.append(self._parted(self._batch(own, texts, placements, ids[rows])))
        return made

    def _batch(
        self,
        values: Mapping[str, Sequence],
        encoded: Mapping[str, Encoded],
        placements: Mapping[str, packing.Placement],
        ids: np.ndarray,
    ) -> Batch:
        batch: Batch = {}
        for name, column in self.columns.items():
            if name in encoded:
                batch[name] = self._packed(name, encoded[name], placements.get(name), len(ids) == self.batch_size)
            else:
                batch[name] = column.collate(values[name], self.layout)
        batch["id"] = (ids & 0x7FFFFFFF).astype(np.int32)
        if self.number is not None:
            batch["source"] = np.full(len(ids), self.number, np.int32)
        if self.name is not None:
            batch["source_name"] = SourceName(self.name)
        return batch

    def _packed(self, name: str, encoded: Encoded, placement: packing.Placement | None, whole: bool):
        column, rows = self._texts(name), self.rows[name] if whole else None
        length = column.row_length(self.layout)
        if placement is None:
            lengths = np.fromiter(map(len, encoded.ids), np.int64)
            placement = packing.place(lengths, length, column.texts_per_row(self.layout))
        if rows is not None and placement.rows > rows:
            needed = f"{len(encoded.ids)} texts need {placement.rows} rows of {length} tokens"
            if self.exact:
                raise ValueError(f"rows: {self.source}, column {name!r}: {needed}; got {rows}")
            logger.info("%s, column %r: %s, more than the usual %d", self.source, name, needed, rows)
            rows = None
        return column.arrange(encoded, self.layout, rows, placement)

    def _encoded(self, values: Mapping[str, Sequence]) -> dict[str, Encoded]:
        return {name: self._texts(name).encode(values[name], self.layout) for name in self.rows}

    def _texts(self, name: str) -> Texts:
        column = self.columns[name]
        assert isinstance(column, Texts)
        return column

    def values(self, name: str, records: Sequence[Record], ids: np.ndarray) -> list:
        """The column's values, once each is checked."""
        column = self.columns[name]
        fields = getattr(column, "fields", None)
        if fields is None:
            values = [record.get(name) for record in records]
        else:
            values = [[record.get(field) for field in fields] for record in records]
        for value, index in zip(values, ids, strict=True):
            try:
                column.check(value)
            except ValueError as error:
                raise RecordError(f"{self.source}: record {int(index)}, column {name!r}: {error}") from None
        return values

    def _part(self, array):
        size = len(array) // self.process_count
        return array[self.process_index * size : (self.process_index + 1) * size]

    def _parted(self, batch: Batch) -> Batch:
        return batch if self.process_count == 1 else jax.tree.map(self._part, batch)


class LazyBatches(Sequence[Batch]):
    """Batches of some records, each made when it is asked for.

    Args:
      collator: makes them.
      records: of all.
      ids: their numbers.
      batches: the rows of `records` that each is made of.
      together: how many batches exchange records, see `Collator.leveled`; 0 for none.
    """

    def __init__(
        self,
        collator: Collator,
        records: Sequence[Record],
        ids: np.ndarray,
        batches: Sequence[np.ndarray],
        together: int,
    ):
        self._collator, self._records, self._ids, self._batches = collator, records, ids, batches
        self._together = together
        self._made: tuple[int, list[Batch]] = (-1, [])

    def __len__(self) -> int:
        return len(self._batches)

    @overload
    def __getitem__(self, i: int) -> Batch: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Batch]: ...
    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if not 0 <= i < len(self):
            raise IndexError(f"batch {i} of {len(self)}")
        if not self._together:
            rows = self._batches[i]
            return self._collator([self._records[row] for row in rows], self._ids[rows])
        group, place = divmod(i, self._together)
        if self._made[0] != group:
            first = group * self._together
            self._made = group, self._leveled(self._batches[first : first + self._together])
        return self._made[1][place]

    def _leveled(self, batches: Sequence[np.ndarray]) -> list[Batch]:
        chosen = np.concatenate(batches)
        local = np.split(np.arange(len(chosen)), np.cumsum([len(rows) for rows in batches])[:-1])
        return self._collator.leveled([self._records[row] for row in chosen], self._ids[chosen], local)


def complete(source: str, columns: Columns, records: Sequence[Record] | Source) -> dict[str, Column]:
    """The columns, what they leave open taken from the first record, or where that does not tell it from the first few.

    Raises:
      ValueError: no columns, or a name that is taken.
      RecordError: the record lacks one.
    """
    if isinstance(columns, str) or not columns:
        raise ValueError(f"columns must be a mapping or a sequence of names, not empty; got {columns!r}")
    found: dict[str, Column] = {}
    first, few = records[0], functools.cache(lambda: [records[i] for i in range(min(len(records), _FEW))])
    for name in columns:
        if name in ("id", "source", "source_name"):
            raise ValueError(f"columns: the name {name!r} is taken for the records' numbers; rename the column")
        column = columns[name] if isinstance(columns, Mapping) else None
        if column is not None and not isinstance(column, Column):
            raise ValueError(f"columns: expected {name!r} to be a column such as Text(); got {column!r:.60}")
        fields = getattr(column, "fields", None)
        for field in fields or (name,):
            if field not in first:
                raise RecordError(f"{source}: record 0 has no column {field!r}; it has {sorted(first)}")
        if fields is None:
            value = first[name] if tells(first[name]) else typical([record.get(name) for record in few()])
        else:
            value = [first[field] for field in fields]
        found[name] = kind_of(value) if column is None else column.complete(value)
    return found


def planned_rows(
    collator: Collator, records: Sequence[Record], *, together: int, size: float, given: int | Mapping[str, int] | None
) -> dict[str, int]:
    """How many rows a batch of each packed column has; see `fixed_rows.plan`.

    Args:
      collator: of the batches, still without rows.
      records: a sample of the source.
      together: how many batches exchange records.
      size: how many records the source has, or inf.
      given: the rows, if they are known: of all columns or by column.
    """
    layout = collator.layout
    texts = {name: column for name, column in collator.columns.items() if isinstance(column, Texts)}
    if given is not None:
        rows = {name: given for name in texts} if isinstance(given, int) else dict(given)
        if set(rows) != set(texts) or any(count < 1 or count % layout.row_multiple for count in rows.values()):
            raise ValueError(
                f"rows must be positive multiples of {layout.row_multiple}, of the columns {sorted(texts)}; got {given}"
            )
        return rows
    ids = np.arange(len(records))
    encoded = {name: column.encode(collator.values(name, records, ids), layout) for name, column in texts.items()}
    packed = {name: texts[name].packed(found, layout, len(records)) for name, found in encoded.items()}
    return fixed_rows.plan(
        packed, batch_size=collator.batch_size, together=together, size=size, row_multiple=layout.row_multiple
    )


def sample_of(size: int) -> list[int]:
    """Numbers of records, evenly spaced, that stand for a source of `size`."""
    return np.unique(np.linspace(0, size - 1, min(size, _SAMPLE)).astype(int)).tolist()


def _taken(encoded: Encoded, rows: np.ndarray, records: int) -> Encoded:
    """The texts of some of the records."""
    each = len(encoded.ids) // records
    texts = (rows[:, None] * each + np.arange(each)).ravel()
    types = None if encoded.type_ids is None else [encoded.type_ids[text] for text in texts]
    lengths = None if encoded.prompt_lengths is None else encoded.prompt_lengths[texts]
    return Encoded([encoded.ids[text] for text in texts], 0, types, lengths)
