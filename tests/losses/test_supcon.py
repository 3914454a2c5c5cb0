import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import value_and_grad

from jaxemb.losses import supcon

X = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
LABELS = np.array([0, 1, 0, 2, 1, 0, -1])  # one is alone in its class, one has none


def test_worked_out_on_the_circle():
    angles = np.deg2rad([0.0, 30.0, 90.0, 120.0])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    losses = supcon(embeddings, np.array([0, 0, 1, 1]), temperature=1.0)
    np.testing.assert_allclose(losses.mean(), 0.632443, rtol=1e-6)


def test_any_tile_gives_the_definition():
    def by_definition(x):
        x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
        logits = jnp.where(np.eye(7, dtype=bool), -jnp.inf, x @ x.T / 0.2)
        same = (LABELS[:, None] == LABELS) & ~np.eye(7, dtype=bool) & (LABELS != -1)
        surprise = -jnp.where(same, jax.nn.log_softmax(logits, axis=1), 0.0).sum(axis=1)
        with_positive = same.any(axis=1)
        return (surprise / np.maximum(same.sum(axis=1), 1)).sum() / with_positive.sum()

    expected = jax.jit(jax.value_and_grad(by_definition))(X)
    for tile in (3, 512):
        ours = lambda x, tile=tile: supcon(x, LABELS, temperature=0.2, tile=tile).mean()
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            jax.jit(jax.value_and_grad(ours))(X),
            expected,
        )


def test_rows_without_a_positive_are_0():
    losses = supcon(X, LABELS)
    np.testing.assert_array_equal(losses[np.array([3, 6])], 0.0)
    assert (losses[np.array([0, 1, 2, 4, 5])] > 0).all()


@pytest.mark.parametrize("x", [np.zeros((7, 5)), np.ones((7, 5))], ids=["zeros", "equal"])
def test_degenerate_vectors_have_finite_gradients(x):
    value, gradient = value_and_grad(lambda x: supcon(x, LABELS).mean())(x)
    np.testing.assert_allclose(value, np.log(6), rtol=1e-5)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be > 0; got 0.0"),
        ({"labels": LABELS[:3]}, r"labels must be \[N\] with N = 7 as in embeddings; got \(3,\)"),
        ({"labels": np.full(7, -1)}, "no two of the 7 labels are the same"),
        ({"labels": np.arange(7)}, "no two of the 7 labels are the same"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        supcon(**{"embeddings": X, "labels": LABELS} | options)
