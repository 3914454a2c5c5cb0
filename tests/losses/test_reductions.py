"""Reductions tile by tile against the whole matrix: values, gradients, memory, devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.tree_util import Partial

from jaxemb import losses
from jaxemb.losses import masks, reductions, rows

N, M, DIM = 45, 133, 16  # of which no tile and no number of devices is a divisor
WEIGHTS = {"the mean": np.full(N, 1 / N, np.float32), "any": np.linspace(-1, 2, N, dtype=np.float32)}


def entries(scale, labels, other_labels, rows, columns, i, j):
    logits = scale * jnp.dot(rows, columns.T, precision="highest")
    mine, others = reductions.at(labels, i)[:, None], reductions.at(other_labels, j)[None, :]
    return jnp.where((mine == others) & (mine % 2 == 0), -jnp.inf, logits), jnp.sin(logits), logits


def arrays():
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((N, DIM), np.float32), rng.standard_normal((M, DIM), np.float32)
    return np.float32(0.5), q, k, rng.integers(0, 5, N), rng.integers(0, 5, M)


def reduced(scale, q, k, labels, other_labels, *, tile, both):
    kinds = (reductions.LOG_SUM_EXP, reductions.SUM if both else reductions.constant(reductions.SUM), reductions.top(4))
    return rows.reduce_rows(Partial(entries, scale, labels, other_labels), kinds, q, k, tile=tile)


def whole(scale, q, k, labels, other_labels):
    logits, sines, plain = entries(scale, labels, other_labels, q, k, np.arange(N), None)
    return jax.nn.logsumexp(logits, axis=1), sines.sum(axis=1), jax.lax.top_k(plain, 4)[0]


def loss_of(function, both):
    def loss(weights, scale, q, k, *facts):
        log_sum, total, largest = function(scale, q, k, *facts)
        total = total if both else jax.lax.stop_gradient(total)
        return (weights * (log_sum + (total if both else 0.0))).sum(), (log_sum, total, largest)

    return loss


@functools.cache
def value_and_gradient(function, both):
    """Compiled once for all weights."""
    return jax.jit(jax.value_and_grad(loss_of(function, both), argnums=(1, 2, 3), has_aux=True))


def assert_close(found, expected):
    scale = lambda x: max(1.0, float(np.abs(x).max()))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale(b), rtol=1e-5), found, expected)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("tile", "both"), [(1, False), (7, False), (7, True), (1000, False), slow(1, True), slow(1000, True)]
)
def test_tiles_equal_the_whole_matrix(tile, both):
    step = value_and_gradient(functools.partial(reduced, tile=tile, both=both), both)
    for weights in WEIGHTS.values():
        assert_close(step(weights, *arrays()), value_and_gradient(whole, both)(weights, *arrays()))


def on_mesh(*shape):
    return Mesh(np.asarray(jax.devices()[: np.prod(shape)]).reshape(shape), ("data", "fsdp", "tensor"))


@pytest.fixture
def send_round(monkeypatch):
    """`send_round(True)`: the columns go round the ring, however few."""
    return lambda ring: monkeypatch.setattr(rows, "_LARGEST_GATHER", 0 if ring else 2**28)


@pytest.mark.parametrize(
    ("shape", "ring"),
    [
        ((2, 2, 2), False),
        ((8, 1, 1), True),
        slow((2, 1, 1), False),
        slow((2, 1, 1), True),
        slow((2, 2, 2), True),
        slow((8, 1, 1), False),
    ],
)
def test_devices_do_not_matter(shape, ring, send_round):
    send_round(ring)
    # A function of its own, so that nothing is reused of what was traced with another largest gather.
    function = value_and_gradient(functools.partial(reduced, tile=7, both=False), False)
    with jax.set_mesh(on_mesh(*shape)):
        compiled = function.lower(WEIGHTS["any"], *arrays()).compile()
        assert ("collective-permute" in compiled.as_text()) == ring
        for weights in WEIGHTS.values():
            found = compiled(weights, *arrays())
            assert_close(found, value_and_gradient(whole, False)(weights, *arrays()))


@pytest.mark.parametrize("ring", [slow(False), True])
def test_forward_mode_and_curvature_on_devices(ring, send_round):
    """Of what the kernels compute in reverse mode: derivatives along a direction, and of the gradient along it."""
    send_round(ring)
    inputs, weights = arrays(), WEIGHTS["any"]
    floats, facts = inputs[:3], inputs[3:]
    direction = jax.tree.map(lambda x: np.cos(np.arange(x.size, dtype=np.float32)).reshape(x.shape), floats)

    def derivatives(function):
        loss = lambda *floats: loss_of(function, False)(weights, *floats, *facts)[0]
        slope = jax.jvp(loss, floats, direction)[1]
        return slope, jax.jvp(jax.grad(loss, (0, 1, 2)), floats, direction)[1]

    expected = jax.jit(lambda: derivatives(whole))()
    with jax.set_mesh(on_mesh(2, 1, 1)):
        found = jax.jit(lambda: derivatives(functools.partial(reduced, tile=7, both=False)))()
    assert_close(found, expected)


def test_a_row_of_nothing_has_no_gradient():
    nothing = Partial(lambda rows, columns, i, j: (jnp.where(rows[:, None] > 0, rows[:, None] * columns, -jnp.inf),))
    inputs, columns = np.array([0.0, 1.0], np.float32), np.ones(3, np.float32)
    for tile in (1, 10):
        value = lambda x, tile=tile: rows.reduce_rows(nothing, (reductions.LOG_SUM_EXP,), x, columns, tile=tile)[0]
        loss = lambda x, value=value: (jnp.where(x > 0, value(x), 0.0).sum(), value(x))
        gradient, values = jax.jit(jax.grad(loss, has_aux=True))(inputs)
        np.testing.assert_allclose(values, [-np.inf, 1 + np.log(3)], rtol=1e-6)
        np.testing.assert_allclose(gradient, [0.0, 1.0], atol=1e-6)


def temporary_bytes(n, dim, **options):
    """Of the compiled loss and gradient; nothing is run."""
    loss = lambda q, d: losses.info_nce(q, d, **options).mean()
    embeddings = jax.ShapeDtypeStruct((n, dim), jnp.float32)
    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(embeddings, embeddings).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_of_65536_records_of_768_dimensions():
    mask = masks.duplicates(np.arange(65_536), np.arange(65_536))
    assert temporary_bytes(65_536, 768, mask=mask) < 0.8e9  # a matrix of logits alone has 17.2e9 bytes


def test_memory_grows_with_the_batch_not_with_its_square():
    assert temporary_bytes(32_768, 64) < 2.5 * temporary_bytes(16_384, 64)


def test_bad_input():
    with pytest.raises(ValueError, match="tile must be at least 1; got 0"):
        losses.info_nce(np.ones((2, 3)), np.ones((2, 3)), tile=0)
    with pytest.raises(ValueError, match="there must be rows and columns; got 0 and 2"):
        rows.reduce_rows(Partial(entries), (reductions.SUM,), np.ones((0, 3)), np.ones((2, 3)))


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_gradient_may_be_differentiated_in_the_records_weights(weight):
    """At equal weights, where the gradient that was foreseen is used: it changes as that of unequal weights does."""
    rng = np.random.default_rng(0)
    q, d = rng.normal(size=(2, 5, 4)).astype(np.float32)
    probe = rng.normal(size=(5, 4)).astype(np.float32)

    def dense(q, d):
        unit = lambda x: x / jnp.linalg.norm(x, axis=1, keepdims=True)
        return -jnp.diagonal(jax.nn.log_softmax(2 * unit(q) @ unit(d).T))

    def influence(loss, weights):
        return jnp.vdot(jax.grad(lambda q: jnp.sum(weights * loss(q, d)))(q), probe)

    ours = lambda q, d: losses.info_nce(q, d, temperature=0.5)
    found, expected = (jax.jit(jax.grad(lambda w, f=f: influence(f, w)))(jnp.full(5, weight)) for f in (ours, dense))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_row_that_is_not_a_number_has_no_loss():
    q, d = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    q[0, 0] = np.nan
    assert np.isnan(losses.info_nce(q, d)[0]) and np.isnan(losses.decoupled_contrastive(q, d)[0])
