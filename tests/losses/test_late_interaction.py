import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, value_and_grad
from hypothesis import given, settings
from scipy.special import softmax

from jaxemb.losses import info_nce, m3_unified, masks, maxsim, maxsim_candidates, maxsim_info_nce, xtr


def some_tokens(rng, n, length, dim=4):
    vectors = rng.standard_normal((n, length, dim)).astype(np.float32)
    return vectors, np.arange(length) < rng.integers(1, length + 1, n)[:, None]


def by_definition(queries, query_mask, documents, document_mask):
    scores = np.zeros((len(queries), len(documents)))
    for n, m in np.ndindex(*scores.shape):
        similarities = queries[n][query_mask[n]] @ documents[m][document_mask[m]].T
        scores[n, m] = similarities.max(axis=1).sum()
    return scores


@given(seed=st.integers(0, 2**31), tile=st.sampled_from([1, 3, 100]))
@settings(max_examples=6)
def test_equals_the_definition(seed, tile):
    rng = np.random.default_rng(seed)
    inputs = *some_tokens(rng, 3, 5), *some_tokens(rng, 7, 6)
    expected = by_definition(*inputs)
    np.testing.assert_allclose(maxsim(*inputs, tile=tile), expected, rtol=1e-4, atol=1e-5)
    mean = expected / inputs[1].sum(axis=1, keepdims=True)
    np.testing.assert_allclose(maxsim(*inputs, tile=tile, mean=True), mean, rtol=1e-4, atol=1e-5)


def test_a_document_of_negative_similarities_is_not_saved_by_its_padding():
    queries, documents = np.array([[[1.0, 0.0]]]), np.array([[[-0.5, 0.0], [0.0, 0.0]]])
    scores = maxsim(queries, np.ones((1, 1), bool), documents, np.array([[True, False]]))
    np.testing.assert_allclose(scores, [[-0.5]])


def test_candidates_are_the_blocks_of_all_pairs():
    rng = np.random.default_rng(0)
    queries, query_mask = some_tokens(rng, 3, 5)
    documents, document_mask = some_tokens(rng, 6, 4)
    all_pairs = maxsim(queries, query_mask, documents, document_mask)
    own = maxsim_candidates(queries, query_mask, documents.reshape(3, 2, 4, 4), document_mask.reshape(3, 2, 4))
    np.testing.assert_allclose(own, [all_pairs[n, 2 * n : 2 * n + 2] for n in range(3)], rtol=1e-5)


