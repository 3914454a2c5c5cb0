"""Records of files, one after another: csv, tsv, JSON lines, plain text; what is malformed is named by its line."""

import contextlib
import csv
import dataclasses
import gzip
import io
import logging
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxemb.files import parse_json
from jaxemb.packages import remedy

logger = logging.getLogger(__name__)

Record = dict[str, Any]
Fields = Mapping[str, str] | Sequence[str] | None
File = gzip.GzipFile | io.BufferedReader

MAX_RATIO = 100.0
"""How many times its size a compressed file may hold, beyond 64 MB; text is seldom more than 20 times."""

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


class FieldError(RecordError):
    """A record has no field of a name that is wanted."""


def most_bytes(size: int, max_ratio: float) -> float:
    """How many bytes, or rows, a compressed file of `size` bytes may hold."""
    return max(64 << 20, max_ratio * size)


def too_large(path: Any, max_ratio: float) -> RecordError:
    """The error for a file that holds more than `most_bytes`."""
    return RecordError(
        f"{path}: holds more than 64 MB and {max_ratio:g} times its size, as files do that are made to fill memory; "
        "raise max_ratio if it is a good one"
    )


class Malformed:
    """Raises for the first malformed row, or counts them and remembers the first."""

    def __init__(self, name: str, on_error: str):
        self.name, self.on_error, self.count, self.first = name, on_error, 0, ""

    def add(self, where: str, error: object) -> None:
        message = f"{where}: {error}"
        if self.on_error == "strict":
            kind = FieldError if isinstance(error, FieldError) else RecordError
            raise kind(message) from (error if isinstance(error, Exception) else None)
        self.count += 1
        self.first = self.first or message

    def report(self, kept: int) -> None:
        if self.count and not kept:
            raise RecordError(f"{self.name}: all of the {self.count} rows are malformed, the first: {self.first}")
        if self.count:
            logger.warning("%s: skipped %d malformed rows, the first: %s", self.name, self.count, self.first)


class BlankLines:
    """Counts the blank lines, or records, of a file that are left out, and remembers the first few."""

    def __init__(self, what: str = "line") -> None:
        self.what, self.count, self.first = what, 0, list[int]()

    def add(self, number: int) -> None:
        self.count += 1
        if len(self.first) < 5:
            self.first.append(number)

    def report(self, name: str, remedy: str = "keep_blank=True keeps them, as empty texts") -> None:
        if self.count:
            shown = ", ".join(map(str, self.first)) + (", ..." if self.count > len(self.first) else "")
            lines = f"{self.what} is" if self.count == 1 else f"{self.what}s are"
            logger.warning("%s: %d blank %s left out (%s); %s", name, self.count, lines, shown, remedy)


def checked_format(
    path: Path,
    format: str | None = None,
    names: Sequence[str] | None = None,
    delimiter: str | None = None,
    types: Mapping[str, Callable] | None = None,
    on_error: str = "strict",
) -> str:
    """The format, as given or by the file's name, once the file is there and the options are for such files.

    Raises:
      FileNotFoundError: there is no such file.
      IsADirectoryError: it is a directory.
      FileExistsError: it is another thing that is no file, such as a pipe.
      ValueError: an unknown format or `on_error`, a name that does not tell the format, options of other formats.
    """
    if path.is_dir():
        ending = format or _FORMATS.get(path.suffix, "csv")
        raise IsADirectoryError(f"{path} is a directory; read its files, or stream('{path}/*.{ending}')")
    if path.exists() and not path.is_file():  # a pipe can be read only once
        raise FileExistsError(f"{path} is no regular file; write what it gives to one")
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    if format is None:
        suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
        if suffix not in _FORMATS:
            raise ValueError(f"format: {path.name!r} does not tell; pass one of {sorted(set(_FORMATS.values()))}")
        format = _FORMATS[suffix]
    if format not in set(_FORMATS.values()):
        raise ValueError(f"format must be one of {sorted(set(_FORMATS.values()))}; got {format!r}")
    if on_error not in ("strict", "skip"):
        raise ValueError(f"on_error must be 'strict' or 'skip'; got {on_error!r}")
    if format == "parquet" and types:
        raise ValueError(f"types: a parquet file has types of its own; got {dict(types)} for {path}")
    check_unique(names or (), "names")
    if format not in ("csv", "tsv") and (names or delimiter):
        raise ValueError(f"names and delimiter are for csv and tsv; the format of {path} is {format}")
    return format


