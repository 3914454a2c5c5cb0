"""Records one after another, of a number that nobody knows in advance: files of any size, generators, hub streams."""

import copy
import csv
import dataclasses
import glob
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxemb.checks import checked, non_negative, path
from jaxemb.data.files import (
    MAX_RATIO,
    Fields,
    Lines,
    Malformed,
    Record,
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

State = dict[str, Any]


@runtime_checkable
class Resumable(Protocol):
    """An iterator that can say where it is, in JSON, and go there."""

    def __next__(self) -> Any: ...

    def get_state(self) -> State: ...

    def set_state(self, state: State) -> None: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """Records that are read in their order: `for record in stream`. Made by `stream` and `from_iterable`.

    Attributes:
      rows: an iterable of records that begins anew, with the same records, at each `iter(rows)`. If its iterators are
        `Resumable` (those of `stream` and of grain are), a position is theirs; else it is the number of records read,
        and to go there reads past as many.
      name: how messages call the stream.
      transforms: functions from record to record, applied in order.
      part: (index, count) where these are one of `count` shares of the records; see `shard`.
    """

    rows: Iterable[Any]
    name: str
    transforms: tuple[Callable[[Any], Record], ...] = ()
    part: tuple[int, int] = (0, 1)

    def __iter__(self) -> "StreamReader":
        return StreamReader(self)

    def __repr__(self) -> str:
        return f"Stream({self.name!r})"

    @checked()
    def map(self, function: Callable[[Record], Record]) -> "Stream":
        """The stream whose records are `function(record)`, computed when they are read."""
        return dataclasses.replace(self, transforms=(*self.transforms, function))

    @checked()
    def with_columns(self, columns: Fields) -> "Stream":
        """Renames or selects fields, as `Source.with_columns`.

        Raises:
          ValueError: the first record lacks a field; names it and the fields there are.
        """
        if columns is None:
            return self
        mapping = mapping_of(columns)
        if (first := next(iter(self), None)) is not None:
            require(mapping, first, f"{self.name}: ")
        return self.map(Rename(mapping))

    def shard(self, index: int, count: int) -> "Stream":
        """One of `count` shares of the records, for a process that reads nothing else.

        Of files whose number is a multiple of `count`, every count-th; else every count-th record. A process that
        reads a share makes batches of its own. All must have the same shapes, so that lengths (or rows) are to be
        given, and go on for ever, as shares may end at different times:

            share = stream("corpus-*.jsonl").shard(jax.process_index(), jax.process_count())
            here = {"process_index": 0, "process_count": 1, "batch_size": 1024 // jax.process_count()}
            batches(share, tokenizer, columns, max_length=128, buckets=(128,), **here)

        Raises:
          ValueError: an index that is none of `count`, or a stream that is a share already.
        """
        if not 0 <= index < count:
            raise ValueError(f"index must be in [0, count); got {index} of {count}")
        if self.part[1] > 1:
            raise ValueError(f"{self.name} is a share already, {self.part[0]} of {self.part[1]}")
        rows: Iterable[Any] = _Every(self.rows, index, count)
        if isinstance(self.rows, _Files) and len(self.rows.paths) % count == 0:
            rows = self.rows.every(index, count)
        return dataclasses.replace(self, rows=rows, name=f"{self.name} [{index} of {count}]", part=(index, count))


class StreamReader(Iterator[Record]):
    """Reads a stream; `Resumable`."""

    def __init__(self, stream: Stream):
        self._stream, self._rows, self._count = stream, resumable(stream.rows), 0

    def __next__(self) -> Record:
        record = next(self._rows)
        self._count += 1
        for transform in self._stream.transforms:
            record = transform(record)
        return record

    @property
    def count(self) -> int:
        """How many records have been read."""
        return self._count

    def get_state(self) -> State:
        return {"count": self._count, "part": list(self._stream.part), "rows": copy.deepcopy(self._rows.get_state())}

    def set_state(self, state: State) -> None:
        if (part := tuple(state["part"])) != self._stream.part:
            raise ValueError(
                f"{self._stream.name} is share {self._stream.part} of its records; the position is of {part}"
            )
        self._count = state["count"]
        self._rows.set_state(state["rows"])


@checked()
def from_iterable(
    rows: Iterable[Any] | Callable[[], Iterable[Any]], *, columns: Fields = None, name: str = "stream"
) -> Stream:
    """A stream of an iterable's records, such as a Hugging Face or grain `IterableDataset`, or of a generator function.

    Args:
      rows: begins anew, with the same records, each time it is iterated over (or called).
      columns: see `Source.with_columns`.
      name: how messages call it.

    Raises:
      TypeError: a generator, or another iterator that cannot begin anew.
    """
    if callable(rows) and not isinstance(rows, Iterable):
        rows = _Called(rows)
    if isinstance(rows, Iterator):
        raise TypeError(f"rows: a stream must be able to begin anew; got the {type(rows).__name__}, pass what makes it")
    return Stream(rows, name).with_columns(columns)


@checked(max_ratio=non_negative)
def stream(
    paths: str | Path | Sequence[str | Path],
    *,
    format: str | None = None,
    columns: Fields = None,
    names: Sequence[str] | None = None,
    delimiter: str | None = None,
    types: Mapping[str, Callable[[Any], Any]] | None = None,
    on_error: str = "strict",
    max_ratio: float = MAX_RATIO,
    keep_blank: bool = False,
) -> Stream:
    """The records of files, read while they are used: nothing but a row (of parquet, a row group) is in memory.

    Its position is the file and the place in it; a compressed file is decompressed up to there again.

    Args:
      paths: a file, several, or a pattern such as "corpus-*.jsonl.gz", whose files come in the order of their names.
      format, columns, names, delimiter, types, on_error, max_ratio, keep_blank: as of `read`.

    Raises:
      FileNotFoundError: no file.
      ValueError, RecordError: as `read`; what is wrong in a file, when it is read.
    """
    one = isinstance(paths, str | Path)
    found: Sequence[str | Path] = [paths] if isinstance(paths, str | Path) else paths
    if one and glob.has_magic(str(paths)):
        found = sorted(glob.glob(str(paths)))
    if not found:
        raise FileNotFoundError(f"paths: no files: {paths}")
    for one_path in found:
        path("paths", one_path)
    files = [Path(one_path) for one_path in found]
    formats = [checked_format(file, format, names, delimiter, types, on_error) for file in files]
    mapping = None if columns is None else mapping_of(columns)
    name = str(paths) if one else f"{files[0]} and {len(files) - 1} more" if len(files) > 1 else str(files[0])
    pairs = tuple(zip(files, formats, strict=True))
    return Stream(_Files(pairs, mapping, names, delimiter, types or {}, on_error, max_ratio, keep_blank), name)


def resumable(rows: Iterable[Any]) -> Resumable:
    """An iterator over `rows`, its own if that is `Resumable`."""
    iterator = iter(rows)
    return iterator if isinstance(iterator, Resumable) else _Counted(rows)


class _Counted(Iterator[Any]):
    """An iterator whose position is the number of records that were read."""

    def __init__(self, rows: Iterable[Any]):
        self._rows, self._iterator, self._count = rows, iter(rows), 0

    def __next__(self) -> Any:
        row = next(self._iterator)
        self._count += 1
        return row

    def get_state(self) -> State:
        return {"count": self._count}

    def set_state(self, state: State) -> None:
        self._count = state["count"]
        self._iterator = itertools.islice(iter(self._rows), self._count, None)


@dataclasses.dataclass(frozen=True)
class _Every:
    """The rows index, index + count, ..."""

    rows: Iterable[Any]
    index: int
    count: int

    def __iter__(self) -> "_EveryReader":
        return _EveryReader(self)


class _EveryReader(Iterator[Any]):
    def __init__(self, every: _Every):
        self._skip, self._every, self._rows = every.index, every, resumable(every.rows)

    def __next__(self) -> Any:
        for _ in range(self._skip):
            next(self._rows)
        row = next(self._rows)
        self._skip = self._every.count - 1
        return row

    def get_state(self) -> State:
        return {"skip": self._skip, "rows": self._rows.get_state()}

    def set_state(self, state: State) -> None:
        self._skip = state["skip"]
        self._rows.set_state(state["rows"])


@dataclasses.dataclass(frozen=True)
class _Called:
    """The rows that a function gives each time."""

    function: Callable[[], Iterable[Any]]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.function())


