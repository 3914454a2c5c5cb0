import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from jaxemb.evaluate import metrics


def test_spearman_shares_the_ranks_of_ties():
    np.testing.assert_allclose(metrics.spearman([1, 2, 2, 4], [10, 20, 30, 25]), 0.632456, atol=1e-6)


def test_pearson_is_numpys():
    x, y = np.random.default_rng(0).standard_normal((2, 50))
    np.testing.assert_allclose(metrics.pearson(x, y), np.corrcoef(x, y)[0, 1])


@pytest.mark.parametrize("correlation", [metrics.pearson, metrics.spearman])
def test_correlation_with_a_constant_is_undefined(correlation):
    """As in scipy, and so in mteb."""
    with pytest.warns(RuntimeWarning, match="a correlation with what is constant is undefined") as caught:
        assert math.isnan(correlation([0.1, 0.1, 0.1], [1, 2, 3]))
        assert math.isnan(correlation([1, 2, 3], [1, 1 - 1e-15, 1 + 1e-15]))  # the rounding of what is 1
    assert caught[0].filename == __file__  # who called, not what checks arguments


@pytest.mark.parametrize("correlation", [metrics.pearson, metrics.spearman])
def test_correlation_names_bad_input(correlation):
    with pytest.raises(ValueError, match=r"both be \[N\] with N >= 2; got \(3,\) and \(2,\)"):
        correlation([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="y must be finite; 1 values are not, the first at index 1"):
        correlation([1, 2, 3], [1, np.nan, 3])


# Retrieved: d2 (level 1), d7 (not judged), d1 (level 2), d4 (not judged); also judged: d5 (level 1), d9 (level 0).
GAINS, JUDGED = [1, 0, 2, 0], [2, 1, 1, 0]


def test_worked_example():
    np.testing.assert_allclose(metrics.ndcg_at_k(GAINS, JUDGED, 3), 2.0 / 3.13093, atol=1e-5)
    np.testing.assert_allclose(metrics.average_precision_at_k(GAINS, JUDGED), 0.55556, atol=1e-5)
    np.testing.assert_allclose(metrics.average_precision_at_k(GAINS, JUDGED, 1), 1 / 3)
    np.testing.assert_allclose(metrics.average_precision_at_k(GAINS, JUDGED, 1, denominator="min_k_relevant"), 1.0)
    np.testing.assert_allclose(metrics.recall_at_k(GAINS, JUDGED, 3), 2 / 3)
    np.testing.assert_allclose(metrics.precision_at_k(GAINS, 10), 0.2)
    assert metrics.reciprocal_rank_at_k(GAINS) == 1.0
    assert metrics.success_at_k(GAINS, 1) == 1.0


def test_queries_are_scored_side_by_side_whatever_their_padding():
    gains, judged = np.array([GAINS, [0, 0, 1, 0]]), np.array([[*JUDGED, 0], [1, 0, 0, 0, 0]])
    both = metrics.ndcg_at_k(gains, judged, 3)
    np.testing.assert_allclose(both, [metrics.ndcg_at_k(GAINS, JUDGED, 3), 0.5])
    np.testing.assert_allclose(metrics.reciprocal_rank_at_k(gains, 2), [1.0, 0.0])


def test_negative_levels_count_as_zero_and_a_query_without_relevant_documents_scores_zero():
    np.testing.assert_allclose(metrics.ndcg_at_k([-1, 1], [1, -1], 2), 1 / np.log2(3))
    for metric in (metrics.ndcg_at_k, metrics.average_precision_at_k, metrics.recall_at_k):
        assert metric([0, -1], [0, -1], 2) == 0.0


@given(st.lists(st.integers(-1, 3), min_size=1, max_size=12), st.integers(1, 15))
def test_the_ideal_ranking_is_one_and_no_ranking_is_better(levels, k):
    ideal = sorted(levels, reverse=True)
    has_relevant = max(levels) > 0
    assert metrics.ndcg_at_k(ideal, levels, k) == pytest.approx(float(has_relevant))
    for metric in (metrics.ndcg_at_k, metrics.recall_at_k, metrics.average_precision_at_k):
        assert 0.0 <= metric(levels, levels, k) <= metric(ideal, levels, k) + 1e-12


def test_ranking_metrics_name_bad_input():
    for metric in (metrics.ndcg_at_k, metrics.average_precision_at_k, metrics.recall_at_k):
        with pytest.raises(ValueError, match="k must be at least 1; got 0"):
            metric(GAINS, JUDGED, 0)
        with pytest.raises(ValueError, match="judged must be finite"):
            metric(GAINS, np.where(np.asarray(JUDGED) > 0, np.nan, 0.0), 3)
    for metric in (metrics.reciprocal_rank_at_k, metrics.precision_at_k, metrics.success_at_k):
        with pytest.raises(ValueError, match="gains must be finite"):
            metric([[1.0, np.nan]], 3)
    with pytest.raises(ValueError, match="or 'min_k_relevant'; got 'k'"):
        metrics.average_precision_at_k(GAINS, JUDGED, 3, denominator="k")


def test_standard_error_of_the_mean():
    np.testing.assert_allclose(metrics.standard_error([1.0, 2.0, 3.0, 4.0]), np.sqrt(5 / 3) / 2)
    assert np.isnan(metrics.standard_error([1.0]))


def test_bootstrap_interval_is_near_the_normal_one_and_depends_on_the_seed_alone():
    values = np.random.default_rng(0).random(400)
    low, high = metrics.bootstrap_interval(values)
    expected = values.mean() + np.array([-1.96, 1.96]) * metrics.standard_error(values)
    np.testing.assert_allclose([low, high], expected, atol=4e-3)
    assert metrics.bootstrap_interval(values) == (low, high)
    with pytest.raises(ValueError, match=r"N >= 2; got \(1,\)"):
        metrics.bootstrap_interval([0.5])
    with pytest.raises(ValueError, match="values must be finite"):
        metrics.bootstrap_interval([0.5, np.nan])
    for confidence in (-1, 0, 1, 2):
        with pytest.raises(ValueError, match=rf"confidence must be in \(0, 1\); got {confidence}"):
            metrics.bootstrap_interval(values, confidence=confidence)
