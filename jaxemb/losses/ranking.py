"""Losses of a reranker: the scores that a cross-encoder gives a query's documents, against their relevance.

All but `cross_entropy` and `multiple_negatives` are called as `loss(scores, labels, mask)`:

- scores `[N, L]`: of the L documents of each of N queries, raw (logits);
- labels `[N, L]`: how relevant the documents are, larger is more;
- mask, bool `[N, L]`: False where a list is shorter than L. What stands there, be it NaN, touches neither value nor
  gradient. None means that all lists have L documents. A NaN elsewhere gives NaN, also where it is only compared.

Each returns f32 `[N]`, one value per query, whose mean is the value of the class of the same name among
sentence-transformers' cross-encoder losses. Where that is a mean over the documents or the pairs of the whole batch, a
query counts by how many it has. A query without documents, or without pairs to compare, has loss 0 and gradient 0.

A teacher's scores are distilled by `mse` and `list_net`, or by `margin_mse_scores` and `distill_kl_scores`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxemb.checks import checked, non_negative, positive, shapes, size
from jaxemb.losses.program import one_program
from jaxemb.nn.classes import check_labels, check_shares, one_hot

Weighting = Callable[[jax.Array, jax.Array], jax.Array]

_ABSENT = -1e30  # the score of an absent document: finite, and exp(it - any score) is 0


# Documents one by one


def _present_are_shares(given: Mapping[str, Any]) -> None:
    """Raises a ValueError unless the labels of documents that are present, outside of traced code, are in 0..1."""
    labels, mask = given["labels"], given.get("mask")
    if isinstance(labels, jax.core.Tracer) or isinstance(mask, jax.core.Tracer):
        return
    is_masked = mask is not None and np.shape(mask) == np.shape(labels)
    check_shares("labels", np.asarray(labels)[np.asarray(mask, bool)] if is_masked else labels)


@one_program(_present_are_shares, positive_weight=non_negative)
def bce(
    scores: jax.Array,
    labels: jax.Array,
    mask: jax.Array | None = None,
    *,
    positive_weight: float | jax.Array = 1.0,
) -> jax.Array:
    """Binary cross-entropy, `-(w y log sigmoid(s) + (1 - y) log sigmoid(-s))`, the mean over documents.

    Args:
      scores, labels, mask: see the module; labels in 0..1 where `mask` is True.
      positive_weight: w >= 0; the number of negatives per positive balances them.

    Raises:
      ValueError: for shapes that do not fit, labels outside 0..1 or a weight < 0.
    """
    scores, labels, mask = _lists(scores, labels, mask)
    terms = positive_weight * labels * jax.nn.softplus(-scores) + (1 - labels) * jax.nn.softplus(scores)
    return _mean(terms, mask)


@one_program()
def mse(scores: jax.Array, labels: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """`(s - y)^2`, the mean over documents: distils a teacher's scores.

    Raises:
      ValueError: for shapes that do not fit.
    """
    scores, labels, mask = _lists(scores, labels, mask)
    return _mean(jnp.square(scores - labels), mask)


# One positive document against others


def _index_is_a_document(given: Mapping[str, Any]) -> None:
    labels, scores = given["labels"], given["scores"]
    if jnp.ndim(labels) == 1 and jnp.issubdtype(jnp.asarray(labels).dtype, jnp.integer):
        check_labels(labels, jnp.shape(scores)[-1])


@one_program(_index_is_a_document)
def cross_entropy(scores: jax.Array, labels: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """`-sum_j y_j log softmax(s)_j`.

    Args:
      scores: of the documents, or of the classes of a classifier, `[N, L]`.
      labels: int `[N]`, the index of the right one; or float `[N, L]`, a distribution over them.
      mask: bool `[N, L]`; False leaves an entry out of the softmax.

    Raises:
      ValueError: for shapes that do not fit; outside of traced code for an index outside 0..L-1, which has NaN there.
    """
    labels = jnp.asarray(labels)
    if jnp.issubdtype(labels.dtype, jnp.integer) and labels.shape == scores.shape[:1]:
        labels = one_hot(labels, scores.shape[-1])
    scores, labels, mask = _lists(scores, labels, mask)
    return -jnp.sum(labels * _log_softmax(scores, mask), axis=1)


@one_program(temperature=positive)
def multiple_negatives(
    scores: jax.Array,
    mask: jax.Array | None = None,
    *,
    temperature: float | jax.Array = 0.1,
    activation: Callable[[jax.Array], jax.Array] = jax.nn.sigmoid,
) -> jax.Array:
    """Cross-entropy of the first document against the others of its list: `-log softmax(a(s) / temperature)_0`.

    The others are hard negatives, or documents of other queries, such as those of `random_negatives`.

    Args:
      scores: the positive document first, `[N, L]`.
      mask: bool `[N, L]`; without its positive a list counts for nothing.
      temperature: > 0; the inverse of sentence-transformers' `scale`.
      activation: a; bounds the scores.

    Raises:
      ValueError: for shapes that do not fit or a temperature <= 0.
    """
    scores, _, mask = _lists(scores, scores, mask)
    return -_log_softmax(activation(scores) / temperature, mask)[:, 0]


@one_program(n=size)
def random_negatives(key: jax.Array, n: int, count: int = 4, *, columns: int = 1) -> jax.Array:
    """For each of N queries, documents of other queries, drawn without replacement.

    Args:
      key: a random key.
      n: N, the queries of the batch.
      count: how many to draw; if there are fewer, all are taken.
      columns: documents per query; those of column k have the indices k N .. k N + N - 1.

    Returns:
      Indices, int32 `[N, min(count, (N - 1) columns)]`.

    Raises:
      ValueError: for a count or a number of columns < 1.
    """
    if count < 1 or columns < 1:
        raise ValueError(f"count and columns must be at least 1; got {count} and {columns}")
    own = jnp.arange(n * columns)[None, :] % n == jnp.arange(n)[:, None]
    order = jnp.where(own, -1.0, jax.random.uniform(key, own.shape))
    return jax.lax.top_k(order, min(count, (n - 1) * columns))[1].astype(jnp.int32)


# Whole lists


@one_program()
def list_net(scores: jax.Array, labels: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """`-sum_j softmax(y)_j log softmax(s)_j`: ListNet with top-one probabilities.

    Raises:
      ValueError: for shapes that do not fit.

    References:
      Cao et al. 2007, Learning to Rank: From Pairwise Approach to Listwise Approach (ICML).
    """
    scores, labels, mask = _lists(scores, labels, mask)
    target = jnp.where(mask, jnp.exp(_log_softmax(labels, mask)), 0.0)
    return -jnp.sum(target * _log_softmax(scores, mask), axis=1)


@one_program()
def list_mle(scores: jax.Array, labels: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Minus the Plackett-Luce log-likelihood of the order of the labels:

        -sum_r [s_(r) - log sum_{q >= r} exp(s_(q))]

    with document (r) in place r by label, largest first; equal labels stay in the order of the list.

    Raises:
      ValueError: for shapes that do not fit.

    References:
      Xia et al. 2008, Listwise Approach to Learning to Rank: Theory and Algorithm.
    """
    log_likelihoods, _ = _plackett_luce(*_lists(scores, labels, mask))
    return -log_likelihoods.sum(axis=1)


