"""LLM2Vec's masked next tokens: what is hidden, from where it is predicted, and that it trains."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from tiny_run import pair_batch, tiny_model

from jaxemb.data import pack
from jaxemb.pretraining import LanguageHead, LanguageModel, mask_tokens, masked_next_tokens
from jaxemb.pretraining.denoising import SPECIAL, START

PIECES = np.full(50, START, np.int8)
PIECES[:5] = SPECIAL
MASK = 4
OBJECTIVE = masked_next_tokens("query", PIECES, MASK, ratio=0.3)


def model_of(**changes) -> LanguageModel:
    return LanguageModel(tiny_model(**changes), LanguageHead())


def test_a_hidden_token_is_predicted_from_the_state_before_it():
    """The definition, in NumPy, of packed texts; the first tokens of texts are never hidden."""
    model, rng = model_of(), np.random.default_rng(0)
    model = jax.tree.map(lambda leaf: 10 * leaf, model)  # so that states differ
    tokens = pack([rng.integers(5, 50, n) for n in (9, 6, 7, 5)], row_length=16)
    (losses, _), (seen, hidden), all_hidden = jax.jit(
        lambda model: (
            OBJECTIVE(model, {"query": tokens, "id": np.arange(4)}, None),
            mask_tokens(_without_first(tokens), jax.random.key(0), PIECES, MASK, ratio=0.3),
            mask_tokens(_without_first(tokens), jax.random.key(0), PIECES, MASK, ratio=1.0)[1],
        )
    )(model)
    np.testing.assert_array_equal(all_hidden, np.asarray(tokens.mask) & (np.asarray(tokens.positions) > 0))
    seen = dataclasses.replace(tokens, ids=np.asarray(seen.ids))
    log_p = np.asarray(jax.jit(lambda m, t: jax.nn.log_softmax(m.logits(m.embedder.encoder(t))))(model, seen))
    rows, places = np.nonzero(np.asarray(hidden))
    assert len(rows) > 4
    expected = -log_p[rows, places - 1, np.asarray(tokens.ids)[rows, places]]
    np.testing.assert_allclose(losses.mean(), expected.mean(), rtol=1e-4)
    at_its_place = -log_p[rows, places, np.asarray(tokens.ids)[rows, places]]
    assert abs(at_its_place.mean() - expected.mean()) > 1e-2


def _without_first(tokens):
    return dataclasses.replace(tokens, segment_ids=np.where(np.asarray(tokens.positions) > 0, tokens.segment_ids, 0))


def test_trains():
    model, batch, optimizer = model_of(), pair_batch(range(8)), optax.adam(1e-2)

    def step(carry, _):
        model, state = carry
        value, gradient = jax.value_and_grad(lambda model: OBJECTIVE(model, batch, None)[0].mean())(model)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(model, updates), state), value

    values = jax.jit(lambda model: jax.lax.scan(step, (model, optimizer.init(model)), None, 30)[1])(model)
    assert abs(values[0] - np.log(50)) < 0.3  # of a guess
    assert values[-1] < 0.5 * values[0]


def test_what_it_refuses():
    batch = pair_batch(range(2))
    with pytest.raises(TypeError, match="trains a LanguageModel; got Embedder"):
        OBJECTIVE(tiny_model(), batch, None)
    with pytest.raises(ValueError, match="needs attention both ways"):
        OBJECTIVE(model_of(causal=True), batch, None)
    with pytest.raises(ValueError, match=r"mask_id must be in 0\.\.49"):
        masked_next_tokens("query", PIECES, 50)
