"""Two processes that train as one: what one of them is told, or fails at, both save after the same step."""

import json
import signal
import time
from pathlib import Path

import pytest
from processes import finish, start

CONFIG = """
import time
from jaxemb.parallel import make_mesh
from tiny_run import pairs, toy_run

def slowly(batch):
    time.sleep(0.1)
    return batch

def run(steps=60):
    data = lambda embedder: pairs().map(slowly)
    return toy_run(steps=steps, mesh=make_mesh(), data=data, evaluators={}, checkpoint_every=1000, log_every=1)
"""


def steps_of(out: Path) -> list[int]:
    path = out / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


#: The command, in which Ctrl-C is not ignored, as it is in jobs that a shell runs in the background.
PROGRAM = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("jaxemb", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "called", "code"), [(signal.SIGTERM, "SIGTERM", 0), (signal.SIGINT, "Ctrl-C", 130)])
def test_a_preempted_process_stops_all_at_one_step(tmp_path, sent, called, code):
    config, out = tmp_path / "config.py", tmp_path / "run"
    config.write_text(CONFIG)
    command = ("-c", PROGRAM, "train", config, "--out", out, "--distributed")
    processes = start(*command)
    while len(steps_of(out)) < 3:
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.05)
    processes[1].send_signal(sent)
    said = finish(processes, codes=[0, code])
    saved = {path.name for path in (out / "checkpoints").iterdir()}
    assert len(saved) == 1 and saved != {"step_00000060"}
    for name, text in zip(("SIGTERM", called), said, strict=True):
        assert f"{name}: saved {out / 'checkpoints' / next(iter(saved))}" in text and "Traceback" not in text

    finish(start(*command))
    assert steps_of(out) == list(range(1, 61))
    assert (out / "model").is_dir()


FAILING = """
import jax
from jaxemb.parallel import make_mesh
from tiny_run import toy_run

calls = []

def evaluator(embedder):
    calls.append(0)
    if {fails} and len(calls) == 3 and jax.process_index() == 1:
        raise ValueError("of one process")
    return {{"error": float(len(calls))}}

def run():
    every = {{"evaluate_every": 4, "checkpoint_every": 1000, "log_every": 1}}
    return toy_run(steps=12, mesh=make_mesh(), evaluators={{"toy": evaluator}}, **every)
"""


@pytest.mark.slow
def test_an_evaluator_that_fails_in_one_process_loses_no_step(tmp_path):
    config, out = tmp_path / "config.py", tmp_path / "run"
    config.write_text(FAILING.format(fails=True))
    command = ("-m", "jaxemb", "train", config, "--out", out, "--distributed")
    processes = start(*command)
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert all(process.returncode for process in processes), said
    assert "of one process" in said[1]
    assert "step_00000008" in {path.name for path in (out / "checkpoints").iterdir()}
    config.write_text(FAILING.format(fails=False))
    finish(start(*command))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "toy/error" in line] == [0, 4, 8, 12]
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 13))


@pytest.mark.slow
def test_process_0_says_when_it_is_time_for_a_checkpoint(tmp_path):
    """The clock of the other one would never say so."""
    config, out = tmp_path / "config.py", tmp_path / "run"
    config.write_text(f"""
import dataclasses, jax
{CONFIG}
untimed = run
def run():
    minutes = 0.0 if jax.process_index() == 0 else 1e9
    return dataclasses.replace(untimed(7), log_every=3, keep=9, checkpoint_minutes=minutes)
""")
    finish(start("-m", "jaxemb", "train", config, "--out", out, "--distributed"))
    assert {path.name for path in (out / "checkpoints").iterdir()} == {f"step_{n:08d}" for n in (3, 6, 7)}