@one_program()
def p_list_mle(scores: jax.Array, labels: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Position-aware ListMLE: the terms r = 1..n of `list_mle` weighted by `2^(n - r) - 1`, scaled to sum 1.

    A list of one document has loss 0.

    Raises:
      ValueError: for shapes that do not fit.

    References:
      Lan et al. 2014, Position-Aware ListMLE: A Sequential Learning Process for Ranking.
    """
    log_likelihoods, count = _plackett_luce(*_lists(scores, labels, mask))
    place = jnp.arange(1.0, scores.shape[1] + 1)
    weights = jnp.maximum(jnp.exp2(-place) - jnp.exp2(-count), 0.0)  # times 2^n, which would overflow
    return -jnp.sum(weights * log_likelihoods, axis=1) / jnp.maximum(weights.sum(axis=1), jnp.finfo(jnp.float32).tiny)


@one_program(temperature=positive)
def adr_mse(
    scores: jax.Array, labels: jax.Array, mask: jax.Array | None = None, *, temperature: float | jax.Array = 1.0
) -> jax.Array:
    """Approximate discounted rank MSE, `(r_i - rhat_i)^2 / log2(r_i + 1)`, the mean over documents.

    `r_i` is the rank by label, 1 the best, with equal labels sharing their mean rank, and
    `rhat_i = 1 + sum_{j != i} sigmoid((s_j - s_i) / temperature)` the smooth rank by score.

    Args:
      scores, labels, mask: see the module.
      temperature: > 0; the inverse of sentence-transformers' `alpha`. Smaller is closer to ranks, with gradients in
        fewer places.

    Raises:
      ValueError: for shapes that do not fit or a temperature <= 0.

    References:
      Schlatt et al. 2024, Rank-DistiLLM, https://arxiv.org/abs/2405.07920; Qin et al. 2010 (ApproxRank).
    """
    scores, labels, mask = _lists(scores, labels, mask)
    others = mask[:, None, :] & ~jnp.eye(scores.shape[1], dtype=bool)
    label_differences = labels[:, None, :] - labels[:, :, None]  # y_j - y_i
    ahead = (label_differences > 0) + 0.5 * (label_differences == 0)
    ranks = 1 + jnp.sum(jnp.where(others, ahead, 0.0), axis=2)
    smooth_ahead = jax.nn.sigmoid((scores[:, None, :] - scores[:, :, None]) / temperature)
    smooth_ranks = 1 + jnp.sum(jnp.where(others, smooth_ahead, 0.0), axis=2)
    return _mean(jnp.square(ranks - smooth_ranks) / jnp.log2(ranks + 1), mask)


# Pairs of a list


@checked(shapes(gains="N L", discounts="L"))
def ndcg_loss1(gains: jax.Array, discounts: jax.Array) -> jax.Array:
    """`G_i / D_i`, for all pairs of documents: a loose bound of NDCG (NDCG-Loss1)."""
    return (gains / discounts)[:, :, None]


@checked(shapes(gains="N L", discounts="L"))
def ndcg_loss2(gains: jax.Array, discounts: jax.Array) -> jax.Array:
    """`|1 / D_|i-j| - 1 / D_(|i-j|+1)| |G_i - G_j|`: a tighter bound (NDCG-Loss2)."""
    place = jnp.arange(discounts.shape[0])
    distance = jnp.abs(place[:, None] - place[None, :])
    steps = 1 / discounts[distance - 1] - 1 / discounts[distance]
    return jnp.where(distance > 0, steps, 0.0) * _differences(gains)


@checked(shapes(gains="N L", discounts="L"))
def lambda_rank(gains: jax.Array, discounts: jax.Array) -> jax.Array:
    """`|1 / D_i - 1 / D_j| |G_i - G_j|`: the change of NDCG when i and j swap places."""
    return _differences(1 / discounts[None]) * _differences(gains)


@checked(shapes(gains="N L", discounts="L"), mu=non_negative)
def ndcg_loss2pp(gains: jax.Array, discounts: jax.Array, *, mu: float = 10.0) -> jax.Array:
    """`lambda_rank + mu ndcg_loss2`: NDCG-Loss2++."""
    return lambda_rank(gains, discounts) + mu * ndcg_loss2(gains, discounts)


WEIGHTINGS: Mapping[str, Weighting] = {
    "none": lambda gains, discounts: jnp.ones(()),
    "ndcg_loss1": ndcg_loss1,
    "ndcg_loss2": ndcg_loss2,
    "lambda_rank": lambda_rank,
    "ndcg_loss2pp": ndcg_loss2pp,
}


@one_program(sigma=positive)
def rank_net(
    scores: jax.Array,
    labels: jax.Array,
    mask: jax.Array | None = None,
    *,
    k: int | None = None,
    sigma: float = 1.0,
    log: Literal["binary", "natural"] = "binary",
) -> jax.Array:
    """`-log sigmoid(sigma (s_i - s_j))`, the mean over all pairs with `y_i > y_j`: `lambda_loss` without weights.

    Raises:
      ValueError: as `lambda_loss`.

    References:
      Burges et al. 2005, Learning to Rank using Gradient Descent (with the natural logarithm).
    """
    return lambda_loss(scores, labels, mask, weighting="none", k=k, sigma=sigma, log=log)


@one_program(sigma=positive)
def lambda_loss(
    scores: jax.Array,
    labels: jax.Array,
    mask: jax.Array | None = None,
    *,
    weighting: str | Weighting = "ndcg_loss2pp",
    k: int | None = None,
    sigma: float = 1.0,
    log: Literal["binary", "natural"] = "binary",
) -> jax.Array:
    """LambdaLoss: wrongly ordered pairs, weighted by what they cost in NDCG.

        -w_ij log sigmoid(sigma (s_i - s_j)), the mean over all pairs with y_i > y_j

    w is computed from `G_i = (2^y_i - 1) / maxDCG@k` (labels below 0 count as 0) and the discount `D_r = log2(1 + r)`
    of the place r that a document has by score; no gradient flows through places.

    Args:
      scores, labels, mask: see the module.
      weighting: "ndcg_loss2pp", "ndcg_loss2", "ndcg_loss1", "lambda_rank" or "none"; or a function of gains `[N, L]`
        (by place, best score first) and discounts `[L]` that gives weights `[N, L, L]`, such as
        `functools.partial(ndcg_loss2pp, mu=5.0)`. `ndcg_loss1` counts all pairs, whatever their labels.
      k: only pairs with a document among the first k by score, and NDCG@k; None takes all.
      sigma: > 0.
      log: the logarithm's base is 2 ("binary", as in the paper) or e ("natural").

    Raises:
      ValueError: for shapes that do not fit, an unknown weighting or logarithm, k < 1 or sigma <= 0.

    References:
      Wang et al. 2018, The LambdaLoss Framework for Ranking Metric Optimization (CIKM).
    """
    if k is not None and k < 1:
        raise ValueError(f"k must be at least 1 or None; got {k}")
    if log not in ("binary", "natural"):
        raise ValueError(f"log must be 'binary' or 'natural'; got {log!r}")
    if not callable(weighting):
        if weighting not in WEIGHTINGS:
            raise ValueError(f"weighting must be one of {sorted(WEIGHTINGS)} or a function; got {weighting!r}")
        weighting = WEIGHTINGS[weighting]
    scores, labels, mask = _lists(scores, labels, mask)
    k = scores.shape[1] if k is None else k
    by_score, labels, present = _ordered(jnp.where(mask, scores, _ABSENT), scores, labels, mask)

    place = jnp.arange(scores.shape[1])
    discounts = jnp.log2(place + 2.0)
    relevance = jnp.where(present, jnp.exp2(jnp.maximum(labels, 0.0)) - 1, 0.0)
    best = -jnp.sort(-relevance, axis=1) / discounts
    gains = relevance / jnp.maximum(best[:, :k].sum(axis=1, keepdims=True), 1e-10)
    weights = jax.lax.stop_gradient(weighting(gains, discounts))

    compared = present[:, :, None] & present[:, None, :] & ((place[:, None] < k) | (place[None, :] < k))
    if weighting is not ndcg_loss1:
        compared &= ~(labels[:, :, None] <= labels[:, None, :])  # of a NaN, too
    losses = weights * jax.nn.softplus(-sigma * (by_score[:, :, None] - by_score[:, None, :]))
    losses = losses / math.log(2) if log == "binary" else losses
    return _mean(losses, compared)


def _lists(scores, labels, mask) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scores, labels (f32) and mask (bool), `[N, L]` each, with zeros where a list has ended.

    A document whose label is NaN has the score NaN: the order of labels would hide it.
    """
    scores, labels = jnp.asarray(scores), jax.lax.stop_gradient(jnp.asarray(labels))
    if scores.ndim != 2 or labels.shape != scores.shape:
        raise ValueError(f"scores and labels must both be [N, L]; got {scores.shape} and {labels.shape}")
    mask = jnp.ones(scores.shape, bool) if mask is None else jnp.asarray(mask, bool)
    if mask.shape != scores.shape:
        raise ValueError(f"mask must be [N, L] = {scores.shape}; got {mask.shape}")
    present = lambda x: jnp.where(mask, x.astype(jnp.promote_types(x.dtype, jnp.float32)), 0.0)
    scores, labels = present(scores), present(labels)
    return scores + jnp.where(jnp.isnan(labels), jnp.nan, 0.0), labels, mask


def _mean(terms: jax.Array, mask: jax.Array) -> jax.Array:
    """`[N, ...]` to `[N]`: the sums of each query's present terms, scaled so that their mean is that of all terms."""
    axes = tuple(range(1, terms.ndim))
    total = jnp.maximum(mask.sum(), 1)
    return jnp.where(mask, terms, 0.0).sum(axis=axes) * (terms.shape[0] / total)


def _log_softmax(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """`log softmax` over the present documents; 0 for the absent ones."""
    return jnp.where(mask, jax.nn.log_softmax(jnp.where(mask, scores, _ABSENT), axis=1), 0.0)


def _ordered(by: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The arrays' entries by decreasing `by`, row by row; equal ones stay in their order."""
    order = jnp.argsort(-jax.lax.stop_gradient(by), axis=1, stable=True)
    return tuple(jnp.take_along_axis(array, order, axis=1) for array in arrays)


def _plackett_luce(scores, labels, mask) -> tuple[jax.Array, jax.Array]:
    """The log-probabilities of each place's document among those left, `[N, L]`, and the list lengths `[N, 1]`."""
    scores, present = _ordered(jnp.where(mask, labels, -jnp.inf), scores, mask)
    left = jax.lax.cumlogsumexp(jnp.where(present, scores, _ABSENT), axis=1, reverse=True)
    return jnp.where(present, scores - left, 0.0), mask.sum(axis=1, keepdims=True)


def _differences(x: jax.Array) -> jax.Array:
    """`|x_i - x_j|`, `[N, L]` to `[N, L, L]`."""
    return jnp.abs(x[:, :, None] - x[:, None, :])
