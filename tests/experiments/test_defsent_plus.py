import dataclasses
import gzip
import itertools
from types import SimpleNamespace

import pytest

from experiments import defsent_plus as experiment
from jaxemb.data import Definitions, read_wordnet


@pytest.mark.slow  # compiles four train steps
def test_smoke(smoke, monkeypatch, data_dir, tmp_path):
    with gzip.open(data_dir / "oewn_glosses" / "synsets.jsonl.gz", "rt", encoding="utf-8") as file:
        (tmp_path / "synsets.jsonl").write_text("".join(itertools.islice(file, 3000)), encoding="utf-8")
    monkeypatch.setattr(experiment, "wordnet", lambda: read_wordnet(tmp_path / "synsets.jsonl"))
    table, metrics = smoke(experiment)
    results = metrics["results"]
    assert set(results) == {
        "before",
        "masked language modelling",
        "DefSent",
        "DefSent+, stage 1",
        "DefSent+, stage 2",
    }
    for change in metrics["changes"]:
        first, second = (results[change[name]][change["measure"]]["mean"] for name in ("method", "against"))
        assert change["change"]["mean"] == pytest.approx(first - second)
    assert len(metrics["changes"]) == 6
    assert table.count("| no |") + table.count("| yes |") == 6
    values = {method: row["mean"]["mean"] for method, row in results.items()}
    assert len(set(values.values())) == 5  # everything trained
    assert metrics["first_loss"]["DefSent+, stage 1"]["mean"] < 100


def test_the_learning_rate_is_the_best_on_other_data(monkeypatch, data_dir):
    monkeypatch.setenv("JAXEMB_DATA", str(data_dir))
    monkeypatch.setattr(experiment, "measured", lambda embedder, sets: {"mean": -abs(embedder - 0.2)})
    begin = SimpleNamespace(embedder=SimpleNamespace(replace=lambda model: model))
    preset = dataclasses.replace(experiment.PRESETS["smoke"], learning_rates=(0.1, 0.25, 0.4))
    rate, found = experiment.chosen_rate(lambda rate: rate, begin, preset)
    assert rate == 0.25 and list(found) == ["0.1", "0.25", "0.4"]


def test_entries_of_short_definitions_are_left_out(monkeypatch, data_dir):
    pairs = [("a", "long enough"), ("a", "short"), ("b", "long enough"), ("c", "also long enough")]
    monkeypatch.setenv("JAXEMB_DATA", str(data_dir))
    monkeypatch.setattr(experiment, "read_wordnet", lambda path: Definitions.from_pairs(pairs))
    monkeypatch.setattr(experiment, "wordnet", experiment.wordnet.__wrapped__)
    assert sorted(experiment.dictionary(None, 0).entries) == ["b", "c"]
    assert len(experiment.dictionary(1, 0).entries) == 1
