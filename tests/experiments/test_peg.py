import dataclasses

import numpy as np
import pytest

from experiments import peg, translations
from jaxemb.encoders import hashed_ngrams
from jaxemb.train import fit

SMALL = dataclasses.replace(peg.PRESETS["smoke"], steps=3, batch_size=4, pool=12)


@pytest.fixture
def sentences():
    english = np.random.default_rng(0).standard_normal((30, 6)).astype(np.float32)
    return translations.Sentences(hashed_ngrams([f"Satz {i}" for i in range(30)]), english)


@pytest.mark.slow
def test_smoke(smoke):
    table, metrics = smoke(peg)
    assert set(metrics["results"]) == set(peg.PRESETS["smoke"].arms)
    for change in metrics["changes"]:
        values = [metrics["results"][change[name]]["recall@1"]["mean"] for name in ("arm", "against")]
        assert change["recall@1"]["mean"] == pytest.approx(values[0] - values[1])
    count = len(metrics["changes"])
    missed = sum(not change["reached"] for change in metrics["changes"])
    assert count == 2 and table.count("| no |") == table.count("; not reached") == missed
    assert f"{count - missed} of the {count} effects asked for are reached" in table


def test_every_comparison_is_of_arms_that_there_are():
    assert {arm for pair in peg.COMPARISONS for arm in pair} <= set(peg.ARMS) == set(peg._REFERENCE)


@pytest.mark.parametrize(("candidates", "others"), [("batch", 0), ("pool", 2), ("all", 6)])
@pytest.mark.parametrize("hard", [0, 2])
def test_negatives_are_the_hard_ones_and_other_records_once(sentences, candidates, others, hard):
    mined = np.stack([(np.arange(30) + 1) % 30, (np.arange(30) + 2) % 30], axis=1)[:, :hard]
    rng = np.random.default_rng(0)
    number = {tuple(vector): i for i, vector in enumerate(sentences.english)}
    for batch in peg._batches(sentences, mined, peg.Arm(candidates), SMALL, rng):
        rows = np.array([[number[tuple(vector)] for vector in row] for row in batch["negatives"]]).reshape(4, -1)
        assert rows.shape == (4, others + hard)
        np.testing.assert_array_equal(rows[:, others:], mined[batch["id"]])
        candidates_once = [*batch["id"], *rows[:, :others].ravel()]
        assert len(set(candidates_once)) == 4 * (1 + others)
        np.testing.assert_array_equal(batch["english"], sentences.english[batch["id"]])


def test_mined_negatives_are_similar_but_neither_the_same_nor_itself():
    angles = np.deg2rad([*range(0, 90, 10), 0.5])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = peg.mined(vectors, 2, among=5)
    assert (found != np.arange(10)[:, None]).all()
    # 10 and 20 degrees have a cosine above 0.9 to 0 and 0.5.
    assert {*found[0]} == {*found[9]} == {3, 4}


def test_a_share_of_the_pairs_is_wrongly_matched(sentences):
    noisy = peg.mismatched(sentences, 0.3, np.random.default_rng(0))
    wrong = (noisy.english != sentences.english).any(axis=1)
    assert wrong.sum() == 9
    assert sorted(map(tuple, noisy.english)) == sorted(map(tuple, sentences.english))


@pytest.mark.slow
def test_the_full_recipe_trains(quick_vectors, tiny_minilm, tmp_path):
    run = peg.run(model=str(tiny_minilm), batch_size=8, hard=2, chunk=4, steps=2, max_length=16, limit=24)
    assert np.isfinite(fit(run, tmp_path / "run", progress=False).embedder.encode(["Ein Hund."])).all()
