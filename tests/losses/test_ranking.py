import functools
import itertools
import math

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from scipy.special import expit

from jaxemb.losses import ranking

LISTWISE = {
    "bce": ranking.bce,
    "mse": ranking.mse,
    "list_net": ranking.list_net,
    "list_mle": ranking.list_mle,
    "p_list_mle": ranking.p_list_mle,
    "rank_net": ranking.rank_net,
    "adr_mse": ranking.adr_mse,
    **{name: functools.partial(ranking.lambda_loss, weighting=name) for name in ranking.WEIGHTINGS},
}
ALL = LISTWISE | {
    "cross_entropy": ranking.cross_entropy,
    "multiple_negatives": lambda scores, labels, mask=None: ranking.multiple_negatives(scores, mask),
}


@functools.cache
def value_and_gradient(name):
    """Of the losses `[N]`: (losses, gradient of their mean)."""

    def total(scores, labels, mask):
        losses = ALL[name](scores, labels, mask)
        return losses.mean(), losses

    return jax.jit(lambda *arrays: jax.value_and_grad(total, has_aux=True)(*arrays))


def evaluate(name, scores, labels, mask):
    (_, losses), gradient = value_and_gradient(name)(scores, labels, mask)
    return losses, gradient


def test_worked_examples():
    scores, labels = np.array([[1.0, 3.0, 2.0]]), np.array([[2.0, 0.0, 1.0]])
    exp = np.exp([1.0, 3.0, 2.0])
    log_probability = math.log(exp[0] / exp.sum()) + math.log(exp[2] / (exp[1] + exp[2]))
    np.testing.assert_allclose(ranking.list_mle(scores, labels)[0], -log_probability, rtol=1e-6)
    # Weights 2^2 - 1, 2^1 - 1 and 0, of sum 4.
    weighted = (3 * math.log(exp[0] / exp.sum()) + math.log(exp[2] / (exp[1] + exp[2]))) / 4
    np.testing.assert_allclose(ranking.p_list_mle(scores, labels)[0], -weighted, rtol=1e-6)
    pairs = [(0, 1), (0, 2), (2, 1)]
    rank_net = np.mean([math.log1p(math.exp(scores[0, j] - scores[0, i])) for i, j in pairs])
    np.testing.assert_allclose(ranking.rank_net(scores, labels, log="natural")[0], rank_net, rtol=1e-6)
    np.testing.assert_allclose(ranking.rank_net(scores, labels)[0], rank_net / math.log(2), rtol=1e-6)


def test_lambda_rank_by_hand():
    """By score the labels are 0, 1, 2: each pair weighs what swapping its documents would change of NDCG."""
    scores, labels = np.array([[1.0, 3.0, 2.0]]), np.array([[2.0, 0.0, 1.0]])
    discount = {0: math.log2(4), 1: math.log2(2), 2: math.log2(3)}  # by document: its place by score
    gain = {0: 3.0, 1: 0.0, 2: 1.0}
    best = 3 / math.log2(2) + 1 / math.log2(3)
    terms = [
        abs(gain[i] - gain[j]) / best * abs(1 / discount[i] - 1 / discount[j])
        * math.log2(1 + math.exp(scores[0, j] - scores[0, i]))
        for i, j in [(0, 1), (0, 2), (2, 1)]
    ]  # fmt: skip
    loss = ranking.lambda_loss(scores, labels, weighting="lambda_rank")
    np.testing.assert_allclose(loss[0], np.mean(terms), rtol=1e-5)


def test_adr_mse_shares_the_ranks_of_equal_labels():
    scores = np.array([[0.0, 0.0, 0.0]])
    # Smooth ranks are 2 for all; the first document has rank 1, the other two share 2.5.
    expected = np.mean([1 / math.log2(2), 0.25 / math.log2(3.5), 0.25 / math.log2(3.5)])
    np.testing.assert_allclose(ranking.adr_mse(scores, np.array([[1.0, 0.0, 0.0]]))[0], expected, rtol=1e-6)
    np.testing.assert_allclose(ranking.adr_mse(scores, np.zeros((1, 3)))[0], 0.0, atol=1e-6)


