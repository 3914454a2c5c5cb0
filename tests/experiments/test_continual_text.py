import jax
import numpy as np
import pytest

import jaxemb
from experiments import continual_text
from experiments.lib import datasets

PRESET = continual_text.EXPERIMENT.presets["smoke"]


def test_the_last_layers_on_cached_states_are_the_whole_model(data_dir, minilm):
    setting = continual_text.data(PRESET, "banking77", 0)
    first = setting.stream[0]
    texts, labels = datasets.intents("banking77", "test", PRESET.per_intent)
    chosen = [text for text, label in zip(texts, labels, strict=True) if first.classes[label]]
    expected = jaxemb.load(minilm).replace(max_length=continual_text.MAX_LENGTH).encode(chosen, normalize=True)
    features = np.asarray(jax.jit(setting.model.features)(first.test["input"]))
    np.testing.assert_allclose(features / np.linalg.norm(features, axis=1, keepdims=True), expected, atol=2e-3)


@pytest.mark.slow  # compiles a train step for each method
def test_smoke(smoke_cells, minilm):
    table, summary = smoke_cells(continual_text.EXPERIMENT, *continual_text.EXPERIMENT.arms)
    values = [record["values"] for record in summary["cells"].values()]
    assert len({(found["ACC"], found["task ACC"]) for found in values}) >= 6  # they learn otherwise
    assert all(found["ACC"] <= found["task ACC"] for found in values)
    assert "77 intents in 7 tasks, 154 training and 154 test questions" in table
