"""What an experiment is made of: presets, arms, measures and claims, as plain values.

Fields that do not compare (`compare=False`) do not decide on what an arm measures, and do not describe it.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Any

from experiments.lib.statistics import Relation

Values = Mapping[str, Any]
"""What is measured of an arm: numbers by measure, and what else plots need."""


@dataclasses.dataclass(frozen=True)
class Reported:
    """A figure of a paper, with what of it differs from ours, such as "83.7 (Split CIFAR-100)".

    Attributes:
      figure: see above.
      confirmed: whether it was read in its source.
    """

    figure: str
    confirmed: bool = False

    def __str__(self) -> str:
        return self.figure + ("" if self.confirmed else " (unconfirmed)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """How much is done. An experiment adds fields of its own.

    Attributes:
      datasets: what the arms are measured on, in the order of the table.
      seeds: how many; what a seed draws is the experiment's business.
    """

    datasets: tuple[str, ...] = field(compare=False)
    seeds: int = field(default=5, compare=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """A row of the table. An experiment adds the fields in which its arms differ.

    Attributes:
      scenario: what the model is told when it is tested, such as "task known"; "" if that is no question.
      on: the data sets that it is measured on; () for all.
      grid: by field, the values from which that of this arm is chosen, on data that no test sees.
      paper: the paper's own figure.
      prototype: by data set, the figure of the specification's prototype, a small program that this one did not see.
    """

    scenario: str = field(default="", compare=False)
    on: tuple[str, ...] = field(default=(), compare=False)
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict, compare=False)
    paper: Reported | None = field(default=None, compare=False)
    prototype: Mapping[str, str] = field(default_factory=dict, compare=False)

    def choices(self) -> list[dict[str, Any]]:
        """All combinations of the grid, as values of fields; one that is empty where there is no grid."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]


@dataclasses.dataclass(frozen=True)
class Measure:
    """A column of the table: its label, with the unit, and its decimals."""

    label: str
    decimals: int = 1


@dataclasses.dataclass(frozen=True)
class Claim:
    """That a measure of one arm is above (">") or below ("<") that of another, or within ± margin of it ("≈").

    Attributes:
      text: what is claimed, in words.
      arm, relation, base: see above.
      measure: which; "" for the experiment's first.
      margin: of "≈".
      on: the data sets that it is of; () for all on which both arms are measured.
      paper: the difference that the paper reports.
    """

    text: str
    arm: str
    relation: Relation
    base: str
    measure: str = ""
    margin: float = 0.0
    on: tuple[str, ...] = ()
    paper: Reported | None = None


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Arms that differ in one thing, measured on the same data with the same seeds.

    Attributes:
      name: of its module in `experiments/`, and of the folder of its results.
      about: the module's docstring, which heads the table: a title, what is claimed and by whom, what is done here.
      presets: by name; "smoke" takes seconds, "small" is what is committed, "paper" what was published.
      arms: by name, the rows.
      data: `(preset, dataset, seed) -> data`, the same for all arms.
      measure: `(preset, data, arm, seed) -> values`.
      measures: by name, the columns; the first is the one that matters.
      claims: the first is the one that the paper makes first.
      describe: what of the data a reader must know, such as how many records there are.
      held_out: `(preset, dataset) -> data` on which the grids of arms are searched; it has no record of a test.
      plots: further figures by name, from the values of all seeds by data set and arm.

    Raises:
      ValueError: if a claim is of an arm, a data set or a measure that there is not, or a grid has no data.
    """

    name: str
    about: str
    presets: Mapping[str, Any]
    arms: Mapping[str, Any]
    data: Callable[[Any, str, int], Any]
    measure: Callable[[Any, Any, Any, int], Values]
    measures: Mapping[str, Measure]
    claims: Sequence[Claim]
    describe: Callable[[Any], str] = lambda data: ""
    held_out: Callable[[Any, str], Any] | None = None
    plots: Callable[[Mapping[str, Mapping[str, Sequence[Values]]]], Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        datasets = {dataset for preset in self.presets.values() for dataset in preset.datasets}
        for claim in self.claims:
            of = {"arm": {claim.arm, claim.base}, "data set": {*claim.on}, "measure": {claim.measure or self.first}}
            there = {"arm": {*self.arms}, "data set": datasets, "measure": {*self.measures}}
            for kind, names in of.items():
                if missing := names - there[kind]:
                    raise ValueError(f"the claim {claim.text!r} is of no {kind} of {self.name}: {', '.join(missing)}")
            if not any(self.compared(claim, dataset) for dataset in datasets):
                raise ValueError(f"the claim {claim.text!r} is of arms that no data set has both of")
        if self.held_out is None and (having := [name for name, arm in self.arms.items() if arm.grid]):
            raise ValueError(f"{', '.join(having)} of {self.name} have a grid, but there are no held_out data")

    @property
    def first(self) -> str:
        """The measure that matters."""
        return next(iter(self.measures))

    def arms_on(self, dataset: str) -> dict[str, Any]:
        """The arms that are measured on a data set."""
        return {name: arm for name, arm in self.arms.items() if not arm.on or dataset in arm.on}

    def compared(self, claim: Claim, dataset: str) -> bool:
        """Whether a claim is of a data set."""
        return (not claim.on or dataset in claim.on) and {claim.arm, claim.base} <= self.arms_on(dataset).keys()
