"""Several writers and readers of one directory: whoever opens it sees one state, whole."""

import itertools
import multiprocessing
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from jaxemb.checkpoints import read_tensors, write_tensors
from jaxemb.files import write_bytes
from jaxemb.retrieval import build_index, open_index

MODEL = types.SimpleNamespace(
    model=types.SimpleNamespace(dim=4),
    similarity_fn_name="cosine",
    prompts={},
    encode=lambda texts: np.ones((len(texts), 4), np.float32),
)


def build(path: Path, number: int) -> None:
    """An index of which every file says which one it is."""
    count = 1 + number % 7
    vectors = np.full((count, 4), number + 1, np.float32)
    build_index(path, [f"{number} {i}" for i in range(count)], MODEL, model=f"model {number}", vectors=vectors)


def opened(path: Path) -> int:
    """The number of the index that is opened, of which all parts belong together."""
    index = open_index(path)
    number = int(index.manifest.model.split()[1])
    assert len(index) == 1 + number % 7
    assert [index.record(i) for i in range(len(index))] == [{"text": f"{number} {i}"} for i in range(len(index))]
    np.testing.assert_array_equal(index.vectors, np.float32(number + 1))
    return number


def read_until(path: Path, stop) -> tuple[int, int]:
    """How often the index was opened, and how many different ones were seen."""
    seen: list[int] = []
    while not stop.is_set():
        seen.append(opened(path))
    return len(seen), len(set(seen))


def test_readers_of_an_index_that_is_rebuilt_see_one_or_the_other(tmp_path):
    path, stop, numbers = tmp_path / "index", threading.Event(), itertools.count(1)
    build(path, 0)

    def rebuild(times: int) -> None:
        for _ in range(times):
            build(path, next(numbers))

    with ThreadPoolExecutor(4) as threads:
        readers = [threads.submit(read_until, path, stop) for _ in range(2)]
        writers = [threads.submit(rebuild, 15) for _ in range(2)]
        try:
            for writer in writers:
                writer.result()
        finally:
            stop.set()
        assert all(opens > 0 for opens, _ in (reader.result() for reader in readers))
    assert {file.name for file in path.iterdir()} == {"manifest.json", "vectors.npy", "records.jsonl"}
    assert list(tmp_path.iterdir()) == [path]


def _read(path: Path, ready, stop, found) -> None:
    opened(path)
    ready.release()
    found.put(read_until(path, stop))


@pytest.mark.slow
def test_processes_that_read_an_index_during_200_rebuilds(tmp_path, record_property):
    spawn = multiprocessing.get_context("spawn")
    path, stop, ready, found = tmp_path / "index", spawn.Event(), spawn.Semaphore(0), spawn.Queue()
    build(path, 0)
    readers = [spawn.Process(target=_read, args=(path, ready, stop, found)) for _ in range(3)]
    for reader in readers:
        reader.start()
    for _ in readers:
        assert ready.acquire(timeout=60)
    for number in range(1, 201):
        build(path, number)
    stop.set()
    opens, different = zip(*(found.get(timeout=60) for _ in readers), strict=True)
    for reader in readers:
        reader.join()
    record_property("faults", {"rebuilds": 200, "opens": sum(opens), "different seen": max(different)})
    assert [reader.exitcode for reader in readers] == [0, 0, 0] and min(different) > 1


def _rebuild(path: Path, first: int, ready) -> None:
    ready.wait(timeout=60)
    for number in range(first, 60, 2):
        build(path, number)


@pytest.mark.slow
def test_two_processes_that_write_one_index_leave_the_last_one_whole(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    path, ready = tmp_path / "index", spawn.Barrier(2)
    writers = [spawn.Process(target=_rebuild, args=(path, first, ready)) for first in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert opened(path) in (58, 59)
    assert {file.name for file in path.iterdir()} == {"manifest.json", "vectors.npy", "records.jsonl"}
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_several_write_is_that_of_one(tmp_path):
    path, size = tmp_path / "a", 200_000
    write_bytes(path, bytes(size))

    def write(number: int) -> None:
        for _ in range(10):
            write_bytes(path, bytes([number]) * size)

    with ThreadPoolExecutor(3) as threads:
        writers = [threads.submit(write, number) for number in range(1, 4)]
        while not all(writer.done() for writer in writers):
            content = path.read_bytes()
            assert content == content[:1] * size
    for writer in writers:
        writer.result()
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_that_are_replaced_are_read_whole(tmp_path):
    """One file or two shards, in turns."""
    stop = threading.Event()

    def write(number: int) -> None:
        content = {name: np.full(8, number, np.float32) for name in "ab"}
        write_tensors(tmp_path, content, max_bytes=10**6 if number % 2 else 32)

    def read() -> int:
        times = 0
        while not stop.is_set():
            tensors = read_tensors(tmp_path)
            assert set(tensors) == {"a", "b"}
            np.testing.assert_array_equal(tensors["a"], tensors["b"])
            times += 1
        return times

    write(0)
    with ThreadPoolExecutor(2) as threads:
        reader = threads.submit(read)
        for number in range(1, 20):
            write(number)
        stop.set()
        assert reader.result() > 0
