import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_run import PAIRWISE, assert_bitwise_equal, pair_batch, text_batch, tiny_model

from jaxemb.train import apply_transform, init_state, make_train_step
from jaxemb.transforms import PromptedTransformer, prompts
from jaxemb.transforms.adapters.prompts import with_prompts
from jaxemb.types import Tokens

LONG = {"position_table": 24, "dropout": 0.0}


def packed():
    """The texts of `text_batch(range(2))`, in one row, and one empty slot."""
    texts = text_batch(range(2))
    rows = [(texts.ids[i][texts.segment_ids[i] > 0], i + 1) for i in range(2)]
    ids = np.concatenate([ids for ids, _ in rows] + [[0]])
    segments = np.concatenate([np.full(len(ids), number) for ids, number in rows] + [[0]])
    positions = np.concatenate([np.arange(len(ids)) for ids, _ in rows] + [[0]])
    row = lambda x: np.asarray(x[None], np.int32)
    return Tokens(row(ids), row(segments), row(positions), texts_per_row=3)


def test_the_prompt_stands_in_front_of_each_text():
    tokens = Tokens(
        ids=np.array([[7, 8, 9, 0, 0], [0, 0, 5, 6, 4]]),
        segment_ids=np.array([[1, 1, 2, 0, 0], [0, 0, 1, 1, 2]]),
        positions=np.array([[0, 1, 0, 0, 0], [0, 0, 0, 1, 0]]),
        type_ids=np.array([[1, 1, 0, 0, 0], [0, 0, 1, 1, 1]]),
        texts_per_row=2,
    )
    longer, order, places = jax.jit(lambda tokens: with_prompts(tokens, 2))(tokens)
    np.testing.assert_array_equal(longer.ids, [[0, 0, 7, 8, 0, 0, 9, 0, 0], [0, 0, 5, 6, 0, 0, 4, 0, 0]])
    np.testing.assert_array_equal(order, [[0, 1, 4, 5, 2, 3, 6, 7, 8], [0, 1, 6, 7, 2, 3, 8, 4, 5]])
    np.testing.assert_array_equal(longer.segment_ids, [[1, 1, 1, 1, 2, 2, 2, 0, 0], [1, 1, 1, 1, 2, 2, 2, 0, 0]])
    np.testing.assert_array_equal(longer.positions, [[0, 1, 2, 3, 0, 1, 2, 0, 0], [0, 1, 2, 3, 0, 1, 2, 0, 0]])
    np.testing.assert_array_equal(longer.type_ids, [[0, 0, 1, 1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0, 1, 0, 0]])
    np.testing.assert_array_equal(np.take_along_axis(longer.ids, places, axis=1), tokens.ids)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"relative_buckets": 8, "position_table": 0, "causal": True}])
def test_vectors_of_the_vocabulary_are_those_words(changes):
    """A prompt of words' embeddings is the same as those words, also for packed texts."""
    model = tiny_model(**LONG | changes)
    words = np.array([11, 42, 3])
    prompted = prompts(3).model(model, model.encoder.embeddings.tokens[words], ())
    texts = text_batch(range(2))
    by_hand = Tokens.from_mask(
        np.concatenate([np.tile(words, (2, 1)), texts.ids], axis=1),
        np.concatenate([np.ones((2, 3), int), texts.segment_ids], axis=1),
    )
    call = jax.jit(lambda model, tokens: model(tokens))
    states = call(model.encoder, by_hand)[:, 3:]
    members = np.asarray(texts.mask)[..., None]
    np.testing.assert_allclose(call(prompted.encoder, texts) * members, states * members, atol=1e-5)
    expected = np.sum(states * members, axis=1) / members.sum(axis=1)
    np.testing.assert_allclose(call(prompted, texts), expected, atol=1e-5)
    np.testing.assert_allclose(call(prompted, packed())[:2], expected, atol=1e-5)


@pytest.mark.slow
def test_all_states_are_those_of_the_texts():
    model = tiny_model(**LONG)
    prompted = prompts(2).model(model, jnp.ones((2, 16)), ())
    states = prompted.encoder(text_batch(range(2)), all_states=True)
    assert states.shape == (3, 2, 8, 16)
    np.testing.assert_allclose(states[-1], prompted.encoder(text_batch(range(2))), atol=1e-6)


def test_every_depth_sees_the_prompt():
    """`at_layers` and `truncate`, by which objectives of several layers read a model."""
    model = prompts(2).model(tiny_model(**LONG), jnp.ones((2, 16)), ())
    tokens = text_batch(range(2))
    deep, cut = jax.jit(lambda m, t: (m.at_layers(t, (1, 2)), (m.truncate(1)(t), m(t))))(model, tokens)
    np.testing.assert_allclose(deep, jnp.stack(cut, axis=1), atol=1e-6)


@pytest.mark.slow
def test_training_moves_the_prompt_alone():
    model, optimizer, transform = tiny_model(**LONG), optax.adamw(1e-2, weight_decay=0.1), prompts(4)
    state = init_state(jax.random.key(0), model, optimizer, transform)
    vocabulary = np.asarray(model.encoder.embeddings.tokens)
    assert all(any((row == word).all() for word in vocabulary) for row in np.asarray(state.method_params))
    start, step = state.method_params, jax.jit(make_train_step(PAIRWISE, optimizer, transform))
    losses = []
    for _ in range(4):
        state, metrics = step(state, pair_batch(range(8)))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    assert_bitwise_equal(state.model, model)
    assert np.all(np.any(np.asarray(state.method_params != start), axis=1))
    prompted = apply_transform(transform, state)
    assert isinstance(prompted.encoder, PromptedTransformer)
    assert prompted.dim == 16


def test_bad_options():
    with pytest.raises(ValueError, match="length must be at least 1; got 0"):
        prompts(0)
    with pytest.raises(ValueError, match="exactly one Transformer; found 0"):
        prompts(2).init(jax.random.key(0), {"w": jnp.ones(2)})
    model = tiny_model()
    with pytest.raises(ValueError, match="rows of 17 tokens, but the model has 16 positions"):
        jax.eval_shape(prompts(9).model(model, jnp.ones((9, 16)), ()), text_batch(range(2)))
