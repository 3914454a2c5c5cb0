import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, value_and_grad
from hypothesis import given

from jaxemb.losses import cosent, pair_ranking


def by_definition(similarities, scores, scale):
    similarities = np.asarray(similarities, np.float64)
    differences = scale * (similarities[:, None] - similarities[None, :])
    terms = differences[np.asarray(scores)[:, None] < np.asarray(scores)[None, :]]
    return np.logaddexp.reduce(np.append(terms, 0.0))


def test_worked_example():
    angles = np.deg2rad([60.0, 30.0, 90.0])
    first = np.tile(np.array([1.0, 0.0]), (3, 1))
    second = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    losses = cosent(first, second, np.array([0.2, 0.9, 0.5]), scale=1.0)
    assert losses.shape == (3,)
    np.testing.assert_allclose(losses.mean(), 1.325170, rtol=1e-5)


@given(st.integers(0, 2**31), st.sampled_from([1, 2, 12]), st.sampled_from([20.0, 1000.0]))
def test_running_sum_equals_the_definition_with_ties(seed, n, scale):
    rng = np.random.default_rng(seed)
    similarities, scores = rng.uniform(-1, 1, n).astype(np.float32), rng.integers(0, 4, n)
    order = rng.permutation(n)
    expected = by_definition(similarities, scores, scale)
    np.testing.assert_allclose(pair_ranking(similarities, scores, scale=scale)[0], expected, rtol=1e-5, atol=1e-6)
    shuffled = pair_ranking(similarities[order], scores[order], scale=scale)[0]
    np.testing.assert_allclose(shuffled, expected, rtol=1e-5, atol=1e-6)


def test_gradient_equals_the_definitions():
    rng = np.random.default_rng(0)
    similarities, scores = rng.uniform(-1, 1, 9).astype(np.float32), rng.integers(0, 3, 9)

    def quadratic(s):
        differences = jnp.where(scores[:, None] < scores[None, :], 20.0 * (s[:, None] - s[None, :]), -jnp.inf)
        return jax.nn.logsumexp(jnp.append(differences.ravel(), 0.0))

    gradient = grad(lambda s: pair_ranking(s, scores).mean())(similarities)
    np.testing.assert_allclose(gradient, grad(quadratic)(similarities), rtol=1e-4, atol=1e-5)


def test_equal_scores_give_zero_loss_and_gradient():
    value, gradient = value_and_grad(lambda s: pair_ranking(s, np.ones(3)).mean())(np.array([0.1, 0.9, -0.4]))
    assert value == 0.0
    np.testing.assert_array_equal(gradient, 0.0)


def test_zero_vectors_have_finite_gradients():
    first = np.eye(3, 4) * 2
    gradient = grad(lambda a: cosent(a, np.ones((3, 4)), np.array([0.0, 1.0, 2.0])).mean())(first)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() < 1e3


@pytest.mark.parametrize(
    ("message", "shapes", "scale"),
    [
        (r"both be \[N, D\]; got \(3, 2\) and \(2, 2\)", [(3, 2), (2, 2), (3,)], 20.0),
        (r"similarities and scores must both be \[N\]; got \(3,\) and \(2,\)", [(3, 2), (3, 2), (2,)], 20.0),
        (r"scale must be > 0; got -1.0", [(3, 2), (3, 2), (3,)], -1.0),
    ],
)
def test_bad_arguments_are_named(message, shapes, scale):
    with pytest.raises(ValueError, match=message):
        cosent(*(np.ones(shape) for shape in shapes), scale=scale)


def test_a_score_that_is_no_number_is_not_taken_for_the_largest():
    assert np.isnan(pair_ranking(np.ones(3, np.float32), np.array([0.0, np.nan, 1.0], np.float32))).all()
