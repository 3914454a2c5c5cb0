import dataclasses

import jax
import numpy as np
import pytest

import jaxemb
from experiments import continual_text
from experiments.continual_text import EXPERIMENT, JOINT
from experiments.lib import datasets

PRESET = EXPERIMENT.presets["smoke"]


def test_the_last_layers_on_cached_states_are_the_whole_model(data_dir, minilm):
    setting = continual_text.data(PRESET, "banking77", 0)
    first = setting.stream[0]
    texts, labels = datasets.intents("banking77", "test", PRESET.tests)
    chosen = [text for text, label in zip(texts, labels, strict=True) if first.classes[label]]
    expected = jaxemb.load(minilm).replace(max_length=continual_text.MAX_LENGTH).encode(chosen, normalize=True)
    features = np.asarray(jax.jit(setting.model.features)(first.test["input"]))
    np.testing.assert_allclose(features / np.linalg.norm(features, axis=1, keepdims=True), expected, atol=2e-3)


@pytest.mark.slow  # compiles a train step for each method
def test_smoke(smoke_cells, minilm):
    first = lambda arm: dataclasses.replace(arm, grid={name: values[:1] for name, values in arm.grid.items()})
    arms = {name: arm if name == JOINT else first(arm) for name, arm in EXPERIMENT.arms.items()}
    table, summary = smoke_cells(dataclasses.replace(EXPERIMENT, arms=arms), *arms)
    tried = {name: record["values"] for name, record in summary["cells"].items() if "-seed-" not in name}
    values = [record["values"] for name, record in summary["cells"].items() if name not in tried]
    assert len(values) == len(arms) and len(tried) == 3
    assert not any("AIA" in found for found in tried.values())
    assert len({(found["ACC"], found["task ACC"]) for found in values}) >= 6  # they learn otherwise
    assert all(found["ACC"] <= found["task ACC"] for found in values)
    assert "77 intents in 7 tasks, 154 training and 154 test questions" in table


def test_what_settings_are_chosen_on_is_no_test_question(monkeypatch, minilm, data_dir):
    """Nor one that the run learns from; a question is told by its number."""
    monkeypatch.setenv("JAXEMB_DATA", str(data_dir))
    seen: dict[str, int] = {}
    number = lambda embedder, lower, texts, length: np.array([seen.setdefault(text, len(seen)) for text in texts])
    monkeypatch.setattr(continual_text, "states_of", number)
    found = EXPERIMENT.held_out(EXPERIMENT.presets["paper"], "banking77")
    real = EXPERIMENT.data(EXPERIMENT.presets["paper"], "banking77", 0)
    questions = lambda stream, part: {row for task in stream for row in getattr(task, part)["input"].tolist()}
    trained, asked = (questions(found.stream, part) for part in ("train", "test"))
    assert len(asked) > 760 and len(trained & asked) < 5  # some questions are twice in the set
    assert len((trained | asked) & questions(real.stream, "test")) < 5
    assert not found.over_time and real.over_time
