import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxemb import parallel
from jaxemb.nn.attention import Windows, attention
from jaxemb.nn.dropout import kept, share_kept

B, T, H, G, SIZE = 2, 300, 4, 2, 8  # of 128 queries, splash and blockwise take three blocks
RNG = np.random.default_rng(0)
Q, K, V = (RNG.normal(size=(B, T, heads, SIZE)).astype(np.float32) for heads in (H, G, G))
SEGMENTS = np.stack([np.repeat([1, 2, 0], [120, 140, 40]), np.repeat([1, 0], [299, 1])]).astype(np.int32)
KEY = jax.random.key(0, impl="rbg")
BIAS = RNG.normal(size=(1, H, T, T)).astype(np.float32)
PREFIX = np.arange(T) % 120 < np.array([[20], [90]])
CASES = {
    "segments": {},
    "causal": {"causal": True},
    "causal window": {"causal": True, "window": 30},
    "causal but for a prefix": {"causal": True, "prefix": PREFIX, "window": 40},
    "window and soft cap": {"window": 7, "soft_cap": 2.0, "scale": 0.5},
    "window, soft cap and bias": {"window": 7, "soft_cap": 2.0, "bias": BIAS, "scale": 0.5},
}
#: Of those that run here, what they have not.
LACKS = {"dense": (), "blockwise": (), "library": ("soft_cap",), "splash": ("bias", "prefix")}
PAIRS = [(name, case) for name in LACKS for case, asked in CASES.items() if not set(LACKS[name]) & set(asked)]


