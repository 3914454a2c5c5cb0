"""Masks: what the rules mask, alone and combined, as a matrix and inside the losses."""

import functools

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from compiled import grad, value_and_grad
from hypothesis import given

from jaxemb import losses
from jaxemb.losses import info_nce, masks


@functools.partial(jax.jit, static_argnums=1)
def matrix(mask, side, similarity, positive):
    flat = lambda x: x.reshape(-1, *x.shape[2:])
    column = mask.query if side == "queries" else jax.tree.map(flat, mask.document)
    return mask.rule(masks.Pairs(mask.record, mask.query, column, similarity, positive))


def masked(mask, side="candidates", similarity=None, positive=None):
    """The matrix of a mask, rows = queries; candidates record by record."""
    n = jax.tree.leaves(mask.record)[0].shape[0] if similarity is None else len(similarity)
    similarity = np.zeros((n, n)) if similarity is None else similarity
    return np.asarray(matrix(mask, side, similarity, np.zeros(n) if positive is None else positive))


def test_duplicates_masks_what_the_batch_knows_to_be_relevant():
    # records 0 and 2 ask the same; records 1 and 3 have the same document; hard negative 0 of record 3 is document 0
    mask = masks.duplicates(np.array([7, 8, 7, 9]), np.array([1, 2, 3, 2]), np.array([[4], [5], [6], [1]]))
    expected = np.zeros((4, 4, 2), bool)
    expected[[0, 2], [0, 2], 0] = expected[[0, 2], [2, 0], 0] = True
    expected[[1, 3], [1, 3], 0] = expected[[1, 3], [3, 1], 0] = True
    expected[[0, 2], 3, 1] = True
    np.testing.assert_array_equal(masked(mask), expected.reshape(4, 8))
    queries = np.eye(4, dtype=bool)
    queries[[0, 2, 1, 3], [2, 0, 3, 1]] = True  # the same query, or a query with the same document
    np.testing.assert_array_equal(masked(mask, "queries"), queries)


def test_known_positives_are_masked_in_every_column():
    known = np.array([[5, -1], [-1, -1], [1, 4]])
    mask = masks.duplicates(np.array([10, 11, 12]), np.array([1, 2, 3]), np.array([4, 5, 6]), known=known)
    expected = np.array([[1, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0], [1, 1, 0, 0, 1, 0]], bool)
    np.testing.assert_array_equal(masked(mask), expected)


ids = st.lists(st.tuples(st.integers(0, 3), st.integers(4, 8), st.integers(4, 8)), min_size=6, max_size=6)


@given(ids)
def test_duplicates_against_the_definition(records):
    queries, documents, negatives = (np.array(x) for x in zip(*records, strict=True))
    found = masked(masks.duplicates(queries, documents, negatives, per_query=6)).reshape(6, 6, 2)
    for i in range(6):
        relevant = {documents[j] for j in range(6) if queries[j] == queries[i]} | {queries[i]}
        for j in range(6):
            assert found[i, j, 0] == (documents[j] in relevant or queries[j] == queries[i])
            assert found[i, j, 1] == (negatives[j] in relevant)


def test_same_label():
    mask = masks.same_label(np.array([0, 1, 0]), np.array([[1, -1], [0, 0], [2, 2]]))
    expected = [[1, 0, 0, 0, 1, 1, 1, 0, 0], [0, 1, 0, 1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 1, 1, 1, 0, 0]]
    np.testing.assert_array_equal(masked(mask), np.array(expected, bool))


def circle(*degrees):
    return np.stack([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))], axis=1).astype(np.float32)


@pytest.mark.parametrize(
    ("margin", "strategy", "expected"),
    [  # own cosines: cos 40 = .766 and cos 100 = -.174; others: cos 5 = .996 and cos 65 = .423
        (0.0, "absolute", [[0, 1], [1, 0]]),
        (0.3, "absolute", [[1, 1], [1, 1]]),
        (0.3, "relative", [[1, 1], [1, 1]]),  # |t| margin: the threshold of record 1 falls to -.226, it does not rise
    ],
)
def test_guide_masks_what_it_finds_closer(margin, strategy, expected):
    mask = masks.guided(3 * circle(0, 105), circle(40, 5), margin=margin, strategy=strategy)
    np.testing.assert_array_equal(masked(mask), np.array(expected, bool))


def test_thresholds_look_at_the_models_similarities():
    similarity, positive = np.array([[0.5, 0.61], [-0.1, -0.2]]), np.array([0.5, -0.2])
    np.testing.assert_array_equal(masked(masks.near_positive(0.1), "queries", similarity, positive), [[0, 1], [0, 0]])
    relative = masks.near_positive(0.1, "relative")  # more than .55, more than -.18
    np.testing.assert_array_equal(masked(relative, "queries", similarity, positive), [[0, 1], [1, 0]])
    np.testing.assert_array_equal(masked(masks.above(0.0), "queries", similarity, positive), [[1, 1], [0, 0]])


def test_algebra():
    a, b = masks.same_label(np.array([0, 0, 1, 1])), masks.same_label(np.array([0, 1, 0, 1]))
    np.testing.assert_array_equal(masked(a | b), masked(a) | masked(b))
    np.testing.assert_array_equal(masked(a & b), masked(a) & masked(b))
    np.testing.assert_array_equal(masked(~a & (a | b)), ~masked(a) & masked(b))


