import jax
import numpy as np
import pytest
from compiled import value_and_grad

from jaxemb.losses import contrastive_tension, contrastive_tension_in_batch, symmetric_info_nce


def test_contrastive_tension_by_hand():
    first, second = np.array([[1.0, 2], [1, -1]]), np.array([[1.0, 0.5], [2, -1]])  # inner products 2 and 3
    losses = contrastive_tension(first, second, np.array([1, 0]))
    np.testing.assert_allclose(losses, 2 * np.log1p(np.exp([-2.0, 3.0])), rtol=1e-6)


def test_large_inner_products_stay_finite():
    x = np.full((2, 4), 1e3)
    value, gradient = value_and_grad(lambda x: contrastive_tension(x, x, np.array([1, 0])).mean())(x)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_in_batch_is_the_symmetric_loss_with_its_options():
    first, second = np.random.default_rng(0).standard_normal((2, 5, 4), np.float32)
    options = {"temperature": 0.3, "similarity": "dot", "mask": np.arange(25).reshape(5, 5) % 6 != 0}
    losses = jax.jit(lambda u, v: contrastive_tension_in_batch(u, v, **options))(first, second)
    expected = jax.jit(lambda u, v: symmetric_info_nce(u, v, **options))(first, second)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_bad_arguments_are_named():
    x = np.ones((3, 4))
    with pytest.raises(ValueError, match=r"labels must be \[N\] with N = 3 as in first; got \(2,\)"):
        contrastive_tension(x, x, np.ones(2))
