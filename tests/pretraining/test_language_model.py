"""The prediction of next tokens, and what is saved of it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_run import pair_batch, tiny_model

import jaxemb
from jaxemb.data import SPECIAL_TOKENS, Tokenizer
from jaxemb.pretraining import LanguageHead, LanguageModel, language_modelling
from jaxemb.types import Tokens

SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
SIZES |= {"num_key_value_heads": 1, "head_dim": 4}


@functools.cache
def new(family, **config):
    tokenizer = Tokenizer.word_piece([*SPECIAL_TOKENS, *"abcdef"])
    return jaxemb.new(family, SIZES | config, tokenizer, key=jax.random.key(0))


def test_losses_are_of_each_token_given_those_before_it():
    """Of packed texts, in chunks that do not divide the row, against all logits at once."""
    table, soft_cap = np.random.default_rng(0).normal(size=(2, 11, 8)).astype(np.float32)[0], 2.0
    model = LanguageModel(new("llama").model, LanguageHead(jnp.asarray(table), soft_cap))
    ids = np.random.default_rng(1).integers(0, 11, (1, 9))
    segments, positions = np.array([[1] * 5 + [2] * 3 + [0]]), np.array([[0, 1, 2, 3, 4, 0, 1, 2, 0]])
    tokens = Tokens(ids, segments, positions, texts_per_row=2)
    states = np.random.default_rng(2).normal(size=(1, 9, 8)).astype(np.float32)

    def plain(states):
        log_p = jax.nn.log_softmax(soft_cap * jnp.tanh(states[0] @ table.T / soft_cap))
        return -log_p[jnp.arange(8), ids[0, 1:]]

    found, pull = jax.vjp(lambda states: model.token_losses(states, tokens, chunk=4), states)
    predicted = np.array([False, True, True, True, True, False, True, True, False])
    np.testing.assert_allclose(found[0], np.where(predicted, np.append(0, plain(states)), 0), atol=1e-5)
    (gradient,) = pull(found)
    direct = jax.grad(lambda states: jnp.sum(jnp.where(predicted[1:], plain(states), 0) ** 2) / 2)(states)
    np.testing.assert_allclose(gradient, direct, atol=1e-5)


def test_trains_and_counts_every_token():
    embedder = tiny_model()
    causal = dataclasses.replace(embedder.encoder.config, causal=True)
    embedder = dataclasses.replace(embedder, encoder=dataclasses.replace(embedder.encoder, config=causal))
    model, objective, batch = LanguageModel(embedder, LanguageHead()), language_modelling("query"), pair_batch(range(8))
    optimizer = optax.adam(1e-2)

    def step(carry, _):
        model, state = carry
        value, gradient = jax.value_and_grad(lambda model: objective(model, batch, None)[0].mean())(model)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(model, updates), state), value

    values = jax.jit(lambda model: jax.lax.scan(step, (model, optimizer.init(model)), None, 30)[1])(model)
    assert abs(values[0] - np.log(50)) < 0.3  # of a guess
    assert values[-1] < 0.5 * values[0]


@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("gemma2", True)])
def test_a_head_is_saved_with_its_encoder(family, tied, tmp_path):
    embedder = new(family)
    table = None if tied else jnp.asarray(np.random.default_rng(0).normal(size=(11, 8)).astype(np.float32))
    soft_cap = 30.0 if family == "gemma2" else None
    LanguageModel(embedder.model, LanguageHead(table, soft_cap)).into(embedder, with_head=True).save(tmp_path)
    again = jaxemb.load(tmp_path)
    config = again.format.encoder.config
    assert config["architectures"][0].endswith("ForCausalLM") and config["tie_word_embeddings"] is tied
    model = LanguageModel.of(again)
    assert model.head.soft_cap == soft_cap
    if tied:
        assert model.head.table is None and "lm_head.weight" not in again.format.encoder.unused
        return
    np.testing.assert_array_equal(model.head.table, table)
    other = dataclasses.replace(model, head=LanguageHead(table + 1))
    other.into(again).save(tmp_path)
    np.testing.assert_array_equal(LanguageModel.of(jaxemb.load(tmp_path)).head.table, table + 1)


def test_what_predicts_nothing_is_refused():
    with pytest.raises(ValueError, match="bert predicts no next token; expected a decoder"):
        LanguageModel.of(new("bert"))
    with pytest.raises(ValueError, match=r"the checkpoint must have lm_head.weight, \[11, 8\]; got None"):
        LanguageModel.of(new("llama"))
    objective = language_modelling("query")
    with pytest.raises(TypeError, match="language_modelling trains a LanguageModel; got Embedder"):
        objective(tiny_model(), pair_batch(range(8)), None)
    with pytest.raises(ValueError, match="needs causal attention; the encoder's is bidirectional"):
        objective(LanguageModel(tiny_model(), LanguageHead()), pair_batch(range(8)), None)
