import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxemb.losses import mega_batch_margin

# Cosines [[0.6, 0.8], [-0.8, 0.6]].
QUERIES, DOCUMENTS = jnp.eye(2), jnp.array([[0.6, -0.8], [0.8, 0.6]])


def test_by_hand():
    np.testing.assert_allclose(mega_batch_margin(QUERIES, DOCUMENTS), [0.2 + 0.5, 0.2], rtol=1e-6)
    wide = mega_batch_margin(QUERIES, DOCUMENTS, positive_margin=0.5, negative_margin=-1.0)
    np.testing.assert_allclose(wide, [1.8, 0.2], rtol=1e-6)


def test_masked_rows_keep_the_positive_term_and_finite_gradients():
    loss = lambda q: mega_batch_margin(q, DOCUMENTS, mask=jnp.zeros((2, 2), bool))
    np.testing.assert_allclose(loss(QUERIES), [0.2, 0.2], rtol=1e-6)
    assert jnp.isfinite(jax.grad(lambda q: loss(q).mean())(QUERIES.at[0].set(0.0))).all()
    only_first = mega_batch_margin(QUERIES, DOCUMENTS, mask=jnp.array([[False, True], [False, False]]))
    np.testing.assert_allclose(only_first, [0.7, 0.2], rtol=1e-6)


def test_bad_arguments_are_named():
    x = jnp.ones((3, 4))
    with pytest.raises(ValueError, match=r"queries and documents must both be \[N, D\]; got \(3, 4\) and \(2, 4\)"):
        mega_batch_margin(x, x[:2])
    with pytest.raises(ValueError, match=r"mask must be \[N, N\] = \(3, 3\); got \(3, 6\)"):
        mega_batch_margin(x, x, mask=jnp.ones((3, 6), bool))
