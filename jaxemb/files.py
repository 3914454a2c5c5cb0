"""How files are written, all or nothing, and how JSON is read: the one place for both.

A file is written beside its final place, brought to the disk, and renamed. Several files of a directory are replaced
together: new ones are written into a directory inside of it, which one rename commits; whoever opens the directory next
completes what a killed process had committed. Temporaries are locked while their process lives; those of killed
processes are removed by whoever writes there next.

Without `fcntl`, as on Windows, there are no locks, as on a file system that has none: that one process at a time
writes to a directory is then up to the user.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np

try:
    import fcntl
    import resource
except ImportError:  # Windows
    _EXCLUSIVE = _SHARED = _AT_ONCE = 0
else:
    _EXCLUSIVE, _SHARED, _AT_ONCE = fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_NB
_HAS_LOCKS = bool(_EXCLUSIVE)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # nor a pipe to wait for

_UNFINISHED = ".jaxemb-unfinished"  # how the names of temporaries end
_COMMITTED = ".jaxemb-committed"  # in a directory: new files that are about to take their places
_OBSOLETE = "obsolete.json"  # in there: which old files go
_OLD = 24 * 3600.0  # seconds until a temporary counts as abandoned where the file system has no locks
T = TypeVar("T")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InUseError(RuntimeError):
    """Another process works in the directory."""


class Contents(NamedTuple):
    """What directories of a kind of ours hold.

    Attributes:
      name: how the kind is called.
      mark: the file by which one knows such a directory; "" if any directory may become one.
      files: patterns of `Path.glob` of our files, which are removed when others take their places.
    """

    name: str
    mark: str
    files: Sequence[str]


class MalformedJSONError(ValueError):
    """A text that is no JSON, or not of the type that is expected."""


# Writing


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 file as `replaced_file` does."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes a file as `replaced_file` does."""
    with replaced_file(path) as fresh:
        fresh.write_bytes(content)


