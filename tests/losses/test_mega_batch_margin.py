import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, value_and_grad

from jaxemb.losses import cosine, mega_batch_margin

# Cosines [[0.6, 0.8], [-0.8, 0.6]].
QUERIES, DOCUMENTS = np.eye(2), np.array([[0.6, -0.8], [0.8, 0.6]])


def test_by_hand():
    np.testing.assert_allclose(mega_batch_margin(QUERIES, DOCUMENTS), [0.2 + 0.5, 0.2], rtol=1e-6)
    wide = mega_batch_margin(QUERIES, DOCUMENTS, positive_margin=0.5, negative_margin=-1.0)
    np.testing.assert_allclose(wide, [1.8, 0.2], rtol=1e-6)


def test_masked_rows_keep_the_positive_term_and_finite_gradients():
    loss = lambda q: mega_batch_margin(q, DOCUMENTS, mask=np.zeros((2, 2), bool))
    np.testing.assert_allclose(loss(QUERIES), [0.2, 0.2], rtol=1e-6)
    assert np.isfinite(grad(lambda q: loss(q).mean())(QUERIES * np.array([[0.0], [1.0]]))).all()
    only_first = mega_batch_margin(QUERIES, DOCUMENTS, mask=np.array([[False, True], [False, False]]))
    np.testing.assert_allclose(only_first, [0.7, 0.2], rtol=1e-6)


def test_equally_hard_negatives_share_the_gradient_for_any_tile():
    queries, documents = np.random.default_rng(0).standard_normal((2, 7, 5), np.float32)
    documents[4] = documents[2]

    def by_definition(q, d):
        s = cosine(q, d)
        hardest = jnp.max(jnp.where(np.eye(7, dtype=bool), -jnp.inf, s), axis=1)  # whose gradient is shared, too
        return (jax.nn.relu(0.8 - jnp.diagonal(s)) + jax.nn.relu(hardest - 0.3)).mean()

    expected = jax.jit(jax.value_and_grad(by_definition, argnums=(0, 1)))(queries, documents)
    for tile in (3, 100):
        ours = value_and_grad(lambda q, d, tile=tile: mega_batch_margin(q, d, tile=tile).mean(), argnums=(0, 1))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            ours(queries, documents),
            expected,
        )


def test_bad_arguments_are_named():
    x = np.ones((3, 4))
    with pytest.raises(ValueError, match=r"queries and documents must both be \[N, D\]; got \(3, 4\) and \(2, 4\)"):
        mega_batch_margin(x, x[:2])
    with pytest.raises(ValueError, match=r"mask must be \[N, N \(1 \+ K\)\] = \(3, 3\); got \(3, 6\)"):
        mega_batch_margin(x, x, mask=np.ones((3, 6), bool))
