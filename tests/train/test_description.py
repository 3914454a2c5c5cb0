"""What tells two runs apart: everything that makes numbers, and nothing else."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import grain
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_run import pair_batch, toy_objective, toy_run

from jaxemb.losses import info_nce
from jaxemb.objectives import on_columns
from jaxemb.train import adamw, fit, load_run
from jaxemb.train.description import describe
from jaxemb.train.run import differences
from jaxemb.transforms import chain, ema, l2, lora

RECORDS = [{"query": f"question {i}", "document": f"answer {i}"} for i in range(48)]
SCALE = 2.0


@dataclasses.dataclass(frozen=True)
class Settings:
    margin: float = 0.5


class Weighted:
    """A callable of a user."""

    def __init__(self, weight):
        self.weight = weight

    def __call__(self, model, batch, key):
        return self.weight * toy_objective(model, batch, key)[0], {}


def scaled(model, batch, key):
    return SCALE * toy_objective(model, batch, key)[0], {}


def made(**changes):
    """A run whose every part is made anew."""
    values = {"rate": 1e-3, "temperature": 0.05, "decay": 0.9, "records": RECORDS, "seed": 0, "margin": 0.5} | changes
    settings, records, seed = Settings(values["margin"]), list(values["records"]), values["seed"]
    weights = np.arange(300) + values.get("shift", 0)
    return toy_run(
        objective=on_columns(functools.partial(info_nce, temperature=values["temperature"]), "query", "document"),
        optimizer=optax.chain(optax.clip(1.0), adamw(values["rate"], 12)),
        transform=chain(ema(values["decay"]), l2(0.1), lora(4)),
        data=lambda embedder: (records, seed, settings, weights, object(), {"b", "a"}),
        evaluators={"toy": lambda embedder: {}},
        evaluated_model=lambda state: state.model,
    )


def test_runs_that_are_made_alike_are_the_same():
    assert differences(json.loads(json.dumps(made().describe())), made().describe()) == []


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"rate": 1e-6}, "optimizer"),
        ({"temperature": 0.5}, "objective.loss.temperature: 0.05 there, 0.5 here"),
        ({"decay": 0.99}, "transform"),
        ({"records": RECORDS[:40]}, "data.records: '48 items of SHA-256 "),
        ({"records": [*RECORDS[:-1], {"query": "another", "document": "one"}]}, "data.records"),
        ({"seed": 9}, "data.seed: 0 there, 9 here"),
        ({"margin": 0.6}, "data.settings.margin: 0.5 there, 0.6 here"),
        ({"shift": 1}, "data.weights"),
    ],
)
def test_what_makes_numbers_is_told_apart_and_named(change, name):
    lines = differences(made().describe(), made(**change).describe())
    assert lines and all(line.startswith(name) for line in lines)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (optax.sgd(0.1), optax.sgd(0.2)),
        (optax.sgd(0.1), optax.adam(0.1)),
        (optax.adamw(optax.cosine_decay_schedule(0.1, 10)), optax.adamw(optax.cosine_decay_schedule(0.1, 20))),
        (lambda x: x + 1, lambda x: x + 2),
        (lambda x: [y for y in x], lambda x: [y + y for y in x]),
        (lambda x, y=1: x, lambda x, y=2: x),
        (Weighted(1.0), Weighted(2.0)),
        (Weighted(1.0).__call__, Weighted(2.0).__call__),
        (jnp.zeros(3), jnp.ones(3)),
        (np.float32(1), np.float32(2)),
        (np.float32("nan"), np.float32(2)),
        (np.zeros((1 << 23, 1), np.int8), np.ones((1 << 23, 1), np.int8)),
        (float("nan"), float("inf")),
        ("a" * 1000, "b" * 1000),
        (Path("a"), Path("b")),
    ],
)
def test_tells_apart(one, other):
    assert json.loads(json.dumps(describe(one), allow_nan=False)) == describe(one) != describe(other)


def test_globals_count_for_functions_of_users(monkeypatch):
    before = describe(scaled)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert describe(scaled) != before
    assert "globals" not in describe(adamw)


def test_an_attribute_is_no_global_of_its_name(monkeypatch):
    size_of = lambda model: model.SCALE
    before = describe(size_of)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert describe(size_of) == before


def test_what_is_not_set_yet_is_described():
    """As in the sources of libraries that open their files late."""

    @dataclasses.dataclass
    class Late:
        path: str
        length: int = dataclasses.field(init=False)

    assert describe(Late("a"))["length"] == "unset" and describe(Late("a")) != describe(Late("b"))


def test_what_holds_itself_is_described():
    values: list = [1]
    values.append(values)

    def recursive(n):
        return recursive(n - 1) if n else values

    assert describe(recursive)["closure"]["values"] == [1, "..."]


def test_another_process_describes_it_the_same(tmp_path):
    """Hashes of texts, and so the order of sets, are another one there; addresses too."""
    program = "import json, test_description; print(json.dumps(test_description.made().describe()))"
    path = os.pathsep.join(str(p) for p in (Path(__file__).parent, *Path(__file__).parents[1:3]))
    said = [
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": seed, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1]


def test_a_config_that_is_read_again_is_the_same_until_it_says_something_else(tmp_path):
    config = tmp_path / "config.py"
    text = (
        "import functools\nfrom tiny_run import toy_objective, toy_run\nWEIGHT = 2\n"
        "def objective(model, batch, key, scale=1):\n    losses, extra = toy_objective(model, batch, key)\n"
        "    return WEIGHT * scale * losses, extra\n"
        "def run():\n    return toy_run(objective=functools.partial(objective, scale=3))\n"
    )

    def described(text):
        config.write_text(text)
        return load_run(config).describe()

    before = described(text)
    assert differences(before, described("# a comment\n" + text)) == []
    assert differences(before, described(text.replace("WEIGHT = 2", "WEIGHT = 4"))) == [
        "objective.WEIGHT: 2 there, 4 here"
    ]
    assert differences(before, described(text.replace("scale=3", "scale=5"))) == ["objective.scale: 3 there, 5 here"]
    assert differences(before, described(text.replace("scale * losses", "scale + losses")))


def test_another_python_has_other_bytecode():
    before, after = describe(scaled), describe(scaled)
    after |= {"python": "3.99", "code": "0" * 16}
    assert differences({"objective": before}, {"objective": after}) == []


def test_data_whose_first_batch_is_another_one_is_told_apart(tmp_path):
    """As of a file that was written anew: nothing in the run's description differs."""
    source = tmp_path / "records"

    def data(embedder):
        first = int(source.read_text())
        return grain.MapDataset.range(first, first + 40).repeat().batch(8, batch_fn=pair_batch).to_iter_dataset()

    def broken(embedder):
        if (tmp_path / "run/checkpoints/step_00000003").exists():
            raise OSError("gone")
        return {"error": 0.0}

    source.write_text("0")
    with pytest.raises(OSError, match="gone"):
        fit(toy_run(data=data, evaluators={"toy": broken}), tmp_path / "run", progress=False)
    source.write_text("8")
    with pytest.raises(ValueError, match=r"the data of .* has changed: the first batch of the task 'train'"):
        fit(toy_run(data=data), tmp_path / "run", progress=False)
    source.write_text("0")
    assert int(fit(toy_run(data=data), tmp_path / "run", progress=False).state.step) == 12
