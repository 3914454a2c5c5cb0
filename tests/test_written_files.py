"""Files are written all or nothing, by any number of processes, and read with an error that says what is wrong."""

import errno
import fcntl
import os
import re
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from disk_events import numbers, recorded, synced_before
from matplotlib.figure import Figure

from jaxemb import files

ROOT = Path(__file__).resolve().parent.parent
ANY = files.Contents("directory of letters", mark="", files=[])


def names(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()}


def fill(directory: Path, **contents: str) -> None:
    for name, content in contents.items():
        (directory / name).write_text(content)


def abandon(directory: Path, what: str = "file") -> None:
    """Leaves what a process leaves that is killed while it writes into `directory`."""
    code = f"""
import os, pathlib, signal
from jaxemb import files
target = {str(directory)!r}
any = files.Contents("any", "", ())
with files.replaced_file(target + "/x") if {what!r} == "file" else files.replaced_files(target, any) as fresh:
    (fresh / "x" if fresh.is_dir() else fresh).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False, env=os.environ | {"PYTHONPATH": os.getcwd()})


def test_a_file_is_replaced_when_all_of_it_is_written(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"text": "ä"})
    assert path.read_text(encoding="utf-8") == '{\n "text": "ä"\n}\n'
    with pytest.raises(KeyboardInterrupt), files.replaced_file(path) as fresh:
        fresh.write_text("half")
        raise KeyboardInterrupt
    assert files.read_json(path, dict) == {"text": "ä"}
    assert names(tmp_path) == {"a.json"}


def test_a_file_keeps_its_mode_and_its_link(tmp_path):
    path, link = tmp_path / "a", tmp_path / "link"
    files.write_text(path, "one")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~_umask()
    path.chmod(0o640)
    link.symlink_to("a")
    files.write_text(link, "two")
    assert (path.read_text(), link.is_symlink(), stat.S_IMODE(path.stat().st_mode)) == ("two", True, 0o640)


def _umask() -> int:
    os.umask(mask := os.umask(0))
    return mask


def test_a_file_is_on_the_disk_before_its_name_is(tmp_path, monkeypatch):
    events = recorded(monkeypatch)
    files.write_text(tmp_path / "a", "x")
    assert events[:3] == [("sync", *numbers(tmp_path / "a")), ("rename", "a"), ("sync", *numbers(tmp_path))]


@pytest.mark.parametrize("exists", [False, True])
def test_files_are_on_the_disk_before_they_are_committed(tmp_path, monkeypatch, exists):
    directory = tmp_path / "model"
    if exists:
        directory.mkdir()
    events = recorded(monkeypatch)
    with files.replaced_files(directory, ANY) as fresh:
        fill(fresh, a="1", b="1")
        (fresh / "sub").mkdir()
        fill(fresh / "sub", a="1")
    commit = ("rename", files._COMMITTED if exists else "model")
    new = {directory / "a", directory / "b", directory / "sub" / "a"}
    assert numbers(*new) <= synced_before(events, commit)
    later = {number for kind, number in events[events.index(commit) :] if kind == "sync"}
    assert numbers(directory if exists else tmp_path) <= later


def test_a_write_protected_file_is_not_replaced(tmp_path, monkeypatch):
    files.write_text(path := tmp_path / "a", "one")
    path.chmod(0o444)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # as for who is not root
    with pytest.raises(PermissionError, match=r"is write-protected.*a"):
        files.write_text(path, "two")
    assert path.read_text() == "one" and names(tmp_path) == {"a"}


def test_what_cannot_be_written_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, error in [(tmp_path / "pipe", FileExistsError), (tmp_path / "no" / "a", FileNotFoundError)]:
        with pytest.raises(error, match=str(path)):
            files.write_text(path, "x")
    for empty in ("", " "):
        with pytest.raises(ValueError, match="expected a path"):
            files.write_text(empty, "x")
    with pytest.raises(OSError, match=r"No space left.*a\.npy"), files.replaced_file(tmp_path / "a.npy"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == {"pipe"}


def test_room_is_reserved_before_it_is_used(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.touch()
    files.reserve(path, 5000)
    assert path.stat().st_blocks * 512 >= 5000 == path.stat().st_size
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    files.reserve(path, 3_000_000)
    assert path.stat().st_blocks * 512 >= 3_000_000 == path.stat().st_size


@pytest.mark.parametrize("known", [True, False])
def test_an_array_that_is_mapped_is_an_npy_file(tmp_path, monkeypatch, known):
    if not known:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    for shape in [(3, 4), (0, 4), (100_000, 4)]:
        array = files.mapped_array(tmp_path / "a", shape, "float16")
        assert isinstance(array, np.memmap) and array.shape == shape
        assert (tmp_path / "a").stat().st_blocks * 512 >= array.nbytes  # its room is there before it is written
        assert not array.any()
        array[:] = 2
        array.flush()
        np.testing.assert_array_equal(np.load(tmp_path / "a"), np.full(shape, 2, np.float16))


def test_files_are_replaced_together_and_others_stay(tmp_path):
    directory = tmp_path / "new" / "model"
    with files.replaced_files(directory, ANY) as fresh:
        fill(fresh, a="1", b="1")
        (fresh / "sub").mkdir()
        fill(fresh / "sub", a="1")
    fill(directory, notes="mine")
    with files.replaced_files(directory, ANY._replace(files=["?", "sub/*"])) as fresh:
        fill(fresh, a="2", c="2")
        assert (directory / "a").read_text() == "1"
    assert names(directory) == {"a", "c", "notes"}
    assert not (directory / "sub").exists()
    assert (directory / "a").read_text() == "2"
    with pytest.raises(ZeroDivisionError), files.replaced_files(directory, ANY._replace(files=["?"])) as fresh:
        fill(fresh, a="3")
        raise ZeroDivisionError
    assert names(tmp_path) == {"new/model/a", "new/model/c", "new/model/notes"}
    assert (directory / "a").read_text() == "2"


def test_a_directory_that_is_a_link_is_written_through(tmp_path):
    (tmp_path / "link").symlink_to("target")
    for content in "12":
        with files.replaced_files(tmp_path / "link", ANY) as fresh:
            fill(fresh, a=content)
        assert (tmp_path / "target" / "a").read_text() == content
    assert (tmp_path / "link").is_symlink()


def test_a_directory_is_not_replaced_by_a_file(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match=r"a directory: .*/a"), files.replaced_files(tmp_path, ANY) as fresh:
        fill(fresh, a="1", b="1")
    assert names(tmp_path) == set()


@pytest.mark.parametrize("moved", range(4))
def test_what_is_committed_is_completed_by_who_reads_next(tmp_path, monkeypatch, moved):
    """A process that is killed after any number of renames."""
    with files.replaced_files(tmp_path, ANY) as fresh:
        fill(fresh, a="1", b="1", old="1")
    renames = iter(range(moved))
    replace = os.replace

    def until_killed(source, target):
        if files._COMMITTED not in str(source):
            return replace(source, target)
        next(renames)
        replace(source, target)

    monkeypatch.setattr(os, "replace", until_killed)
    writer = files.replaced_files(tmp_path, ANY._replace(files=["old"]))
    with pytest.raises((StopIteration, RuntimeError)), writer as fresh:
        fill(fresh, a="2", b="2", c="2", d="2")
    monkeypatch.undo()
    read = lambda: {name: (tmp_path / name).read_text() for name in names(tmp_path)}
    assert files.read_whole(tmp_path, ANY, read) == dict.fromkeys("abcd", "2")


def test_where_there_are_no_locks_only_what_is_old_is_removed(tmp_path, monkeypatch):
    def fail(number: int, how: int):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fail)
    new, old = (tmp_path / f".{name}{files._UNFINISHED}" for name in ("new", "old"))
    new.touch()
    old.mkdir()
    os.utime(old, (time.time() - files._OLD - 60,) * 2)
    with files.locked(tmp_path, wait=False), files.locked(tmp_path, wait=False):
        files.write_text(tmp_path / "a", "x")
    assert set(tmp_path.iterdir()) == {new, tmp_path / "a"}


@pytest.mark.parametrize("name", ["../victim", "link/victim", "/victim"])
def test_what_others_committed_reaches_nothing_outside(tmp_path, name):
    """A model directory that was downloaded may hold anything."""
    committed = tmp_path / "model" / files._COMMITTED
    (committed / "link").mkdir(parents=True)
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "model" / "link").symlink_to(tmp_path)
    files.write_json(committed / files._OBSOLETE, [name])
    with pytest.raises((OSError, ValueError), match=r"leads out|expected a path inside"):
        files.read_whole(tmp_path / "model", ANY, lambda: None)
    files.write_json(committed / files._OBSOLETE, [])
    (committed / "link" / "victim").write_text("theirs")
    with pytest.raises(OSError, match="leads out"):
        files.read_whole(tmp_path / "model", ANY, lambda: None)
    assert (tmp_path / "victim").read_text() == "mine"


def test_what_killed_processes_left_is_removed_and_what_is_in_use_is_not(tmp_path):
    for what in ("file", "files"):
        abandon(tmp_path, what)
        assert len(names(tmp_path)) == 1  # the second one removes what the first one left
    with files.replaced_file(tmp_path / "a") as one, files.replaced_files(tmp_path, ANY) as two:
        assert set(tmp_path.iterdir()) == {one, two.parent}
        files.write_text(tmp_path / "b", "x")
        assert one.exists() and two.exists()
    assert names(tmp_path) == {"a", "b"}


def test_what_is_replaced_while_it_is_read_is_read_again(tmp_path):
    letters = ANY._replace(files=["?"])

    def write(content: str) -> None:
        with files.replaced_files(tmp_path, letters) as fresh:
            fill(fresh, a=content, **{content: content})

    def read() -> tuple[str, set[str]]:
        first = (tmp_path / "a").read_text()
        if content := next(contents, None):
            write(content)
        if content == "2":
            raise ValueError("what was there is gone")
        return first, names(tmp_path)

    write("0")
    contents = iter("123")
    assert files.read_whole(tmp_path, letters, read) == ("3", {"a", "3"})
    with pytest.raises(ZeroDivisionError):
        files.read_whole(tmp_path, letters, lambda: 1 / 0)


def test_a_lock_admits_one(tmp_path):
    with files.locked(tmp_path), pytest.raises(files.InUseError, match=f"{tmp_path} is in use by another process"):
        files.locked(tmp_path, wait=False).__enter__()
    with files.locked(tmp_path):
        entered = threading.Event()

        def enter():
            with files.locked(tmp_path):
                entered.set()

        thread = threading.Thread(target=enter)
        thread.start()
        assert not entered.wait(0.05)
    thread.join()
    assert entered.is_set()
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    ("content", "expected", "message"),
    [
        (b"", None, "is empty; expected JSON"),
        (b'{"a": 1', dict, "not valid JSON (Expecting"),
        (b"[1]", dict, "expected a JSON object; got a list"),
        (b'"text"', list, "expected a JSON list; got a string 'text'"),
        (b"null", dict, "expected a JSON object; got null"),
        (b"true", dict, "expected a JSON object; got a boolean True"),
        (b"[" * 200_000, None, "nested too deeply; expected JSON"),
        (b'{"a": "\xff"}', dict, "not UTF-8, at byte 7; expected a JSON object"),
        (b'{"a": NaN}', dict, "not valid JSON (NaN is not a finite number); expected a JSON object"),
        (b'{"a": -1e999}', dict, "-1e999 is not a finite number"),
        (b"1" * 5000, None, "not valid JSON (Exceeds the limit"),
    ],
)
def test_what_is_wrong_with_a_json_file_is_said(tmp_path, content, expected, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(files.MalformedJSONError) as error:
        files.read_json(tmp_path / "a.json", expected)
    assert str(error.value).startswith(f"{tmp_path / 'a.json'}: ") and message in str(error.value)


def test_json_that_is_right(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": [1.5, NaN]}')
    (value,) = files.read_json(tmp_path / "a.json", dict, finite=False).values()
    assert value[0] == 1.5 and value[1] != value[1]

    class Other(ValueError):
        pass

    with pytest.raises(Other, match=r"a.json: not valid JSON \(NaN"):
        files.read_json(tmp_path / "a.json", dict, error=Other)


def test_paths_do_not_lead_out(tmp_path):
    assert files.inside(tmp_path, "1_Pooling", where="modules.json") == tmp_path / "1_Pooling"
    assert files.inside(tmp_path, "", where="modules.json") == tmp_path
    (tmp_path / "link").symlink_to("/etc")
    assert files.inside(tmp_path, "link/passwd", where="modules.json") == tmp_path / "link" / "passwd"
    for name in ("../a", "a/../../b", "/etc/passwd", "..", "a\0b", 3, None):
        with pytest.raises(ValueError, match=f"modules.json: expected a path inside of {tmp_path}; got "):
            files.inside(tmp_path, name, where="modules.json")


def test_without_locks_files_are_written_all_the_same(tmp_path):
    """As on Windows, which has no fcntl, and no directories that can be opened."""
    code = f"""
