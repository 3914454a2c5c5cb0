"""What several seeds say: spreads, t intervals, differences paired by seed, and verdicts on claims."""

import dataclasses
import math
from typing import Literal, get_args

import numpy as np
from scipy import stats

Relation = Literal[">", "<", "≈"]
Verdict = Literal["shown", "not shown", "opposite"]

LEAST_SEEDS = 3
"""With fewer no claim is judged."""


@dataclasses.dataclass(frozen=True)
class Spread:
    """The values of a measure, one of each seed, in the order of the seeds.

    Raises:
      ValueError: if there is none, or one is not finite.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values or not all(map(math.isfinite, self.values)):
            raise ValueError(f"values must be one finite number or more; got {self.values}")

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def std(self) -> float:
        """Sample standard deviation; 0 of one value."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else 0.0

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The t interval of the mean, `mean ± t std / sqrt(n)`, t the quantile for n - 1 degrees of freedom.

        Of one value, which says nothing of its spread, it is everything.
        """
        n = len(self.values)
        if n == 1:
            return -math.inf, math.inf
        half = float(stats.t.ppf((1 + level) / 2, n - 1)) * self.std / math.sqrt(n)
        return self.mean - half, self.mean + half

    def __sub__(self, other: "Spread") -> "Spread":
        """The differences, seed by seed.

        Raises:
          ValueError: for other numbers of seeds.
        """
        if len(self.values) != len(other.values):
            raise ValueError(f"pairs need the same seeds; got {len(self.values)} and {len(other.values)} values")
        return Spread(tuple(a - b for a, b in zip(self.values, other.values, strict=True)))

    def __format__(self, spec: str) -> str:
        return f"{self.mean:{spec}} ± {self.std:{spec.lstrip('+')}}" if len(self.values) > 1 else f"{self.mean:{spec}}"


def verdict(difference: Spread, relation: Relation, margin: float = 0.0) -> Verdict:
    """Whether seeds show that a difference is above 0 (">"), below 0 ("<"), or within ± margin ("≈").

    A claim is "shown" if the whole 95 % interval of the difference lies where it says, and "opposite" if all of it lies
    on the other side: of 0, or outside of the margin. In between, the seeds leave it open: "not shown". So do fewer
    than `LEAST_SEEDS`, and differences that are the same with every seed, up to rounding: their interval says nothing.

    Raises:
      ValueError: for another relation, or a margin that does not fit it: > 0 for "≈", else 0.
    """
    if relation not in get_args(Relation):
        raise ValueError(f"relation must be one of {', '.join(get_args(Relation))}; got {relation!r}")
    if (margin > 0) != (relation == "≈") or margin < 0:
        raise ValueError(f"margin must be > 0 for '≈' and 0 otherwise; got {margin} for {relation!r}")
    if len(difference.values) < LEAST_SEEDS or np.allclose(difference.values, difference.mean, rtol=1e-6, atol=1e-9):
        return "not shown"
    low, high = difference.interval()
    if relation == "≈":
        agrees, disagrees = -margin < low and high < margin, low > margin or high < -margin
    else:
        above, below = low > 0, high < 0
        agrees, disagrees = (above, below) if relation == ">" else (below, above)
    return "shown" if agrees else "opposite" if disagrees else "not shown"
