import dataclasses
import json

import numpy as np
import pytest

from experiments.lib import datasets, suite, translations
from jaxemb.encoders import hashed_ngrams


@pytest.fixture
def quick_vectors(monkeypatch, data_dir, tmp_path):
    """For MiniLM's vectors, random projections of n-grams; what would be kept goes to a temporary directory."""

    def vectors(texts, model=None):
        projected = hashed_ngrams(texts) @ np.random.default_rng(0).standard_normal((2**15, 384), np.float32)
        return projected / np.linalg.norm(projected, axis=1, keepdims=True)

    monkeypatch.setenv("JAXEMB_DATA", str(data_dir))
    monkeypatch.setattr(datasets, "REPOSITORY", tmp_path)
    monkeypatch.setattr(datasets, "vectors", vectors)
    translations.load.cache_clear()
    yield vectors
    translations.load.cache_clear()


@pytest.fixture
def smoke_cells(monkeypatch, tmp_path, data_dir):
    """Runs an experiment's smoke preset with some of its arms and one seed; gives its table, and the values by arm."""
    monkeypatch.setenv("JAXEMB_DATA", str(data_dir))

    def run(experiment, *arms, preset="smoke"):
        kept = {arm: experiment.arms[arm] for arm in arms}
        claims = [claim for claim in experiment.claims if {claim.arm, claim.base} <= kept.keys()]
        some = dataclasses.replace(experiment, arms=kept, claims=claims)
        suite.run(some, preset, tmp_path / "results", seeds=1)
        summary = json.loads((tmp_path / "results" / "results.json").read_text(encoding="utf-8"))
        assert len(summary["claims"]) >= len(claims) > 0
        return (tmp_path / "results" / "table.md").read_text(encoding="utf-8"), summary

    return run
