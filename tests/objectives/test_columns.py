import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import distance, pair_batch, text_batch, tiny_model

from jaxemb.losses import cosent, info_nce
from jaxemb.nn import unit
from jaxemb.objectives import on_columns

BATCH = pair_batch(range(4)) | {"negative": text_batch(np.arange(4) + 50, 3), "hard": text_batch(np.arange(4) + 90)}
MODEL = tiny_model()
KEY = jax.random.key(0, impl="rbg")  # compiles sooner than threefry


@functools.cache
def embedded(column):
    """The embeddings of a column, each by itself."""
    return np.asarray(jax.jit(lambda model, tokens: model(tokens))(MODEL, BATCH[column]))


def traced(objective, batch=BATCH):
    """Calls it without compiling anything."""
    jax.eval_shape(objective, MODEL, batch, None)


def seen_by_loss(*columns, key=None, **settings):
    """What the loss is called with."""
    calls = []

    def loss(*args, **kwargs):
        calls.append((args, kwargs))
        return jnp.zeros(4)

    def seen(model, batch, key):
        calls.clear()
        _, outputs = on_columns(loss, *columns, **settings)(model, batch, key)
        return *calls[0], outputs

    return jax.device_get(jax.jit(seen)(MODEL, BATCH, key))


def test_losses_are_those_of_the_embeddings():
    losses, outputs = jax.jit(on_columns(distance, "query", "document"))(MODEL, BATCH, None)
    queries, documents = embedded("query"), embedded("document")
    cosines = (queries * documents).sum(-1) / np.linalg.norm(queries, axis=-1) / np.linalg.norm(documents, axis=-1)
    np.testing.assert_allclose(losses, 1 - cosines, rtol=1e-5, atol=1e-6)
    assert set(outputs) == {"query", "document"}
    np.testing.assert_allclose(outputs["document"], documents, atol=1e-6)


def test_a_column_of_several_texts_per_record_is_record_major():
    (query, negatives), _, outputs = seen_by_loss("query", "negative")
    assert query.shape == (4, 16) and negatives.shape == (4, 3, 16) and outputs["negative"].shape == (4, 3, 16)
    np.testing.assert_allclose(negatives[2, 1], embedded("negative")[2 * 3 + 1], atol=1e-6)


def test_named_columns_always_have_an_axis_of_texts():
    (_,), keywords, _ = seen_by_loss("query", negatives="negative", others={"scores": "score"}, extra="hard")
    assert keywords["negatives"].shape == (4, 3, 16) and keywords["extra"].shape == (4, 1, 16)
    np.testing.assert_array_equal(keywords["scores"], BATCH["score"])


def test_every_column_has_dropout_of_its_own():
    batch = BATCH | {"again": BATCH["query"]}
    objective = jax.jit(on_columns(distance, "query", "again"))
    with_dropout, _ = objective(MODEL, batch, KEY)
    without, _ = objective(MODEL, batch, None)
    assert np.all(np.asarray(with_dropout) > 1e-3)
    np.testing.assert_allclose(without, 0, atol=1e-6)


def test_a_column_used_twice_is_encoded_twice():
    """SimCSE: positives are two encodings of one text, which dropout alone tells apart."""
    simcse = jax.jit(on_columns(lambda a, b: info_nce(a, b, temperature=0.05), "query", "query"))
    losses, outputs = simcse(MODEL, BATCH, KEY)
    first, second = outputs["query"], outputs["query#2"]
    assert np.all(np.abs(np.asarray(first - second)).max(axis=1) > 1e-3)
    logits = np.asarray(unit(first) @ unit(second).T) / 0.05
    np.testing.assert_allclose(losses, np.log(np.exp(logits).sum(axis=1)) - np.diagonal(logits), rtol=1e-4, atol=1e-5)
    losses, outputs = simcse(MODEL, BATCH, None)
    np.testing.assert_array_equal(outputs["query"], outputs["query#2"])
    assert np.all(np.asarray(losses) > 0)


def test_every_use_of_a_column_is_an_encoding():
    (first, other), keywords, outputs = seen_by_loss("query", "document", negatives="query", key=KEY)
    assert set(outputs) == {"query", "document", "query#2"}
    np.testing.assert_array_equal(outputs["query#2"], keywords["negatives"][:, 0])
    assert np.abs(first - keywords["negatives"][:, 0]).max() > 1e-3 and np.abs(first - other).max() > 1e-3


@pytest.mark.parametrize(
    ("columns", "others", "message"),
    [
        (["query", "passage"], [], "the batch has no passage; it has document, hard, id, negative, query, score"),
        (["query"], {"a": "label", "b": "weight"}, "the batch has no label, weight"),
    ],
)
def test_names_what_the_batch_lacks(columns, others, message):
    with pytest.raises(ValueError, match=message):
        traced(on_columns(lambda *texts, **others: texts[0], *columns, others=others))


def test_refuses_a_number_of_texts_that_is_no_multiple_of_the_records():
    with pytest.raises(ValueError, match="column 'query' has 4 texts, which is no multiple of the 3 records"):
        traced(on_columns(distance, "query", "document"), BATCH | {"id": np.arange(3)})


def test_refuses_a_loss_that_is_not_one_value_per_record():
    with pytest.raises(ValueError, match=r"one value per record, .*; got \(\): leave the mean to the train step"):
        traced(on_columns(lambda q, d: jnp.mean(distance(q, d)), "query", "document"))


def test_refuses_a_column_of_numbers_as_texts():
    with pytest.raises(
        ValueError, match=r"columns must be texts; of numbers, give others={'argument of the loss': 'id'}"
    ):
        traced(on_columns(distance, "query", "id"))


def test_needs_a_column():
    with pytest.raises(ValueError, match="at least one text column"):
        on_columns(distance)


def test_arguments_that_the_loss_does_not_have_are_refused_when_the_objective_is_made():
    message = r"missing a required argument: 'scores'; the loss is cosent\(first, second, scores, scale, similarity\)"
    for others in ((), ["score"], {"score": "scores"}):
        with pytest.raises(TypeError, match=f"columns: {message}, and others={{'argument': 'column'}} gives"):
            on_columns(cosent, "first", "second", others=others)
    with pytest.raises(TypeError, match=r"the loss is cosent\("):
        on_columns(functools.partial(cosent, scale=2.0), "first", "second", "third", "fourth")
    on_columns(cosent, "first", "second", others={"scores": "score"})
    with pytest.raises(ValueError, match=r"of numbers, give others={'argument of the loss': 'score'}"):
        traced(on_columns(cosent, "query", "document", scores="score"))
