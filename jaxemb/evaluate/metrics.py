"""Metrics as pure NumPy functions. Ranking metrics agree with trec_eval to the last digit.

A ranking metric takes `gains` `[..., R]`, the relevance levels of the retrieved documents from rank 1 on (0 for a
document without judgement), and where it needs them `judged` `[..., J]`, the levels of *all* judged documents of the
query; both may be padded with zeros. Levels below 0 count as 0; one that is not finite is refused. It returns one value
per query, `[...]`, in 0..1, and 0 for a query without relevant documents. Ranks past R hold nothing relevant.
"""

import warnings
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from jaxemb.checks import at_least, between, check_finite, checked, shapes, size

MapDenominator = Literal["relevant", "min_k_relevant"]
_ROUNDING = 1e-13  # of the largest of some values; scipy warns below it
_RANKED = shapes(gains="... R", judged="... J")


@checked()
def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson's correlation of `x` and `y` `[N]`, in -1..1; NaN, with a warning, where one of them is constant,
    but for rounding (1e-13).

    Raises:
      ValueError: fewer than two values, different lengths, or values that are not finite.
    """
    from scipy import stats

    x, y = _paired(x, y)
    return _undefined() if _is_constant(x) or _is_constant(y) else float(stats.pearsonr(x, y).statistic)


@checked()
def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson's correlation of the ranks of `x` and `y` `[N]`, equal values sharing their mean rank.

    Range, constants and errors as for `pearson`.

    >>> spearman([1, 2, 3], [10, 30, 20])
    0.5
    """
    from scipy import stats

    x, y = _paired(x, y)
    return _undefined() if _is_constant(x) or _is_constant(y) else float(stats.spearmanr(x, y).statistic)


@checked(_RANKED, gains=check_finite, judged=check_finite, k=at_least(1))
def ndcg_at_k(gains: ArrayLike, judged: ArrayLike, k: int) -> np.ndarray:
    """`DCG@k / ideal DCG@k` with `DCG@k = sum_{r <= k} gain_r / log2(r + 1)`; the ideal ranks all judged documents.

    >>> ndcg_at_k([[0, 1]], [[1]], k=10).round(4)  # the one relevant document, second: 1 / log2(3)
    array([0.6309])
    """
    ideal = -np.sort(-_levels(judged), axis=-1)
    return _ratio(_dcg(_levels(gains), k), _dcg(ideal, k))


@checked(_RANKED, gains=check_finite, judged=check_finite, k=at_least(1))
def average_precision_at_k(
    gains: ArrayLike, judged: ArrayLike, k: int | None = None, *, denominator: MapDenominator = "relevant"
) -> np.ndarray:
    """`sum_{r <= k, gain_r > 0} precision@r / denominator`; its mean is MAP@k.

    The denominator is the number of relevant documents as in trec_eval's `map_cut`, or, as in sentence-transformers,
    the lesser of that and k ("min_k_relevant"), which a ranking of k documents can reach. k = None takes every rank.

    Raises:
      ValueError: for an unknown denominator or k < 1.
    """
    if denominator not in ("relevant", "min_k_relevant"):
        raise ValueError(f"denominator must be 'relevant' or 'min_k_relevant'; got {denominator!r}")
    hits = _hits(gains, k)
    precision = np.cumsum(hits, axis=-1) / np.arange(1, hits.shape[-1] + 1)
    relevant = _n_relevant(judged)
    if denominator == "min_k_relevant" and k is not None:
        relevant = np.minimum(relevant, k)
    return _ratio((precision * hits).sum(-1), relevant)


@checked(shapes(gains="... R"), gains=check_finite, k=at_least(1))
def reciprocal_rank_at_k(gains: ArrayLike, k: int | None = None) -> np.ndarray:
    """`1 / rank` of the first relevant document within k, else 0; its mean is MRR@k.

    >>> reciprocal_rank_at_k([[0, 1, 0]], k=10)
    array([0.5])
    """
    hits = _hits(gains, k)
    return (hits / np.arange(1, hits.shape[-1] + 1)).max(-1, initial=0.0)


@checked(_RANKED, gains=check_finite, judged=check_finite, k=at_least(1))
def recall_at_k(gains: ArrayLike, judged: ArrayLike, k: int) -> np.ndarray:
    """Share of the relevant documents that are within the first k.

    >>> recall_at_k([[0, 1, 0]], [[1, 1]], k=3)  # one of two
    array([0.5])
    """
    return _ratio(_hits(gains, k).sum(-1), _n_relevant(judged))


@checked(shapes(gains="... R"), gains=check_finite, k=at_least(1))
def precision_at_k(gains: ArrayLike, k: int) -> np.ndarray:
    """Share of the first k ranks that hold a relevant document."""
    return np.asarray(_hits(gains, k).sum(-1) / k)


@checked(shapes(gains="... R"), gains=check_finite, k=at_least(1))
def success_at_k(gains: ArrayLike, k: int) -> np.ndarray:
    """1 if any of the first k documents is relevant, else 0 (sentence-transformers' accuracy@k)."""
    return np.asarray(_hits(gains, k).any(-1), np.float64)


@checked(shapes(values="N"))
def standard_error(values: ArrayLike) -> float:
    """Standard error of the mean of independent `values` `[N]`: `std / sqrt(N)`; nan for fewer than two."""
    values = np.asarray(values, np.float64)
    return float(values.std(ddof=1) / np.sqrt(values.size)) if values.size > 1 else float("nan")


@checked(values=check_finite, confidence=between(0, 1, "()"), resamples=size)
def bootstrap_interval(
    values: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` `[N]`, such as a metric per query.

    Raises:
      ValueError: fewer than two values or one that is not finite, a confidence outside (0, 1).
    """
    from scipy import stats

    values = np.asarray(values, np.float64)
    if values.ndim != 1 or values.size < 2:
        raise ValueError(f"values must be [N] with N >= 2; got {values.shape}")
    interval = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        batch=100,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _paired(x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 1 or x.shape != y.shape or x.size < 2:
        raise ValueError(f"x and y must both be [N] with N >= 2; got {x.shape} and {y.shape}")
    for name, values in (("x", x), ("y", y)):
        if not np.isfinite(values).all():
            bad = np.flatnonzero(~np.isfinite(values))
            raise ValueError(f"{name} must be finite; {bad.size} values are not, the first at index {bad[0]}")
    return x, y


def _is_constant(x: np.ndarray) -> bool:
    """Whether values differ by their rounding alone, as the cosines of texts with themselves do."""
    with np.errstate(over="ignore"):
        return bool(np.ptp(x) <= _ROUNDING * np.abs(x).max())


def _undefined() -> float:
    warnings.warn("a correlation with what is constant is undefined; it is nan", RuntimeWarning, stacklevel=4)
    return float("nan")


def _levels(gains: ArrayLike) -> np.ndarray:
    return np.maximum(np.asarray(gains, np.float64), 0.0)


def _hits(gains: ArrayLike, k: int | None) -> np.ndarray:
    return np.asarray(gains)[..., :k] > 0


def _n_relevant(judged: ArrayLike) -> np.ndarray:
    return (np.asarray(judged) > 0).sum(-1)


def _dcg(levels: np.ndarray, k: int) -> np.ndarray:
    levels = levels[..., :k]
    return (levels / np.log2(np.arange(2, levels.shape[-1] + 2))).sum(-1)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """`numerator / denominator`, 0 where the denominator is 0."""
    return np.where(denominator > 0, numerator / np.maximum(denominator, np.finfo(np.float64).tiny), 0.0)
