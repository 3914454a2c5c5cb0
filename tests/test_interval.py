"""`interval.bound`: worked numbers, rules, soundness, and what the bounded program looks like."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxemb import interval


@pytest.mark.parametrize("f", [jnp.dot, lambda x, w: jax.nn.relu(x) @ w], ids=["exact", "non-negative"])
def test_worked_product_with_a_box_of_one_sign(f):
    lo, hi = jnp.array([1.0, 0.0]), jnp.array([2.0, 3.0])
    ends = interval.bound(f)((lo, jnp.array([-1.0, 0.0])), (hi, jnp.array([1.0, 0.5])))
    np.testing.assert_allclose(ends, [-2.0, 3.5])


def test_worked_product_of_boxes_of_both_signs():
    """The rule for non-negative inputs gives 2 for the upper end, which is wrong."""
    x, w = jnp.array([-1.0]), jnp.array([-3.0])
    np.testing.assert_allclose(interval.bound(jnp.dot)((x, w), (x + 3, w + 4)), [-6.0, 3.0])
