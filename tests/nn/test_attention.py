import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxemb.nn.attention import attention, kept

B, T, H, G, SIZE = 2, 150, 4, 2, 8
RNG = np.random.default_rng(0)
Q, K, V = (RNG.normal(size=(B, T, heads, SIZE)).astype(np.float32) for heads in (H, G, G))
SEGMENTS = np.stack([np.repeat([1, 2, 0], [60, 70, 20]), np.repeat([1, 0], [149, 1])]).astype(np.int32)
BIAS = RNG.normal(size=(1, H, T, T)).astype(np.float32)
CASES = {
    "segments": {},
    "causal": {"causal": True},
    "window, soft cap and bias": {"window": 7, "soft_cap": 2.0, "bias": BIAS, "scale": 0.5},
    "causal window": {"causal": True, "window": 30},
}


def by_definition(q, k, v, causal=False, window=None, soft_cap=None, bias=0.0, scale=SIZE**-0.5):
    """Of every query on its own, in float64."""
    k, v = (np.repeat(x, H // G, axis=2).astype(np.float64) for x in (k, v))
    logits = np.einsum("bthd,bshd->bhts", q.astype(np.float64), k) * scale + bias
    logits = logits if soft_cap is None else soft_cap * np.tanh(logits / soft_cap)
    back = np.arange(T)[:, None] - np.arange(T)
    sees = (SEGMENTS[:, :, None] == SEGMENTS[:, None, :])[:, None] & (back >= 0 if causal else True)
    sees = sees & (np.abs(back) <= (T if window is None else window))
    weights = np.where(sees, np.exp(logits), 0)
    return np.einsum("bhts,bshd->bthd", weights / weights.sum(axis=-1, keepdims=True), v)


@functools.cache
def value_and_gradient(implementation, case):
    function = lambda q, k, v: attention(q, k, v, SEGMENTS, implementation=implementation, **CASES[case])
    direction = jnp.asarray(np.random.default_rng(1).normal(size=Q.shape), jnp.float32)

    @jax.jit
    def both(*inputs):
        found, pull = jax.vjp(function, *inputs)
        return found, pull(direction)

    return both(Q, K, V)


@pytest.mark.parametrize("case", CASES)
def test_values_are_those_of_the_definition(case):
    for implementation in ("dense", "blockwise"):
        found, _ = value_and_gradient(implementation, case)
        np.testing.assert_allclose(found, by_definition(Q, K, V, **CASES[case]), atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_implementations_agree_in_value_and_gradient(case):
    others = ["blockwise"] if "soft_cap" in CASES[case] else ["blockwise", "library"]
    for other in others:
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, atol=2e-5),
            value_and_gradient(other, case),
            value_and_gradient("dense", case),
        )


@pytest.mark.parametrize("implementation", ["dense", "blockwise"])
def test_forward_mode_and_second_derivatives(implementation):
    energy = lambda q: jnp.sum(jnp.square(attention(q, K, V, SEGMENTS, implementation=implementation)))
    direction = RNG.normal(size=Q.shape).astype(np.float32)

    @jax.jit
    def derivatives(q):
        gradient = jax.grad(energy)
        step = 1e-2 * direction
        return (
            jax.jvp(energy, (q,), (direction,))[1],
            jnp.vdot(gradient(q), direction),
            jax.jvp(gradient, (q,), (direction,))[1],
            (gradient(q + step) - gradient(q - step)) / 2e-2,
        )

    forward, reverse, curvature, differences = derivatives(Q)
    np.testing.assert_allclose(forward, reverse, rtol=1e-4)
    np.testing.assert_allclose(curvature, differences, atol=2e-3)


def test_what_drops_out_is_drawn_from_the_key():
    """Value and gradient against weights that drop out one by one."""
    key = jax.random.key(0, impl="rbg")
    keep = np.asarray(kept(key, 0.3, (B, H, T, T)))
    sees = (SEGMENTS[:, :, None] == SEGMENTS[:, None, :])[:, None]

    def plain(q, k, v):
        k, v = (jnp.repeat(x, H // G, axis=2) for x in (k, v))
        logits = jnp.einsum("bthd,bshd->bhts", q, k) * SIZE**-0.5
        weights = jax.nn.softmax(jnp.where(sees, logits, -jnp.inf)) * keep / 0.7
        return jnp.einsum("bhts,bshd->bthd", weights, v)

    ours = lambda q, k, v: attention(q, k, v, SEGMENTS, dropout=0.3, key=key)

    @jax.jit
    def both(*inputs):
        return [jax.vjp(f, *inputs)[0] for f in (ours, plain)], [jax.vjp(f, *inputs)[1](Q) for f in (ours, plain)]

    values, gradients = both(Q, K, V)
    np.testing.assert_allclose(*values, atol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), *gradients)


def test_blockwise_dropout_keeps_the_mean():
    drawn = lambda key: attention(Q, K, V, SEGMENTS, dropout=0.3, key=key, implementation="blockwise")
    found = jax.jit(lambda key: jax.lax.map(drawn, jax.random.split(key, 200)))(jax.random.key(0))
    assert np.std(found, axis=0).mean() > 0.05
    np.testing.assert_allclose(found.mean(axis=0), by_definition(Q, K, V), atol=0.35)


def test_memory_of_blockwise_is_linear_in_the_length():
    """Of the gradient at T = 16,384, by XLA's own account."""
    x, segments = jax.ShapeDtypeStruct((1, 2**14, 1, 32), jnp.float32), jax.ShapeDtypeStruct((1, 2**14), jnp.int32)

    def temporaries(implementation):
        total = lambda q, k, v, s: attention(q, k, v, s, implementation=implementation).sum()
        compiled = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(x, x, x, segments).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(None) * 20 < temporaries("dense")


def test_tangents_that_are_zeros_change_nothing():
    """As those of frozen weights: the program sees that they are 0."""
    rng = np.random.default_rng(0)
    q, k, v, change = rng.normal(size=(4, 4, 128, 12, 32)).astype(np.float32)
    segments, zeros = np.ones((4, 128), np.int32), jnp.zeros(q.shape)
    attend = lambda q, k, v: attention(q, k, v, segments)

    def plain(q, k, v):
        weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k) * 32**-0.5)
        return jnp.einsum("bhts,bshd->bthd", weights, v)

    # What is compared with is given its tangents, lest XLA see their zeros and go wrong there itself.
    expected_of = jax.jit(lambda x, t: jax.jvp(plain, x, t)[1])
    for tangents in ((change, zeros, zeros), (change, zeros, change)):
        found = jax.jit(lambda *x, t=tangents: jax.jvp(attend, x, t)[1])(q, k, v)
        np.testing.assert_allclose(found, expected_of((q, k, v), tangents), atol=1e-4)