class _Place(NamedTuple):
    """Where in some files: the number of the file, the byte in it (parquet: row), and how many lines are before."""

    file: int = 0
    offset: int = 0
    line: int = 0


@dataclasses.dataclass(frozen=True)
class _Files:
    """The rows of files, which are pairs of a path and its format."""

    paths: tuple[tuple[Path, str], ...]
    mapping: Mapping[str, str] | None
    names: Sequence[str] | None
    delimiter: str | None
    types: Mapping[str, Callable]
    on_error: str
    max_ratio: float
    keep_blank: bool

    def __iter__(self) -> "_FilesReader":
        return _FilesReader(self)

    def every(self, index: int, count: int) -> "_Files":
        """The files index, index + count, ..."""
        return dataclasses.replace(self, paths=self.paths[index::count])

    def records(self, place: _Place) -> Iterator[tuple[_Place, Record]]:
        """The records of a file from a place in it on, each with the place after it."""
        path, format = self.paths[place.file]
        malformed, kept = Malformed(str(path), self.on_error), int(place.offset > 0)
        for after, where, row in self._rows(path, format, place):
            try:
                if isinstance(row, Exception):
                    raise row
                record = parsed(row, self.mapping, self.types)
            except (ValueError, TypeError, csv.Error) as error:
                malformed.add(where, error)
                continue
            kept += 1
            yield after, record
        malformed.report(kept)

    def _rows(self, path: Path, format: str, place: _Place) -> Iterator[tuple[_Place, str, Record | Exception]]:
        if format == "parquet":
            for number, record in _parquet_rows(path, self.mapping, place.offset, self.max_ratio):
                yield _Place(place.file, number + 1), f"{path}: row {number}", record
            return
        with opened(path) as file:
            lines = Lines(file, max_ratio=self.max_ratio)
            names = self.names or header_of(lines, format, self.delimiter, self.mapping)
            if place.offset:
                file.seek(place.offset)
                lines.number = place.line
            for number, row in rows_of(lines, format, names, self.delimiter, keep_blank=self.keep_blank):
                yield _Place(place.file, file.tell(), lines.number), f"{path}:{number}", row
            lines.blank.report(str(path))


