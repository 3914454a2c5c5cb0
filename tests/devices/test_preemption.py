"""Two processes that train as one: SIGTERM to one of them stops both after the same step, and they go on from there."""

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


@pytest.mark.slow
def test_a_preempted_process_stops_all_at_one_step(tmp_path):
    config, out = tmp_path / "config.py", tmp_path / "run"
    config.write_text(CONFIG)
    command = ("-m", "jaxemb", "train", config, "--out", out, "--distributed")
    processes = start(*command)
    while len(steps_of(out)) < 3:
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    said = finish(processes)
    saved = {path.name for path in (out / "checkpoints").iterdir()}
    assert len(saved) == 1 and saved != {"step_00000060"}
    assert all(f"SIGTERM: saved {out / 'checkpoints' / next(iter(saved))}" in text for text in said)

    finish(start(*command))
    assert steps_of(out) == list(range(1, 61))
    assert (out / "model").is_dir()
