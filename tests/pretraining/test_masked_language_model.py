"""What is hidden of a text, and how that is trained."""

import functools

import jax
import numpy as np
import optax
import pytest
from tiny_run import pair_batch, tiny_model

from jaxemb.pretraining import MaskedLanguageModel, mask_tokens, masked_language_modelling
from jaxemb.pretraining.denoising import SPECIAL, START
from jaxemb.types import Tokens

PIECES = np.full(50, START, np.int8)
PIECES[:5] = SPECIAL
MASK = 4


@functools.cache
def language_model():
    return jax.jit(MaskedLanguageModel.init)(jax.random.key(0), tiny_model())


def test_a_share_is_hidden_and_most_of_it_masked():
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 50, (400, 50))
    ids[:, 0] = 2
    mask = np.arange(50) < rng.integers(20, 51, 400)[:, None]
    tokens = Tokens.from_mask(ids, mask)
    seen, hidden = jax.jit(lambda t, k: mask_tokens(t, k, PIECES, MASK))(tokens, jax.random.key(0))
    seen, hidden = np.asarray(seen.ids), np.asarray(hidden)
    can_hide = mask & (ids != 2)
    assert not hidden[~can_hide].any()
    np.testing.assert_array_equal(seen[~hidden], ids[~hidden])
    np.testing.assert_allclose(hidden[can_hide].mean(), 0.15, atol=0.01)
    np.testing.assert_allclose((seen == MASK)[hidden].mean(), 0.8, atol=0.03)
    np.testing.assert_allclose((seen == ids)[hidden].mean(), 0.1, atol=0.03)


def test_trains_and_counts_every_hidden_token():
    model = language_model()
    objective = masked_language_modelling("query", PIECES, MASK, ratio=0.3)
    batch = pair_batch(range(8))
    optimizer = optax.adam(1e-2)

    def step(carry, _):
        model, state = carry
        value, gradient = jax.value_and_grad(lambda model: objective(model, batch, None)[0].mean())(model)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(model, updates), state), value

    values = jax.jit(lambda model: jax.lax.scan(step, (model, optimizer.init(model)), None, 30)[1])(model)
    assert abs(values[0] - np.log(50)) < 0.3  # of a guess
    assert values[-1] < 0.5 * values[0]


def test_the_head_reads_prefixes_of_states():
    """Starbucks' sub-dimensions: the same as the rest of the state being 0."""
    model = language_model()
    states = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    states[:, 6:] = 0
    hidden = jax.jit(lambda states: model.head.hidden(states))
    np.testing.assert_allclose(hidden(states[:, :6]), hidden(states), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.5}, r"ratio must be in \[0, 1\]"),
        ({"random": 0.6, "kept": 0.5}, "of a sum <= 1"),
        ({"mask_id": 50}, "mask_id must be in 0..49"),
    ],
)
def test_names_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        masked_language_modelling("query", PIECES, **({"mask_id": MASK} | options))


def test_wants_its_model_and_its_column():
    objective = masked_language_modelling("text", PIECES, MASK)
    with pytest.raises(TypeError, match="trains a MaskedLanguageModel; got Embedder"):
        objective(tiny_model(), {}, None)
    with pytest.raises(ValueError, match="the batch has no text"):
        objective(language_model(), pair_batch(range(2)), None)
