"""DefSent and DefSent+ by the worked numbers, and what does and does not get a gradient."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy.special import logsumexp
from tiny_run import text_batch, tiny_model

from jaxemb.data import Definitions
from jaxemb.embedder import Dense
from jaxemb.nn import Linear
from jaxemb.pooling import AtToken, Cls, Concatenation, Mean
from jaxemb.pretraining import (
    EntryPredictor,
    MaskedLanguageModel,
    definition_to_entry,
    definition_to_word,
    entry_cross_entropy,
    entry_embeddings,
    isotropic_entries,
    prompted,
)
from jaxemb.types import Tokens

ENTRIES = np.array([[1.0, 0], [0, 2], [-1, 0]], np.float32)
RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(5, 16)).astype(np.float32)
BATCH = {
    "definition": text_batch(range(6)),
    "entry": np.arange(6) % 5,
    "word": np.arange(6),
    "id": np.arange(6),
    "entries": ROWS,
}


def predictor() -> EntryPredictor:
    model, dim = tiny_model(), 16
    pooler = Dense(linear=Linear(np.eye(dim, dtype=np.float32), np.zeros(dim, np.float32)), activation="tanh")
    return EntryPredictor(model, pooler)


def test_worked_numbers():
    pooler = Dense(linear=Linear(np.eye(2, dtype=np.float32), np.zeros(2, np.float32)), activation="tanh")
    losses = jax.jit(lambda h: entry_cross_entropy(pooler(h), np.arange(3), ENTRIES))(np.float32([[1, 0.5]] * 3))
    np.testing.assert_allclose(losses, [0.873228, 0.710588, 2.396417], atol=1e-6)
    loss = jax.jit(entry_cross_entropy)(np.float32([[0.5, 0.25]]), np.array([0]), ENTRIES)
    np.testing.assert_allclose(loss, [0.861995], atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 5])
def test_chunks_change_nothing(chunk):
    v, entry = RNG.normal(size=(4, 16)).astype(np.float32), np.array([0, 4, 2, 4])
    loss = lambda v, e, c: entry_cross_entropy(v, entry, e, chunk=c).sum()
    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), static_argnums=2)
    (whole, gradients), (chunked, others) = run(v, ROWS, None), run(v, ROWS, chunk)
    logits = v.astype(np.float64) @ ROWS.T
    np.testing.assert_allclose(whole, (logsumexp(logits, axis=1) - logits[np.arange(4), entry]).sum(), rtol=1e-5)
    np.testing.assert_allclose(chunked, whole, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), others, gradients)


def test_entries_get_no_gradient_and_a_shift_of_all_changes_nothing():
    objective = definition_to_entry()
    loss_of = lambda model, entries: objective(model, BATCH | {"entries": entries}, None)[0].mean()
    run = jax.jit(jax.value_and_grad(loss_of, argnums=(0, 1)))
    loss, (gradient, of_entries) = run(predictor(), ROWS)
    moved_loss, (moved, _) = run(predictor(), ROWS + RNG.normal(size=16).astype(np.float32))
    assert not np.any(of_entries) and np.any(gradient.pooler.linear.kernel)
    assert np.any(gradient.embedder.encoder.embeddings.tokens)
    np.testing.assert_allclose(moved_loss, loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), moved, gradient)


@dataclasses.dataclass(frozen=True)
class FirstLetters:
    """Encodes a text as the number of its letters, and 1."""

    model = tiny_model(dim=2, heads=1)

    def encode(self, texts):
        return np.array([[len(text), 1] for text in texts], np.float32)


def test_an_entry_is_the_mean_of_its_definitions():
    pairs = [("cat", "xxx"), ("ice cream", "x"), ("cat", "x"), ("dog", "xx")]
    expected = [[2, 1], [1, 1], [2, 1]]
    for at_a_time in (2, 100):
        found = entry_embeddings(FirstLetters(), Definitions.from_pairs(pairs), at_a_time=at_a_time)
        np.testing.assert_array_equal(found, expected)
    twice = Definitions.from_pairs(pairs[:1] * 2 + pairs[1:] + pairs[1:])
    np.testing.assert_allclose(entry_embeddings(FirstLetters(), twice), expected)


def test_isotropic_entries_of_states_after_a_norm():
    """Such states lie in a hyperplane, which whitening must not blow up."""
    states = RNG.laplace(size=(3, 400, 5)) @ np.diag([1.0, 2, 3, 4, 5])
    states = (states - states.mean(axis=-1, keepdims=True)) / states.std(axis=-1, keepdims=True)
    entries = (states * [1.0, 2, 0.5, 1, 3] + 7).mean(axis=0).astype(np.float32)
    found = isotropic_entries(entries)
    assert found.shape == (400, 5)
    np.testing.assert_allclose(np.cov(found, rowvar=False, bias=True), 1e4 * np.diag([1, 1, 1, 1, 0]), atol=10)
    kept = isotropic_entries(entries, scale=None)
    np.testing.assert_allclose(np.linalg.norm(kept, axis=1).mean(), np.linalg.norm(entries, axis=1).mean(), rtol=1e-5)


def test_the_state_at_the_mask_is_taken():
    tokens = Tokens(
        np.array([[1, 9, 2, 9, 0], [9, 1, 2, 3, 9]]),
        np.array([[1, 1, 2, 2, 0], [1, 1, 1, 0, 0]]),
        None,
        texts_per_row=2,
    )
    states = np.arange(10, dtype=np.float32).reshape(2, 5, 1)
    pooled = np.asarray(jax.jit(lambda s, t: AtToken(9)(s, t))(states, tokens))[..., 0]
    np.testing.assert_array_equal(pooled, [1, 3, 5, np.nan])
    assert prompted(["a dog"]) == ['This sentence : "a dog" means [MASK] . ']
    with pytest.raises(ValueError, match=r"must not contain \[MASK\]; got 'a \[MASK\]'"):
        prompted(["ok", "a [MASK]"])


def traced(objective, model, batch=BATCH):
    """Calls it without compiling anything."""
    jax.eval_shape(objective, model, batch, None)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: traced(definition_to_word(), tiny_model()), TypeError, "trains a MaskedLanguageModel"),
        (lambda: traced(definition_to_entry(), tiny_model()), TypeError, "trains an EntryPredictor"),
        (
            lambda: traced(
                definition_to_word(),
                jax.eval_shape(
                    MaskedLanguageModel.init,
                    jax.random.key(0),
                    dataclasses.replace(tiny_model(), pooling=Concatenation((Cls(), Mean()))),
                ),
            ),
            ValueError,
            "must have the states' 16 dims; got 32",
        ),
        (lambda: traced(definition_to_entry("text"), predictor()), ValueError, "the batch has no text"),
        (
            lambda: traced(definition_to_entry(entries="others"), predictor()),
            ValueError,
            "the batch has no others",
        ),
        (
            lambda: traced(definition_to_entry(), predictor(), BATCH | {"entry": np.arange(3)}),
            ValueError,
            "one text per record",
        ),
        (
            lambda: entry_cross_entropy(ROWS, np.arange(5), ROWS[:, :3]),
            ValueError,
            "entries must be .* as in projected",
        ),
        (lambda: entry_cross_entropy(ROWS, np.arange(5), ROWS, chunk=0), ValueError, "chunk must be at least 1"),
    ],
)
def test_names_what_is_wrong(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_number_that_no_entry_has_stops_training():
    for chunk in (None, 2):
        losses = jax.jit(entry_cross_entropy, static_argnames="chunk")(
            ROWS, np.array([0, 5, -1, 4, 0]), ROWS, chunk=chunk
        )
        np.testing.assert_array_equal(np.isnan(losses), [False, True, True, False, False])
