"""Whenever a process dies, what it worked on is as before or complete, and doing it again ends as if it had lived."""

import itertools
import multiprocessing
import os
import random
import signal
from collections import Counter
from pathlib import Path

import pytest
from kills import WORKS, Killed, counted, die, files_of, left_over, prepared

from jaxemb.train import read_metrics

WRITERS = [name for name, work in WORKS.items() if not work.resumes and name != "evaluate"]
KILLED = ("train", "save over", "encode over", "build over", "evaluate")


def outcome(name: str, directory: Path, before: dict, after: dict) -> str:
    """What a killed work has left; then does it again."""
    if not WORKS[name].resumes:
        found = files_of(directory)
        assert found in (before, after), f"{sorted(found)} are neither those before nor those after"
    WORKS[name].run(directory)
    assert finished(directory) == after
    assert left_over(directory) == []
    return "resumed" if WORKS[name].resumes else "as before" if found == before else "complete"


def finished(directory: Path) -> dict:
    """What a work has made, but for times."""
    found = {name: content for name, content in files_of(directory).items() if "checkpoints/" not in name}
    found = {name: content for name, content in found.items() if "tensorboard" not in name}
    for name in found:
        if name.endswith("metrics.jsonl"):
            lines = read_metrics((directory / name).parent)
            found[name] = [{k: v for k, v in line.items() if k != "train/records_per_second"} for line in lines]
    return found


def dies_at(call: int, name: str, directory: Path) -> bool:
    """Whether a work comes as far as this call; from there on nothing reaches the files."""

    def at(number: int) -> None:
        if number >= call:
            raise Killed

    try:
        with counted(at):
            WORKS[name].run(directory)
    except Killed:
        return True
    return False


@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_that_dies_at_any_call_leaves_all_or_nothing(tmp_path, monkeypatch, record_property, name):
    monkeypatch.setattr(os, "fsync", lambda number: None)  # a process that dies takes nothing from the system's cache
    before = files_of(prepared(name, tmp_path / "whole"))
    WORKS[name].run(tmp_path / "whole")
    after, counts = finished(tmp_path / "whole"), Counter()
    for call in itertools.count(1, 3 if "save" in name else 1):
        directory = prepared(name, tmp_path / "cut")
        if not dies_at(call, name, directory):
            break
        counts[outcome(name, directory, before, after)] += 1
    assert counts["as before"] > 2
    record_property("faults", dict(counts))


@pytest.mark.slow
def test_100_processes_that_are_killed(tmp_path, record_property):
    """Half of them before a call that changes files, half at any time of the work."""
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    print(f"seed of the kills: {seed}")
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["kills"])

    def run(name: str, directory: Path, call: int = 0, seconds: float = 0.0) -> tuple[int, int, float]:
        """How the process ended, and what a whole one needed: calls and seconds."""
        needed = processes.Array("d", 2)
        process = processes.Process(target=die, args=(name, directory, call, seconds, needed))
        process.start()
        process.join()
        return process.exitcode, int(needed[0]), needed[1]

    counts: Counter[str] = Counter()
    for name in KILLED:
        for _ in range(2):  # the second time all programs are compiled
            before = files_of(prepared(name, tmp_path / "whole"))
            code, calls, seconds = run(name, tmp_path / "whole")
            assert code == 0
        after = finished(tmp_path / "whole")
        for number in range(20):
            code = 0
            while code == 0:
                directory = prepared(name, tmp_path / "cut")
                at = (
                    {"call": rng.randint(1, calls)} if number % 2 and calls else {"seconds": rng.uniform(0.01, seconds)}
                )
                code, *needed = run(name, directory, **at)
                if code == 0:  # it was faster than the one before
                    calls, seconds = needed
            assert code in (-signal.SIGKILL, -signal.SIGALRM), (name, at)
            counts[outcome(name, directory, before, after)] += 1
    record_property("faults", dict(counts))
