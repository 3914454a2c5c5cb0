import numpy as np
import pytest

from experiments import stsb
from experiments.lib import similarity
from experiments.stsb import EXPERIMENT, SHUFFLED, TUNED
from jaxemb.train import load_run


@pytest.mark.slow  # compiles the train step of six layers
def test_smoke(smoke_cells, minilm):
    table, summary = smoke_cells(EXPERIMENT, TUNED, SHUFFLED)
    values = {name: record["values"] for name, record in summary["cells"].items()}
    assert len(values) == 5  # three learning rates were tried
    tuned, shuffled = (found["others"] for name, found in values.items() if "seed-0" in name)
    assert tuned != shuffled and "64 training pairs" in table


def test_learning_rates_are_chosen_on_pairs_of_sentences_that_are_not_trained_on(monkeypatch, data_dir):
    monkeypatch.setenv("JAXEMB_DATA", str(data_dir))
    found = EXPERIMENT.held_out(EXPERIMENT.presets["small"], "stsb")
    (chosen,) = found.tests.values()
    assert len(found.pairs) + len(chosen) == 5749 and 500 < len(chosen) < 575
    texts = lambda pairs: {similarity.normalized(text) for text in (*pairs.first, *pairs.second)}
    assert not texts(found.pairs) & texts(chosen)
    real = EXPERIMENT.data(EXPERIMENT.presets["small"], "stsb", 0)
    assert len(real.tests["STS-B dev"]) == 1500 and len(real.tests["STS-B dev, unseen"]) == 1248
    assert not texts(real.pairs) & texts(real.tests["STS15"])
    assert len(real.tests["STS15"]) == 300


def test_the_control_has_the_scores_of_other_pairs(monkeypatch, data_dir, minilm):
    monkeypatch.setenv("JAXEMB_DATA", str(data_dir))
    seen = []
    monkeypatch.setattr(stsb, "run", lambda source, **_: seen.append(source.__getitems__(range(len(source)))) or 1 / 0)
    data = EXPERIMENT.data(EXPERIMENT.presets["smoke"], "stsb", 0)
    for arm in (stsb.Arm(epochs=1), stsb.Arm(epochs=1, shuffled=True)):
        with pytest.raises(ZeroDivisionError):
            EXPERIMENT.measure(EXPERIMENT.presets["smoke"], data, arm, 0)
    true, shuffled = ([record["scores"] for record in records] for records in seen)
    assert true == data.pairs.scores.tolist() != shuffled and sorted(true) == sorted(shuffled)
    np.testing.assert_array_equal([r["sentence1"] for r in seen[0]], [r["sentence1"] for r in seen[1]])


def test_the_file_is_a_run_config(monkeypatch, data_dir):
    monkeypatch.setenv("JAXEMB_DATA", str(data_dir))
    run = load_run(stsb.__file__, {"learning_rate": 1e-5, "epochs": 2})
    assert run.steps == 2 * (5749 // 32)
    assert run.options["learning_rate"] == 1e-5
