import numpy as np
import pytest

from experiments import hyperinterval
from experiments.common import Spread


@pytest.mark.slow
def test_smoke(smoke):
    table, metrics = smoke(hyperinterval)
    rows = metrics["results"]["split"]
    nested = "HyperInterval, nested"
    assert set(rows) == {nested, f"{nested}: universal", f"{nested}: universal, point", "fine-tuning"}
    assert all(f"| {row} |" in table for row in rows)
    assert rows[nested]["outside"]["mean"] == 0
    assert rows[nested]["bounds_checked"]["mean"] > 1e3
    assert np.shape(metrics["accuracy_matrices"]["split"]["fine-tuning"]) == (1, 5, 5)


def test_streams():
    preset = hyperinterval.PRESETS["small"]
    split, permuted = (hyperinterval.tasks_of(preset, stream, 0) for stream in ("split", "permuted"))
    assert len(split) == 5
    assert len(permuted) == 10
    assert sum(len(task.train["label"]) for task in split) == len(permuted[0].train["label"]) == 1347
    assert all(set(np.unique(task.test["label"])) == {0, 1} for task in split)
    assert 0 <= permuted[3].train["input"].min() < permuted[3].train["input"].max() <= 1


def test_gates():
    spread = lambda value: {"final": Spread.of([value]), "outside": Spread.of([0.0])}
    rows = {"HyperInterval": spread(99.0), "HyperInterval, beta 0": spread(30.0)}
    nested = {"HyperInterval, nested: universal": spread(84.0), "fine-tuning": spread(80.0)}
    passed = hyperinterval.gates({"permuted": rows, "split": rows | nested})
    assert [gate for gate, ok in passed.items() if not ok] == ["split: universal at least 85"]
