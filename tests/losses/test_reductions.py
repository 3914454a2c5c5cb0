"""Reductions tile by tile against the whole matrix: values, gradients, memory, devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from jaxemb import losses
from jaxemb.losses import masks, reductions

N, M, DIM = 45, 133, 16  # of which no tile and no number of devices is a divisor
WEIGHTS = {"the mean": np.full(N, 1 / N, np.float32), "any": np.linspace(-1, 2, N, dtype=np.float32)}


def entries(scale, rows, columns, row_facts, column_facts):
    logits = scale * jnp.dot(rows, columns.T, precision="highest")
    hidden = (row_facts[:, None] == column_facts[None, :]) & (row_facts % 2 == 0)[:, None]
    return jnp.where(hidden, -jnp.inf, logits), jnp.sin(logits), logits


def arrays():
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((N, DIM), np.float32), rng.standard_normal((M, DIM), np.float32)
    return q, k, rng.integers(0, 5, N), rng.integers(0, 5, M)


def reduced(scale, q, k, labels, other_labels, *, tile, both):
    kinds = (reductions.LOG_SUM_EXP, reductions.SUM if both else reductions.constant(reductions.SUM), reductions.top(4))
    return reductions.reduce_rows(entries, kinds, scale, q, k, labels, other_labels, tile=tile)


def whole(scale, q, k, labels, other_labels):
    logits, sines, plain = entries(scale, q, k, labels, other_labels)
    return jax.nn.logsumexp(logits, axis=1), sines.sum(axis=1), jax.lax.top_k(plain, 4)[0]


def value_and_gradient(function, weights, both):
    def loss(scale, q, k, *facts):
        log_sum, total, largest = function(scale, q, k, *facts)
        total = total if both else jax.lax.stop_gradient(total)
        return (weights * (log_sum + (total if both else 0.0))).sum(), (log_sum, total, largest)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


def assert_close(found, expected):
    scale = lambda x: max(1.0, float(np.abs(x).max()))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale(b), rtol=1e-5), found, expected)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("tile", [1, 7, 44, 1000])
def test_tiles_equal_the_whole_matrix(tile, weights, both):
    inputs = (jnp.float32(0.5), *arrays())
    expected = value_and_gradient(whole, WEIGHTS[weights], both)(*inputs)
    found = value_and_gradient(functools.partial(reduced, tile=tile, both=both), WEIGHTS[weights], both)(*inputs)
    assert_close(found, expected)


@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("shape", [(2, 1, 1), (2, 2, 2), (8, 1, 1)])
def test_devices_do_not_matter(shape, weights, ring, monkeypatch):
    monkeypatch.setattr(reductions, "_LARGEST_GATHER", 0 if ring else 2**28)
    inputs = (jnp.float32(0.5), *arrays())
    expected = value_and_gradient(whole, WEIGHTS[weights], False)(*inputs)
    mesh = Mesh(np.asarray(jax.devices()[: np.prod(shape)]).reshape(shape), ("data", "fsdp", "tensor"))
    function = value_and_gradient(functools.partial(reduced, tile=7, both=False), WEIGHTS[weights], False)
    with jax.set_mesh(mesh):
        compiled = function.lower(*inputs).compile().as_text()
        found = function(*inputs)
    assert ("collective-permute" in compiled) == ring
    assert_close(found, expected)


def test_a_row_of_nothing_has_no_gradient():
    nothing = lambda shared, rows, columns, *facts: (jnp.where(rows[:, None] > 0, rows[:, None] * columns, -jnp.inf),)
    rows, columns = jnp.array([0.0, 1.0]), jnp.ones(3)
    value = lambda rows, tile: reductions.reduce_rows(nothing, (reductions.LOG_SUM_EXP,), (), rows, columns, tile=tile)[
        0
    ]
    for tile in (1, 10):
        np.testing.assert_allclose(value(rows, tile), [-np.inf, 1 + np.log(3)], rtol=1e-6)
        gradient = jax.grad(lambda rows, tile=tile: jnp.where(rows > 0, value(rows, tile), 0.0).sum())(rows)
        np.testing.assert_allclose(gradient, [0.0, 1.0], atol=1e-6)


def temporary_bytes(n, dim, **options):
    """Of the compiled loss and gradient; nothing is run."""
    loss = lambda q, d: losses.info_nce(q, d, **options).mean()
    embeddings = jax.ShapeDtypeStruct((n, dim), jnp.float32)
    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(embeddings, embeddings).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_of_65536_records_of_768_dimensions():
    mask = masks.duplicates(np.arange(65_536), np.arange(65_536))
    assert temporary_bytes(65_536, 768, mask=mask) < 1.5e9  # a matrix of logits alone has 17.2e9 bytes


def test_memory_grows_with_the_batch_not_with_its_square():
    assert temporary_bytes(32_768, 64) < 2.5 * temporary_bytes(16_384, 64)


@pytest.mark.parametrize(("options", "message"), [({"tile": 0}, "tile must be at least 1; got 0")])
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        losses.info_nce(jnp.ones((2, 3)), jnp.ones((2, 3)), **options)
    with pytest.raises(ValueError, match="there must be rows and columns; got 0 and 2"):
        reductions.reduce_rows(entries, (reductions.SUM,), 1.0, jnp.ones((0, 3)), jnp.ones((2, 3)))
