import numpy as np
import pytest

from experiments import matryoshka_2d, sizes, starbucks, stsb
from jaxemb.evaluate import StsSet

_TRAINING = sizes.Training(sizes=((1, 2), (2, 4)), steps=1, learning_rate=1e-3)


@pytest.mark.slow  # compiles a train step for each method
@pytest.mark.parametrize("experiment", [matryoshka_2d, starbucks])
def test_smoke(smoke, experiment, tmp_path):
    table, metrics = smoke(experiment)
    assert set(metrics["grids"]) == set(metrics["trainings"]) == {"intents"}
    for method, results in metrics["results"]["intents"].items():
        (grid,) = (np.array(seed["BANKING77"], float) for seed in metrics["grids"]["intents"][method])
        assert grid.shape == (4, 2)
        assert np.isnan(grid).sum() == (7 if method == "separately trained" else 0)
        assert 0 < grid[0, 0] == results["1 layer, 12"]["mean"] < 100
    assert table.count("| no |") + table.count("| yes |") == len(metrics["claims"])
    assert "reference" not in table
    assert (tmp_path / "results" / "curves.png").stat().st_size > 0


def test_what_is_measured_is_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(sizes.common, "REPOSITORY", tmp_path)
    monkeypatch.setattr(sizes, "setting", lambda name, training: None)
    calls = []
    grid = {"a": [[1.0, 2.0], [3.0, 4.0]], "b": [[3.0, 2.0], [3.0, 8.0]]}
    methods = lambda training: {"m": lambda setting, seed: calls.append(seed) or grid}
    first = sizes.measured({"sts": _TRAINING}, methods, 2, keep=True)
    assert calls == [0, 1]
    assert sizes.measured({"sts": _TRAINING}, methods, 2, keep=True) == first == {"sts": {"m": [grid, grid]}}
    assert calls == [0, 1]
    sizes.measured({"sts": _TRAINING}, methods, 1, keep=False)
    assert calls == [0, 1, 0]


def test_the_mean_of_the_sets_at_the_sizes():
    grid = {"a": [[1.0, 2.0], [3.0, 4.0]], "b": [[3.0, 2.0], [3.0, 8.0]]}
    assert sizes.at_sizes(grid, _TRAINING) == {"1 layer, 2": 2.0, "2 layers, 4": 6.0, "all sizes": 3.25}
    grid["b"][1][1] = None
    assert sizes.at_sizes(grid, _TRAINING) == {"1 layer, 2": 2.0}


def test_claims_are_paired_by_seed():
    rows = {"sts": {"m": [{"s": 3.0}, {"s": 5.0}], "base": [{"s": 1.0}, {"s": 4.0}]}}
    claim = sizes.claim(rows, "sts", "m", "base", "s", 1.6)
    assert claim["change"].values == (2.0, 1.0) and claim["change"].mean == 1.5
    assert not claim["reached"] and sizes.claim(rows, "sts", "m", "base", "s", 1.5)["reached"]


def test_words_that_are_there_twice_are_known():
    tokenizer = sizes.word_tokenizer(["My card, my CARD!", "a lost card", "lost?"])
    vocabulary = tokenizer.backend.get_vocab()
    assert set(vocabulary) == {"[PAD]", "[UNK]", "[CLS]", "[MASK]", "my", "card", "lost"}
    (ids,) = tokenizer(["Lost a card"])
    assert ids.tolist() == [vocabulary[t] for t in ("[CLS]", "lost", "[UNK]", "card")]


def test_sts_by_year():
    part = lambda *scores: StsSet([f"a{s}" for s in scores], [f"b{s}" for s in scores], np.array(scores, float))
    sets = {
        "STS-B dev": part(9, 8, 7),
        "STS12 MSRpar": part(1, 2, 3),
        "STS12 MSRpar train": part(6),
        "STS12 x": part(4),
    }
    found = stsb.by_year(sets, limit=2)
    assert {name: pairs.scores.tolist() for name, pairs in found.items()} == {"STS-B dev": [9, 8], "STS12": [1, 2, 4]}
    assert found["STS12"].second == ["b1", "b2", "b4"]
