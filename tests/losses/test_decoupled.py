import jax
import numpy as np
import pytest
from compiled import value_and_grad

from jaxemb.losses import decoupled_contrastive, hard_negative_nce, info_nce

rng = np.random.default_rng(0)
QUERIES, DOCUMENTS, NEGATIVES = rng.standard_normal((3, 7, 5)).astype(np.float32)
LOSSES = {
    "DCL": decoupled_contrastive,
    "DCLW": lambda *x, **options: decoupled_contrastive(*x, sigma=0.5, **options),
    "HN-NCE": lambda *x, **options: hard_negative_nce(*x, alpha=0.9, beta=0.3, **options),
}


def test_worked_out_on_the_circle():
    # Queries at 0 and 90 degrees, documents at 30 and 60.
    queries, documents = np.eye(2), np.array([[3**0.5, 1.0], [1.0, 3**0.5]])
    np.testing.assert_allclose(decoupled_contrastive(queries, documents, temperature=1.0), -0.366025, rtol=2e-6)


def test_hard_negatives_weighted_alike_are_info_nce():
    arrays = (QUERIES, DOCUMENTS, NEGATIVES)
    np.testing.assert_allclose(hard_negative_nce(*arrays), info_nce(*arrays), rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_any_tile(loss):
    arrays, allowed = (QUERIES, DOCUMENTS, NEGATIVES), rng.random((7, 14)) < 0.6
    results = [
        jax.jit(jax.value_and_grad(lambda *x, tile=tile: loss(*x, mask=allowed, tile=tile).mean(), (0, 1, 2)))(*arrays)
        for tile in (3, 512)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *results)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_degenerate_input_has_finite_gradients(loss):
    for queries, mask in ((np.zeros_like(QUERIES), None), (QUERIES, np.zeros((7, 7), bool))):
        value, gradient = value_and_grad(lambda q, mask=mask: loss(q, DOCUMENTS, mask=mask).mean())(queries)
        assert np.isfinite(value) and np.isfinite(gradient).all()


def test_a_row_without_negatives_is_0():
    losses = decoupled_contrastive(QUERIES, DOCUMENTS, mask=np.zeros((7, 7), bool))
    np.testing.assert_array_equal(losses, 0.0)


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (decoupled_contrastive, {"temperature": 0.0}, "temperature must be > 0; got 0.0"),
        (decoupled_contrastive, {"sigma": -1.0}, "sigma must be > 0; got -1.0"),
        (hard_negative_nce, {"alpha": 0.0}, "alpha must be > 0; got 0.0"),
        (hard_negative_nce, {"beta": -0.5}, "beta must be >= 0; got -0.5"),
        (decoupled_contrastive, {"documents": DOCUMENTS[:2]}, r"both be \[N, D\]; got \(7, 5\) and \(2, 5\)"),
    ],
)
def test_bad_arguments_are_named(loss, options, message):
    with pytest.raises(ValueError, match=message):
        loss(**{"queries": QUERIES, "documents": DOCUMENTS} | options)
