"""Whether one model is better than another over several data sets: paired tests, corrected for their number."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np
from scipy import stats

from jaxemb.checks import at_least, checked

Alternative = Literal["two-sided", "greater", "less"]
_ALTERNATIVES = ("two-sided", "greater", "less")


@dataclasses.dataclass(frozen=True)
class PairedTest:
    """What a paired test says of two models on the data sets of a category.

    Attributes:
      p: of the test.
      adjusted: p after Holm's correction for all categories that were tested together.
      statistic: W, the smaller of the sums of ranks of positive and of negative differences; one-sided, that of the
        positive ones.
      n: how many data sets.
      nonzero: on how many of them the models differ; the others tell nothing.
      least_p: the smallest p that so many differences can give, `2^-nonzero`, or two-sided twice that.
      effect: rank-biserial correlation, (positive ranks - negative ranks) / all ranks, in -1..1.
    """

    p: float
    adjusted: float
    statistic: float
    n: int
    nonzero: int
    least_p: float
    effect: float


@checked(decimals=at_least(0))
def paired_significance(
    first: Mapping[str, Mapping[str, float]],
    second: Mapping[str, Mapping[str, float]],
    *,
    alternative: Alternative = "two-sided",
    decimals: int = 6,
    level: float = 0.05,
    allow_underpowered: bool = False,
) -> dict[str, PairedTest]:
    """Wilcoxon's signed-rank test of each category's scores, paired by data set, with Holm's correction.

    Scores are rounded before they are subtracted, so that differences that are the same tie: 84.2 - 83.9 and
    80.2 - 79.9 are two numbers in binary. p is exact for up to 50 differences without ties or zeros; else that of the
    normal approximation. Data sets that share texts or ways of making are not independent, so that p is too small.

    >>> scores = {"STS": {"12": 0.7, "13": 0.8, "14": 0.7, "15": 0.8, "16": 0.7, "B": 0.8}}
    >>> worse = {"STS": {"12": 0.6, "13": 0.6, "14": 0.4, "15": 0.4, "16": 0.2, "B": 0.2}}
    >>> paired_significance(scores, worse)["STS"].p
    0.03125

    Args:
      first, second: by category and data set, the models' scores.
      alternative: what is tested for: "two-sided", or that the first model's scores are "greater", or "less".
      decimals: to which scores are rounded.
      level: that p is to be compared with.
      allow_underpowered: take categories with so few data sets that p cannot be below `level`: five or fewer for
        0.05.

    Raises:
      ValueError: for categories or data sets that are not those of both models, scores that are not finite, a level
        outside of (0, 1), or a category with too few data sets.

    References:
      Wilcoxon 1945; Holm 1979; the protocol of Tang and Yang 2024, arXiv 2409.02727, without its lack of a correction.
    """
    if alternative not in _ALTERNATIVES:
        raise ValueError(f"alternative must be one of {_ALTERNATIVES}; got {alternative!r}")
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1); got {level}")
    _check_pairs("categories", first, second)
    differences = {}
    for category in first:
        _check_pairs(f"the data sets of {category!r}", first[category], second[category])
        both = np.array([[scores[category][task] for task in first[category]] for scores in (first, second)])
        if not np.isfinite(both).all():
            raise ValueError(f"scores must be finite; those of {category!r} are not")
        differences[category] = np.round(np.round(both[0], decimals) - np.round(both[1], decimals), decimals)
        least = _least_p(both.shape[1], alternative)
        if least >= level and not allow_underpowered:
            raise ValueError(
                f"first: the {both.shape[1]} data sets of {category!r} cannot give a p below {least:g}, and "
                f"{level:g} is to be decided; join categories, or allow_underpowered=True"
            )
    tests = {category: _wilcoxon(of, alternative) for category, of in differences.items()}
    adjusted = holm([test.p for test in tests.values()])
    of_each = zip(tests.items(), adjusted, strict=True)
    return {category: dataclasses.replace(test, adjusted=float(p)) for (category, test), p in of_each}


@checked()
def holm(p: list[float]) -> np.ndarray:
    """Holm's adjustment: `max_{j <= i} min(1, (m - j + 1) p_j)` of the i-th smallest of m, in the order given.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]

    Raises:
      ValueError: for a p outside of [0, 1].
    """
    values = np.asarray(p, np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"p must be in [0, 1]; got {p}")
    order = np.argsort(values, kind="stable")
    found = np.empty_like(values)
    found[order] = np.maximum.accumulate(np.minimum(values[order] * np.arange(len(values), 0, -1), 1.0))
    return found


def _wilcoxon(differences: np.ndarray, alternative: Alternative) -> PairedTest:
    nonzero = differences[differences != 0]
    ranks = stats.rankdata(np.abs(nonzero))
    positive, negative = ranks[nonzero > 0].sum(), ranks[nonzero < 0].sum()
    total = positive + negative
    if len(nonzero):
        found = stats.wilcoxon(nonzero, alternative=alternative, method="auto")
        p, statistic = float(found.pvalue), float(found.statistic)
    else:
        p, statistic = 1.0, 0.0
    effect = float((positive - negative) / total) if total else 0.0
    least = _least_p(len(nonzero), alternative)
    return PairedTest(p, p, statistic, len(differences), len(nonzero), least, effect)


def _least_p(n: int, alternative: Alternative) -> float:
    return min(1.0, (2.0 if alternative == "two-sided" else 1.0) * 0.5**n)


def _check_pairs(what: str, first: Mapping, second: Mapping) -> None:
    if first.keys() != second.keys() or not first:
        raise ValueError(
            f"{what} must be the same of both models, at least one; got {sorted(first)} and {sorted(second)}"
        )
