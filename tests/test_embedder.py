"""What an embedder is made of, and what it does with its vectors; the tests of parity compare the real MiniLM."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from tiny_run import pair_batch, tiny_model

import jaxemb
from jaxemb.data import pad
from jaxemb.embedder import Embedder, Normalize, transformer_of
from jaxemb.losses import info_nce
from jaxemb.nn import Module
from jaxemb.objectives import on_columns
from jaxemb.pooling import Attention, Cls, Concatenation, Mean
from jaxemb.similarity import similarity


@pytest.fixture(scope="module")
def ours(tiny_minilm):
    return jaxemb.load(tiny_minilm)


def by_definition(kind, a, b):
    difference = a[:, None] - b[None]
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    return {
        "cosine": lambda: unit(a) @ unit(b).T,
        "dot": lambda: a @ b.T,
        "euclidean": lambda: -np.sqrt(np.square(difference).sum(-1)),
        "manhattan": lambda: -np.abs(difference).sum(-1),
    }[kind]()


@pytest.mark.parametrize("kind", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarities_by_definition(ours, kind):
    vectors = np.random.default_rng(0).normal(size=(5, 384))
    found = ours.replace(similarity_fn_name=kind).similarity(vectors.astype(np.float32), vectors[:3].astype(np.float32))
    np.testing.assert_allclose(found, by_definition(kind, vectors, vectors[:3]), rtol=1e-4, atol=1e-3)


def test_fewer_dimensions_are_a_renormalised_prefix(ours):
    whole, cut = (ours.encode(["one", "two"], dim=dim) for dim in (None, 64))
    np.testing.assert_allclose(cut, whole[:, :64] / np.linalg.norm(whole[:, :64], axis=-1, keepdims=True), atol=1e-6)


def test_similarity_names_what_is_wrong(ours):
    with pytest.raises(ValueError, match=r"b must be \[M, D\] or \[D\] with D = 3 as in a; got \(4,\)"):
        ours.similarity(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match=r"kind must be one of \['cosine', 'dot', .*\]; got 'angle'"):
        similarity(np.ones(3), np.ones(3), "angle")


@nnx.dataclass
class Table(Module):
    """The smallest encoder: static token embeddings, in one state."""

    rows: jax.Array = nnx.data()

    @property
    def dim(self) -> int:
        return self.rows.shape[-1]

    def __call__(self, tokens, *, key=None, all_states=False):
        states = self.rows[tokens.ids]
        return states[None] if all_states else states


def test_any_encoder_will_do():
    rows = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    model = Embedder(Table(rows), (Normalize(),), Concatenation((Mean(), Cls())))
    texts = [np.array([1, 2, 3]), np.array([4, 4])]
    whole = np.stack([np.concatenate([rows[t].mean(0), rows[t[0]]]) for t in texts])
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    assert model.dim == 8
    np.testing.assert_allclose(jax.jit(lambda m, t: m(t))(model, pad(texts)), unit(whole), rtol=1e-5)
    cut = model.truncate(dim=3)
    np.testing.assert_allclose(jax.jit(lambda m, t: m(t))(cut, pad(texts)), unit(whole[:, :3]), rtol=1e-5)
    for ask in (lambda: model.depth, lambda: model.truncate(layers=1), lambda: model.at_layers(pad(texts), [1])):
        with pytest.raises(TypeError, match="the encoder, a Table, has no layers to cut or read"):
            ask()
    with pytest.raises(TypeError, match="the encoder must be a Transformer; got a Table"):
        transformer_of(model)


def test_a_pooling_with_weights_is_trained():
    model = tiny_model()
    model = dataclasses.replace(model, pooling=Attention.init(jax.random.key(0), model.encoder.dim, 8))
    objective, batch = on_columns(info_nce, "query", "document"), pair_batch(range(8))
    optimizer = optax.adam(1e-2)

    def step(carry, _):
        model, state = carry
        value, gradient = jax.value_and_grad(lambda model: objective(model, batch, None)[0].mean())(model)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(model, updates), state), value

    (trained, _), values = jax.jit(lambda model: jax.lax.scan(step, (model, optimizer.init(model)), None, 10))(model)
    assert values[-1] < values[0]
    assert np.any(trained.pooling.context) and not np.allclose(
        trained.pooling.linear.kernel, model.pooling.linear.kernel
    )
