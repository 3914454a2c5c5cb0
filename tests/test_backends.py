"""A machine that has the TPU compiler but no TPU."""

import importlib.util
import os
import subprocess
import sys

import jax
import pytest

from jaxemb import backends


@pytest.fixture
def machine(monkeypatch):
    """One without any device but its CPU, on which libtpu is installed and no platform is chosen."""
    found = {"libtpu": True}
    for name in backends._TPU_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(backends, "_TPU_FILES", ())
    monkeypatch.setattr(importlib.util, "find_spec", found.get)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: ())
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", None)
    yield found
    jax.config.update("jax_platforms", before)


def test_without_a_tpu_none_is_tried(machine):
    backends.without_absent_tpu()
    assert jax.config.jax_platforms == "cpu"


def test_with_any_sign_of_a_tpu_it_is_tried(machine, monkeypatch, tmp_path):
    (tmp_path / "accel0").touch()
    monkeypatch.setattr(backends, "_TPU_FILES", (f"{tmp_path}/accel*",))
    backends.without_absent_tpu()
    assert jax.config.jax_platforms is None
    monkeypatch.setattr(backends, "_TPU_FILES", ())
    monkeypatch.setenv("TPU_WORKER_ID", "0")
    backends.without_absent_tpu()
    assert jax.config.jax_platforms is None


def test_what_is_chosen_already_stays(machine):
    jax.config.update("jax_platforms", "tpu,cpu")  # as JAX does where it finds a chip
    backends.without_absent_tpu()
    assert jax.config.jax_platforms == "tpu,cpu"


def test_plugins_for_other_devices_are_left_to_jax(machine):
    machine["jax_plugins"] = True
    backends.without_absent_tpu()
    assert jax.config.jax_platforms is None


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_the_command_says_nothing_of_tpus():
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    command = [sys.executable, "-m", "jaxemb", "info"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "backend" in done.stdout and "TPU" not in done.stderr and "tpu" not in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_nor_does_a_program_that_asks_jax_before_us():
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    command = [sys.executable, "-c", "import jax, jaxemb; jax.random.key(0)"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_nor_does_a_program_that_trains(tmp_path):
    program = (
        "import jax, optax, numpy as np\n"
        "from jaxemb.checkpoints import Parameters\n"
        "from jaxemb.data import batches, from_list\n"
        "from jaxemb.train import Run, fit\n"
        "loss = lambda model, batch, key: (batch['x'] * model, {})\n"
        "data = lambda _: batches(from_list([{'x': 1.0}] * 2), None, ('x',), batch_size=2, max_length=8)\n"
        "run = Run(embedder=lambda: Parameters(np.ones((), np.float32)), data=data,\n"
        "          objective=loss, optimizer=optax.sgd(0.1), steps=1)\n"
        "fit(run, 'run', progress=False)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "TPU" not in done.stderr and "libtpu" not in done.stderr
