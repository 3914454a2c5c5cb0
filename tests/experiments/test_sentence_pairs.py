import numpy as np
import pytest
from scipy.stats import spearmanr

from experiments.lib import similarity
from jaxemb.evaluate import StsSet


def pairs(*rows):
    return StsSet([a for a, _ in rows], [b for _, b in rows], np.arange(len(rows), dtype=float))


def test_sets_are_those_of_the_files(monkeypatch, data_dir):
    monkeypatch.setenv("JAXEMB_DATA", str(data_dir))
    sizes = {name: len(some) for name, some in similarity.tests().items()}
    assert sizes == {"STS-B dev": 1500, "SICK test": 4927, "STS12": 2358, "STS13": 1500, "STS14": 3750, "STS15": 3000}


def test_the_held_out_slice_shares_no_sentence_with_the_rest():
    rng = np.random.default_rng(0)
    training = pairs(*((f"Text {a}", f"text  {b}") for a, b in rng.integers(0, 400, (300, 2))))
    held_out = similarity.held_out(training, share=0.2)
    assert 0 < held_out.sum() <= 60
    of = lambda rows: {
        similarity.normalized(text) for side in (training.first, training.second) for text in np.array(side)[rows]
    }
    assert not of(held_out) & of(~held_out)
    np.testing.assert_array_equal(held_out, similarity.held_out(training, share=0.2))


def test_unseen_pairs_have_no_sentence_of_the_training_set():
    tested = pairs(("A cat.", "new"), ("a  DOG.", "other"), ("new", "other"))
    left = similarity.unseen(tested, pairs(("a dog.", "x"), ("y", "z")))
    assert (left.first, left.second, left.scores.tolist()) == (["A cat.", "new"], ["new", "other"], [0.0, 2.0])


def test_samples_are_random_and_the_same():
    sets = {"a": pairs(*((f"{i}", "x") for i in range(50))), "b": pairs(("y", "z"))}
    found = similarity.sampled(sets, 10)
    assert len(found["a"]) == 10 and len(found["b"]) == 1 and found["a"].first != sets["a"].first[:10]
    assert found["a"].first == similarity.sampled(sets, 10)["a"].first
    assert similarity.sampled(sets, None)["a"].first == sets["a"].first


def test_correlations_of_each_set():
    sets = {"a": pairs(("0", "1"), ("0", "2"), ("1", "2")), "b": pairs(("2", "3"), ("0", "3"))}
    texts = similarity.texts_of(sets)
    vectors = np.random.default_rng(0).standard_normal((len(texts), 4)).astype(np.float32)
    unit = dict(zip(texts, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), strict=True))
    for name, found in similarity.correlations(sets, texts, vectors).items():
        cosines = [unit[a] @ unit[b] for a, b in zip(sets[name].first, sets[name].second, strict=True)]
        assert found == pytest.approx(100 * spearmanr(cosines, sets[name].scores).statistic)
