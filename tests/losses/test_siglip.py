import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import value_and_grad

from jaxemb.losses import siglip

rng = np.random.default_rng(0)
QUERIES, DOCUMENTS, NEGATIVES = rng.standard_normal((3, 7, 5)).astype(np.float32)


def test_worked_out_on_the_circle():
    # Queries at 0 and 90 degrees, documents at 30 and 60.
    queries, documents = np.eye(2), np.array([[3**0.5, 1.0], [1.0, 3**0.5]])
    np.testing.assert_allclose(siglip(queries, documents), [1.579089, 1.579089], rtol=1e-6)


def test_mask_negatives_and_tiles_by_definition():
    allowed = rng.random((7, 14)) < 0.6

    def by_definition(q, d, n, bias):
        unit = lambda x: x / jnp.linalg.norm(x, axis=1, keepdims=True)
        y = 2 * np.eye(7, 14) - 1
        terms = jax.nn.log_sigmoid(y * (unit(q) @ unit(jnp.concatenate([d, n])).T / 0.2 + bias))
        return -jnp.where(allowed | (y > 0), terms, 0.0).sum(axis=1).mean()

    arrays = (QUERIES, DOCUMENTS, NEGATIVES, jnp.float32(-3.0))
    expected = jax.jit(jax.value_and_grad(by_definition, (0, 1, 2, 3)))(*arrays)
    for tile in (3, 512):
        ours = lambda q, d, n, bias, tile=tile: siglip(q, d, n, temperature=0.2, bias=bias, mask=allowed, tile=tile)
        found = jax.jit(jax.value_and_grad(lambda *x, ours=ours: ours(*x).mean(), (0, 1, 2, 3)))(*arrays)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


def test_zero_vectors_and_large_logits_have_finite_gradients():
    loss = lambda q, t: siglip(q, DOCUMENTS, temperature=t).mean()
    for temperature in (0.1, 1e-4):
        value, gradients = value_and_grad(loss, (0, 1))(np.eye(7, 5, dtype=np.float32), temperature)
        assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be > 0; got 0.0"),
        ({"bias": float("nan")}, "bias must be finite; got nan"),
        ({"documents": DOCUMENTS[:2]}, r"both be \[N, D\]; got \(7, 5\) and \(2, 5\)"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        siglip(**{"queries": QUERIES, "documents": DOCUMENTS} | options)
