"""Cached gradients: those of the whole batch, with the memory of a chunk."""

import dataclasses
import functools

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
encode = lambda model, tokens, key: model(tokens, key=key)


def piece_by_piece(model, tokens, key, size):
    """The same pieces with the same keys, in a Python loop, all activations kept."""
    n = -(-N // size)
    keys = [key] if n == 1 else jax.random.split(key, n)
    outputs = jnp.zeros((N, 16))
    for i in range(n):
        rows = np.arange(size) * n + i
        take = lambda x, rows=rows: jnp.pad(x, ((0, n * size - N), (0, 0)))[rows]
        piece = encode(model, jax.tree.map(take, tokens), keys[i])
        outputs = outputs.at[rows].set(piece, mode="drop")
    return outputs


@pytest.mark.parametrize("key", [None, jax.random.key(0)], ids=["no dropout", "dropout"])
@pytest.mark.parametrize("size", [1, 3, N])
def test_gradients_are_those_of_the_whole_batch(size, key):
    documents = MODEL(BATCH["document"])

    def loss(encode):
        return jax.jit(
            jax.value_and_grad(lambda model: losses.info_nce(encode(model, BATCH["query"], key), documents).mean())
        )

    if key is None or size == N:
        expected = loss(encode)(MODEL)
    else:
        expected = loss(functools.partial(piece_by_piece, size=size))(MODEL)
    found = loss(in_chunks(encode, size))(MODEL)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_dropout_differs_between_chunks_and_is_the_same_in_both_passes():
    """The loss reads the outputs; if the second pass dropped other elements, this gradient would not be theirs."""
    seen = in_chunks(lambda w, x, key: jax.random.normal(key, x.shape) * w * x, 2)
    w, x, key = jnp.float32(3.0), jnp.ones((6, 4)), jax.random.key(1)
    noise = seen(w, x, key) / w
    assert len(np.unique(noise)) == 24
    np.testing.assert_allclose(jax.grad(lambda w: seen(w, x, key).sum())(w), noise.sum(), rtol=1e-5)


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
    np.testing.assert_allclose(outputs[1][1]["query"], MODEL(texts)[np.array([5, 0, 3, 1, 2, 4])], atol=1e-5)


def test_memory_is_that_of_a_chunk():
    def temporary_bytes(n, chunk):
        tokens = Tokens.from_mask(np.ones((n, 64)), np.ones((n, 64)))
        batch = {"query": tokens, "document": dataclasses.replace(tokens), "id": np.arange(n)}
        loss = lambda model, batch, key: on_columns(losses.info_nce, "query", "document", chunk=chunk)(
            model, batch, key
        )[0].mean()
        compiled = jax.jit(jax.grad(loss)).lower(MODEL_64, batch, jax.random.key(0)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    MODEL_64 = tiny_model(position_table=64, dim=32, mlp_dim=128)
    small, large = temporary_bytes(64, 32), temporary_bytes(512, 32)
    assert large < 1.5 * small  # tokens and embeddings do grow
    assert temporary_bytes(512, None) > 5 * large


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
