"""Records by index from files, TFDS, Hugging Face datasets and lists: one interface, `Source`."""

import csv
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxemb.checks import checked, non_negative
from jaxemb.data.files import (
    MAX_RATIO,
    Fields,
    Lines,
    Malformed,
    Record,
    RecordError,
    Rename,
    checked_format,
    header_of,
    mapping_of,
    opened,
    opened_parquet,
    parsed,
    require,
    rows_of,
)
from jaxemb.packages import remedy

# Cells of a table may be empty up to so many times those that are not, beyond a number that does not matter.
_MOST_EMPTY, _SMALL = 20, 1_000_000


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Records by index: `len(source)`, `source[i] -> dict`.

    Attributes:
      rows: where the records are: anything with `len` and an index, optionally `__getitems__(indices) -> list`.
      name: how messages call the source, such as the path of its file.
      skipped: how many malformed rows were left out on reading.
      transforms: functions from record to record, applied in order on access.
    """

    rows: Any
    name: str
    skipped: int = 0
    transforms: tuple[Callable[[Any], Record], ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"Source({self.name!r}, {len(self):,} records)"

    def __getitem__(self, index: int) -> Record:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Record]:
        """The records at `indices`, in one request where the storage can answer one."""
        size = len(self)
        for index in indices:
            if not 0 <= index < size:
                raise IndexError(f"{self.name}: record {index} of {size}")
        plain = [int(index) for index in indices]
        many = getattr(self.rows, "__getitems__", None)
        records = [self.rows[index] for index in plain] if many is None else many(plain)
        for transform in self.transforms:
            records = [transform(record) for record in records]
        return records

    @checked()
    def map(self, function: Callable[[Record], Record]) -> "Source":
        """The source whose records are `function(record)`, computed on access."""
        return dataclasses.replace(self, transforms=(*self.transforms, function))

    @checked()
    def select(self, indices: Sequence[int] | range) -> "Source":
        """The source of the records at `indices`, in that order."""
        return dataclasses.replace(self, rows=_Selection(self.rows, indices))

    @checked()
    def with_columns(self, columns: Fields) -> "Source":
        """Renames: `{"query": "question"}` makes records of one column "query" from the field "question".

        A sequence of names selects those; None changes nothing.

        Raises:
          ValueError: the first record lacks a field; names it and the fields there are.
        """
        if columns is None:
            return self
        mapping = mapping_of(columns)
        if len(self):
            require(mapping, self[0], f"{self.name}: ")
        return self.map(Rename(mapping))


@checked()
def from_list(records: Sequence[Record], *, columns: Fields = None, name: str = "list") -> Source:
    """A source over records in memory. See `Source.with_columns` for `columns`."""
    return Source(records, name).with_columns(columns)


@checked()
def concatenate(sources: Sequence[Source], name: str | None = None) -> Source:
    """The records of several sources, one source after the other.

    Raises:
      ValueError: no sources.
    """
    if not sources:
        raise ValueError("sources: there is nothing to concatenate")
    rows = _Concatenation(tuple(sources), tuple(np.cumsum([len(source) for source in sources]).tolist()))
    skipped = sum(source.skipped for source in sources)
    return Source(rows, name or " + ".join(source.name for source in sources), skipped)


@checked(max_ratio=non_negative)
def read(
    path: str | Path,
    *,
    format: str | None = None,
    columns: Fields = None,
    names: Sequence[str] | None = None,
    delimiter: str | None = None,
    types: Mapping[str, Callable[[Any], Any]] | None = None,
    on_error: str = "strict",
    max_ratio: float = MAX_RATIO,
    keep_blank: bool = False,
) -> Source:
    """The records of a file; a name that ends in `.gz` is decompressed. Text is UTF-8.

    - csv: comma-separated, quoted as RFC 4180 says (a quoted field may hold commas, quotes and line ends);
    - tsv: tab-separated, without quoting: a quote is a character like any other;
    - jsonl: one JSON object per line; blank lines are passed over;
    - txt: one text per line, as column "text"; blank lines are passed over, and a warning says which;
    - parquet: read as an Arrow table, which takes far less memory than records of Python objects.

    A row is *malformed* when it is no UTF-8, has another number of fields than the header, is no JSON object, lacks
    a field that `columns` names (or holds null there), or fails one of `types`.

    Args:
      path: the file.
      format: csv, tsv, jsonl, txt or parquet; None goes by the file's name.
      columns: names of the record's columns to the file's fields, `{"query": "question"}`, or the fields to keep;
        None keeps all fields.
      names: the fields of a csv or tsv file without a header line; None reads them from its first line.
      delimiter: the character between the fields of a csv or tsv file, if it is another one.
      types: conversions by column, such as `{"score": float}`; they raise ValueError on what they do not take.
      on_error: "strict" raises at the first malformed row; "skip" leaves such rows out, logs a warning, and counts
        them in `Source.skipped`.
      max_ratio: how many times its size a compressed file (gzip, parquet) may hold, beyond 64 MB.
      keep_blank: take the blank lines of a txt file for empty texts, so that record n is line n, and parallel files
        stay aligned.

    Raises:
      RecordError: a malformed row, as `file:line: what is wrong` (parquet: `file: row n`, from 0), or nothing else.
      ValueError: unknown `format` or `on_error`, an unreadable file, a field that no row has.
      FileNotFoundError: there is no such file.
    """
    path = Path(path)
    format = checked_format(path, format, names, delimiter, types, on_error)
    if format == "parquet":
        return _read_parquet(path, columns, on_error, max_ratio)
    malformed = Malformed(str(path), on_error)
    mapping = None if columns is None else mapping_of(columns)
    table: dict[str, list] = {}
    size = given = 0
    with opened(path) as file:
        lines = Lines(file, max_ratio=max_ratio)
        fields = names or header_of(lines, format, delimiter, mapping)
        for line, row in rows_of(lines, format, fields, delimiter, keep_blank=keep_blank):
            try:
                if isinstance(row, Exception):
                    raise row
                record = parsed(row, mapping, types or {})
            except (ValueError, TypeError, csv.Error) as error:
                malformed.add(f"{path}:{line}", error)
                continue
            given += len(record)
            for name in record:
                if name not in table:
                    table[name] = [None] * size
            if len(table) * (size + 1) > _MOST_EMPTY * given + _SMALL:
                raise RecordError(
                    f"{path}:{line}: the rows up to here have {len(table)} different fields, of which most have few; "
                    "expected rows of the same fields, or columns= that names those to keep"
                )
            for name, values in table.items():
                values.append(record.get(name))
            size += 1
    malformed.report(size)
    lines.blank.report(str(path))
    if fields and mapping and not size:
        require(mapping, fields, f"{path}: ")
    return Source(_Table(table, size), str(path), malformed.count)


@checked()
def huggingface(name: str, split: str, *, columns: Fields = None, **options: Any) -> Source:
    """A Hugging Face dataset: `datasets.load_dataset(name, split=split, **options)`.

    One that is streamed is `from_iterable(datasets.load_dataset(..., streaming=True))`.

    Raises:
      ValueError: for `streaming=True`.
      ImportError: the package `datasets` is not installed.
    """
    if options.get("streaming"):
        raise ValueError(
            "streaming: what is streamed has no index; make a Stream of it, from_iterable(load_dataset(...))"
        )
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError("huggingface() needs the package `datasets`: pip install datasets") from error
    return Source(load_dataset(name, split=split, **options), f"{name}[{split}]").with_columns(columns)


@dataclasses.dataclass(frozen=True)
class _Table:
    """Rows of parsed text files, held by column."""

    columns: Mapping[str, Sequence]
    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Record:
        return {name: values[index] for name, values in self.columns.items()}


@dataclasses.dataclass(frozen=True)
class _ArrowTable:
    """Rows of a `pyarrow.Table`."""

    table: Any

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitems__(self, indices: Sequence[int]) -> list[Record]:
        return self.table.take(np.asarray(indices, np.int64)).to_pylist()  # which has a type without any, too


@dataclasses.dataclass(frozen=True)
class _Selection:
    rows: Any
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        return Source(self.rows, "selection").__getitems__([self.indices[i] for i in indices])


@dataclasses.dataclass(frozen=True)
class _Concatenation:
    sources: tuple[Source, ...]
    ends: tuple[int, ...]

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitems__(self, indices: Sequence[int]) -> list[Record]:
        numbers = np.searchsorted(self.ends, indices, side="right")
        starts = (0, *self.ends)
        records: list[Record] = [{}] * len(indices)
        for number in np.unique(numbers).tolist():  # one request to each source
            places = np.flatnonzero(numbers == number).tolist()
            found = self.sources[number].__getitems__([indices[place] - starts[number] for place in places])
            for place, record in zip(places, found, strict=True):
                records[place] = record
        return records


def _read_parquet(path: Path, columns: Fields, on_error: str, max_ratio: float) -> Source:
    with remedy():
        import pyarrow as pa
        import pyarrow.compute as pc

    malformed = Malformed(str(path), on_error)
    mapping = None if columns is None else mapping_of(columns)
    with opened_parquet(path, max_ratio) as file:
        if mapping is not None:
            require(mapping, file.schema_arrow.names, f"{path}: ")
        table = file.read(columns=None if mapping is None else list(dict.fromkeys(mapping.values())))
        table.validate(full=True)
    if mapping is None:
        return Source(_ArrowTable(table), str(path))
    table = pa.table({column: table[field] for column, field in mapping.items()})
    valid = np.ones(table.num_rows, bool)
    for column in mapping:
        valid &= np.asarray(pc.is_valid(table[column]))
    for row in np.flatnonzero(~valid).tolist():
        null = next(column for column in mapping if not table[column][row].is_valid)
        malformed.add(f"{path}: row {row}", f"column {null!r} is null")
    malformed.report(int(valid.sum()))
    return Source(_ArrowTable(table.filter(pa.array(valid))), str(path), malformed.count)
