import dataclasses

import numpy as np
import pytest

from experiments import cwcl
from jaxemb.losses import cwcl as cwcl_loss
from jaxemb.losses import soft_targets
from jaxemb.train import fit


def test_smoke(smoke, monkeypatch):
    """Of three losses two, of two widths one: the others train alike."""
    monkeypatch.setattr(cwcl, "LOSSES", {arm: cwcl.LOSSES[arm] for arm in ("LiT", "CWCL")})
    monkeypatch.setitem(cwcl.PRESETS, "smoke", dataclasses.replace(cwcl.PRESETS["smoke"], stds=(0.1,)))
    table, metrics = smoke(cwcl)
    assert metrics["preset"] == "smoke" and set(metrics["results"]) == set(cwcl.LOSSES)
    assert set(metrics["change_against_LiT"]) == set(cwcl.LOSSES) - {"LiT"}
    for arm, values in metrics["results"].items():
        assert f"| {arm} |" in table
        assert 0 < abs(values["temperature"]["mean"] - 0.07) < 0.03  # it is trained


def test_lit_is_cwcl_with_the_own_sentence_alone():
    locked, learned = np.random.default_rng(0).standard_normal((2, 5, 4), np.float32)
    expected = cwcl_loss(locked, learned, temperature=0.1, targets=soft_targets.given(np.eye(5, dtype=np.float32)))
    np.testing.assert_allclose(cwcl.lit(locked, learned, temperature=0.1), expected, rtol=1e-5)


@pytest.mark.slow
def test_the_full_recipe_trains(quick_vectors, tiny_minilm, tmp_path):
    run = cwcl.run(model=str(tiny_minilm), batch_size=8, chunk=4, steps=2, max_length=16, limit=24)
    assert np.isfinite(fit(run, tmp_path / "run", progress=False).embedder.encode(["Ein Hund."])).all()
