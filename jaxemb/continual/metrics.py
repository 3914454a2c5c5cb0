"""What is kept and what is forgotten, from a matrix of scores.

`R[i, j]` is the score on the test data of task j after training on tasks 0..i; `b[j]` the score on it at
initialisation. The score may be anything where more is better: accuracy, nDCG, Spearman's correlation, accuracy of a
probe. An entry that a measure uses must not be NaN; entries that it does not use may be.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxemb.checks import checked, shapes

Kind = Literal["chaudhry", "mammoth", "avalanche"]


@checked(shapes(R="T T", weights="T"))
def average_accuracy(R: ArrayLike, weights: ArrayLike | None = None) -> float:
    """`ACC = mean_j R[T-1, j]`; `weights` `[T]`, such as test set sizes, weight the tasks.

    Source: Lopez-Paz and Ranzato 2017, arXiv 1706.08840, equation 2.

    >>> average_accuracy([[0.9, 0.1], [0.7, 0.8]])
    0.75
    """
    return float(np.average(_used(_square(R)[-1]), weights=None if weights is None else np.asarray(weights)))


@checked(shapes(R="T T"))
def average_incremental_accuracy(R: ArrayLike) -> float:
    """`AIA = mean_i mean_{j <= i} R[i, j]`, every task with the same weight.

    Source: Rebuffi et al. 2017, arXiv 1611.07725, section 4 ("average incremental accuracy").
    """
    return float(np.mean([np.mean(_used(row[: i + 1])) for i, row in enumerate(_square(R))]))


@checked(shapes(R="T T"))
def learning_accuracy(R: ArrayLike) -> float:
    """`LA = mean_j R[j, j]`: how well each task is learnt when it comes.

    Source: Riemer et al. 2019, arXiv 1810.11910, section 5.
    """
    return float(np.mean(_used(np.diag(_square(R)))))


@checked(shapes(R="T T"))
def backward_transfer(R: ArrayLike) -> float:
    """`BWT = mean_{j < T-1} (R[T-1, j] - R[j, j])`; negative where tasks are forgotten.

    Source: Lopez-Paz and Ranzato 2017, equation 3.

    >>> round(backward_transfer([[0.9, 0.1], [0.7, 0.8]]), 3)  # the first task lost 0.2
    -0.2
    """
    R = _square(R, least=2)
    return float(np.mean(_used(R[-1] - np.diag(R))[:-1]))


@checked(shapes(R="T T", b="T"))
def forward_transfer(R: ArrayLike, b: ArrayLike) -> float:
    """`FWT = mean_{j >= 1} (R[j-1, j] - b[j])`: what a task gains from those before it.

    It says something of task- and domain-incremental streams alone: where all seen classes compete, a class to come is
    never predicted, and this is minus the accuracy at initialisation.

    Source: Lopez-Paz and Ranzato 2017, equation 4.
    """
    R = _square(R, least=2)
    return float(np.mean(_used(np.diag(R, 1) - np.asarray(b, np.float64)[1:])))


@checked(shapes(R="T T"))
def forgetting(R: ArrayLike, kind: Kind = "chaudhry") -> float:
    """The mean over the tasks before the last of the best score minus the last.

      chaudhry   `max_{l < T-1} R[l, j] - R[T-1, j]`; may be negative
      mammoth    `max_{l} R[l, j] - R[T-1, j]`, with 0 for the scores of tasks not yet trained; never negative
      avalanche  `R[j, j] - R[T-1, j]`, which is minus the backward transfer

    The maximum of "chaudhry" is over the tasks l >= j: before, task j had not been trained.

    Source: Chaudhry et al. 2018, arXiv 1801.10112, section 3.2; mammoth `utils/metrics.py`; avalanche
    `evaluation/metrics/forgetting_bwt.py`.

    >>> round(forgetting([[0.9, 0.1], [0.7, 0.8]]), 3)
    0.2
    """
    R = _square(R, least=2)
    last = R[-1, :-1]
    match kind:
        case "chaudhry":
            best = np.array([np.max(_used(R[j:-1, j])) for j in range(len(R) - 1)])
        case "mammoth":
            best = np.max(_used(np.tril(R)[:, :-1]), axis=0)
        case "avalanche":
            best = np.diag(R)[:-1]
        case _:
            raise ValueError(f"kind must be 'chaudhry', 'mammoth' or 'avalanche'; got {kind!r}")
    return float(np.mean(_used(best - last)))


@checked(shapes(R="T T", joint="T"))
def intransigence(R: ArrayLike, joint: ArrayLike) -> np.ndarray:
    """`I_j = R_joint[j] - R[j, j]`, `[T]`: what learning task j lacks against training on all data at once.

    Source: Chaudhry et al. 2018, section 3.2.
    """
    R = _square(R)
    return _used(np.asarray(joint, np.float64) - np.diag(R))


@checked(shapes(P="T T"))
def probe_retention(P: ArrayLike) -> float:
    """`mean_{j < T-1} P[T-1, j] / P[j, j]` of probe scores P, as `jaxemb.continual.probe` makes them.

    Source: Davari et al. 2022, arXiv 2203.13381.
    """
    P = _square(P, least=2, name="P")
    return float(np.mean(_used(P[-1, :-1], "P") / _used(np.diag(P)[:-1], "P")))


@checked(shapes(P="T T"))
def representation_forgetting(P: ArrayLike) -> float:
    """`mean_{j < T-1} (P[j, j] - P[T-1, j])` of probe scores P: what the features have lost, whatever the head does.

    Source: Davari et al. 2022, arXiv 2203.13381.
    """
    P = _square(P, least=2, name="P")
    return float(np.mean(_used((np.diag(P) - P[-1])[:-1], "P")))


class Estimate(NamedTuple):
    """Mean over seeds, its standard error `std / sqrt(S)` (NaN for one seed), and the values themselves.

    >>> estimate([0.25]), estimate([0.25, 0.75])
    (0.2500, 0.5000 ± 0.2500)
    """

    mean: float
    standard_error: float
    values: tuple[float, ...]

    def __format__(self, spec: str) -> str:
        if len(self.values) < 2:
            return f"{self.mean:{spec}}"
        return f"{self.mean:{spec}} ± {self.standard_error:{spec.lstrip('+')}}"

    def __repr__(self) -> str:
        return f"{self:.4f}"


@checked()
def estimate(values: Sequence[float]) -> Estimate:
    """The `Estimate` of the values of S seeds."""
    numbers = tuple(float(v) for v in values)
    error = float(np.std(numbers, ddof=1) / np.sqrt(len(numbers))) if len(numbers) > 1 else float("nan")
    return Estimate(float(np.mean(numbers)), error, numbers)


@checked(shapes(R="S T T | T T", b="S T | T"))
def summarise(R: ArrayLike, b: ArrayLike | None = None, *, kind: Kind = "chaudhry") -> dict[str, Estimate]:
    """All measures of the matrices of S seeds.

    Args:
      R: `[S, T, T]`, or `[T, T]` of one seed.
      b: `[S, T]` or `[T]`; None leaves out "fwt".
      kind: of forgetting.

    Returns:
      "acc", "aia", "la", and of two or more tasks "bwt", "forgetting" and "fwt".
    """
    matrices = np.asarray(R, np.float64)
    matrices = matrices[None] if matrices.ndim == 2 else matrices
    if not len(matrices):
        raise ValueError(f"R must be of at least one seed; got {np.shape(R)}")
    measures: dict[str, Callable[[np.ndarray], float]] = {
        "acc": average_accuracy,
        "aia": average_incremental_accuracy,
        "la": learning_accuracy,
    }
    if matrices.shape[1] > 1:
        measures |= {"bwt": backward_transfer, "forgetting": lambda R: forgetting(R, kind)}
    summary = {name: estimate([measure(one) for one in matrices]) for name, measure in measures.items()}
    if b is not None and matrices.shape[1] > 1:
        initial = np.asarray(b, np.float64).reshape(len(matrices), -1)
        summary["fwt"] = estimate([forward_transfer(*pair) for pair in zip(matrices, initial, strict=True)])
    return summary


def _square(R: ArrayLike, least: int = 1, name: str = "R") -> np.ndarray:
    matrix = np.asarray(R, np.float64)
    if len(matrix) < least:
        raise ValueError(f"{name} must be of at least {least} tasks; got {len(matrix)}")
    return matrix


def _used(values: np.ndarray, name: str = "R") -> np.ndarray:
    if np.isnan(values).any():
        raise ValueError(f"{name} must not be NaN where the measure uses it: tasks that were not scored")
    return values
