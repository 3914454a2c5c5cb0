import dataclasses

import numpy as np
import pytest

from experiments import peg
from experiments.lib import translations
from experiments.peg import EXPERIMENT
from jaxemb.encoders import hashed_ngrams

SMALL = dataclasses.replace(EXPERIMENT.presets["smoke"], steps=3, batch_size=4, pool=12)


@pytest.fixture
def sentences():
    english = np.random.default_rng(0).standard_normal((30, 6)).astype(np.float32)
    return translations.Sentences(hashed_ngrams([f"Satz {i}" for i in range(30)]), english)


def test_smoke(smoke_cells, quick_vectors):
    """Two arms of the twelve, of which the others differ in sizes and in alpha: those train alike."""
    table, summary = smoke_cells(EXPERIMENT, "pool", "pool, alpha 4")
    scores = [record["values"]["spearman_german_english"] for record in summary["cells"].values()]
    assert len(set(scores)) == 4 and table.count("| pool | ") == 2
    assert {row["dataset"] for row in summary["claims"]} == {"clean", "noisy"}


@pytest.mark.parametrize(("candidates", "others"), [("batch", 0), ("pool", 2), ("larger", 4), ("all", 6)])
@pytest.mark.parametrize("hard", [0, 2])
def test_negatives_are_the_hard_ones_and_other_records_once(sentences, candidates, others, hard, monkeypatch):
    monkeypatch.setattr(peg, "HARD", 2)
    mined = np.stack([(np.arange(30) + 1) % 30, (np.arange(30) + 2) % 30], axis=1)
    data = peg.Data(sentences, mined, None)
    number = {tuple(vector): i for i, vector in enumerate(sentences.english)}
    for batch in peg.batches(data, peg.Arm(candidates, hard), SMALL, seed=0):
        rows = np.array([[number[tuple(vector)] for vector in row] for row in batch["negatives"]]).reshape(4, -1)
        assert rows.shape == (4, others + hard)
        np.testing.assert_array_equal(rows[:, others:], mined[batch["id"], :hard])
        candidates_once = [*batch["id"], *rows[:, :others].ravel()]
        assert len(set(candidates_once)) == 4 * (1 + others)
        np.testing.assert_array_equal(batch["english"], sentences.english[batch["id"]])


def test_mined_negatives_are_similar_but_neither_the_same_nor_itself():
    angles = np.deg2rad([*range(0, 90, 10), 0.5])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = peg.mined(vectors, 2, seed=0, among=5)
    assert (found != np.arange(10)[:, None]).all()
    # 10 and 20 degrees have a cosine above 0.9 to 0 and 0.5.
    assert {*found[0]} == {*found[9]} == {3, 4}


def test_a_share_of_the_pairs_is_wrongly_matched(sentences):
    noisy = peg.mismatched(sentences, 0.3, seed=0)
    wrong = (noisy.english != sentences.english).any(axis=1)
    assert wrong.sum() == 9
    assert sorted(map(tuple, noisy.english)) == sorted(map(tuple, sentences.english))
