import dataclasses
import itertools

import numpy as np
import pytest

from experiments import defsent_plus
from experiments.defsent_plus import EXPERIMENT, ONE, SAME, TWO
from experiments.lib import corpora, similarity
from jaxemb.data import Definitions

ENTRIES = ["cat", "dog", "ice cream", "house", "tree", "hot air balloon", "river", "of the first water"]


@pytest.fixture
def few(monkeypatch, data_dir):
    """A dictionary of which five entries are words of one token, and few sentences."""
    pairs = [(entry, f"this says what {entry} number {i} is") for entry in ENTRIES for i in range(1 + len(entry) % 2)]
    monkeypatch.setenv("JAXEMB_DATA", str(data_dir))
    monkeypatch.setattr(corpora, "wordnet", lambda: Definitions.from_pairs(pairs))
    monkeypatch.setattr(corpora, "sentences", lambda: [text for _, text in pairs] * 3)
    start = defsent_plus.start
    start.cache_clear()
    yield
    start.cache_clear()


@pytest.fixture
def smoke_preset():
    return dataclasses.replace(EXPERIMENT.presets["smoke"], tests=4, entries=None, batch_size=4)


@pytest.mark.slow  # compiles four train steps
def test_smoke(smoke_cells, minilm, few):
    arms = {name: dataclasses.replace(arm, grid={}) for name, arm in EXPERIMENT.arms.items()}
    for name in (defsent_plus.MASKED, defsent_plus.WORD):
        arms[name] = dataclasses.replace(arms[name], learning_rate=1e-3)
    presets = {**EXPERIMENT.presets, "smoke": dataclasses.replace(EXPERIMENT.presets["smoke"], batch_size=4)}
    some = [name for name in arms if name != defsent_plus.THREE]  # which needs more entries than dimensions
    claims = [claim for claim in EXPERIMENT.claims if claim.on != ("SimCSE",)]
    table, summary = smoke_cells(dataclasses.replace(EXPERIMENT, arms=arms, presets=presets, claims=claims), *some)
    values = [record["values"]["mean cosine"] for record in summary["cells"].values()]
    assert len(set(values)) == len(some)  # everything trained
    assert "8 entries with" in table and "or 5 entries" in table


def test_later_stages_begin_anew_with_what_the_stage_before_embeds(few, minilm, smoke_preset, monkeypatch):
    made = []
    monkeypatch.setattr(
        defsent_plus, "entry_embeddings", lambda e, d: made.append(e.model) or np.ones((len(d.entries), e.model.dim))
    )
    trained = []
    monkeypatch.setattr(
        defsent_plus,
        "train",
        lambda model, *_, **__: trained.append(model) or type("", (), {"model": model, "number": len(trained)}),
    )
    monkeypatch.setattr(defsent_plus, "start", lambda preset, dataset: begin)
    embedder = defsent_plus.jaxemb.load(minilm, layers=1)
    begin = defsent_plus.Start(embedder, None)
    data = defsent_plus.data(smoke_preset, "raw", 0, {"SICK trial": similarity.sick("trial")})
    for name in (ONE, TWO, TWO, SAME):
        defsent_plus.entered(smoke_preset, data, EXPERIMENT.arms[name], seed=0)
    assert len(trained) == len(made) == 3 and sorted(data.stages) == [1, 2]  # each stage once, and the words'
    assert all(model.embedder is embedder.model for model in trained)


def test_learning_rates_are_chosen_on_other_pairs(few, minilm, smoke_preset, monkeypatch):
    monkeypatch.setattr(
        defsent_plus, "start", lambda *_: defsent_plus.Start(defsent_plus.jaxemb.load(minilm, layers=1), None)
    )
    chosen, tested = EXPERIMENT.held_out(smoke_preset, "raw"), EXPERIMENT.data(smoke_preset, "raw", 0)
    assert [*chosen.tests] == ["SICK trial"] and len(chosen.tests["SICK trial"]) == 500
    assert "SICK trial" not in tested.tests and all(len(pairs) == 4 for pairs in tested.tests.values())
    assert sorted(tested.entries.entries) == sorted(ENTRIES)
    assert sorted(tested.words.entries) == ["cat", "dog", "house", "river", "tree"]


def test_a_seed_draws_the_entries(few, minilm, smoke_preset, monkeypatch):
    monkeypatch.setattr(
        defsent_plus, "start", lambda *_: defsent_plus.Start(defsent_plus.jaxemb.load(minilm, layers=1), None)
    )
    preset = dataclasses.replace(smoke_preset, entries=3)
    drawn = [tuple(EXPERIMENT.data(preset, "raw", seed).entries.entries) for seed in range(4)]
    assert all(len(entries) == 3 for entries in drawn) and len(set(drawn)) > 1
    assert drawn[0] == tuple(EXPERIMENT.data(preset, "raw", 0).entries.entries)


def test_entries_of_short_definitions_are_left_out(monkeypatch, data_dir):
    pairs = [("a", "long enough"), ("a", "short"), ("b", "long enough"), ("c", "also long enough")]
    monkeypatch.setenv("JAXEMB_DATA", str(data_dir))
    monkeypatch.setattr(corpora, "read_wordnet", lambda path: Definitions.from_pairs(pairs))
    assert sorted(corpora.wordnet.__wrapped__().entries) == ["b", "c"]


def test_sentences_have_five_words(monkeypatch, data_dir):
    monkeypatch.setenv("JAXEMB_DATA", str(data_dir))
    found = corpora.sentences()
    assert 80_000 < len(found) < 106_623  # of all lines
    assert all(len(text.split()) >= 5 for text in itertools.islice(found, 0, None, 100))
