import numpy as np
import pytest

from jaxemb.continual import metrics

R = np.array([[0.9, 0.1, 0.1], [0.7, 0.8, 0.2], [0.6, 0.75, 0.85]])
b = np.array([0.1, 0.1, 0.12])
GROWING = np.array([[0.5, 0.0], [0.6, 0.9]])
NAN = float("nan")


def test_the_worked_numbers():
    assert metrics.average_accuracy(R) == pytest.approx(2.2 / 3)
    assert metrics.average_accuracy(R, weights=[1, 0, 3]) == pytest.approx((0.6 + 3 * 0.85) / 4)
    assert metrics.average_incremental_accuracy(R) == pytest.approx((0.9 + 0.75 + 2.2 / 3) / 3)
    assert metrics.learning_accuracy(R) == pytest.approx(0.85)
    assert metrics.backward_transfer(R) == pytest.approx(-0.175)
    assert metrics.forgetting(R) == pytest.approx(0.175)
    assert metrics.forward_transfer(R, b) == pytest.approx((0.1 - 0.1 + 0.2 - 0.12) / 2)
    assert metrics.probe_retention(R) == pytest.approx((0.6 / 0.9 + 0.75 / 0.8) / 2)
    assert metrics.representation_forgetting(R) == pytest.approx(0.175)
    np.testing.assert_allclose(metrics.intransigence(R, [0.95, 0.9, 0.8]), [0.05, 0.1, -0.05], atol=1e-12)


def test_the_kinds_of_forgetting_differ():
    assert metrics.backward_transfer(GROWING) == pytest.approx(0.1)
    values = [metrics.forgetting(GROWING, kind) for kind in ("chaudhry", "mammoth", "avalanche")]
    np.testing.assert_allclose(values, [-0.1, 0, -0.1])
    # Only "chaudhry" and "mammoth" see that task 0 was better in between.
    peak = np.array([[0.5, 0.3, 0], [0.8, 0.9, 0], [0.6, 0.7, 0.9]])
    values = [metrics.forgetting(peak, kind) for kind in ("chaudhry", "mammoth", "avalanche")]
    np.testing.assert_allclose(values, [0.2, 0.2, 0.05])


def test_the_best_score_is_one_after_the_task_was_trained():
    lucky = np.array([[0.9, 0.99, 0], [0.8, 0.5, 0], [0.8, 0.4, 0.9]])
    assert metrics.forgetting(lucky) == pytest.approx(0.1)
    assert metrics.forgetting(lucky, "mammoth") == pytest.approx(0.1)


def test_summary_over_seeds():
    summary = metrics.summarise([R, R + 0.02], [b, b])
    assert sorted(summary) == ["acc", "aia", "bwt", "forgetting", "fwt", "la"]
    assert summary["acc"].mean == pytest.approx(2.2 / 3 + 0.01)
    assert summary["acc"].standard_error == pytest.approx(0.01)
    assert summary["bwt"].standard_error == pytest.approx(0, abs=1e-12)
    assert f"{summary['acc']:.3f}" == "0.743 ± 0.010"
    alone = metrics.summarise(R)
    assert "fwt" not in alone
    assert f"{alone['acc']:.2f}" == "0.73"
    assert sorted(metrics.summarise([[0.5]], [0.1])) == ["acc", "aia", "la"]


def test_scores_that_are_nan_are_no_harm_where_they_are_not_used():
    lower = np.where(np.tri(3, dtype=bool), R, NAN)
    assert {n: e.mean for n, e in metrics.summarise(lower).items()} == {
        n: e.mean for n, e in metrics.summarise(R).items()
    }
    with pytest.raises(ValueError, match="NaN"):
        metrics.forward_transfer(lower, b)
    with pytest.raises(ValueError, match="NaN"):
        metrics.average_accuracy(np.where(np.eye(3, dtype=bool), NAN, R))


@pytest.mark.parametrize(
    "measure",
    [
        metrics.backward_transfer,
        metrics.forgetting,
        metrics.probe_retention,
        metrics.representation_forgetting,
        lambda R: metrics.forward_transfer(R, [0.1]),
    ],
)
def test_one_task_cannot_be_forgotten(measure):
    with pytest.raises(ValueError, match="at least 2 tasks; got 1"):
        measure([[0.5]])


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"R must be \[T, T\]; got \(2, 3\)"):
        metrics.average_accuracy(R[:2])
    with pytest.raises(ValueError, match=r"b must be \[T\] with T = 3 as in R; got \(2,\)"):
        metrics.forward_transfer(R, b[:2])
    with pytest.raises(ValueError, match=r"kind must be .* got 'best'"):
        metrics.forgetting(R, "best")
    with pytest.raises(ValueError, match=r"R must be \[S, T, T\] or \[T, T\]; got \(3,\)"):
        metrics.summarise(b)