def test_one_token_per_text_is_the_inner_product():
    """Then `maxsim_info_nce` is `info_nce`, negatives and masks included."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 3, (4, 4))
    q, d = rng.standard_normal((2, 4, 8)).astype(np.float32)
    negatives = rng.standard_normal((4, 2, 8)).astype(np.float32)
    present = lambda x: np.ones(x.shape[:-1], bool)
    tokens = [q[:, None], d[:, None], negatives[:, :, None]]
    inputs = [a for x in tokens for a in (x, present(x))]
    related = masks.duplicates(ids[:, 0], ids[:, 1], ids[:, 2:]) | masks.near_positive(1.0)
    plain = maxsim_info_nce(*inputs, temperature=0.5)
    for mask in (None, rng.random((4, 12)) < 0.5, related):
        losses = maxsim_info_nce(*inputs, temperature=0.5, mask=mask)
        assert mask is None or np.all(losses < plain)
        expected = info_nce(q, d, negatives, temperature=0.5, similarity="dot", mask=mask)
        np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("score", [maxsim, xtr])
def test_texts_without_tokens_are_finite(score):
    rng = np.random.default_rng(0)
    queries, query_mask = some_tokens(rng, 2, 3)
    documents, document_mask = some_tokens(rng, 3, 4)
    query_mask[1] = document_mask[2] = False

    def total(queries, documents):
        scores = score(queries, query_mask, documents, document_mask)
        return jax.nn.log_softmax(scores, axis=1)[:, 0].sum(), scores

    (_, scores), gradients = value_and_grad(total, argnums=(0, 1), has_aux=True)(queries, documents)
    np.testing.assert_array_equal(scores[:, 2], -1e9)
    np.testing.assert_array_equal(scores[1, :2], 0.0)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    np.testing.assert_array_equal(gradients[0][1], 0.0)
    np.testing.assert_array_equal(gradients[1][2], 0.0)
    assert np.abs(gradients[1][0]).max() > 0


def test_half_precision_vectors_are_scored_in_f32():
    rng = np.random.default_rng(0)
    inputs = *some_tokens(rng, 2, 30), *some_tokens(rng, 2, 5)
    half = [x.astype(jnp.bfloat16) if x.dtype == np.float32 else x for x in inputs]
    exact = [np.asarray(x, np.float32) if x.dtype == jnp.bfloat16 else x for x in half]
    scores = maxsim(*half)
    assert scores.dtype == jnp.float32
    np.testing.assert_allclose(scores, by_definition(*exact), rtol=1e-5)


@pytest.mark.parametrize("score", [maxsim, xtr])
def test_memory_of_the_gradient_does_not_grow_with_the_number_of_pairs(score):
    n, length, dim = 32, 16, 8
    vectors = jax.ShapeDtypeStruct((n, length, dim), jnp.float32)
    mask = jax.ShapeDtypeStruct((n, length), jnp.bool)
    options = {"tile": 1} if score is maxsim else {"k": 4}
    gradient = jax.grad(lambda q, d, m: score(q, m, d, m, **options).sum(), argnums=(0, 1))
    memory = jax.jit(gradient).lower(vectors, vectors, mask).compile().memory_analysis().temp_size_in_bytes
    assert memory < 0.5 * (4 * n * n * length * length)


def test_xtr_scores_with_retrieved_tokens_alone():
    # The nearest token of either query token is in document 0, so that document 1 has no score; with three per query
    # token, document 1 is scored by the first one.
    queries = np.array([[[1.0, 0.0], [0.0, 1.0]]])
    documents = np.array([[[1.0, 0.0], [0.0, 1.0]], [[0.9, -0.4], [-1.0, -0.5]]])
    masks = np.ones((1, 2), bool), np.ones((2, 2), bool)
    np.testing.assert_allclose(xtr(queries, masks[0], documents, masks[1], k=1), [[1.0, 0.0]])
    np.testing.assert_allclose(xtr(queries, masks[0], documents, masks[1], k=2), [[1.0, 0.9]])
    np.testing.assert_allclose(xtr(queries, masks[0], documents, masks[1], k=4), [[1.0, (0.9 - 0.4) / 2]], rtol=1e-6)


def test_xtr_of_a_nan_is_nan():
    queries, documents = np.ones((2, 1, 2)), np.array([[[1.0, 0.0]], [[0.0, np.nan]]])
    scores = xtr(queries, np.ones((2, 1), bool), documents, np.ones((2, 1), bool), k=1)
    assert np.isnan(scores[:, 1]).all()
    queries[0, 0, 0] = np.nan
    assert np.isnan(xtr(queries, np.ones((2, 1), bool), documents, np.ones((2, 1), bool), k=1)[0]).all()


def test_m3_unified_by_hand():
    rng = np.random.default_rng(0)
    dense, sparse, multi = rng.standard_normal((3, 4, 8))

    def log_softmax(z):
        return z - np.log(np.exp(z).sum(axis=1, keepdims=True))

    own = lambda z: -np.diagonal(log_softmax(z))
    ensemble = dense + 0.3 * sparse + multi
    plain = (own(dense) + own(ensemble) + 0.1 * own(sparse) + own(multi)) / 4
    entropy = lambda z: -(np.exp(log_softmax(ensemble)) * log_softmax(z)).sum(axis=1)
    distilled = (plain + (entropy(dense) + 0.1 * entropy(sparse) + entropy(multi)) / 3) / 2
    heads = [z.astype(np.float32) for z in (dense, sparse, multi)]
    np.testing.assert_allclose(m3_unified(*heads, self_distill=False), plain, rtol=1e-5)
    np.testing.assert_allclose(m3_unified(*heads), distilled, rtol=1e-5)


def test_no_gradient_flows_through_the_teaching_ensemble():
    # What self-distillation adds to the gradient of the sparse head is that of its own cross-entropy alone.
    heads = np.random.default_rng(0).standard_normal((3, 4, 4), np.float32)
    gradient = lambda distill: grad(lambda s: m3_unified(heads[0], s, heads[2], self_distill=distill).sum())(heads[1])
    teacher = softmax(heads[0] + 0.3 * heads[1] + heads[2], axis=1)
    own = 0.1 * (softmax(heads[1], axis=1) - teacher) / 3
    np.testing.assert_allclose(gradient(True), (gradient(False) + own) / 2, atol=1e-6)


Q, M = np.ones((2, 3, 4)), np.ones((2, 3), bool)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (r"\[N, T, D\] with one D; got \(2, 3, 4\), \(2, 3, 2\)", lambda: maxsim(Q, M, Q[..., :2], M)),
        (r"query_mask must be \[N, T\] = \(2, 3\); got \(2, 2\)", lambda: maxsim(Q, M[:, :2], Q, M)),
        (r"document_mask must be \[M, T\] = \(2, 3\); got \(1, 3\)", lambda: xtr(Q, M, Q, M[:1])),
        (r"tile must be at least 1; got 0", lambda: maxsim(Q, M, Q, M, tile=0)),
        (r"k must be at least 1; got 0", lambda: xtr(Q, M, Q, M, k=0)),
        (r"candidates must be \[N, K, S, D\] with .*; got \(2, 3, 4\)", lambda: maxsim_candidates(Q, M, Q, M)),
        (r"temperature must be > 0; got 0", lambda: maxsim_info_nce(Q, M, Q, M, temperature=0)),
        (r"documents must be .* D = 4 as in queries; got \(1, 3, 4\)", lambda: maxsim_info_nce(Q, M, Q[:1], M[:1])),
        (r"negatives must be \[N, K, T, D\] with N = 2.*got \(2, 3, 4\)", lambda: maxsim_info_nce(Q, M, Q, M, Q, M)),
        (r"mask must be .* = \(2, 2\); got \(2, 3\)", lambda: maxsim_info_nce(Q, M, Q, M, mask=M)),
        (r"\[N, M\] with M >= N; got \(3, 2\), \(3, 2\) and \(3, 2\)", lambda: m3_unified(*[np.ones((3, 2))] * 3)),
        (
            r"loss_weights must be three numbers",
            lambda: m3_unified(*[np.ones((2, 2))] * 3, loss_weights=(1.0, 1.0)),
        ),
    ],
)
def test_bad_arguments_are_named(message, call):
    with pytest.raises(ValueError, match=message):
        call()