def test_plackett_luce_probabilities_of_all_orders_sum_to_one():
    scores = np.tile(np.array([0.3, -1.2, 2.0, 0.7]), (24, 1))
    labels = np.array(list(itertools.permutations(range(4))), jnp.float32)
    np.testing.assert_allclose(np.exp(-ranking.list_mle(scores, labels)).sum(), 1.0, rtol=1e-5)


def padded(scores, labels, mask):
    """The same four lists, filled up with garbage to seven documents."""
    width = 7 - mask.shape[1]
    garbage = np.tile(np.array([np.nan, np.inf, 7.0, -np.inf], np.float32)[:width], (4, 1))
    return *(np.concatenate([x, garbage], axis=1) for x in (scores, labels)), np.pad(mask, ((0, 0), (0, width)))


@pytest.mark.parametrize("name", ALL)
@given(seed=st.integers(0, 2**31))
@settings(max_examples=10)
def test_padding_changes_neither_value_nor_gradient(name, seed):
    rng = np.random.default_rng(seed)
    scores, labels = (rng.standard_normal((4, 4), np.float32) for _ in range(2))
    mask = np.ones((4, 4), bool)
    losses, gradient = evaluate(name, scores, labels, mask)
    assert losses.shape == (4,) and losses.dtype == jnp.float32
    padded_losses, padded_gradient = evaluate(name, *padded(scores, labels, mask))
    np.testing.assert_allclose(padded_losses, losses, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(padded_gradient[:, :4], gradient, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(padded_gradient[:, 4:], 0.0)


@pytest.mark.parametrize("name", LISTWISE)
@given(seed=st.integers(0, 2**31))
@settings(max_examples=10)
def test_the_order_of_a_list_does_not_matter(name, seed):
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((4, 7), np.float32)
    labels = rng.permuted(np.tile(np.arange(7, dtype=np.float32) / 6, (4, 1)), axis=1)
    mask = rng.random((4, 7)) < 0.7
    losses, gradient = evaluate(name, scores, labels, mask)
    order = rng.permutation(7)
    shuffled, shuffled_gradient = evaluate(name, scores[:, order], labels[:, order], mask[:, order])
    np.testing.assert_allclose(shuffled, losses, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(shuffled_gradient, gradient[:, order], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_empty_lists_and_extreme_scores_are_harmless(name):
    scores = np.array([[1e4, -1e4, 3e3], [0.0, 0.0, 0.0], [2.0, np.nan, np.nan], [np.nan] * 3], np.float32)
    labels = np.array([[0.0, 1.0, 0.5], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
    mask = np.array([[True] * 3, [True] * 3, [True, False, False], [False] * 3])
    scores, labels, mask = padded(scores, labels, mask)
    losses, gradient = evaluate(name, scores, labels, mask)
    assert np.isfinite(losses).all() and np.isfinite(gradient).all()
    assert losses[3] == 0.0
    np.testing.assert_array_equal(gradient[2:][~mask[2:]], 0.0)


@pytest.mark.parametrize("name", ["rank_net", "ndcg_loss2", "lambda_rank", "ndcg_loss2pp", "list_net", "list_mle"])
def test_descent_puts_documents_into_the_order_of_their_labels(name):
    labels = np.array([[0.0, 3.0, 1.0, 2.0]])
    gradient = jax.grad(lambda scores: ALL[name](scores, labels)[0])
    start = np.array([[0.9, 0.0, 0.3, 0.6]])
    scores = jax.jit(lambda start: jax.lax.fori_loop(0, 300, lambda _, s: s - 2 * gradient(s), start))(start)
    np.testing.assert_array_equal(np.argsort(scores[0]), [0, 2, 3, 1])


@pytest.mark.parametrize("name", [name for name in LISTWISE if name != "bce"])  # which refuses it
def test_a_label_or_score_that_is_nan_gives_nan(name):
    good = np.tile(np.array([[0.2, 0.8, 0.5]], np.float32), (4, 1))
    (bad := good.copy())[0, 0] = np.nan
    for scores, labels in [(good, bad), (bad, good)]:
        losses, gradient = evaluate(name, scores, labels, np.ones_like(good, bool))
        assert np.isnan(losses[0]) and np.isfinite(losses[1:]).all() and np.isnan(gradient[0]).any()


def test_a_cutoff_drops_the_pairs_below_it():
    scores, labels = np.array([[3.0, 2.0, 1.0, 0.0]]), np.array([[0.0, 1.0, 2.0, 3.0]])
    gradient = jax.jit(jax.grad(lambda s: ranking.rank_net(s, labels, k=1)[0]))(scores)[0]
    pairs = np.array([expit(scores[0, 0] - scores[0, i]) for i in (1, 2, 3)]) / 3 / math.log(2)
    np.testing.assert_allclose(gradient, np.array([pairs.sum(), *-pairs]), rtol=1e-5)


def test_long_lists_have_finite_position_weights():
    scores = np.linspace(0.0, 1.0, 400)[None]
    labels = -np.arange(400.0)[None]
    value, gradient = jax.jit(jax.value_and_grad(lambda s: ranking.p_list_mle(s, labels)[0]))(scores)
    assert np.isfinite(value) and np.isfinite(gradient).all() and value > 1


@pytest.mark.parametrize(("count", "columns", "drawn"), [(4, 1, 4), (100, 2, 12), (12, 2, 12)])
def test_random_negatives_belong_to_other_queries(count, columns, drawn):
    chosen = np.asarray(ranking.random_negatives(jax.random.key(0), 7, count, columns=columns))
    assert chosen.shape == (7, drawn) and chosen.min() >= 0 and chosen.max() < 7 * columns
    assert np.all(chosen % 7 != np.arange(7)[:, None])
    assert all(len(set(row)) == drawn for row in chosen)


def test_random_negatives_are_equally_likely():
    draw = jax.jit(jax.vmap(lambda key: ranking.random_negatives(key, 5, 2)))
    chosen = np.asarray(draw(jax.random.split(jax.random.key(1), 4000)))[:, 0]
    np.testing.assert_allclose(np.bincount(chosen.ravel(), minlength=5) / 4000, [0, 0.5, 0.5, 0.5, 0.5], atol=0.03)


ONES = np.ones((2, 3))


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (r"scores and labels must both be \[N, L\]; got \(2, 3\) and \(2, 2\)", lambda: ranking.bce(ONES, ONES[:, :2])),
        (r"both be \[N, L\]; got \(2, 3\) and \(2,\)", lambda: ranking.cross_entropy(ONES, np.ones(2))),
        (r"both be \[N, L\]; got \(3,\) and \(3,\)", lambda: ranking.list_net(ONES[0], ONES[0])),
        (r"mask must be \[N, L\] = \(2, 3\); got \(3,\)", lambda: ranking.list_mle(ONES, ONES, np.ones(3, bool))),
        (r"temperature must be > 0; got 0", lambda: ranking.multiple_negatives(ONES, temperature=0)),
        (r"temperature must be > 0; got -1", lambda: ranking.adr_mse(ONES, ONES, temperature=-1)),
        (r"sigma must be > 0; got 0", lambda: ranking.rank_net(ONES, ONES, sigma=0)),
        (r"k must be at least 1 or None; got 0", lambda: ranking.lambda_loss(ONES, ONES, k=0)),
        (r"log must be 'binary' or 'natural'; got 'e'", lambda: ranking.rank_net(ONES, ONES, log="e")),
        (r"weighting must be one of .*; got 'ndcg'", lambda: ranking.lambda_loss(ONES, ONES, weighting="ndcg")),
        (
            r"count and columns must be at least 1; got 0 and 1",
            lambda: ranking.random_negatives(jax.random.key(0), 3, 0),
        ),
    ],
)
def test_bad_arguments_are_named(message, call):
    with pytest.raises(ValueError, match=message):
        call()