class _FilesReader(Iterator[Record]):
    def __init__(self, files: _Files):
        self._files, self._place = files, _Place()
        self._records: Iterator[tuple[_Place, Record]] | None = None

    def __next__(self) -> Record:
        while self._place.file < len(self._files.paths):
            if self._records is None:
                self._records = self._files.records(self._place)
            if (found := next(self._records, None)) is not None:
                self._place, record = found
                return record
            self._place, self._records = _Place(self._place.file + 1), None
        raise StopIteration

    def get_state(self) -> State:
        return self._place._asdict()

    def set_state(self, state: State) -> None:
        self._place, self._records = _Place(**state), None


def _parquet_rows(
    path: Path, mapping: Mapping[str, str] | None, start: int, max_ratio: float
) -> Iterator[tuple[int, Record]]:
    """Numbers and rows from number `start` on, a row group at a time."""
    fields = None if mapping is None else list(dict.fromkeys(mapping.values()))
    with opened_parquet(path, max_ratio) as file:
        if mapping is not None:
            require(mapping, file.schema_arrow.names, f"{path}: ")
        first = 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if start < first + size:
                table = file.read_row_group(group, columns=fields)
                table.validate(full=True)
                for begin in range(max(start - first, 0), size, 1024):
                    yield from enumerate(table.slice(begin, 1024).to_pylist(), first + begin)
            first += size
