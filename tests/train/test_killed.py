"""Real processes, really killed."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_run import read_model

from jaxemb.train import read_metrics

HERE = Path(__file__).parent


def start(out: Path, tasks: int, seconds_per_batch: float = 0.0) -> subprocess.Popen:
    path = os.pathsep.join([str(HERE.parent), str(HERE.parent.parent)])  # this checkout, not an installed one
    environment = os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(HERE / "train_tiny.py"), str(out), str(seconds_per_batch), str(tasks)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for_step(process: subprocess.Popen, out: Path, step: int) -> None:
    """Returns when the checkpoint of `step`, or a newer one, is being written."""
    is_there = lambda: any(int(p.name[5:13]) >= step for p in (out / "checkpoints").glob("step_*"))
    while not is_there():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)


def arrays(out: Path) -> dict[str, np.ndarray]:
    """All arrays of the last checkpoint, and the saved models."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore(out.absolute() / "checkpoints" / "step_00000024" / "state")
    models = {f"{name}:{key}": a for name in ("model", "best") for key, a in read_model(out / name).items()}
    return jax.tree.map(np.asarray, state) | models


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [1, 2])
def test_a_run_that_is_killed_and_resumed_ends_as_one_that_is_not(tmp_path, tasks):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    print(f"seed of the kills: {seed}")  # shown if the test fails

    _, errors = (process := start(whole, tasks)).communicate()
    assert process.returncode == 0, errors

    process = start(cut, tasks, 0.05)
    wait_for_step(process, cut, rng.choice([3, 4, 6, 8]))
    time.sleep(rng.uniform(0, 0.2))  # four steps at most: it must not come as far as the second kill
    process.kill()
    assert process.wait() == -signal.SIGKILL

    process = start(cut, tasks, 0.05)
    wait_for_step(process, cut, rng.choice([16, 18]))
    time.sleep(rng.uniform(0, 0.1))
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "SIGTERM: saved" in errors

    _, errors = (process := start(cut, tasks)).communicate()
    assert process.returncode == 0, errors

    expected, found = arrays(whole), arrays(cut)
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    untimed = lambda line: {name: value for name, value in line.items() if name != "train/records_per_second"}
    assert list(map(untimed, read_metrics(cut))) == list(map(untimed, read_metrics(whole)))
