"""Plots of matrices of scores; figures to save or to show."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from jaxemb.checks import checked
from jaxemb.continual.metrics import estimate
from jaxemb.packages import remedy

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@checked()
def score_matrix(
    R: ArrayLike, names: Sequence[str] | None = None, *, title: str = "", score: str = "accuracy"
) -> "Figure":
    """Heat map of `R[i, j]`, the score of task j (column) after training task i (row).

    Args:
      R: `[T, T]`, or `[S, T, T]` of S seeds, whose mean is shown; NaN is left white.
      names: of the tasks; None numbers them.
      title: above the figure.
      score: what the numbers are; those of accuracy have a colour scale from 0 to 1, others that of their own range.

    Raises:
      ValueError: for another shape, or another number of names than tasks.
    """
    matrix = _over_seeds(R).mean(axis=0)
    tasks = len(matrix)
    names = [str(t + 1) for t in range(tasks)] if names is None else list(names)
    if len(names) != tasks:
        raise ValueError(f"names must be {tasks}, one per task; got {len(names)}")
    low, high = (0, 1) if score == "accuracy" else (np.nanmin(matrix), np.nanmax(matrix))
    figure = _figure(2.5 + 0.5 * tasks, 1.8 + 0.45 * tasks)
    axis = figure.add_subplot()
    image = axis.imshow(matrix, vmin=low, vmax=high, cmap="viridis")
    for (i, j), value in np.ndenumerate(matrix):
        if not np.isnan(value):
            dark = value < (low + high) / 2
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axis.set_xticks(range(tasks), names)
    if max(map(len, names)) > 3:
        axis.tick_params(axis="x", rotation=45)
    axis.set_yticks(range(tasks), names)
    axis.set(xlabel="tested on", ylabel="after training", title=title)
    figure.colorbar(image, label=score, shrink=0.8)
    return figure


@checked()
def scores_over_tasks(methods: Mapping[str, ArrayLike], *, title: str = "", score: str = "accuracy") -> "Figure":
    """The mean score on the tasks so far, `mean_{j <= i} R[i, j]`, after every task i, with standard errors over seeds.

    Args:
      methods: by name, `[T, T]` or `[S, T, T]` of S seeds.
      title: above the figure.
      score: what the numbers are.

    Raises:
      ValueError: for no method, or a matrix of another shape.
    """
    if not methods:
        raise ValueError("methods must not be empty")
    figure = _figure(6, 4)
    axis = figure.add_subplot()
    for name, R in methods.items():
        seeds = _over_seeds(R, f"methods[{name!r}]")
        steps = range(1, seeds.shape[1] + 1)
        points = [estimate([one[i - 1, :i].mean() for one in seeds]) for i in steps]
        error = np.nan_to_num([point.standard_error for point in points])
        axis.errorbar(steps, [point.mean for point in points], yerr=error, marker="o", capsize=3, label=name)
    axis.set(xlabel="tasks trained", ylabel=f"mean {score} on the tasks so far", title=title)
    axis.set_xticks(range(1, 1 + max(_over_seeds(R).shape[1] for R in methods.values())))
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def _over_seeds(R: ArrayLike, name: str = "R") -> np.ndarray:
    matrices = np.asarray(R, np.float64)
    matrices = matrices[None] if matrices.ndim == 2 else matrices
    if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2] or not matrices.size:
        raise ValueError(f"{name} must be [T, T] or [seeds, T, T]; got {np.shape(R)}")
    return matrices


def _figure(width: float, height: float) -> "Figure":
    """An empty figure, made without pyplot: no display and no global state are involved."""
    with remedy():
        from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
