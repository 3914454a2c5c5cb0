import itertools

import numpy as np
import pytest

from jaxemb.evaluate import holm, paired_significance


def scores(differences, base=0.5):
    first = {"all": {str(i): base + d for i, d in enumerate(differences)}}
    return first, {"all": {str(i): base for i in range(len(differences))}}


def test_worked_numbers_of_the_specification():
    first, second = scores([0.3, -0.1, 0.5, 0.4, 0.2, 0.6])
    two = paired_significance(first, second)["all"]
    assert (two.statistic, two.p, two.n, two.nonzero) == (1, 0.0625, 6, 6)
    assert paired_significance(first, second, alternative="greater")["all"].p == 0.03125
    assert paired_significance(first, second, alternative="less")["all"].p == 1 - 1 / 64
    assert two.effect == pytest.approx((20 - 1) / 21)
    five = paired_significance(*scores([0.1, 0.2, 0.3, 0.4, 0.5]), allow_underpowered=True)["all"]
    assert five.p == five.least_p == 0.0625
    eleven = paired_significance(*scores(np.arange(1, 12) / 100))["all"]
    assert eleven.p == eleven.least_p == pytest.approx(0.000977, abs=1e-6)


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_p_is_the_share_of_all_signs(alternative):
    """By enumeration of the 2^n signs that the ranks might have had."""
    differences = np.array([0.03, -0.01, 0.08, 0.05, -0.02, 0.07, 0.11, 0.04])
    ranks = np.argsort(np.argsort(np.abs(differences))) + 1
    observed = ranks[differences > 0].sum()
    sums = np.array([ranks @ signs for signs in itertools.product((0, 1), repeat=8)])
    greater, less = np.mean(sums >= observed), np.mean(sums <= observed)
    expected = {"greater": greater, "less": less, "two-sided": min(1, 2 * min(greater, less))}[alternative]
    assert paired_significance(*scores(differences), alternative=alternative)["all"].p == pytest.approx(expected)


def test_scores_are_rounded_before_they_are_subtracted():
    """84.2 - 83.9 and 80.2 - 79.9 tie, as people read them; unrounded they would not."""
    first = {"a": dict(zip("abcdef", [84.2, 79.9, 3, 4, 5, 6], strict=True))}
    second = {"a": dict(zip("abcdef", [83.9, 80.2, 1, 2, 3, 4], strict=True))}
    assert paired_significance(first, second)["a"].statistic == 1.5  # the mean of the ranks 1 and 2


def test_what_does_not_differ_tells_nothing():
    found = paired_significance(*scores([0, 0, 0.1, 0.2, 0.3, 0.4, 0.6]))["all"]
    assert (found.n, found.nonzero, found.least_p) == (7, 5, 0.0625)
    none = paired_significance(*scores([0.0] * 6))["all"]
    assert (none.p, none.effect, none.nonzero) == (1, 0, 0)


def test_holm():
    """The example of R's p.adjust documentation's method, worked by hand."""
    np.testing.assert_allclose(holm([0.01, 0.02, 0.03, 0.04, 0.05]), [0.05, 0.08, 0.09, 0.09, 0.09])
    np.testing.assert_allclose(holm([0.3, 0.01, 0.6]), [0.6, 0.03, 0.6])
    up, down = scores(np.arange(1, 7) / 10), scores([0.1, -0.2, 0.3, -0.4, 0.5, -0.6])
    both = [{"up": a["all"], "mixed": b["all"]} for a, b in zip(up, down, strict=True)]
    found = paired_significance(*both)
    assert found["up"].adjusted == 2 * found["up"].p == 0.0625
    assert found["mixed"].adjusted == found["mixed"].p > 0.5


def test_refusals():
    with pytest.raises(
        ValueError, match=r"5 data sets of 'all' cannot give a p below 0\.0625, and 0\.05 is to be decided"
    ):
        paired_significance(*scores([0.1] * 5))
    first, second = scores([0.1] * 6)
    with pytest.raises(ValueError, match="the data sets of 'all' must be the same of both models"):
        paired_significance(first, {"all": {**second["all"], "x": 1.0}})
    with pytest.raises(ValueError, match="categories must be the same"):
        paired_significance(first, {})
    with pytest.raises(ValueError, match="scores must be finite"):
        paired_significance({"all": {**first["all"], "0": np.nan}}, second)
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\]; got \[2.0\]"):
        holm([2.0])
