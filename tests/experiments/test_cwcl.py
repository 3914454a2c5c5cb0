import dataclasses

import numpy as np
import pytest

from experiments import cwcl
from experiments.cwcl import CWCL, EXPERIMENT, INTENTS, LIT
from experiments.lib import translations
from experiments.recipes import cwcl as recipe
from jaxemb.losses import cwcl as cwcl_loss
from jaxemb.losses import symmetric_info_nce
from jaxemb.train import fit

LOCKED, LEARNED = np.random.default_rng(0).standard_normal((2, 5, 4), np.float32)


def test_smoke(smoke_cells, quick_vectors):
    """Of the arms two, with one deviation each: the others train alike."""
    arms = {name: dataclasses.replace(EXPERIMENT.arms[name], grid={"std": (0.1,)}) for name in (LIT, CWCL)}
    table, summary = smoke_cells(dataclasses.replace(EXPERIMENT, arms=EXPERIMENT.arms | arms), LIT, CWCL)
    values = [record["values"] for record in summary["cells"].values()]
    assert all(0 < abs(found["temperature"] - 0.07) < 0.03 for found in values)  # it is trained
    assert {row["measure"] for row in summary["claims"] if row["dataset"] == INTENTS} == {"zero-shot", "recall@1"}
    assert "test sentences of 30 others, of which MiniLM itself finds" in table


def test_the_ends_of_the_mixture_are_lit_and_cwcl():
    made = lambda beta: cwcl.weighted(LOCKED, LEARNED, temperature=0.1, beta=beta)
    lit, whole = 2 * symmetric_info_nce(LOCKED, LEARNED, temperature=0.1), cwcl_loss(LOCKED, LEARNED, temperature=0.1)
    np.testing.assert_allclose(made(0.0), lit, rtol=1e-5)
    np.testing.assert_allclose(made(1.0), whole, rtol=1e-5)
    np.testing.assert_allclose(made(0.25), 0.75 * lit + 0.25 * whole, rtol=1e-5)


@pytest.fixture
def known(monkeypatch, quick_vectors):
    """The intents of the sentences whose features are asked for."""
    seen = []
    sentences = {text: intent for split in ("train", "test") for text, intent in zip(*intents(split), strict=True)}
    features = cwcl.hashed_ngrams

    def noted(texts):
        seen.append({sentences[text] for text in texts})
        return features(texts)

    monkeypatch.setattr(cwcl, "hashed_ngrams", noted)
    return seen


def intents(split):
    return cwcl.datasets.intents("clinc150", split)


def test_zero_shot_intents_are_new_and_choices_are_made_on_others(known):
    preset = dataclasses.replace(EXPERIMENT.presets["smoke"], sample=900)
    EXPERIMENT.data(preset, INTENTS, 0)
    EXPERIMENT.held_out(preset, INTENTS)
    tested, trained, chosen_on, tried = known
    assert (len(trained), len(tested), len(tried), len(chosen_on)) == (120, 30, 96, 24)
    assert not tested & trained and tried | chosen_on == trained


def test_settings_are_chosen_on_training_sentences(quick_vectors):
    sentences, _ = translations.load(96)
    found = EXPERIMENT.held_out(EXPERIMENT.presets["smoke"], "German, 500")
    assert len(found.sentences) == len(sentences) - len(sentences) // 10
    assert f"{len(sentences) // 10} test sentences" in found.said


@pytest.mark.slow
def test_the_full_recipe_trains(quick_vectors, tiny_minilm, tmp_path):
    run = recipe.run(model=str(tiny_minilm), batch_size=8, chunk=4, steps=2, max_length=16, limit=24)
    assert np.isfinite(fit(run, tmp_path / "run", progress=False).embedder.encode(["Ein Hund."])).all()