@pytest.mark.parametrize("tile", [2, 100])
def test_masks_and_their_matrix_give_the_same_loss_and_gradient(tile):
    rng = np.random.default_rng(0)
    q, d, hard, guide_q, guide_d, guide_hard = rng.standard_normal((6, 5, 4), np.float32)
    labels, negative_labels = np.array([0, 1, 0, 2, 1]), np.array([1, 0, 2, 2, 0])
    mask = masks.same_label(labels, negative_labels) | masks.guided(guide_q, guide_d, guide_hard)
    allowed = ~masked(mask).reshape(5, 5, 2).transpose(0, 2, 1).reshape(5, 10)
    assert 0 < allowed.sum() < 45
    loss = lambda mask: value_and_grad(lambda q, d, h: info_nce(q, d, h, mask=mask, tile=tile).mean(), (0, 1, 2))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), loss(mask)(q, d, hard), loss(allowed)(q, d, hard)
    )


@pytest.mark.parametrize("direction", ["d2q", "q2q", "d2d", "p2p"])
def test_a_mask_of_everything_leaves_the_positive_alone(direction):
    q, d = np.random.default_rng(1).standard_normal((2, 5, 4), np.float32)
    everything = masks.same_label(np.zeros(5, np.int32))
    losses, gradient = value_and_grad(lambda q: info_nce(q, d, mask=everything, directions=("q2d", direction)).sum())(q)
    # d2q holds the positive a second time
    np.testing.assert_allclose(losses, 5 * np.log(2) if direction == "d2q" else 0.0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


@pytest.mark.parametrize("loss", [info_nce, losses.decoupled_contrastive, losses.hard_negative_nce, losses.siglip])
def test_a_number_that_a_guide_lacks_is_hidden_by_no_loss(loss):
    q, d, guide_q, guide_d = np.random.default_rng(3).standard_normal((4, 5, 4), np.float32)
    guide_d[2, 1] = np.nan
    mask = masks.same_label(np.arange(5)) | ~masks.guided(guide_q, guide_d)
    assert np.isnan(loss(q, d, mask=mask)).all()


def test_a_guide_gets_no_gradient():
    q, d, guide_q, guide_d = np.random.default_rng(2).standard_normal((4, 5, 4), np.float32)
    loss = lambda a, b: info_nce(q, d, mask=masks.guided(a, b, margin=0.1)).mean()
    for gradient in grad(loss, (0, 1))(guide_q, guide_d):
        np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: masks.duplicates(np.arange(3), np.arange(4)),
            r"document_ids must be \[N\] with N = 3 as in query_ids",
        ),
        (
            lambda: masks.duplicates(np.arange(3), np.arange(3), np.zeros((4, 1))),
            r"negative_ids must be \[N, K\] or \[N\] with N = 3",
        ),
        (lambda: masks.duplicates(np.arange(3), np.arange(3), per_query=0), "per_query must be at least 1; got 0"),
        (
            lambda: masks.duplicates(np.arange(3), np.arange(3), known=np.arange(3)),
            r"known must be \[N, P\] with N = 3",
        ),
        (
            lambda: masks.guided(np.ones((3, 2)), np.ones((3, 3))),
            r"documents must be .* N = 3, D = 2 as in queries",
        ),
        (lambda: masks.guided(np.ones((3, 2)), np.ones((3, 2)), margin=-0.1), "margin must be >= 0; got -0.1"),
        (lambda: masks.near_positive(strategy="ratio"), "strategy must be 'absolute' or 'relative'; got 'ratio'"),
        (lambda: masks.dense(np.ones((3, 4), bool)), r"allowed must be \[N, N \(1 \+ K\)\]"),
        (
            lambda: info_nce(np.ones((3, 2)), np.ones((3, 2)), np.ones((3, 2)), mask=masks.same_label(np.arange(3))),
            r"each document must begin with \(3, 2\), for 3 records of 1 hard negatives each; got shape \(3, 1\)",
        ),
        (
            lambda: info_nce(np.ones((3, 2)), np.ones((3, 2)), mask=masks.same_label(np.arange(4))),
            r"facts of each record must begin with \(3,\)",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_negatives_of_other_records_are_off_for_some():
    """The worked numbers of NV-Embed's two stages, and records of both kinds in one batch."""
    queries, documents = np.eye(2, dtype=np.float32), np.float32([[1, 0], [0.6, 0.8]])
    negatives = np.float32([[0, 1], [1, 0]])
    loss = lambda *options, **more: info_nce(
        queries, documents, negatives, temperature=1.0, mask=masks.other_records(*options, 1, **more)
    )
    first, second = [1.111265, 1.137852], [0.313262, 0.371101]
    np.testing.assert_allclose(info_nce(queries, documents, negatives, temperature=1.0), first, atol=1e-6)
    np.testing.assert_allclose(loss(np.ones(2, bool)), second, atol=1e-6)
    np.testing.assert_allclose(loss(np.array([True, False])), [second[0], first[1]], atol=1e-6)
    np.testing.assert_allclose(loss(np.ones(2, bool), documents=False), [0.712067, 0.641147], atol=1e-6)


def test_without_others_records_of_one_class_do_not_push_each_other_apart():
    """The mechanism of NV-Embed's second stage: two queries of one class, whose documents are the same."""
    queries = np.float32([[1, 0.2], [1, -0.2]])
    documents, negatives = np.float32([[1, 0.1], [1, -0.1]]), np.float32([[0, 1], [0, -1]])
    of = lambda mask: np.asarray(
        grad(lambda d: info_nce(queries, d, negatives, mask=mask)[0])(documents)
    )  # the first record's loss
    alone, together = of(masks.other_records(np.ones(2, bool), 1)), of(None)
    assert not alone[1].any()
    assert together[1] @ (queries[0] - documents[1] * (queries[0] @ documents[1])) > 0  # a step is away from query 0
    assert np.abs(together[1]).max() > 1e-3
