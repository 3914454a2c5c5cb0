"""Cached gradients: those of the whole batch, with the memory of a chunk."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import pair_batch, tiny_model

from jaxemb import losses
from jaxemb.objectives import in_chunks, on_columns
from jaxemb.types import Tokens

N = 7
BATCH = pair_batch(range(N))
MODEL = tiny_model()
DOCUMENTS = np.random.default_rng(1).normal(size=(N, 16)).astype(np.float32)
encode = lambda model, tokens, key: model(tokens, key=key)


def by_hand(encode, model, inputs, key, size, loss):
    """Value and gradient from the same pieces with the same keys, one after the other, as GradCache has it."""
    n = -(-N // size)
    keys = [key] if n == 1 or key is None else jax.random.split(key, n)
    rows = [np.arange(i, n * size, n) for i in range(n)]
    padded = jax.tree.map(lambda x: np.pad(x, ((0, n * size - N), *((0, 0) for _ in x.shape[1:]))), inputs)
    pieces = [jax.tree.map(lambda x, of=of: x[of], padded) for of in rows]
    forward = jax.jit(encode)
    backward = jax.jit(
        lambda model, piece, key, cotangent: jax.vjp(lambda m: encode(m, piece, key), model)[1](cotangent)
    )
    keys = keys * n if key is None else keys
    outputs = np.zeros((n * size, 16), np.float32)
    for of, piece, one in zip(rows, pieces, keys, strict=True):
        outputs[of] = forward(model, piece, one)
    value, cotangent = jax.jit(jax.value_and_grad(loss))(outputs[:N])
    cotangent = np.pad(cotangent, ((0, n * size - N), (0, 0)))
    parts = [backward(model, piece, one, cotangent[of])[0] for of, piece, one in zip(rows, pieces, keys, strict=True)]
    return value, jax.tree.map(lambda *leaves: np.sum(leaves, axis=0), *parts)


def assert_gradients_are_by_hand(encode, model, inputs, key, size):
    loss = lambda outputs: losses.info_nce(outputs, DOCUMENTS).mean()
    chunked = lambda model: loss(in_chunks(encode, size)(model, inputs, key))
    expected = by_hand(encode, model, inputs, key, size, loss)
    found = jax.jit(jax.value_and_grad(chunked))(model)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


def small_encode(weights, x, key):
    """A layer with dropout: rows on their own, and little to compile."""
    hidden = jnp.tanh(x @ weights["in"])
    if key is not None:
        hidden = jnp.where(jax.random.bernoulli(key, 0.8, hidden.shape), hidden / 0.8, 0)
    return hidden @ weights["out"]


@pytest.mark.parametrize("key", [None, 0], ids=["no dropout", "dropout"])
@pytest.mark.parametrize("size", [1, 3, N])
def test_gradients_are_those_of_the_whole_batch(size, key):
    rng = np.random.default_rng(0)
    weights = {"in": rng.normal(size=(5, 8)).astype(np.float32), "out": rng.normal(size=(8, 16)).astype(np.float32)}
    key = key if key is None else jax.random.key(key)
    assert_gradients_are_by_hand(small_encode, weights, rng.normal(size=(N, 5)).astype(np.float32), key, size)


@pytest.mark.slow
def test_gradients_of_an_encoder_with_dropout_are_those_of_the_whole_batch():
    key = jax.random.key(0, impl="rbg")  # compiles sooner than threefry
    assert_gradients_are_by_hand(encode, MODEL, BATCH["query"], key, 3)


def test_dropout_differs_between_chunks_and_is_the_same_in_both_passes():
    """The loss reads the outputs; if the second pass dropped other elements, this gradient would not be theirs."""
    seen = in_chunks(lambda w, x, key: jax.random.normal(key, x.shape) * w * x, 2)
    w, x, key = np.float32(3.0), np.ones((6, 4), np.float32), jax.random.key(1)
    noise = np.asarray(jax.jit(seen)(w, x, key)) / 3
    assert len(np.unique(noise)) == 24
    gradient = jax.jit(jax.grad(lambda w: seen(w, x, key).sum()))(w)
    np.testing.assert_allclose(gradient, noise.sum(), rtol=1e-5)


def test_packed_texts_come_back_in_order():
    texts = BATCH["query"]
    mask = np.asarray(texts.mask)
    packed = Tokens(
        ids=texts.ids.reshape(1, -1)[:, : 6 * 8].reshape(3, 16),
        segment_ids=(mask * (1 + np.arange(N)[:, None] % 2))[:6].reshape(3, 16),
        positions=np.asarray(texts.positions)[:6].reshape(3, 16),
        slots=np.array([5, 0, 3, 1, 2, 4]),
        texts_per_row=2,
    )
    batch = {"query": packed, "document": jax.tree.map(lambda x: x[:6], BATCH["document"]), "id": np.arange(6)}
    outputs = [
        jax.jit(on_columns(losses.info_nce, "query", "document", chunk=chunk))(MODEL, batch, None)
        for chunk in (None, 2)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *outputs)
    alone = np.asarray(jax.jit(encode)(MODEL, texts, None))
    np.testing.assert_allclose(outputs[1][1]["query"], alone[[5, 0, 3, 1, 2, 4]], atol=1e-5)


def assert_memory_is_that_of_a_chunk(temporary_bytes):
    small, large = temporary_bytes(64, 32), temporary_bytes(512, 32)
    assert large < 1.5 * small  # inputs and embeddings do grow
    assert temporary_bytes(512, None) > 5 * large


def test_memory_is_that_of_a_chunk():
    def temporary_bytes(n, chunk):
        run = small_encode if chunk is None else in_chunks(small_encode, chunk)
        loss = lambda weights, x: jnp.square(run(weights, x, None)).mean()
        shapes = {"in": (16, 2048), "out": (2048, 16)}
        weights = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
        compiled = jax.jit(jax.grad(loss)).lower(weights, jax.ShapeDtypeStruct((n, 16), np.float32)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert_memory_is_that_of_a_chunk(temporary_bytes)


@pytest.mark.slow
def test_memory_of_an_encoder_is_that_of_a_chunk():
    def temporary_bytes(n, chunk):
        tokens = Tokens.from_mask(np.ones((n, 64)), np.ones((n, 64)))
        batch = {"query": tokens, "document": dataclasses.replace(tokens), "id": np.arange(n)}
        objective = on_columns(losses.info_nce, "query", "document", chunk=chunk)
        loss = lambda model, batch, key: objective(model, batch, key)[0].mean()
        compiled = jax.jit(jax.grad(loss)).lower(model, batch, jax.random.key(0)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    model = tiny_model(position_table=64, dim=32, mlp_dim=128)
    assert_memory_is_that_of_a_chunk(temporary_bytes)


@pytest.mark.parametrize("size", [0, -1])
def test_bad_input(size):
    with pytest.raises(ValueError, match=f"size must be at least 1 row; got {size}"):
        in_chunks(encode, size)
    with pytest.raises(ValueError, match=f"chunk must be at least 1 row; got {size}"):
        on_columns(losses.info_nce, "query", "document", chunk=size)


def test_refuses_chunks_that_do_not_divide_among_the_devices():
    from jaxemb.parallel import in_force, make_mesh

    with (
        in_force(make_mesh(8)),
        pytest.raises(ValueError, match=r"chunks of 3 rows do not divide among .* \{'data': 8\}"),
    ):
        in_chunks(encode, 3)(MODEL, BATCH["query"], None)