def mapping_of(columns: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
    """Names of columns to names of fields."""
    if isinstance(columns, str):
        raise TypeError(f"columns must be a mapping or a sequence of names; got the str {columns!r}")
    return dict(columns) if isinstance(columns, Mapping) else {name: name for name in columns}


def check_unique(names: Sequence[str], where: str) -> None:
    """Raises a ValueError, beginning with `where`, for a name that comes twice: one of the two would be lost."""
    if twice := sorted({name for name in names if list(names).count(name) > 1}):
        raise ValueError(f"{where} names a field twice: {', '.join(map(repr, twice))}")


def require(mapping: Mapping[str, str], fields: Mapping | Sequence[str], where: str = "", hint: str = "") -> None:
    """Raises a FieldError if one of the mapping's fields is not among `fields`."""
    for column, field in mapping.items():
        if field not in fields:
            raise FieldError(f"{where}no field {field!r} (for column {column!r}); there are {sorted(fields)}{hint}")


@dataclasses.dataclass(frozen=True)
class Rename:
    """A record of other names: columns to the fields that they take."""

    mapping: Mapping[str, str]

    def __call__(self, record: Record) -> Record:
        return {column: record.get(field) for column, field in self.mapping.items()}


class Lines:
    """The lines of a binary file; `number` of them have been read.

    Attributes:
      blank: the lines of a txt file that were left out, see `rows_of`.

    Raises:
      RecordError: of a compressed file, once what was read is more than `max_ratio` times its size, and 64 MB.
    """

    def __init__(self, file: File, number: int = 0, max_ratio: float = MAX_RATIO):
        self.file, self.number, self.ratio = file, number, max_ratio
        self.blank = BlankLines()
        self.left: float | None = None  # bytes that may still come
        if isinstance(file, gzip.GzipFile):
            self.left = most_bytes(os.fstat(file.fileno()).st_size, max_ratio)

    def __iter__(self) -> "Lines":
        return self

    def __next__(self) -> bytes:
        line = next(self.file) if self.left is None else self._limited(self.left)
        self.number += 1
        return line

    def _limited(self, left: float) -> bytes:
        line = self.file.readline(int(min(left + 1, sys.maxsize)))
        if len(line) > left:
            raise too_large(self.file.name, self.ratio)
        if not line:
            raise StopIteration
        self.left = left - len(line)
        return line


@contextlib.contextmanager
def opened(path: Path) -> Iterator[File]:
    """The file, decompressed and past its byte order mark; damage to the compressed stream names the file."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            if file.peek(3).startswith(b"\xef\xbb\xbf"):
                file.read(3)
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file: {error}") from error


@contextlib.contextmanager
def opened_parquet(path: Path, max_ratio: float = MAX_RATIO) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile`; damage found here or in the block names the file."""
    with remedy():
        import pyarrow as pa
        import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            groups = map(file.metadata.row_group, range(file.num_row_groups))
            held = max(file.metadata.num_rows, sum(group.total_byte_size for group in groups))
            if held > most_bytes(path.stat().st_size, max_ratio):
                raise too_large(path, max_ratio)
            check_unique(file.schema_arrow.names, str(path))
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: not a whole parquet file: {error}") from error


def rows_of(
    lines: Lines,
    format: str,
    names: Sequence[str] | None = None,
    delimiter: str | None = None,
    *,
    keep_blank: bool = False,
) -> Iterator[tuple[int, Record | Exception]]:
    """Line number and fields of each row that is left, or what is wrong with it.

    Args:
      lines: of an opened file.
      format: csv, tsv, jsonl or txt.
      names: the fields of csv and tsv rows, see `header_of`.
      delimiter: between these fields, if it is another one.
      keep_blank: whether blank lines of a txt file are texts; if not, `lines.blank` counts them.
    """
    if format == "csv":
        return _delimited_rows(lines, names or (), delimiter or ",", quoted=True)
    if format == "tsv":
        return _delimited_rows(lines, names or (), delimiter or "\t", quoted=False)
    return _json_rows(lines) if format == "jsonl" else _text_rows(lines, keep_blank)


def header_of(
    lines: Lines, format: str, delimiter: str | None = None, mapping: Mapping[str, str] | None = None
) -> list[str] | None:
    """The fields that the first row of a csv or tsv file names; None of other formats.

    Raises:
      ValueError: it cannot be read, names a field twice, or lacks one of `mapping`.
    """
    if format not in ("csv", "tsv"):
        return None
    quoted = format == "csv"
    reader, decoded = _reader(lines, delimiter or ("," if quoted else "\t"), quoted=quoted)
    try:
        names = next((row for row in reader if row), [])
        if decoded.error:
            raise decoded.error
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{lines.file.name}:{lines.number}: the header: {error}") from error
    if any("\0" in name for name in names):
        raise ValueError(
            f"{lines.file.name}:{lines.number}: the header has zero bytes: the file is damaged, or no text"
        )
    check_unique(names, f"{lines.file.name}:{lines.number}: the header")
    if names and mapping:
        require(mapping, names, f"{lines.file.name}: ", "; a file without a header line needs names= (--names)")
    return names


def parsed(row: Record, mapping: Mapping[str, str] | None, types: Mapping[str, Callable]) -> Record:
    """The record of a row: renamed and converted.

    Raises:
      ValueError: a field is missing or null, or a conversion fails.
    """
    if mapping is None:
        record = dict(row)
    else:
        require(mapping, row)
        record = {column: row[field] for column, field in mapping.items()}
        for column, value in record.items():
            if value is None:
                raise ValueError(f"column {column!r} is null")
    for column, convert in types.items():
        try:
            record[column] = convert(record[column])
        except KeyError:
            raise ValueError(f"types: no column {column!r}; there are {sorted(record)}") from None
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"column {column!r}: {error}") from error
    return record