def write_json(path: str | Path, value: Any, *, indent: int | None = 1) -> None:
    """Writes a JSON file as `replaced_file` does."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def write_figure(path: str | Path, figure: Any, **options: Any) -> None:
    """Writes a figure of matplotlib as `replaced_file` does, in the format that the name says; `options` are those of
    its `savefig`."""
    with replaced_file(path) as fresh:
        figure.savefig(fresh, format=Path(path).suffix[1:] or None, **options)


@contextlib.contextmanager
def replaced_file(path: str | Path) -> Iterator[Path]:
    """An empty file to be written, which takes the place of `path` when the block ends without an error.

    Until then nothing changes there. Where `path` is a link, it stays one, to the new content.

    Raises:
      OSError: naming `path`, if it cannot be written or is no regular file.
    """
    final = Path(os.path.realpath(checked_path(path)))
    if final.exists() and not final.is_file():
        raise OSError(errno.EEXIST, "is no regular file", str(path))
    if final.exists() and not os.access(final, os.W_OK):
        raise OSError(errno.EACCES, "is write-protected", str(path))
    with _unfinished(final.parent, path, directory=False) as fresh:
        yield fresh
        if final.exists():
            os.chmod(fresh, stat.S_IMODE(final.stat().st_mode))
        sync(fresh)
        os.replace(fresh, final)
        sync(final.parent)


@contextlib.contextmanager
def replaced_files(directory: str | Path, contents: Contents) -> Iterator[Path]:
    """A new directory whose files take their places in `directory` when the block ends without an error, all or none.

    `directory` is made if absent. What else is in it stays, but for files that are ours and not among the new ones.
    Readers that use `read_whole` see all old files or all new ones.

    Args:
      directory: where the files belong.
      contents: what they are.

    Raises:
      FileExistsError: if `directory` is a file, or holds something else.
      OSError: naming `directory`, if it cannot be written, or a file is to take the place of a directory.
    """
    final = Path(os.path.realpath(checked_path(directory)))
    check_replaceable(directory, contents)
    home = final if final.is_dir() else final.parent
    made_directory(home)
    with contextlib.suppress(OSError):  # what is not ours to see
        remove_abandoned(final.parent)
    with _unfinished(home, directory, directory=True) as outer:
        (fresh := outer / "new").mkdir()  # the outer one is locked, and stays
        yield fresh
        sync_tree(fresh)
        if home != final:
            try:
                os.rename(fresh, final)
                return sync(home)
            except OSError:
                if not final.is_dir():  # which somebody made meanwhile
                    raise
        with locked(final):
            _complete(final)
            _commit(fresh, final, contents)
            _complete(final)


def remove(directory: str | Path, contents: Contents) -> None:
    """Removes our files in `directory`, and the directories that are empty then."""
    path = Path(directory)
    _finish(path)
    for ours in sorted(_ours(path, contents), reverse=True):
        ours.unlink()
        for parent in (ours.parent, path):
            with contextlib.suppress(OSError):  # it is not empty
                parent.rmdir()


def check_replaceable(directory: str | Path, contents: Contents) -> None:
    """Raises a FileExistsError if `replaced_files` would refuse to write into `directory`."""
    if not (path := checked_path(directory)).exists():
        return
    _finish(path)
    has_others = path.is_file() or any(not entry.name.endswith(_UNFINISHED) for entry in path.iterdir())
    if has_others and not (path / contents.mark).exists():
        raise FileExistsError(f"{directory} exists and is no {contents.name}; give another path")


def _commit(fresh: Path, final: Path, contents: Contents) -> None:
    new = {path.relative_to(fresh): path.is_dir() for path in fresh.rglob("*")}
    for name, is_directory in new.items():
        if (place := _place(final, str(name))).exists() and place.is_dir() != is_directory:
            raise OSError(errno.EEXIST, f"is {'no' if is_directory else 'a'} directory", str(place))
    old = {path.relative_to(final) for path in _ours(final, contents)}
    write_json(fresh / _OBSOLETE, sorted(map(str, old - new.keys())))
    os.rename(fresh, final / _COMMITTED)
    sync(final)


def read_whole(directory: str | Path, contents: Contents, read: Callable[[], T]) -> T:
    """What `read()` makes of the files of `directory`, all of one state.

    It is called again if `replaced_files` came between. What a killed process had committed is completed first.
    """
    directory = Path(directory)
    while True:
        _finish(directory)
        with contextlib.ExitStack() as stack:  # the number of a file that is open is given to no other
            try:
                opened = {path: stack.enter_context(open(path, "rb")) for path in _ours(directory, contents)}
            except FileNotFoundError:
                continue
            try:
                result = read()
            except Exception:
                if _is_unchanged(directory, contents, opened):
                    raise
            else:
                if _is_unchanged(directory, contents, opened):
                    return result


def _is_unchanged(directory: Path, contents: Contents, opened: Mapping[Path, IO[bytes]]) -> bool:
    if _is_committed(directory) or _ours(directory, contents) != opened.keys():
        return False
    try:
        return all(os.path.samestat(path.stat(), os.fstat(file.fileno())) for path, file in opened.items())
    except FileNotFoundError:
        return False


def _ours(directory: Path, contents: Contents) -> set[Path]:
    return {path for pattern in contents.files for path in directory.glob(pattern) if path.is_file()}


def _is_committed(directory: Path) -> bool:
    return (directory / _COMMITTED).is_dir()


def _finish(directory: Path) -> None:
    """Waits for the process that brings committed files to their places, or does it for one that was killed."""
    if _is_committed(directory):
        with locked(directory):
            _complete(directory)


def _complete(final: Path) -> None:
    """Brings committed files to their places, from whatever point on."""
    committed = final / _COMMITTED
    if not _is_committed(final):
        return
    obsolete = committed / _OBSOLETE
    for name in read_json(obsolete, list) if obsolete.exists() else ():
        (place := _place(final, name)).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it is not empty
            place.parent.rmdir()
    for path in sorted(committed.rglob("*")):
        place = _place(final, str(path.relative_to(committed)))
        if path.is_dir():
            place.mkdir(exist_ok=True)
        elif path != obsolete:
            os.replace(path, place)
            sync(place.parent)
    sync(final)
    shutil.rmtree(committed)


def _place(final: Path, name: str) -> Path:
    """Where a file goes: not outside, also not by links, as somebody else may have made the directory."""
    place = inside(final, name, where=str(final / _COMMITTED))
    if not place.parent.resolve().is_relative_to(final.resolve()):
        raise OSError(errno.EXDEV, "leads out of its directory", str(place))
    return place


def mapped_array(path: Path, shape: tuple[int, ...], dtype: str) -> np.memmap:
    """A new `.npy` file of zeros, mapped into memory; its room is reserved, so that writing to it cannot fail.

    Raises:
      OSError: if there is no room.
    """
    with open(path, "wb") as file:
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        size = file.tell() + math.prod(shape) * np.dtype(dtype).itemsize
    reserve(path, size)
    return np.load(path, mmap_mode="r+")


def reserve(path: Path, size: int) -> None:
    """Makes a file `size` bytes long, all of them on the disk; what it holds stays.

    Raises:
      OSError: if there is no room.
    """
    with open(path, "r+b") as file:
        if hasattr(os, "posix_fallocate"):
            try:
                return os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno in _NO_ROOM:
                    raise
        for start in range(file.seek(0, os.SEEK_END), size, 1 << 20):
            file.write(bytes(min(size - start, 1 << 20)))


def size_limit() -> int | None:
    """Bytes that a file of this process may have (`ulimit -f`), which is an error of its own; None for any number."""
    if not _HAS_LOCKS or (limit := resource.getrlimit(resource.RLIMIT_FSIZE)[0]) == resource.RLIM_INFINITY:
        return None
    return limit


@contextlib.contextmanager
def _unfinished(home: Path, wanted: str | Path, *, directory: bool) -> Iterator[Path]:
    """A temporary in `home`, removed if it is still there at the end. Errors about it speak of `wanted`."""
    fresh = home / f".{secrets.token_hex(6)}{_UNFINISHED}"
    make = fresh.mkdir if directory else fresh.touch
    with contextlib.ExitStack() as at_the_end:
        try:
            remove_abandoned(home)
            make(exist_ok=True)
            while not _hold(fresh, at_the_end):
                make(exist_ok=True)
            at_the_end.callback(_remove, fresh)
            yield fresh
        except OSError as error:
            of_it = str(error.filename) == str(home) or str(error.filename).startswith(str(fresh))
            if not of_it and not (error.filename is None and error.errno in _NO_ROOM):
                raise
            raise OSError(error.errno, error.strerror, str(wanted)) from error


def remove_abandoned(directory: Path) -> None:
    """Removes temporaries that killed processes left in `directory`."""
    with os.scandir(directory) as entries:
        left = [Path(entry) for entry in entries if entry.name.startswith(".") and entry.name.endswith(_UNFINISHED)]
    for path in left:
        # It may be in use, gone, or somebody else's.
        with contextlib.suppress(OSError), _descriptor(path, _NO_LINK) as number:
            if _lock(number, _EXCLUSIVE | _AT_ONCE) or time.time() - path.stat().st_mtime > _OLD:
                _remove(path)


def _hold(path: Path, until: contextlib.ExitStack) -> bool:
    """Locks a temporary `until` the end; False if `remove_abandoned` came between."""
    if not _HAS_LOCKS:
        return True
    with contextlib.ExitStack() as now, contextlib.suppress(FileNotFoundError):
        _lock(now.enter_context(_descriptor(path)), _SHARED)
        if path.exists():
            until.enter_context(now.pop_all())
            return True
    return False


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync_tree(directory: Path) -> None:
    """Returns once all that is in a directory is on the disk."""
    for path in (*directory.rglob("*"), directory):
        sync(path)


def sync(path: Path) -> None:
    """Returns once a file, or the names in a directory, are on the disk."""
    with _descriptor(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY) as number:
        try:
            if number is not None:
                os.fsync(number)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # directories of some file systems
                raise


@contextlib.contextmanager
def _descriptor(path: str | Path, flags: int = os.O_RDONLY) -> Iterator[int | None]:
    """Of a file or directory that is open meanwhile; None for a directory where those cannot be opened (Windows)."""
    if not _HAS_LOCKS and Path(path).is_dir():
        yield None
        return
    number = os.open(path, flags)
    try:
        yield number
    finally:
        os.close(number)


# Locks


@contextlib.contextmanager
def locked(directory: str | Path, *, wait: bool = True) -> Iterator[None]:
    """Only one process or thread at a time is in such a block; a killed one is out of it.

    Where the file system has no locks, there is none.

    Args:
      directory: which exists; nothing is written there.
      wait: until the other one is out.

    Raises:
      InUseError: if another one is in and `wait` is False.
    """
    with _descriptor(directory) as number:
        try:
            _lock(number, _EXCLUSIVE if wait else _EXCLUSIVE | _AT_ONCE)
        except BlockingIOError:
            raise InUseError(f"{directory} is in use by another process; wait for it, or name another one") from None
        yield


def _lock(number: int | None, how: int) -> bool:
    """Whether there are locks; raises BlockingIOError if another one holds it and `how` does not wait."""
    if not _HAS_LOCKS or number is None:
        return False
    try:
        fcntl.flock(number, how)
        return True
    except BlockingIOError:
        raise
    except OSError:
        return False


# Reading


def read_bytes(path: str | Path) -> bytes:
    """What a file holds; of a directory, or a pipe that one could wait for, the error says what was expected."""
    if (path := Path(path)).is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a directory; expected a file", str(path))
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "is no regular file; expected a file", str(path))
    return path.read_bytes()


def read_json(
    path: str | Path,
    expected: type | None = None,
    *,
    finite: bool = True,
    error: type[ValueError] = MalformedJSONError,
) -> Any:
    """What a JSON file holds.

    Args:
      path: the file.
      expected: `dict` or `list`, if it must be one.
      finite: refuse NaN and infinities.
      error: the type to raise.

    Raises:
      error: naming the file, if it holds anything else.
      OSError: if it cannot be read.
    """
    try:
        return parse_json(read_bytes(path), expected, finite=finite)
    except MalformedJSONError as problem:
        raise error(f"{path}: {problem}") from problem


def parse_json(text: str | bytes, expected: type | None = None, *, finite: bool = True) -> Any:
    """The value of a JSON text, UTF-8 if it is bytes. Raises MalformedJSONError as `read_json` does, without a name."""
    wanted = "a JSON object" if expected is dict else "a JSON list" if expected is list else "JSON"
    numbers: dict[str, Any] = {"parse_constant": _refuse, "parse_float": _finite} if finite else {}
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        value = json.loads(text, object_pairs_hook=_unique, **numbers)
    except UnicodeDecodeError as error:
        raise MalformedJSONError(f"not UTF-8, at byte {error.start}; expected {wanted}") from error
    except RecursionError:
        raise MalformedJSONError(f"nested too deeply; expected {wanted}") from None
    except ValueError as error:
        raise MalformedJSONError(
            f"not valid JSON ({error}); expected {wanted}" if text else f"is empty; expected {wanted}"
        ) from error
    if expected is not None and not isinstance(value, expected):
        raise MalformedJSONError(f"expected {wanted}; got {kind(value)}")
    return value


def kind(value: Any) -> str:
    """How JSON calls the type of a value, with the value where it is short."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    name = names.get(type(value), "a number")
    return f"{name} {value!r:.40}" if isinstance(value, str | int | float) else name


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in found if names.count(name) > 1)!r} comes twice")
    return found