def test_half_precision_has_finite_gradients_in_blocks():
    total = lambda k: attention(*(x.astype(jnp.float16) for x in (Q, k, V)), SEGMENTS, implementation="blockwise")
    assert np.isfinite(jax.jit(jax.grad(lambda k: jnp.sum(total(k).astype(jnp.float32))))(K)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": V[:, :-1]}, r"q must be \[B, T, H, h\], k and v \[B, T, G, h\]"),
        ({"k": Q[:, :, :3], "v": Q[:, :, :3]}, "heads of k must divide those of q; got 3 and 4"),
        ({"segments": SEGMENTS[:1]}, r"segments must be \[B, T\] = \(2, 150\); got \(1, 150\)"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\); got 1.0"),
        ({"soft_cap": 0.0}, "soft_cap must be > 0; got 0.0"),
        ({"window": -1}, "window must be a whole number of at least 0; got -1"),
        ({"bias": BIAS[0]}, r"bias must be \[1 or 2, 1 or 4, 150, 150\]; got \(4, 150, 150\)"),
        ({"implementation": "flash"}, "implementation must be dense, blockwise, library, cudnn or None; got 'flash'"),
        ({"implementation": "library", "soft_cap": 1.0}, "'library' has neither dropout nor a soft cap"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    arguments = {"q": Q, "k": K, "v": V, "segments": SEGMENTS} | change
    with pytest.raises(ValueError, match=message):
        attention(**arguments)
