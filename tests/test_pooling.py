import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxemb import pooling
from jaxemb.data import pack, pad
from jaxemb.nn import Linear
from jaxemb.pooling import POOLINGS

FROZEN = Path(__file__).parent / "parity" / "references" / "pooling.npz"


def _states(tokens, dim=5):
    """A state for every token that depends on its text and position alone."""
    angle = (np.asarray(tokens.ids)[..., None] + 1) * np.arange(1, dim + 1)
    return np.sin(angle).astype(np.float32)


def _draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


ATTENTION = pooling.Attention(Linear(_draw(6, 5, 4), _draw(7, 4)), _draw(8, 4))
ALL = {
    **{name: kind() for name, kind in POOLINGS.items()},
    "attention": ATTENTION,
    "concatenation": pooling.Concatenation((ATTENTION, pooling.Max())),
}


_run = jax.jit(lambda pooling, states, tokens: pooling(states, tokens))


def _jitted(name):
    return functools.partial(_run, ALL[name])


@pytest.mark.parametrize("name", POOLINGS)
def test_equals_sentence_transformers(name):
    """Values that its modules gave, kept by make_pooling.py."""
    with np.load(FROZEN) as frozen:
        states, mask, expected = frozen["states"], frozen["mask"], frozen[name]
    tokens = pad([np.arange(n) for n in mask.sum(1)], length=7)
    np.testing.assert_allclose(_jitted(name)(states, tokens), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
@given(lengths=st.lists(st.integers(1, 9), min_size=8, max_size=8), seed=st.integers(0, 99))
def test_packed_rows_pool_like_rows_of_their_own(name, lengths, seed):
    rng = np.random.default_rng(seed)
    texts = [rng.integers(0, 50, n) for n in lengths]
    # Shapes that do not depend on the lengths: every other compiles anew.
    alone, packed = pad(texts, length=9), pack(texts, row_length=12, row_multiple=8, texts_per_row=8)
    expected = _jitted(name)(_states(alone), alone)
    got = _jitted(name)(_states(packed), packed)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_an_empty_slot_gives_zeros(name):
    tokens = pad([np.arange(3), *[np.arange(0)] * 7], length=9)
    assert not np.any(_jitted(name)(_states(tokens), tokens)[1:])


def test_weighted_mean_by_hand():
    tokens = pad([np.arange(2)], length=3)
    states = np.float32([[[3.0], [6.0], [100.0]]])
    np.testing.assert_allclose(_run(pooling.WeightedMean(), states, tokens), [[5.0]])  # (1 * 3 + 2 * 6) / 3


def test_attention_by_definition_from_the_mean_on():
    texts = [np.arange(n) for n in (3, 7, 2, 5)]
    tokens = pack(texts, row_length=9)
    got = _jitted("attention")(_states(tokens), tokens)
    for text, vector in zip(texts, got, strict=True):
        x = _states(pad([text], length=len(text)))[0]
        scores = np.exp(np.tanh(x @ ATTENTION.linear.kernel + ATTENTION.linear.bias) @ ATTENTION.context)
        np.testing.assert_allclose(vector, scores @ x / scores.sum(), rtol=1e-5, atol=1e-6)
    new = pooling.Attention.init(jax.random.key(0), dim=5, hidden=4)
    np.testing.assert_allclose(
        _run(new, _states(tokens), tokens), _run(ALL["mean"], _states(tokens), tokens), atol=1e-6
    )


def test_attention_has_finite_gradients_with_extreme_scores_and_empty_slots():
    tokens = pad([np.arange(3), np.arange(0)], length=4)
    loss = lambda attention, states: jnp.sum(jnp.sin(attention(states, tokens)))
    extreme = jax.tree.map(lambda leaf: 1e4 * leaf, ATTENTION)
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(extreme, _states(tokens))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_sizes_and_names():
    both = pooling.Concatenation((pooling.Cls(), pooling.Concatenation((pooling.Mean(), ATTENTION))))
    assert (both.output_dim(5), ATTENTION.output_dim(5)) == (15, 5)
    assert pooling.names_of(pooling.named(("mean", "cls"))) == ("mean", "cls")
    assert pooling.named(("lasttoken",)) == pooling.LastToken()
    assert pooling.names_of(both) is None and pooling.names_of(ATTENTION) is None


def test_slots_and_texts_are_inverse():
    tokens = pack([np.arange(n) for n in (3, 7, 2, 5)], row_length=9)
    vectors = _draw(1, 4, 5)
    by_slot = pooling.to_slots(vectors, tokens)
    assert by_slot.shape == (tokens.ids.shape[0], tokens.texts_per_row, 5)
    np.testing.assert_array_equal(pooling.of_texts(by_slot, tokens), vectors)


HEAD = np.random.default_rng(5).standard_normal((5, 20)).astype(np.float32)


@pytest.mark.parametrize(("reduce", "chunk"), [("max", 1), ("sum", 1), ("max", 4), ("sum", 100)])
def test_splade_by_definition_with_packed_rows(reduce, chunk):
    texts = [np.arange(n) for n in (3, 7, 2, 5)]
    tokens = pack(texts, row_length=9)
    head = lambda states: states @ HEAD
    got = jax.jit(lambda states: pooling.splade(states, tokens, head, reduce=reduce, chunk=chunk))(_states(tokens))
    for text, weights in zip(texts, got, strict=True):
        alone = pad([text], length=len(text))
        words = np.log1p(np.maximum(_states(alone)[0] @ HEAD, 0))
        np.testing.assert_allclose(weights, words.max(0) if reduce == "max" else words.sum(0), rtol=1e-5, atol=1e-6)


def test_splade_of_texts_whose_logits_are_negative_is_zero_with_zero_gradient():
    tokens = pad([np.arange(3), np.arange(0)], length=4)
    loss = jax.jit(jax.value_and_grad(lambda z: pooling.splade(z, tokens).sum()))
    weights, gradient = jax.device_get(loss(-np.ones((2, 4, 6), np.float32)))
    assert weights == 0 and not np.any(gradient)


def test_splade_does_not_keep_the_logits_of_all_tokens():
    texts, length, vocabulary = 4, 64, 512
    tokens = pad([np.arange(length)] * texts, length=length)
    head = lambda states, kernel: states @ kernel
    gradient = jax.grad(lambda s, k: pooling.splade(s, tokens, lambda x: head(x, k), chunk=8).sum(), argnums=(0, 1))
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(texts, length, 16), (16, vocabulary)]]
    memory = jax.jit(gradient).lower(*shapes).compile().memory_analysis().temp_size_in_bytes
    assert memory < 0.7 * (4 * texts * length * vocabulary)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("reduce must be 'max' or 'sum'; got 'mean'", {"reduce": "mean"}),
        ("saturations must be in 1..100; got 0", {"saturations": 0}),
    ],
)
def test_bad_splade_options_are_named(message, options):
    with pytest.raises(ValueError, match=message):
        pooling.splade(jnp.ones((1, 2, 3)), pad([np.arange(2)]), **options)
