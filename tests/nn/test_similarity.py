"""Similarities where rounding would hide what is compared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxemb import similarity as on_host
from jaxemb.nn.similarity import cosine, euclidean, paired, unit
from jaxemb.retrieval import topk_search


def test_distances_of_vectors_that_are_nearer_than_they_are_long():
    """By `|a|² + |b|² - 2 <a, b>` such distances are 0, and so are their gradients."""
    rng = np.random.default_rng(0)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    a = (30 * unit(rng.normal(size=(4, 64)))).astype(np.float32)
    b = (a + 0.003 * unit(rng.normal(size=a.shape))).astype(np.float32)
    expected = np.linalg.norm(a[:, None].astype(np.float64) - b[None], axis=-1)
    np.testing.assert_allclose(-euclidean(a, b), expected, rtol=1e-5)
    for distance in (lambda b: -euclidean(a, b).trace(), lambda b: -paired(euclidean, a, b).sum()):
        gradient = jax.grad(distance)(b)
        np.testing.assert_allclose(gradient, (b - a) / expected.diagonal()[:, None], atol=1e-3)
        np.testing.assert_allclose(np.linalg.norm(gradient, axis=1), 1, atol=1e-3)


def test_derivatives_of_distances_agree_with_differences():
    a, b = (np.random.default_rng(i).normal(size=(i, 4)).astype(np.float32) for i in (3, 5))
    check_grads(euclidean, (a, b), order=2, modes=("fwd", "rev"), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e-9, 1e18, 1e20, 1e37])
def test_a_cosine_on_the_host_does_not_depend_on_the_length(scale):
    vectors = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    found = on_host.similarity(vectors, vectors * np.float32(scale))
    np.testing.assert_allclose(found, on_host.similarity(vectors, vectors), atol=1e-6)
    rows = on_host.PAIRED["cosine"](vectors, vectors * np.float32(scale))
    np.testing.assert_allclose(rows, np.ones(4), atol=1e-6)


def test_a_vector_shorter_than_1e_12_counts_as_zero_where_there_are_gradients():
    for length, expected in {1.1e-12: 1.0, 0.9e-12: 0.0, 1e-30: 0.0, 0.0: 0.0}.items():
        a, b = np.array([[length, 0]], np.float32), np.array([[2, 0]], np.float32)
        np.testing.assert_allclose(cosine(a, b), [[expected]], atol=1e-11)
        np.testing.assert_array_equal(on_host.similarity(a, b), [[np.sign(length)]])
        for queries, corpus in ((a, b), (b, a)):
            np.testing.assert_allclose(topk_search(queries, corpus, 1)[0], [[np.sign(length)]], rtol=1e-6)
        gradient = jax.grad(lambda a, b=b: cosine(a, b).sum())(jnp.asarray(a))
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("kind", on_host.PAIRED)
def test_similarities_on_the_host_are_finite_or_refused(kind):
    large = np.array([[1e20, 3e38], [-1e20, -3e38]])
    if kind == "cosine":
        np.testing.assert_allclose(on_host.similarity(large, large), [[1, -1], [-1, 1]], rtol=1e-6)
    else:
        with pytest.raises(ValueError, match=f"a and b must not be too large .* their {kind} similarities overflow"):
            on_host.similarity(large, large, kind)
    for wrong in (np.inf, np.nan, 1e39):
        with pytest.raises(ValueError, match="b must be finite"):
            on_host.similarity(large, np.full(2, wrong), kind)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_distances_of_pairs_on_the_host_neither_overflow_nor_vanish(scale):
    a, b = (np.float32(scale) * np.random.default_rng(0).normal(size=(2, 4, 6))).astype(np.float32)
    expected = -np.linalg.norm(a.astype(np.float64) - b, axis=1)
    np.testing.assert_allclose(on_host.PAIRED["euclidean"](a, b), expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["dot", "euclidean", "manhattan"])
def test_similarities_of_pairs_on_the_host_are_finite_or_refused(kind):
    large = np.array([[1e20, 3e38], [1, 1]], np.float32)
    with pytest.raises(ValueError, match=f"too large to compare in float32; their {kind} similarities overflow"):
        on_host.PAIRED[kind](large, -large)
    with pytest.raises(ValueError, match="b must be finite"):
        on_host.PAIRED[kind](large, np.where(large > 1, np.nan, large))


def test_dividing_by_the_magnitude_loses_nothing():
    x = np.array([[0.7, -3.0], [0, 0], [1e300, 1.7e308], [5e-324, 0]])
    powers = on_host.magnitude(x, axis=1)
    np.testing.assert_array_equal(powers[:2, 0], [4, 1])
    np.testing.assert_array_equal(x / powers * powers, x)
    assert np.abs(x / powers).max(axis=1).tolist() == [0.75, 0, pytest.approx(1.89, abs=0.01), 0.5]
    assert on_host.magnitude(x).shape == ()
    single = np.array([-3e38, 1], np.float32)
    assert (single / on_host.magnitude(single)).tolist() == pytest.approx([-1.76, 0], abs=0.01)
    assert on_host.magnitude(single).dtype == np.float32


def test_a_vector_whose_squares_overflow_is_no_number_on_the_device():
    a = np.array([[1e19, 0], [2e19, 0]], np.float32)
    np.testing.assert_array_equal(unit(a), [[1, 0], [np.nan, np.nan]])
    np.testing.assert_array_equal(on_host.unit_rows(a), [[1, 0], [1, 0]])