def by_definition(q, k, v, causal=False, prefix=None, window=None, soft_cap=None, bias=0.0, scale=SIZE**-0.5):
    """Of every query on its own, in float64."""
    k, v = (np.repeat(x, H // G, axis=2).astype(np.float64) for x in (k, v))
    logits = np.einsum("bthd,bshd->bhts", q.astype(np.float64), k) * scale + bias
    logits = logits if soft_cap is None else soft_cap * np.tanh(logits / soft_cap)
    back = np.arange(T)[:, None] - np.arange(T)
    before = (back >= 0) | (False if prefix is None else prefix[:, None, None, :]) if causal else True
    sees = (SEGMENTS[:, :, None] == SEGMENTS[:, None, :])[:, None] & before
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


@pytest.mark.parametrize(("implementation", "case"), PAIRS)
def test_values_are_those_of_the_definition_and_gradients_agree(implementation, case):
    found, gradient = value_and_gradient(implementation, case)
    np.testing.assert_allclose(found, by_definition(Q, K, V, **CASES[case]), atol=1e-5)
    close = functools.partial(np.testing.assert_allclose, atol=2e-5)
    jax.tree.map(close, gradient, value_and_gradient("dense", case)[1])


@pytest.mark.parametrize("implementation", LACKS)
def test_a_window_of_several_is_that_window(implementation):
    windows = lambda index: Windows((30, None, 7), index)
    attend = lambda q, window: attention(q, K, V, SEGMENTS, causal=True, window=window, implementation=implementation)
    both = jax.jit(lambda q, index: jax.vjp(lambda q: attend(q, windows(index)), q)[0])
    for index, case in ((0, "causal window"), (1, "causal")):
        np.testing.assert_allclose(both(Q, index), by_definition(Q, K, V, **CASES[case]), atol=1e-5)


@pytest.mark.parametrize("implementation", ["dense", "blockwise", "splash"])
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
    keep = np.asarray(kept(KEY, 0.3, (B, H, T, T)))
    sees = (SEGMENTS[:, :, None] == SEGMENTS[:, None, :])[:, None]

    def plain(q, k, v):
        k, v = (jnp.repeat(x, H // G, axis=2) for x in (k, v))
        logits = jnp.einsum("bthd,bshd->bhts", q, k) * SIZE**-0.5
        weights = jax.nn.softmax(jnp.where(sees, logits, -jnp.inf)) * keep / share_kept(0.3)
        return jnp.einsum("bhts,bshd->bthd", weights, v)

    ours = lambda q, k, v: attention(q, k, v, SEGMENTS, dropout=0.3, key=KEY)

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


@pytest.mark.parametrize(
    ("length", "options", "kernels"),
    [
        (4096, {}, 3),
        (4096, {"window": 64, "causal": True, "soft_cap": 50.0}, 3),
        (4096, {"window": Windows((64, None), jnp.int32(0))}, 6),
        (4096, {"window": jnp.int32(64)}, 0),
        (4096, {"bias": jnp.zeros((1, 1, 4096, 4096))}, 0),
        (2048, {}, 0),
    ],
    ids=str,
)
def test_what_is_taken_on_tpus(length, options, kernels):
    """Of the gradient's program for them, which is lowered here and never run."""
    x, segments = jax.ShapeDtypeStruct((1, length, 2, 64), jnp.bfloat16), jax.ShapeDtypeStruct((1, length), jnp.int32)
    total = lambda q, k, v, segments: attention(q, k, v, segments, **options).astype(jnp.float32).sum()
    traced = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(x, x, x, segments)
    assert traced.lower(lowering_platforms=("tpu",)).as_text().count("tpu_custom_call") == kernels


def test_each_device_takes_its_own_rows_and_heads():
    mesh = parallel.make_mesh(data=1, fsdp=2, tensor=2, devices=jax.devices()[:4])
    attend = jax.jit(jax.value_and_grad(lambda q: jnp.vdot(attention(q, K, V, SEGMENTS, implementation="splash"), Q)))
    with parallel.in_force(mesh):
        found = attend(Q)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, attend(Q))


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
        ({"segments": SEGMENTS[:1]}, r"segments must be \[B, T\] = \(2, 300\); got \(1, 300\)"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\); got 1.0"),
        ({"soft_cap": 0.0}, "soft_cap must be > 0; got 0.0"),
        ({"window": -1}, "window must be a whole number of at least 0; got -1"),
        ({"bias": BIAS[0]}, r"bias must be \[1 or 2, 1 or 4, 300, 300\]; got \(4, 300, 300\)"),
        ({"window": Windows((None, -1), 0)}, "window must be a whole number of at least 0; got -1"),
        ({"implementation": "flash"}, r"implementation must be one of \('dense', .*\) or None; got 'flash'"),
        ({"implementation": "library", "soft_cap": 1.0}, "implementation 'library' has no soft cap"),
        ({"implementation": "splash", "bias": BIAS, "dropout": 0.1, "key": KEY}, "'splash' has no dropout and no bias"),
        ({"implementation": "splash", "window": jnp.int32(3)}, "'splash' has no traced window"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    arguments = {"q": Q, "k": K, "v": V, "segments": SEGMENTS} | change
    with pytest.raises(ValueError, match=message):
        attention(**arguments)


def test_attention_over_nothing_is_refused():
    q = jnp.ones((2, 3, 2, 4))
    for empty in (q[:0], q[:, :0], q[:, :, :0]):
        with pytest.raises(ValueError, match="q, k and v must have at least one row, token and head"):
            attention(empty, empty, empty, jnp.ones(empty.shape[:2], jnp.int32))


@pytest.mark.parametrize("implementation", ["dense", "splash"])
def test_a_window_may_be_a_number_of_numpy(implementation):
    q, segments = jax.random.normal(jax.random.key(0), (1, 5, 1, 4)), jnp.ones((1, 5), jnp.int32)
    expected = attention(q, q, q, segments, window=1, implementation="dense")
    for window in (np.int64(1), np.array(1)):
        found = attention(q, q, q, segments, window=window, implementation=implementation)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    for window in (1.0, np.array([1]), "1"):
        with pytest.raises(TypeError, match="window must be"):
            attention(q, q, q, segments, window=window, implementation=implementation)
