"""Works that write, and processes that die in them: really, or as far as the files of this process can tell."""

import contextlib
import dataclasses
import functools
import io
import json
import os
import shutil
import signal
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from tiny_run import tiny_embedder, toy_run

from jaxemb.compilation import enable_persistent_cache
from jaxemb.files import Contents, read_whole
from jaxemb.retrieval import build_index
from jaxemb.train import fit

_CALLS = ("replace", "rename", "unlink", "remove", "rmdir", "mkdir", "open", "fsync", "chmod", "posix_fallocate")
_WRITES = set("wax+")
TEXTS = [str(number) for number in range(40)]


class Killed(BaseException):
    """The process is dead."""


@contextlib.contextmanager
def counted(at: Callable[[int], None]) -> Iterator[None]:
    """Calls `at` with the number of each call that changes files, from 1, before it does."""
    calls = 0

    def hooked(function, changes):
        @functools.wraps(function)
        def call(*args, **options):
            nonlocal calls
            if changes(*args, **options):
                calls += 1
                at(calls)
            return function(*args, **options)

        return call

    always = lambda *args, **options: True
    creates = lambda path, flags=0, *args, **options: bool(flags & (os.O_WRONLY | os.O_RDWR))
    writes = lambda file, mode="r", *args, **options: bool(_WRITES & set(mode)) and not isinstance(file, int)
    real = {name: getattr(os, name) for name in _CALLS}, io.open
    try:
        for name, function in real[0].items():
            setattr(os, name, hooked(function, creates if name == "open" else always))
        io.open = __builtins__["open"] = hooked(real[1], writes)
        yield
    finally:
        for name, function in real[0].items():
            setattr(os, name, function)
        io.open = __builtins__["open"] = real[1]


@dataclasses.dataclass(frozen=True)
class Work:
    """Something that writes below a directory.

    Attributes:
      prepare: makes the directory what it is before.
      run: does the work there.
      resumes: doing it again goes on where it ended; otherwise the files are at any time those before or those after.
    """

    prepare: Callable[[Path], None]
    run: Callable[[Path], object]
    resumes: bool = False


def files_of(directory: Path) -> dict[str, bytes]:
    """All files, as whoever opens the directory finds them."""
    if (directory / "place").is_dir():  # completes what was committed
        read_whole(directory / "place", Contents("", "", ()), lambda: None)
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and "jaxemb-unfinished" not in str(path)
    }


def left_over(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if ".jaxemb-" in path.name]


# The works


@functools.cache
def _other():
    """A model of more modules than the tiny one, with other weights."""
    from jaxemb.embedder import Normalize

    tiny = tiny_embedder()
    model = dataclasses.replace(jax.tree.map(lambda leaf: leaf + 1, tiny.model), heads=(Normalize(),))
    return tiny.replace(model=model, prompts={"query": "query: "})


def _nothing(directory: Path) -> None:
    pass


def _model_with_notes(directory: Path) -> None:
    tiny_embedder().save(directory / "place")
    (directory / "place" / ".git").mkdir()
    (directory / "place" / ".git" / "HEAD").write_text("ref")
    (directory / "place" / "README.md").write_text("notes")


def _index(directory: Path, number: int) -> None:
    vectors = np.full((number, 4), number, np.float32)
    model = types.SimpleNamespace(
        model=types.SimpleNamespace(dim=4),
        similarity_fn_name="cosine",
        prompts={},
        encode=lambda texts: np.ones((len(texts), 4), np.float32),
    )
    build_index(
        directory / "place", [f"{number} {i}" for i in range(number)], model, model=str(number), vectors=vectors
    )


def _sts(directory: Path) -> None:
    _model_with_notes(directory)
    (directory / "sts.jsonl").write_text(
        "".join(json.dumps({"a": str(i), "b": str(i + 1), "score": i % 3}) + "\n" for i in range(20))
    )


def _evaluate(directory: Path) -> None:
    from jaxemb.cli import main

    data = ["--task", "sts", "--data", str(directory / "sts.jsonl"), "--columns", "a,b,score", "--quiet"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["evaluate", *data, "--model", str(directory / "place")]) == 0


WORKS = {
    "save": Work(_nothing, lambda d: tiny_embedder().save(d / "place")),
    "save over": Work(_model_with_notes, lambda d: _other().save(d / "place")),
    "build": Work(_nothing, lambda d: _index(d, 3)),
    "build over": Work(lambda d: _index(d, 5), lambda d: _index(d, 3)),
    "encode": Work(_nothing, lambda d: tiny_embedder().encode(TEXTS, out=d / "x.npy")),
    "encode over": Work(
        lambda d: tiny_embedder().encode(TEXTS[:3], out=d / "x.npy"),
        lambda d: tiny_embedder().encode(TEXTS, out=d / "x.npy"),
    ),
    "evaluate": Work(_sts, _evaluate),
    "train": Work(_nothing, lambda d: fit(toy_run(steps=6), d / "place", progress=False), resumes=True),
}


def die(name: str, directory: Path, call: int, seconds: float, needed) -> None:
    """Does a work in this process, which is killed before a call that changes files, or after some seconds.

    `needed` gets the number of those calls and the seconds, if it is not.
    """
    calls = 0

    def at(number: int) -> None:
        nonlocal calls
        calls = number
        if number == call:
            os.kill(os.getpid(), signal.SIGKILL)

    jax.config.update("jax_platforms", "cpu")
    enable_persistent_cache()
    os.environ["HF_HUB_OFFLINE"] = "1"
    started = time.perf_counter()
    if seconds:
        signal.setitimer(signal.ITIMER_REAL, seconds)  # SIGALRM ends the process, with nothing done in it
    with counted(at):
        WORKS[name].run(directory)
    needed[:] = calls, time.perf_counter() - started


def prepared(name: str, directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    WORKS[name].prepare(directory)
    return directory
