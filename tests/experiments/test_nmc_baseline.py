import numpy as np

from experiments import nmc_baseline
from experiments.nmc_baseline import EXPERIMENT, NMC, PROMPT


def test_smoke(smoke_cells, minilm):
    table, summary = smoke_cells(EXPERIMENT, NMC, "streaming LDA")
    assert "77 intents in 7 tasks, 154 training and 154 test questions" in table
    values = {name: record["values"] for name, record in summary["cells"].items() if "seed" in name}
    (means,) = (found for name, found in values.items() if "nmc-unit" in name)
    assert means["ACC"] > 40 and means["task ACC"] > means["ACC"] < means["AIA"]  # classes come, none goes
    assert len({found["ACC"] for found in values.values()}) == 2


def test_what_learning_rates_are_chosen_on_is_no_test_question(minilm, monkeypatch, data_dir):
    monkeypatch.setenv("JAXEMB_DATA", str(data_dir))
    monkeypatch.setattr(nmc_baseline, "encoded", lambda encoder, tokens: np.zeros((len(tokens.ids), 1), np.float32))
    found = EXPERIMENT.held_out(EXPERIMENT.presets["paper"], "banking77")
    real = EXPERIMENT.data(EXPERIMENT.presets["smoke"], "banking77", 0)
    questions = lambda parts: {tuple(ids) for part in parts for ids in part["input"].ids}
    trained, asked = questions(task.train for task in found.tokens), questions(task.test for task in found.tokens)
    # Some questions are twice in the set.
    assert len(trained & asked) < 5 and len(asked & questions(task.test for task in real.tokens)) < 5
    assert [len(task.classes[task.classes]) for task in found.tokens] == [11] * 7
    assert sum(len(task.test["label"]) for task in found.tokens) == 770


def test_what_is_trained_is_chosen_with_its_epochs():
    for name, arm in EXPERIMENT.arms.items():
        assert (arm.learning_rate is None) and (arm.grid.keys() == {"learning_rate", "epochs"} or arm.frozen), name
    assert EXPERIMENT.arms[PROMPT].paper is None  # no figure of L2P is a soft prompt's
    assert EXPERIMENT.claims[0].measure == "" and EXPERIMENT.first == "ACC"