import os, sys
sys.modules["fcntl"] = None
really = os.open
def open_(path, *args, **options):
    assert not os.path.isdir(path), path
    return really(path, *args, **options)
os.open = open_
from pathlib import Path
from jaxemb import files
directory, contents = Path({str(tmp_path)!r}) / "a", files.Contents("any", "", ("*",))
files.write_json(directory.parent / "b", [1])
for text in ("old", "new"):
    with files.replaced_files(directory, contents) as fresh:
        (fresh / "x").write_text(text)
with files.locked(directory, wait=False):
    print(files.read_whole(directory, contents, (directory / "x").read_text), files.read_json(directory.parent / "b"))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout == "new [1]\n", done.stderr
    assert names(tmp_path) == {"a/x", "b"}


def test_a_figure_is_written_in_the_format_of_its_name(tmp_path):
    figure = Figure()
    for name, start in {"a.png": b"\x89PNG", "a.svg": b"<?xml"}.items():
        files.write_figure(tmp_path / name, figure)
        assert (tmp_path / name).read_bytes().startswith(start)
    figure.savefig = lambda file, **options: Path(file).write_bytes(b"half") + 1 / 0
    with pytest.raises(ZeroDivisionError):
        files.write_figure(tmp_path / "a.png", figure)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG") and names(tmp_path) == {"a.png", "a.svg"}


def test_no_figure_is_saved_and_no_file_locked_past_this_module():
    """A buffer is no file."""
    found = {
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for folder in ("jaxemb", "experiments", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"\.savefig\((?!buffer)|import fcntl", line) and path.name != "files.py"
    }
    assert not found
