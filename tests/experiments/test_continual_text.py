import jax
import numpy as np
import pytest

import jaxemb
from experiments import common, continual_text

PRESET = continual_text.PRESETS["smoke"]


def test_the_last_layers_on_cached_states_are_the_whole_model(data_dir, minilm):
    setting = continual_text.make_setting(PRESET, "banking77", 0)
    first = setting.stream[0]
    texts, labels = common.intents("banking77", "test", PRESET.per_intent["banking77"])
    chosen = [text for text, label in zip(texts, labels, strict=True) if first.classes[label]]
    expected = jaxemb.load(minilm).replace(max_length=continual_text.MAX_LENGTH).encode(chosen, normalize=True)
    features = np.asarray(jax.jit(setting.model.features)(first.test["input"]))
    np.testing.assert_allclose(features / np.linalg.norm(features, axis=1, keepdims=True), expected, atol=2e-3)


@pytest.mark.slow
def test_smoke(smoke, minilm):
    table, metrics = smoke(continual_text)
    methods = metrics["results"]["banking77"]
    assert set(methods) == set(continual_text.METHODS) and all(f"| {name} |" in table for name in methods)
    for values in methods.values():
        assert 0 <= values["class"]["mean"] <= values["task"]["mean"] <= 100
