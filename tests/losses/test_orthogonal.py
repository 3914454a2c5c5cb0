import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import value_and_grad

from jaxemb.losses import orthogonal_regularization


def test_by_hand():
    # three unit vectors at 0, 60 and 120 degrees: cosines 0.5, 0.5, -0.5
    angles = np.deg2rad([0.0, 60.0, 120.0])
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    mean, square = (0.5 / 3) ** 2, 0.25 - 1 / 2  # the second is below 0
    np.testing.assert_allclose(orthogonal_regularization(5 * x), [mean] * 3, rtol=1e-5)
    wider = np.pad(x, ((0, 0), (0, 6)))  # 1/D = 1/8
    square = 0.25 - 1 / 8
    np.testing.assert_allclose(orthogonal_regularization(wider), [mean + square] * 3, rtol=1e-5)
    weighted = orthogonal_regularization(wider, x, mean_weight=2.0, second_moment_weight=3.0)
    np.testing.assert_allclose(weighted, [2 * mean + 1.5 * square] * 3, rtol=1e-5)


def test_equals_the_mean_over_the_cosines():
    x = np.random.default_rng(0).standard_normal((40, 6), np.float32) + 0.3
    x[3] = 0.0  # the zero vector has cosine 0 with all

    def quadratic(x):
        norms = jnp.linalg.norm(x, axis=1, keepdims=True)
        u = x / jnp.where(norms == 0, 1.0, norms)
        cosines = (u @ u.T)[~np.eye(40, dtype=bool)]
        return jnp.square(cosines.mean()) + jax.nn.relu(jnp.square(cosines).mean() - 1 / 6)

    np.testing.assert_allclose(orthogonal_regularization(x).mean(), jax.jit(quadratic)(x), rtol=1e-5)


@pytest.mark.parametrize("n", [1, 3])
def test_zero_vectors_and_single_rows_have_finite_gradients(n):
    value, gradient = value_and_grad(lambda x: orthogonal_regularization(x).mean())(np.zeros((n, 4)))
    assert value == 0.0
    assert np.isfinite(gradient).all()


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"columns must be .* \[N, D\] of the same N; got \[\(3, 4\), \(2, 4\)\]"):
        orthogonal_regularization(np.ones((3, 4)), np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"one or more \[N, D\] of the same N; got \[\]"):
        orthogonal_regularization()
    with pytest.raises(ValueError, match="mean_weight must be >= 0; got -1"):
        orthogonal_regularization(np.ones((3, 4)), mean_weight=-1)