def _finite(text: str) -> float:
    return number if math.isfinite(number := float(text)) else _refuse(text)


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a finite number")


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal; about 1.5 GB/s."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Paths


def checked_path(path: str | Path) -> Path:
    """A path as a user gives it. Raises ValueError for an empty text, which would mean the current directory."""
    if not str(path).strip():
        raise ValueError(f"expected a path; got {str(path)!r}")
    return Path(path)


def made_directory(path: str | Path) -> Path:
    """A directory as a user names it, made with those above it where they are absent.

    Raises:
      FileExistsError: naming it, if there is a file in its place.
      NotADirectoryError: if there is one in the place of a directory above it.
    """
    directory = checked_path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise type(error)(
            f"{directory} cannot be a directory: a file, or a link that leads nowhere, is in its place or above it"
        ) from error
    return directory


def inside(directory: Path, name: Any, *, where: str, error: type[ValueError] = ValueError) -> Path:
    """The path of what a file of `directory` calls `name`, which must not lead out of it.

    Only the text is judged: what is in `directory` may be links to elsewhere, as in the hub's cache.

    Raises:
      error: beginning with `where`, if `name` is no text, is absolute, or has the part "..".
    """
    if not isinstance(name, str) or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise error(f"{where}: expected a path inside of {directory}; got {name!r}")
    return directory / name
