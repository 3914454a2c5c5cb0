"""Two processes that train as one: SIGTERM to one of them stops both after the same step, and they go on from there."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

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


def start(config: Path, out: Path) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "jaxemb", "train", str(config), "--out", str(out), "--distributed"]
    command += ["--coordinator", address, "--num-processes", "2", "--process-id"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "JAX_PLATFORMS": "cpu"}
    options = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen([*command, number], **options) for number in ("0", "1")]


def finish(processes: list[subprocess.Popen]) -> list[str]:
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    return said


def steps_of(out: Path) -> list[int]:
    path = out / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def test_a_preempted_process_stops_all_at_one_step(tmp_path):
    config, out = tmp_path / "config.py", tmp_path / "run"
    config.write_text(CONFIG)
    processes = start(config, out)
    while len(steps_of(out)) < 3:
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    said = finish(processes)
    saved = {path.name for path in (out / "checkpoints").iterdir()}
    assert len(saved) == 1 and saved != {"step_00000060"}
    assert all(f"SIGTERM: saved {out / 'checkpoints' / next(iter(saved))}" in text for text in said)

    finish(start(config, out))
    assert steps_of(out) == list(range(1, 61))
    assert (out / "model").is_dir()
