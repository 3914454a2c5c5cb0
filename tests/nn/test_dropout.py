import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxemb.nn.dropout import dropout, kept, share_kept

KEY = jax.random.key(3, impl="rbg")


@pytest.mark.parametrize("rate", [0.1, 0.5, 1 - 2**-12, 1 - 2**-16, 1 - 1e-9])
def test_what_is_kept_is_divided_by_the_share_that_is_kept(rate):
    count = 2**22
    found = np.asarray(jax.jit(lambda: dropout(jnp.ones((2**11, 2**11)), rate, KEY))())
    assert set(np.unique(found)) == {0.0, np.float32(1 / share_kept(rate))}
    spread = np.sqrt((1 - share_kept(rate)) / share_kept(rate) / count)
    np.testing.assert_allclose(found.mean(), 1, atol=4 * spread)


def test_the_share_is_the_nearest_that_16_bits_have():
    assert [share_kept(rate) for rate in (0, 0.5, 2**-18, 1 - 1e-9)] == [1, 0.5, 1, 2**-16]
    np.testing.assert_allclose(share_kept(0.1), 0.9, atol=2**-17)
    assert kept(KEY, 2**-18, (100, 7)).all()


def test_without_a_key_nothing_drops_out():
    np.testing.assert_array_equal(dropout(jnp.ones(3), 0.5, None), np.ones(3))
