import numpy as np
import pytest

from jaxemb.continual import plots

R = np.array([[0.9, np.nan, np.nan], [0.7, 0.8, np.nan], [0.6, 0.75, 0.85]])


def test_the_matrix_shows_its_numbers(tmp_path):
    figure = plots.score_matrix([R, R + 0.02], ["first", "second", "third"], title="finetune")
    axis = figure.axes[0]
    assert [text.get_text() for text in axis.texts] == ["0.91", "0.71", "0.81", "0.61", "0.76", "0.86"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["first", "second", "third"]
    figure.savefig(tmp_path / "matrix.png")
    assert (tmp_path / "matrix.png").stat().st_size > 5000
    assert plots.score_matrix(R, score="nDCG@10").axes[0].images[0].get_clim() == (0.6, 0.9)


def test_curves_are_means_over_tasks_and_seeds():
    figure = plots.scores_over_tasks({"a": [R, R + 0.02], "b": R})
    lines = [container.lines[0].get_ydata(orig=False) for container in figure.axes[0].containers]
    np.testing.assert_allclose(lines, [[0.91, 0.76, 2.2 / 3 + 0.01], [0.9, 0.75, 2.2 / 3]])
    bars = figure.axes[0].containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([bar[:, 1] for bar in bars], np.array(lines[0])[:, None] + [-0.01, 0.01])


def test_bad_arguments():
    with pytest.raises(ValueError, match="names must be 3, one per task; got 1"):
        plots.score_matrix(R, ["a"])
    with pytest.raises(ValueError, match=r"R must be \[T, T\] or \[seeds, T, T\]; got \(2, 3\)"):
        plots.score_matrix(R[:2])
    with pytest.raises(ValueError, match="methods must not be empty"):
        plots.scores_over_tasks({})
