import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from jaxemb.retrieval import exact, topk_search


def by_sorting(queries, corpus, k, metric="cosine", excluded=None):
    """The definition: sort all scores, equal ones by id."""
    q, x = np.asarray(queries, np.float64), np.asarray(corpus, np.float64)
    if metric == "euclidean":
        scores = -np.linalg.norm(q[:, None] - x[None], axis=2)
    else:
        scores = q @ x.T
        if metric == "cosine":
            scores /= np.linalg.norm(q, axis=1)[:, None] * np.maximum(np.linalg.norm(x, axis=1), 1e-12)
    ids = np.full((len(q), k), -1)
    top = np.full((len(q), k), -np.inf)
    for row, values in enumerate(scores):
        keep = np.ones(len(x), bool) if excluded is None else ~np.isin(np.arange(len(x)), excluded[row])
        order = [i for i in np.argsort(-values, kind="stable") if keep[i]][:k]
        ids[row, : len(order)], top[row, : len(order)] = order, values[order]
    return top, ids


def with_ties(n_queries, n, dim=4, seed=0):
    """Vectors of small integers: their products are exact, and many are equal."""
    rng = np.random.default_rng(seed)
    draw = lambda rows: rng.integers(-1, 2, (rows, dim)).astype(np.float32)
    return draw(n_queries), draw(n)


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_finds_what_sorting_finds(metric):
    rng = np.random.default_rng(0)
    queries, corpus = rng.standard_normal((5, 8), np.float32), rng.standard_normal((70, 8), np.float32)
    corpus[3] = 0.0
    scores, ids = topk_search(queries, corpus, 6, metric=metric)
    expected_scores, expected_ids = by_sorting(queries, corpus, 6, metric)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5, atol=1e-5)
    assert (scores.dtype, ids.dtype) == (np.float32, np.int32)


def test_cosines_do_not_depend_on_lengths():
    rng = np.random.default_rng(0)
    queries, corpus = rng.standard_normal((5, 8), np.float32), rng.standard_normal((70, 8), np.float32)
    expected = topk_search(queries, corpus, 6)
    lengths = np.float32(2) ** rng.integers(-110, 40, 75)[:, None]  # their squares vanish
    found = topk_search(queries * lengths[:5], corpus * lengths[5:], 6)
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)


@pytest.mark.parametrize("clusters", [1, 20])
def test_distances_far_below_the_length_of_vectors(clusters):
    """By products they would all be 0. One cluster is searched by a few differences, many take all of them."""
    rng = np.random.default_rng(0)
    centers = 30 * rng.standard_normal((clusters, 96))
    corpus = (centers[np.arange(2500) % clusters] + 5e-4 * rng.standard_normal((2500, 96))).astype(np.float32)
    queries = corpus[:20] + 1e-4 * rng.standard_normal((20, 96)).astype(np.float32)
    scores, ids = topk_search(queries, corpus, 5, metric="euclidean")
    expected_scores, expected_ids = by_sorting(queries, corpus, 5, "euclidean")
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)


@pytest.mark.parametrize("corpus_chunk", [1, 7, 50])
@pytest.mark.parametrize("query_chunk", [2, 100])
def test_chunks_do_not_matter_and_ties_go_to_the_lower_id(corpus_chunk, query_chunk):
    queries, corpus = with_ties(5, 50)
    scores, ids = topk_search(queries, corpus, 9, metric="dot", corpus_chunk=corpus_chunk, query_chunk=query_chunk)
    expected_scores, expected_ids = by_sorting(queries, corpus, 9, "dot")
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize("corpus_chunk", [7, 50])
def test_a_corpus_may_lie_on_the_device(corpus_chunk):
    queries, corpus = with_ties(5, 50)
    expected = topk_search(queries, corpus, 9, metric="dot")
    found = topk_search(queries, jnp.asarray(corpus), 9, metric="dot", corpus_chunk=corpus_chunk)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@settings(max_examples=10)
@given(st.integers(0, 2**31))
def test_ties_in_rows_long_enough_to_be_ranked_by_blocks(seed):
    queries, corpus = with_ties(3, 3000, seed=seed)
    _, ids = topk_search(queries, corpus, 5, metric="dot")
    np.testing.assert_array_equal(ids, by_sorting(queries, corpus, 5, "dot")[1])


def test_ranking_by_blocks_finds_results_that_share_a_block():
    corpus = np.zeros((4096, 2), np.float32)
    corpus[1000:1006, 0] = np.arange(1, 7)
    _, ids = topk_search(np.array([[1.0, 0.0]]), corpus, 8, metric="dot")
    np.testing.assert_array_equal(ids, [[1005, 1004, 1003, 1002, 1001, 1000, 0, 1]])


def test_of_more_results_than_rows_all_rows_are_given():
    queries, corpus = with_ties(2, 3)
    scores, ids = topk_search(queries, corpus, 10**12, metric="dot", corpus_chunk=2)
    expected_scores, expected_ids = by_sorting(queries, corpus, 3, "dot")
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(scores, expected_scores)
    assert topk_search(queries[:0], corpus, 10**12, metric="dot")[0].shape == (0, 3)


