"""The real MiniLM against sentence-transformers, on real sentences; `test_minilm_frozen` is what is not slow of it."""

import numpy as np
import pytest
from scipy.stats import spearmanr

import jaxemb
from jaxemb.data import read

SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer

pytestmark = pytest.mark.slow

LANGUAGES = ("en", "de", "es", "fr", "it", "ja", "nl", "pl", "pt", "ru", "zh")


@pytest.fixture(scope="module")
def ours(minilm):
    return jaxemb.load(minilm)


@pytest.fixture(scope="module")
def theirs(minilm):
    return SentenceTransformer(str(minilm), device="cpu")


def _stsb_dev(data_dir, language):
    path = data_dir / "stsb_multi" / f"stsb-{language}-dev.csv.gz"
    return list(read(path, names=("first", "second", "score"), types={"score": float}))


def _sentences(rows):
    return list(dict.fromkeys(row[side] for row in rows for side in ("first", "second")))


def test_english_dev_reaches_the_published_spearman(ours, data_dir):
    rows = _stsb_dev(data_dir, "en")
    first, second = (ours.encode([row[side] for row in rows]) for side in ("first", "second"))
    assert spearmanr((first * second).sum(-1), [row["score"] for row in rows])[0] == pytest.approx(0.8672, abs=5e-5)


def test_embeddings_equal_sentence_transformers(ours, theirs, data_dir):
    texts = [t for language in LANGUAGES for t in _sentences(_stsb_dev(data_dir, language))[:100]]
    np.testing.assert_allclose(ours.encode(texts), theirs.encode(texts), rtol=0, atol=1e-5)


@pytest.mark.parametrize("language", LANGUAGES)
def test_embeddings_equal_sentence_transformers_on_all_sentences(ours, theirs, data_dir, language):
    texts = _sentences(_stsb_dev(data_dir, language))
    np.testing.assert_allclose(ours.encode(texts), theirs.encode(texts), rtol=0, atol=1e-5)


def test_a_saved_directory_loads_in_sentence_transformers(ours, tmp_path):
    changed = ours.replace(prompts={"query": "search: "}, max_length=64)
    changed.save(tmp_path / "model")
    peer = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    texts = ["A man is playing a flute.", "", "long " * 300]
    assert peer.max_seq_length == 64 and peer.similarity_fn_name == "cosine"
    np.testing.assert_allclose(
        changed.encode(texts, prompt_name="query"), peer.encode(texts, prompt_name="query"), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("kind", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarities_equal_sentence_transformers(ours, theirs, kind):
    vectors = np.random.default_rng(0).normal(size=(5, 384)).astype(np.float32)
    theirs.similarity_fn_name = kind
    np.testing.assert_allclose(
        ours.replace(similarity_fn_name=kind).similarity(vectors, vectors[:3]),
        theirs.similarity(vectors, vectors[:3]).numpy(),
        rtol=1e-4,
        atol=1e-3,  # torch takes Euclidean distances through the product, which loses digits near 0
    )
