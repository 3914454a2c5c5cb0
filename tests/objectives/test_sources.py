"""One objective per source."""

import jax
import numpy as np
import pytest
from tiny_run import distance, pair_batch, tiny_model

from jaxemb.objectives import ColumnsObjective, by_source, matryoshka, on_columns
from jaxemb.types import SourceName

MODEL = tiny_model()
BATCH = pair_batch(range(4))
APART = on_columns(lambda q, d: 2 - distance(q, d), "query", "document")
CLOSE = on_columns(distance, "query", "document")


def of(name, batch=BATCH):
    return batch | {"source_name": SourceName(name)}


def test_a_batch_meets_the_objective_of_its_source():
    both = by_source({"close": CLOSE, "apart": APART})
    jitted = jax.jit(both)
    for name, alone in (("close", CLOSE), ("apart", APART)):
        losses, outputs = jitted(MODEL, of(name), None)
        np.testing.assert_allclose(losses, jax.jit(alone)(MODEL, BATCH, None)[0], rtol=1e-5)
        assert set(outputs) == {"query", "document"}
    assert jitted._cache_size() == 2  # a program for each source


def test_sources_may_have_columns_of_their_own():
    both = jax.jit(by_source({"pairs": CLOSE, "texts": on_columns(lambda a, b: distance(a, b), "text", "text")}))
    pairs = {name: value for name, value in of("pairs").items() if name != "text"}
    texts = {"text": BATCH["query"], "id": BATCH["id"], "source_name": SourceName("texts")}
    assert both(MODEL, pairs, None)[0].shape == both(MODEL, texts, None)[0].shape == (4,)


def test_what_is_made_of_objectives_of_columns_is_made_of_it():
    both = by_source({"close": CLOSE, "apart": APART})
    assert isinstance(both, ColumnsObjective)
    found, _ = jax.jit(matryoshka(both, [16, 8]))(MODEL, of("apart"), None)
    expected, _ = jax.jit(matryoshka(APART, [16, 8]))(MODEL, BATCH, None)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    plain = by_source({"close": CLOSE, "other": lambda model, batch, key: (batch["score"], {})})
    np.testing.assert_array_equal(plain(MODEL, of("other"), None)[0], BATCH["score"])


def test_a_source_without_an_objective_is_named():
    both = by_source({"close": CLOSE, "apart": APART})
    with pytest.raises(
        ValueError, match=r"the batch is of the source 'nli'; there are objectives for \['apart', 'close'\]"
    ):
        jax.eval_shape(both, MODEL, of("nli"), None)
    with pytest.raises(ValueError, match="the batch does not say its source: give the sources names"):
        jax.eval_shape(both, MODEL, BATCH, None)
    with pytest.raises(ValueError, match="at least one objective"):
        by_source({})