class _Decoded:
    """Decoded lines; `error` is that of the last one that was no UTF-8, whose bad bytes became surrogates."""

    def __init__(self, lines: Lines):
        self.lines = lines
        self.error: UnicodeDecodeError | None = None

    def __iter__(self) -> "_Decoded":
        return self

    def __next__(self) -> str:
        line = next(self.lines)
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            self.error = error
            return line.decode("utf-8", "surrogateescape")


def _reader(lines: Lines, delimiter: str, *, quoted: bool) -> tuple[Iterator[list[str]], _Decoded]:
    decoded = _Decoded(lines)
    reader = csv.reader(
        decoded, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, strict=True
    )
    return reader, decoded


def _delimited_rows(
    lines: Lines, names: Sequence[str], delimiter: str, *, quoted: bool
) -> Iterator[tuple[int, Record | Exception]]:
    reader, decoded = _reader(lines, delimiter, quoted=quoted)
    while True:
        first_line, decoded.error = lines.number + 1, None
        limit = csv.field_size_limit(sys.maxsize)  # a long document is no error
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if str(error) == "unexpected end of data":
                where = f"{lines.file.name}:{first_line}"
                unclosed = "a quote is opened here or below that nothing closes: what is a row cannot be told"
                raise RecordError(f"{where}: {unclosed}") from error
            yield first_line, error
            continue
        finally:
            csv.field_size_limit(limit)
        if decoded.error:
            yield first_line, decoded.error
            continue
        if not fields:
            continue
        if len(fields) != len(names):
            yield first_line, ValueError(f"expected {len(names)} fields {list(names)}; got {len(fields)}")
        else:
            yield first_line, dict(zip(names, fields, strict=True))


def _json_rows(lines: Lines) -> Iterator[tuple[int, Record | Exception]]:
    for line in lines:
        if not line.strip():
            continue
        try:
            yield lines.number, parse_json(line, dict, finite=False)
        except ValueError as error:
            yield lines.number, error


def _text_rows(lines: Lines, keep_blank: bool) -> Iterator[tuple[int, Record | Exception]]:
    for line in lines:
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            yield lines.number, error
            continue
        if keep_blank or text.strip():
            yield lines.number, {"text": text}
        else:
            lines.blank.add(lines.number)