@pytest.mark.parametrize("corpus_chunk", [7, 100])
def test_excluded_ids_are_no_results(corpus_chunk):
    queries, corpus = with_ties(4, 20)
    excluded = np.array([[0, 19], [5, 5], [-1, -1], [6, 7]])
    scores, ids = topk_search(queries, corpus, 20, metric="dot", corpus_chunk=corpus_chunk, exclude_ids=excluded)
    expected_scores, expected_ids = by_sorting(queries, corpus, 20, "dot", excluded)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(scores, expected_scores)


@given(st.integers(0, 2**31))
def test_permuting_the_corpus_permutes_the_ids(seed):
    rng = np.random.default_rng(seed)
    queries, corpus = rng.standard_normal((3, 8), np.float32), rng.standard_normal((40, 8), np.float32)
    order = rng.permutation(40)
    np.testing.assert_array_equal(order[topk_search(queries, corpus[order], 5)[1]], topk_search(queries, corpus, 5)[1])


def test_a_memory_mapped_corpus_of_half_precision(tmp_path):
    queries, corpus = with_ties(3, 50)
    np.save(tmp_path / "corpus.npy", corpus.astype(np.float16))
    mapped = np.load(tmp_path / "corpus.npy", mmap_mode="r")
    _, ids = topk_search(queries, mapped, 4, metric="dot", corpus_chunk=16)
    np.testing.assert_array_equal(ids, by_sorting(queries, corpus, 4, "dot")[1])
    _, ids = topk_search(queries, np.asarray(jnp.asarray(corpus, jnp.bfloat16)), 4, metric="dot")
    np.testing.assert_array_equal(ids, by_sorting(queries, corpus, 4, "dot")[1])


def test_no_queries_give_no_results():
    scores, ids = topk_search(np.zeros((0, 4), np.float32), np.ones((3, 4), np.float32), 2)
    assert scores.shape == ids.shape == (0, 2)


ONES = np.ones((3, 4), np.float32)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_values_that_are_not_finite_are_named(metric, bad):
    corpus = np.ones((20, 4), np.float32)
    corpus[13, 2] = corpus[17, 0] = bad
    with pytest.raises(ValueError, match="corpus row 13 holds values that are not finite"):
        topk_search(ONES, corpus, 2, metric=metric, corpus_chunk=6)
    with pytest.raises(ValueError, match="queries must be finite, and not too large to compare; row 13 is not"):
        topk_search(corpus, ONES, 2, metric=metric)


@pytest.mark.parametrize(
    ("message", "arguments", "options"),
    [
        (r"of one D; got \(3, 4\) and \(3, 5\)", (ONES, np.ones((3, 5)), 1), {}),
        (r"of one D; got \(4,\) and \(3, 4\)", (ONES[0], ONES, 1), {}),
        ("corpus must not be empty", (ONES, ONES[:0], 1), {}),
        ("k must be at least 1; got 0", (ONES, ONES, 0), {}),
        ("corpus_chunk must be at least 1; got 0", (ONES, ONES, 1), {"corpus_chunk": 0}),
        ("'euclidean'.*; got 'manhattan'", (ONES, ONES, 1), {"metric": "manhattan"}),
        ("corpus must be of a float type; got int8", (ONES, ONES.astype(np.int8), 1), {}),
        (r"integers \[Q, E\] with Q = 3; got int64 \(3,\)", (ONES, ONES, 1), {"exclude_ids": np.arange(3)}),
        ("corpus_axis needs a mesh; got 'data'", (ONES, ONES, 1), {"corpus_axis": "data"}),
    ],
)
def test_bad_arguments_are_named(message, arguments, options):
    with pytest.raises(ValueError, match=message):
        topk_search(*arguments, **options)


def test_an_excluded_id_beyond_32_bits_excludes_nothing():
    queries, corpus = with_ties(2, 5)
    beyond = np.array([[2**32], [-5]])
    expected = topk_search(queries, corpus, 5, metric="dot")
    np.testing.assert_array_equal(topk_search(queries, corpus, 5, metric="dot", exclude_ids=beyond)[1], expected[1])


def test_rows_that_fill_a_chunk_up_are_no_farther_than_others():
    """Zeros would be, of vectors that lie together far from 0, and all differences would be taken."""
    np.testing.assert_array_equal(exact._padded(np.array([[1.0], [7.0]]), 4), [[1], [7], [7], [7]])


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("query", "queries must be finite, and not too large to compare; row 1 is not"),
        ("corpus", "corpus row 1 holds values that are not finite, or too large to compare"),
    ],
)
def test_vectors_whose_squares_overflow_have_no_cosine(which, message):
    small, large = np.ones((3, 4), np.float32), np.ones((3, 4), np.float32)
    large[1] = 1e20
    queries, corpus = (large, small) if which == "query" else (small, large)
    with pytest.raises(ValueError, match=message):
        topk_search(queries, corpus, 2)
