"""No device ever holds more than its share of a model, from its first weight on, and the host hardly anything.

The devices' part is read off XLA: the arrays that live on each, and what its compiler says of the program that makes
the train state. The host's part is the most that Python and numpy held (numpy tells `tracemalloc` of its arrays). As
the devices' memory is the host's here, what the process as a whole held at most bounds the sum of both.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from born_sharded import HALF_BILLION

SMALL = HALF_BILLION | {"vocab_size": 6144, "hidden_size": 512, "num_hidden_layers": 4, "intermediate_size": 2048}
DECODER = SMALL | {"model_type": "gemma3_text", "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64}


def check(found: dict) -> None:
    for part in ("loading", "starting"):
        share = found[part]["whole"] / 8
        assert max(found[part]["devices"]) < 1.1 * share
        assert sum(found[part]["devices"]) > 8 * share  # all of it is there
        assert found[part]["host"] < found[part]["whole"] / 4
    program, share = found["starting"], found["starting"]["whole"] / 8
    assert program["outputs"] < 1.1 * share and program["temporaries"] < 0.1 * share


def measured(directory: Path, config: dict, param_dtype: str = "bfloat16") -> dict:
    """In a process of its own, where nothing but this model is."""
    here = Path(__file__).resolve()
    command = [sys.executable, str(here.with_name("born_sharded.py")), str(directory), json.dumps(config), param_dtype]
    environment = os.environ | {"PYTHONPATH": str(here.parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("config", [SMALL, DECODER], ids=lambda config: config["model_type"])
def test_a_small_model_is_born_sharded(config, tmp_path):
    check(measured(tmp_path, config))


def test_a_quantised_model_is_born_sharded(tmp_path):
    """Its kernels are never whole in floats: of a layer, only a device's part at a time."""
    found = measured(tmp_path, SMALL | {"num_hidden_layers": 12}, "nf4")
    check(found)
    dim, wide = SMALL["hidden_size"], SMALL["intermediate_size"]
    kernels, table = 12 * (4 * dim**2 + 2 * dim * wide), SMALL["vocab_size"] * dim
    assert (
        found["loading"]["whole"] < 0.6 * kernels + 1.2 * 2 * table
    )  # bytes: 4.5 bits of the ones, 2 bytes of the other


@pytest.mark.slow
def test_half_a_billion_weights_are_born_sharded(tmp_path):
    found = measured(tmp_path, HALF_BILLION)
    assert found["weights"] > 0.5e9
    check(found)
    for part in ("loading", "starting"):
        assert found[part]["process"] < 1.25 * found[part]["whole"]
