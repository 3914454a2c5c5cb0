"""Rotary positions, and every way to stretch them, by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxemb.nn import RopeConfig, rope_scaling, rotate
from jaxemb.nn.rope import text_lengths

PLAIN = 100.0 ** (-np.arange(4) / 4)  # of the base 100 and 8 dimensions


def frequencies(rope, lengths=None):
    """What a token at position 1 is turned by."""
    lengths = None if lengths is None else jnp.asarray([lengths])
    cos, sin = jax.jit(lambda: rope.tables(jnp.ones((1, 1 if lengths is None else lengths.shape[1])), 8, lengths))()
    return np.arctan2(sin, cos)[0, :, 0, :4]


def test_products_depend_on_the_distance_alone():
    q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 8)).astype(np.float32)
    rope = RopeConfig(100.0)
    turned = lambda x, place: rotate(x, rope.tables(jnp.full((1, 1), place), 8))
    product = lambda i, j: float(jnp.vdot(turned(q, i), turned(k, j)))
    np.testing.assert_allclose(product(3, 1), product(8, 6), rtol=1e-4)
    assert abs(product(3, 1) - product(3, 2)) > 1e-2


def test_plain_and_linear():
    np.testing.assert_allclose(frequencies(RopeConfig(100.0))[0], PLAIN, rtol=1e-5)
    np.testing.assert_allclose(frequencies(rope_scaling.plain(100.0, 8))[0], PLAIN, rtol=1e-5)
    np.testing.assert_allclose(frequencies(rope_scaling.linear(100.0, 8, factor=4.0))[0], PLAIN / 4, rtol=1e-5)


def test_dynamic_scaling_is_each_texts_own():
    """Of texts of 5, 10 and 20 tokens, with 10 trained ones, only the last has another base."""
    found = frequencies(rope_scaling.dynamic(100.0, 8, factor=3.0, trained_length=10), [5, 10, 20])
    base = 100.0 * (3.0 * 20 / 10 - 2) ** (8 / 6)
    np.testing.assert_allclose(found, [PLAIN, PLAIN, base ** (-np.arange(4) / 4)], rtol=1e-5)


def test_llama3_keeps_what_is_fast_and_stretches_what_is_slow():
    """Waves are 6.3, 19.9, 62.8 and 199 tokens long, of 64 trained ones."""
    rope = rope_scaling.llama3(100.0, 8, factor=8.0, low_factor=1.0, high_factor=4.0, trained_length=64)
    t = (64 * PLAIN / (2 * math.pi) - 1) / 3
    assert t[0] > 1 and 0 < t[1] < 1 and 0 < t[2] < 0.01 and t[3] < 0
    between = (1 - t) * PLAIN / 8 + t * PLAIN
    np.testing.assert_allclose(rope.frequencies, [PLAIN[0], between[1], between[2], PLAIN[3] / 8])


def test_yarn_is_a_ramp_between_both():
    """32 and 1 turns in 1000 tokens are at j = 1.395 and 4.404: from 1 to 5 as rounded outwards."""
    rope = rope_scaling.yarn(100.0, 8, factor=4.0, trained_length=1000)
    ramp = np.array([0, 0, 0.25, 0.5])
    np.testing.assert_allclose(rope.frequencies, PLAIN * (1 - ramp) + PLAIN / 4 * ramp)
    assert rope.attention_factor == 0.1 * math.log(4) + 1
    exact = rope_scaling.yarn(100.0, 8, factor=4.0, trained_length=1000, truncate=False, attention_factor=2.0)
    low, high = (8 * math.log(1000 / (r * 2 * math.pi)) / (2 * math.log(100)) for r in (32, 1))
    ramp = np.clip((np.arange(4) - low) / (high - low), 0, 1)
    np.testing.assert_allclose(exact.frequencies, PLAIN * (1 - ramp) + PLAIN / 4 * ramp)
    assert exact.attention_factor == 2.0
    scaled = rope_scaling.yarn(100.0, 8, factor=4.0, trained_length=1000, mscale=1.0, mscale_all_dim=0.5)
    np.testing.assert_allclose(scaled.attention_factor, (0.1 * math.log(4) + 1) / (0.05 * math.log(4) + 1))
    assert rope_scaling.yarn(100.0, 8, factor=0.5, trained_length=1000).attention_factor == 1.0


def test_longrope_has_factors_for_each_texts_length():
    short, long = [1.0, 1.1, 1.2, 1.3], [1.0, 2.0, 4.0, 8.0]
    rope = rope_scaling.longrope(
        100.0, 8, short_factors=short, long_factors=long, factor=8.0, trained_length=16, attention_factor=1.0
    )
    np.testing.assert_allclose(frequencies(rope, [16, 17]), [PLAIN / short, PLAIN / long], rtol=1e-5)


def test_lengths_of_texts_in_rows():
    segments = np.array([[1, 1, 1, 2, 0, 0], [0, 0, 1, 1, 1, 1]])
    positions = np.array([[0, 1, 2, 0, 0, 0], [0, 0, 0, 1, 2, 3]])
    found = np.asarray(text_lengths(segments, positions))
    np.testing.assert_array_equal(found[segments > 0], [3, 3, 3, 1, 4, 4, 4, 4])


def test_what_is_not_turned_stays():
    x = np.random.default_rng(0).normal(size=(1, 3, 2, 8)).astype(np.float32)
    turned = rotate(x, rope_scaling.plain(100.0, 6).tables(jnp.arange(3)[None], 8))
    np.testing.assert_array_equal(turned[..., 6:], x[..., 6:])
    assert (np.abs(turned[:, 1:, :, :6] - x[:, 1:, :, :6]) > 1e-6).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RopeConfig(trained_length=8), "trained_length goes with long_frequencies or dynamic_factor"),
        (lambda: RopeConfig(dynamic_factor=2.0), "trained_length goes with long_frequencies or dynamic_factor"),
        (
            lambda: RopeConfig(frequencies=(1.0,), long_frequencies=(1.0, 2.0), trained_length=8),
            "long_frequencies must be as many as frequencies, 1; got 2",
        ),
        (
            lambda: rope_scaling.dynamic(10.0, 2, factor=2.0, trained_length=8),
            "dim must be in 4..65536; got 2",
        ),
        (
            lambda: rope_scaling.llama3(9.0, 8, factor=2.0, low_factor=4.0, high_factor=1.0, trained_length=8),
            "low_factor must be below high_factor; got 4.0 and 1.0",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
