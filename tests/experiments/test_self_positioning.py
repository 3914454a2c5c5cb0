import dataclasses

import jax
import numpy as np
import pytest

import jaxemb
from experiments import self_positioning
from jaxemb.merging import collect_grams


@pytest.mark.slow
def test_smoke(smoke):
    table, metrics = smoke(self_positioning)
    assert set(metrics["results"]) == {"digits, imbalanced", "texts"}
    for arms in metrics["results"].values():
        assert {"joint", "average", "TIES 0.2", "RegMean", "Self Positioning"} <= set(arms)
        assert all(f"| {arm} |" in table for arm in arms if self_positioning._shown(arm))
    assert "above the best task arithmetic of the scales 0.4 to 1: " in table


def test_training_held_out_and_test_texts_are_apart(quick_vectors):
    preset = self_positioning.PRESETS["smoke"]
    c = self_positioning.corpus(preset, seed=0)
    sizes = dict(zip(self_positioning.TEXT_TASKS, preset.texts, strict=True))
    for name in self_positioning.TEXT_TASKS:
        fitted, held_out = c.fitted[name], c.held_out[name]
        assert (len(fitted), len(held_out)) == (sizes[name], preset.held_out)
        pairs = [set(zip(part.first.tolist(), part.second.tolist(), strict=True)) for part in (fitted, held_out)]
        assert not pairs[0] & pairs[1]
    used = np.concatenate(
        [x for part in (c.fitted, c.held_out) for x in (part["intents"].first, part["retrieval"].first)]
    )
    assert not set(used.tolist()) & set(c.questions.tolist()) and not set(used.tolist()) & set(c.intents.tolist())
    intent = dict(zip(*self_positioning.common.intents("banking77", "train"), strict=True))
    pairs = c.fitted["intents"]
    assert all(intent[c.texts[a]] == intent[c.texts[b]] for a, b in zip(pairs.first, pairs.second, strict=True))
    assert c.right.any(axis=1).all()


def test_the_whole_model_reads_tokens(tiny_minilm, monkeypatch, quick_vectors):
    preset = dataclasses.replace(self_positioning.PRESETS["smoke"], whole_model=True)
    monkeypatch.setattr(self_positioning, "default_model", lambda: type("Model", (), {"path": str(tiny_minilm)}))
    texts = ["a question", "another, longer question", "no"]
    model, inputs = self_positioning.read_texts(texts, preset, seed=0)
    expected = jaxemb.load(str(tiny_minilm)).encode(texts[::-1])
    rows = inputs[np.array([2, 1, 0])]
    run = jax.jit(lambda model, rows: model(rows))
    np.testing.assert_allclose(run(model, rows), expected, atol=1e-5)
    grams = collect_grams(lambda model, batch: model(batch), model, [rows])
    assert grams["encoder.layers.attention.query.kernel"].shape == (1, 384, 384)


def test_the_head_starts_as_nothing(quick_vectors):
    model, inputs = self_positioning.read_texts(["one", "two"], self_positioning.PRESETS["smoke"], seed=0)
    vectors = inputs[np.arange(2)]
    np.testing.assert_allclose(model(vectors), vectors, atol=1e-6)
    assert len(jax.tree.leaves(model)) == 4
