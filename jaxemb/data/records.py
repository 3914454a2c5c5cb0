"""Records by index from files, TFDS, Hugging Face datasets and lists: one interface, `Source`."""

import contextlib
import csv
import dataclasses
import gzip
import io
import json
import logging
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxemb.packages import remedy

logger = logging.getLogger(__name__)

Record = dict[str, Any]
Columns = Mapping[str, str] | Sequence[str] | None
File = gzip.GzipFile | io.BufferedReader

_FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".txt": "txt",
}


class RecordError(ValueError):
    """A record cannot be used; the message says where it is and what is wrong with it."""


@dataclasses.dataclass(frozen=True)
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

    def map(self, function: Callable[[Record], Record]) -> "Source":
        """The source whose records are `function(record)`, computed on access."""
        return dataclasses.replace(self, transforms=(*self.transforms, function))

    def select(self, indices: Sequence[int] | range) -> "Source":
        """The source of the records at `indices`, in that order."""
        return dataclasses.replace(self, rows=_Selection(self.rows, indices))

    def with_columns(self, columns: Columns) -> "Source":
        """Renames: `{"query": "question"}` makes records of one column "query" from the field "question".

        A sequence of names selects those; None changes nothing.

        Raises:
          ValueError: the first record lacks a field; names it and the fields there are.
        """
        if columns is None:
            return self
        mapping = _mapping(columns)
        if len(self):
            _require(mapping, self[0], f"{self.name}: ")
        return self.map(_Rename(mapping))


def from_list(records: Sequence[Record], *, columns: Columns = None, name: str = "list") -> Source:
    """A source over records in memory. See `Source.with_columns` for `columns`."""
    return Source(records, name).with_columns(columns)


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


def read(
    path: str | Path,
    *,
    format: str | None = None,
    columns: Columns = None,
    names: Sequence[str] | None = None,
    delimiter: str | None = None,
    types: Mapping[str, Callable[[Any], Any]] | None = None,
    on_error: str = "strict",
) -> Source:
    """The records of a file; a name that ends in `.gz` is decompressed. Text is UTF-8.

    - csv: comma-separated, quoted as RFC 4180 says (a quoted field may hold commas, quotes and line ends);
    - tsv: tab-separated, without quoting: a quote is a character like any other;
    - jsonl: one JSON object per line; blank lines are passed over;
    - txt: one text per line, as column "text"; an empty line is an empty text, so that parallel files stay aligned;
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

    Raises:
      RecordError: a malformed row, as `file:line: what is wrong` (parquet: `file: row n`, from 0), or nothing else.
      ValueError: unknown `format` or `on_error`, an unreadable file, a field that no row has.
      FileNotFoundError: there is no such file.
    """
    path = Path(path)
    format = format or _format_of(path)
    if format not in set(_FORMATS.values()):
        raise ValueError(f"format must be one of {sorted(set(_FORMATS.values()))}; got {format!r}")
    if on_error not in ("strict", "skip"):
        raise ValueError(f"on_error must be 'strict' or 'skip'; got {on_error!r}")
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    if format == "parquet":
        if types:
            raise ValueError(f"types: a parquet file has types of its own; got {dict(types)} for {path}")
        return _read_parquet(path, columns, on_error)
    if format not in ("csv", "tsv") and (names or delimiter):
        raise ValueError(f"names and delimiter are for csv and tsv; the format of {path} is {format}")

    malformed = _Malformed(str(path), on_error)
    mapping = None if columns is None else _mapping(columns)
    table: dict[str, list] = {}
    size = 0
    with _opened(path) as file:
        for line, row in _rows(file, format, names, delimiter):
            try:
                if isinstance(row, Exception):
                    raise row
                record = _parse(row, mapping, types or {})
            except (ValueError, TypeError, csv.Error) as error:
                malformed.add(f"{path}:{line}", error)
                continue
            for name in record:
                if name not in table:
                    table[name] = [None] * size
            for name, values in table.items():
                values.append(record.get(name))
            size += 1
    malformed.report(size)
    return Source(_Table(table, size), str(path), malformed.count)


def huggingface(name: str, split: str, *, columns: Columns = None, **options: Any) -> Source:
    """A Hugging Face dataset: `datasets.load_dataset(name, split=split, **options)`.

    Raises:
      ImportError: the package `datasets` is not installed.
    """
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
        return self.table.take(indices).to_pylist()


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


@dataclasses.dataclass(frozen=True)
class _Rename:
    mapping: Mapping[str, str]

    def __call__(self, record: Record) -> Record:
        return {column: record.get(field) for column, field in self.mapping.items()}


class _Malformed:
    """Raises for the first malformed row, or counts them and remembers the first."""

    def __init__(self, name: str, on_error: str):
        self.name, self.on_error, self.count, self.first = name, on_error, 0, ""

    def add(self, where: str, error: object) -> None:
        message = f"{where}: {error}"
        if self.on_error == "strict":
            raise RecordError(message) from (error if isinstance(error, Exception) else None)
        self.count += 1
        self.first = self.first or message

    def report(self, kept: int) -> None:
        if self.count and not kept:
            raise RecordError(f"{self.name}: all of the {self.count} rows are malformed, the first: {self.first}")
        if self.count:
            logger.warning("%s: skipped %d malformed rows, the first: %s", self.name, self.count, self.first)


