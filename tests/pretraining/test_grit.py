"""GritLM's joint objective: each part is what it is alone, with its own attention."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_run import pair_batch, tiny_model

from jaxemb.data import marked, pad
from jaxemb.losses import info_nce
from jaxemb.objectives import on_columns
from jaxemb.pretraining import LanguageHead, LanguageModel, embed_and_write, language_modelling, seeing_both_ways

EMBEDDING = on_columns(info_nce, "query", "document")
MODEL = LanguageModel(tiny_model(causal=True, windows=(3, 3)), LanguageHead())
rng = np.random.default_rng(0)
TEXTS = pad([rng.integers(5, 50, n) for n in (7, 5, 6)], length=8)


def mean(objective, model, batch):
    return jax.jit(lambda model: objective(model, batch, None)[0].mean())(model)


@pytest.fixture(scope="module")
def batch():
    return {**pair_batch(range(4)), "conversation": TEXTS}


def test_the_sum_of_both_parts(batch):
    both_ways = dataclasses.replace(
        MODEL.embedder,
        encoder=dataclasses.replace(MODEL.embedder.encoder, config=tiny_model().encoder.config),
    )
    embedding = mean(EMBEDDING, both_ways, batch)
    written = mean(language_modelling("text"), MODEL, {"text": TEXTS, "id": np.arange(3)})
    joint = embed_and_write(EMBEDDING, "conversation", weight=0.5)
    np.testing.assert_allclose(mean(joint, MODEL, batch), embedding + 0.5 * written, rtol=1e-5)
    by_text = embed_and_write(EMBEDDING, "conversation", weight=0.5, average="texts")
    np.testing.assert_allclose(mean(by_text, MODEL, batch), embedding + 0.5 * written * 15 / 3, rtol=1e-5)


def test_of_a_conversation_the_answer_alone_is_predicted(batch):
    joint = embed_and_write(EMBEDDING, "conversation")
    run = jax.jit(lambda model, batch: joint(model, batch, None)[1]["generation"])
    losses = np.asarray(jax.jit(lambda m: m.token_losses(m.embedder.encoder(TEXTS), TEXTS))(MODEL))
    answers = run(MODEL, {**batch, "conversation": marked(TEXTS, np.array([4, 3, 5]))})
    expected = np.concatenate([losses[0, 4:7], losses[1, 3:5], losses[2, 5:6]]).mean()
    np.testing.assert_allclose(answers, expected, rtol=1e-5)


def test_seeing_both_ways_the_last_token_changes_the_first():
    run = jax.jit(lambda model, tokens: model.encoder(tokens)[:, 0])
    other = dataclasses.replace(TEXTS, ids=np.where(np.arange(8) == 4, 9, TEXTS.ids))
    for model, changes in ((MODEL.embedder, False), (seeing_both_ways(MODEL.embedder), True)):
        moved = np.abs(run(model, TEXTS) - run(model, other)).max()
        assert moved > 1e-4 if changes else moved == 0


def test_what_it_refuses(batch):
    joint = embed_and_write(EMBEDDING, "conversation")
    with pytest.raises(TypeError, match="trains a LanguageModel; got Embedder"):
        joint(tiny_model(), batch, None)
    with pytest.raises(ValueError, match="needs a causal encoder"):
        joint(LanguageModel(tiny_model(), LanguageHead()), batch, None)
    with pytest.raises(ValueError, match="the batch must have the texts 'other'"):
        embed_and_write(EMBEDDING, "other")(MODEL, batch, None)
    with pytest.raises(ValueError, match="average must be 'batch' or 'texts'"):
        embed_and_write(EMBEDDING, "conversation", average="token")
