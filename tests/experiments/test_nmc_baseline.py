import numpy as np
import pytest

from experiments import nmc_baseline
from experiments.nmc_baseline import EXPERIMENT, LINEAR, NMC, PRESETS


@pytest.mark.slow  # encodes the test questions with MiniLM
def test_smoke(smoke_cells, minilm):
    table, summary = smoke_cells(EXPERIMENT, NMC, "NMC, cosine", LINEAR, "streaming LDA")
    assert "77 intents in 7 tasks, 154 training and 3,080 test questions" in table
    values = {name: record["values"] for name, record in summary["cells"].items() if "seed" in name}
    (means,) = (found for name, found in values.items() if "nmc-unit" in name)
    assert means["ACC"] > 50 > 100 / 77 and means["task ACC"] > means["ACC"] < means["AIA"]  # classes come, none goes
    assert len({found["ACC"] for found in values.values()}) == 4


def test_what_learning_rates_are_chosen_on_is_no_test_question(minilm, monkeypatch, data_dir):
    monkeypatch.setenv("JAXEMB_DATA", str(data_dir))
    monkeypatch.setattr(nmc_baseline, "encoded", lambda encoder, tokens: np.zeros((len(tokens.ids), 1), np.float32))
    found = EXPERIMENT.held_out(PRESETS["paper"], "banking77")
    asked = [
        {tuple(ids) for task in found.tokens for ids in getattr(task, part)["input"].ids} for part in ("train", "test")
    ]
    tests = EXPERIMENT.data(PRESETS["smoke"], "banking77", 0)
    real = {tuple(ids) for task in tests.tokens for ids in task.test["input"].ids}
    assert len(asked[0] & asked[1]) < 5 and len(asked[1] & real) < 5  # some questions are twice in the set
    assert [len(task.classes[task.classes]) for task in found.tokens] == [11] * 7
    assert sum(len(task.test["label"]) for task in found.tokens) == 770