class _Lines:
    """Decoded lines of a binary file and their number; a line that is no UTF-8 raises, and the next one can be read."""

    def __init__(self, file: File):
        self.file, self.number = file, 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = next(self.file)
        self.number += 1
        return line.decode("utf-8")


def _mapping(columns: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
    if isinstance(columns, str):
        raise TypeError(f"columns must be a mapping or a sequence of names; got the str {columns!r}")
    return dict(columns) if isinstance(columns, Mapping) else {name: name for name in columns}


def _require(mapping: Mapping[str, str], fields: Mapping | Sequence[str], where: str = "") -> None:
    for column, field in mapping.items():
        if field not in fields:
            raise ValueError(f"{where}no field {field!r} (for column {column!r}); there are {sorted(fields)}")


def _format_of(path: Path) -> str:
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix not in _FORMATS:
        raise ValueError(f"format: {path.name!r} does not tell; pass one of {sorted(set(_FORMATS.values()))}")
    return _FORMATS[suffix]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[File]:
    """The file, decompressed and past its byte order mark; damage to the compressed stream names the file."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            if file.peek(3).startswith(b"\xef\xbb\xbf"):
                file.read(3)
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file: {error}") from error


def _rows(
    file: File, format: str, names: Sequence[str] | None, delimiter: str | None
) -> Iterator[tuple[int, Record | Exception]]:
    """Line number and fields of each row, or what is wrong with it."""
    if format == "csv":
        return _delimited_rows(file, names, delimiter or ",", quoted=True)
    if format == "tsv":
        return _delimited_rows(file, names, delimiter or "\t", quoted=False)
    return _json_rows(file) if format == "jsonl" else _text_rows(file)


def _delimited_rows(
    file: File, names: Sequence[str] | None, delimiter: str, *, quoted: bool
) -> Iterator[tuple[int, Record | Exception]]:
    lines = _Lines(file)
    reader = csv.reader(
        lines, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, strict=True
    )
    limit = csv.field_size_limit(sys.maxsize)  # a long document is no error
    try:
        while True:
            first_line = lines.number + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except (csv.Error, UnicodeDecodeError) as error:
                yield first_line, error
                continue
            if not fields:
                continue
            if names is None:
                names = fields
                if len(set(names)) < len(names):
                    raise ValueError(f"{file.name}:{first_line}: the header names a field twice: {names}")
            elif len(fields) != len(names):
                yield first_line, ValueError(f"expected {len(names)} fields {list(names)}; got {len(fields)}")
            else:
                yield first_line, dict(zip(names, fields, strict=True))
    finally:
        csv.field_size_limit(limit)


def _json_rows(file: File) -> Iterator[tuple[int, Record | Exception]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            yield number, ValueError(f"not JSON: {error}")
            continue
        yield number, row if isinstance(row, dict) else ValueError(f"expected a JSON object; got {type(row).__name__}")


def _text_rows(file: File) -> Iterator[tuple[int, Record | Exception]]:
    for number, line in enumerate(file, 1):
        try:
            yield number, {"text": line.decode("utf-8").rstrip("\r\n")}
        except UnicodeDecodeError as error:
            yield number, error


def _parse(row: Record, mapping: Mapping[str, str] | None, types: Mapping[str, Callable]) -> Record:
    """The record of a row: renamed and converted."""
    if mapping is None:
        record = dict(row)
    else:
        _require(mapping, row)
        record = {column: row[field] for column, field in mapping.items()}
        for column, value in record.items():
            if value is None:
                raise ValueError(f"column {column!r} is null")
    for column, convert in types.items():
        try:
            record[column] = convert(record[column])
        except KeyError:
            raise ValueError(f"types: no column {column!r}; there are {sorted(record)}") from None
        except (ValueError, TypeError) as error:
            raise ValueError(f"column {column!r}: {error}") from error
    return record


def _read_parquet(path: Path, columns: Columns, on_error: str) -> Source:
    with remedy():
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

    malformed = _Malformed(str(path), on_error)
    try:
        file = pq.ParquetFile(path, memory_map=True)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a parquet file: {error}") from error
    if columns is None:
        return Source(_ArrowTable(file.read()), str(path))
    mapping = _mapping(columns)
    _require(mapping, file.schema_arrow.names, f"{path}: ")
    table = file.read(columns=list(dict.fromkeys(mapping.values())))
    table = pa.table({column: table[field] for column, field in mapping.items()})
    valid = np.ones(table.num_rows, bool)
    for column in mapping:
        valid &= np.asarray(pc.is_valid(table[column]))
    for row in np.flatnonzero(~valid).tolist():
        null = next(column for column in mapping if not table[column][row].is_valid)
        malformed.add(f"{path}: row {row}", f"column {null!r} is null")
    malformed.report(int(valid.sum()))
    return Source(_ArrowTable(table.filter(pa.array(valid))), str(path), malformed.count)
