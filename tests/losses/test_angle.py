import jax
import numpy as np
import pytest

from jaxemb.losses import angle, angle_similarity, angle_with_negatives

FIRST = np.array([[1.0, 0, 2, 1], [0, 1, 1, 0]])
SECOND = np.array([[2.0, 1, 0, 1], [1, 1, 0, 0]])


def test_worked_example():
    np.testing.assert_allclose(angle_similarity(FIRST, SECOND), [4 / 3, 1.0], rtol=1e-6)
    np.testing.assert_allclose(angle(FIRST, SECOND, np.array([1, 0]), scale=1.0), [0.540306] * 2, rtol=1e-5)
    np.testing.assert_allclose(angle(FIRST, SECOND, np.array([0, 1]), scale=1.0), [0.873639] * 2, rtol=1e-5)


def test_similarity_is_the_papers_quotient_of_complex_vectors():
    u, v = np.random.default_rng(0).standard_normal((2, 9, 8))
    complex_ = lambda x: x[:, :4] + 1j * x[:, 4:]
    lengths = np.linalg.norm(u, axis=1, keepdims=True) / np.linalg.norm(v, axis=1, keepdims=True)
    squares = np.sum(np.square(v), axis=1, keepdims=True)  # over all dimensions, as in the reference code
    quotient = complex_(u) * complex_(v).conj() / squares / lengths
    expected = np.abs(np.sum(quotient.real + quotient.imag, axis=1))
    np.testing.assert_allclose(angle_similarity(u, v), expected, rtol=1e-5)


def test_an_odd_dimension_is_one_more_zero():
    u, v = np.random.default_rng(0).standard_normal((2, 5, 7), np.float32)
    pad = lambda x: np.pad(x, ((0, 0), (0, 1)))
    np.testing.assert_array_equal(angle_similarity(u, v), angle_similarity(pad(u), pad(v)))


def test_negatives_rank_below_every_positive():
    queries, documents, *hard = np.random.default_rng(0).standard_normal((4, 5, 6), np.float32)
    pairs = np.concatenate([documents, *hard])
    expected = angle(np.tile(queries, (3, 1)), pairs, np.repeat([1, 0, 0], 5))
    losses = angle_with_negatives(queries, documents, np.stack(hard, axis=1))
    assert losses.shape == (5,)
    np.testing.assert_allclose(losses, expected[:5], rtol=1e-5)
    one = angle_with_negatives(queries, documents, hard[0])
    np.testing.assert_allclose(one, angle(np.tile(queries, (2, 1)), pairs[:10], np.repeat([1, 0], 5))[:5], rtol=1e-5)


def test_zero_vectors_have_finite_gradients():
    first = np.eye(3, 4) * 2
    gradient = jax.jit(jax.grad(lambda u: angle(u, np.ones((3, 4)), np.arange(3)).mean()))(first)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() < 1e3


def test_bad_arguments_are_named():
    x = np.ones((3, 4))
    with pytest.raises(ValueError, match=r"second must be \[N, D\] with N = 3, D = 4 as in first; got \(2, 4\)"):
        angle(x, x[:2], np.ones(3))
    with pytest.raises(ValueError, match=r"scores must be \[N\] with N = 3 as in first; got \(2,\)"):
        angle(x, x, np.ones(2))
    with pytest.raises(ValueError, match="scale must be > 0; got 0"):
        angle(x, x, np.ones(3), scale=0)
    with pytest.raises(ValueError, match=r"negatives must be \[N, K, D\] or \[N, D\] with .*; got \(3, 2, 5\)"):
        angle_with_negatives(x, x, np.ones((3, 2, 5)))
