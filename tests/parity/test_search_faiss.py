"""Exact search against faiss."""

import numpy as np
import pytest

from jaxemb.retrieval import topk_search

faiss = pytest.importorskip("faiss")


@pytest.mark.parametrize("corpus_chunk", [32_768, 3000])
def test_inner_product_and_distance_agree_with_faiss(corpus_chunk):
    rng = np.random.default_rng(0)
    queries, corpus = rng.standard_normal((20, 32), np.float32), rng.standard_normal((10_000, 32), np.float32)
    index = faiss.IndexFlatIP(32)
    index.add(corpus)
    expected_scores, expected_ids = index.search(queries, 10)
    scores, ids = topk_search(queries, corpus, 10, metric="dot", corpus_chunk=corpus_chunk)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)

    index = faiss.IndexFlatL2(32)
    index.add(corpus)
    expected_scores, expected_ids = index.search(queries, 10)
    scores, ids = topk_search(queries, corpus, 10, metric="euclidean", corpus_chunk=corpus_chunk)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(np.square(scores), expected_scores, rtol=1e-4)
