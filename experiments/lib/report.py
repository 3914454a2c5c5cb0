"""What is written of an experiment: a table with its claims, a figure, and everything as JSON. Pure functions."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.lib.experiment import Claim, Experiment, Values
from experiments.lib.statistics import LEAST_SEEDS, Spread, verdict

Found = Mapping[str, Mapping[str, Sequence[Values]]]
"""By data set and arm, the values of every seed."""


def spreads(seeds: Sequence[Values], measures: Iterable[str]) -> dict[str, Spread]:
    """The spread of every measure that the seeds have."""
    return {m: Spread(tuple(float(values[m]) for values in seeds)) for m in measures if m in seeds[0]}


def judged(experiment: Experiment, found: Found) -> list[dict[str, Any]]:
    """The claims on every data set that they are of: the difference paired by seed, its interval, and the verdict.

    Raises:
      ValueError: if an arm of a claim was not measured on a data set, or lacks the measure.
    """
    rows = []
    for claim in experiment.claims:
        for dataset, arms in found.items():
            if experiment.compared(claim, dataset):
                rows.append(_judged(claim, claim.measure or experiment.first, dataset, arms))
    return rows


def _judged(claim: Claim, measure: str, dataset: str, arms: Mapping[str, Sequence[Values]]) -> dict[str, Any]:
    sides = []
    for arm in (claim.arm, claim.base):
        if arm not in arms or measure not in arms[arm][0]:
            raise ValueError(
                f"the claim {claim.text!r} takes {measure!r} of {arm!r} on {dataset}, which was not measured"
            )
        sides.append(spreads(arms[arm], [measure])[measure])
    difference = sides[0] - sides[1]
    low, high = difference.interval()
    return {
        "claim": claim.text,
        "dataset": dataset,
        "compared": f"{claim.arm} {claim.relation} {claim.base}" + (f" ± {claim.margin:g}" if claim.margin else ""),
        "measure": measure,
        "difference": difference.mean,
        "interval": None if math.isinf(low) else [low, high],
        "paper": None if claim.paper is None else str(claim.paper),
        "verdict": verdict(difference, claim.relation, claim.margin),
    }


def interval_text(row: Mapping[str, Any], decimals: int) -> str:
    """A difference with its interval, such as "+1.2 [+0.4, +2.0]"."""
    form = lambda value: f"{value:+.{decimals}f}"
    between = "one seed" if row["interval"] is None else ", ".join(map(form, row["interval"]))
    return f"{form(row['difference'])} [{between}]"


def table(
    experiment: Experiment,
    found: Found,
    described: Mapping[str, str],
    made: Sequence[str],
    notes: str = "",
    recipes: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The Markdown page of the results.

    Args:
      experiment: whose docstring heads the page.
      found: what was measured.
      described: what is said of each data set.
      made: lines on how the results were made.
      notes: what a person says of them.
      recipes: what `jaxemb compile --json` says of the full recipes.
    """
    title, *about = experiment.about.strip().splitlines()
    seeds = len(next(iter(next(iter(found.values())).values())))
    text = f"# {title.rstrip('.')}\n" + "\n".join(about).rstrip() + "\n"
    text += f"\n## Results\n\nMean ± standard deviation over {seeds} seed{'s' * (seeds > 1)}.\n"
    for dataset, arms in found.items():
        text += f"\n**{dataset}**" + (f": {described[dataset]}" if described.get(dataset) else "") + "\n\n"
        text += _rows(experiment, dataset, arms)
    judgements = judged(experiment, found)
    text += (
        "\n## Claims\n\nDifferences are paired by seed, with the 95 % interval of the t distribution. A claim is "
        "*shown* if all of the interval agrees with it, *opposite* if all of it disagrees, and *not shown* else, or by "
        f"fewer than {LEAST_SEEDS} seeds, or where all seeds give the same. Intervals cover what the seeds draw, and "
        "nothing else: no other data set, and no other test records where all seeds share them.\n\n"
    )
    decimals = {name: measure.decimals + 1 for name, measure in experiment.measures.items()}
    has_paper = any(row["paper"] for row in judgements)
    header = ["claim", "data", "compared", "measure", "difference", *(["paper"] if has_paper else []), "verdict"]
    lines = [
        [row["claim"], row["dataset"], row["compared"], row["measure"], interval_text(row, decimals[row["measure"]])]
        + ([row["paper"] or "–"] if has_paper else [])
        + [f"**{row['verdict']}**"]
        for row in judgements
    ]
    text += markdown_table(header, lines, left=4)
    text += f"\n## Notes\n\n{notes.strip()}\n" if notes.strip() else ""
    text += f"\n## The full recipe\n\n{recipe_table(recipes)}" if recipes else ""
    return text + "\n## How it was made\n\n" + "".join(f"- {line}\n" for line in made)


def recipe_table(recipes: Iterable[Mapping[str, Any]]) -> str:
    """What the full recipes take, by their commands; read off the compiled program, which was not run."""
    lines = []
    for found in recipes:
        options = "".join(f" --set {option}" for option in found["set"])
        memory, step, steps = found["memory"], found["seconds"]["step"], found["steps"]
        peak = f"{memory['peak'] / 2**30:.2f} of {memory['capacity'] / 2**30:.2f}"
        command = f"`jaxemb compile {found['config']} --topology {found['topology']}{options}`"
        took = [f"{step:.3g}", f"{steps:,}", f"{steps * step / 3600:.3g}", f"{found['chip_hours']:.3g}"]
        lines.append([command, f"{found['parameters'] / 1e6:,.1f}", peak, *took])
    header = ["", "M parameters", "GiB of a chip", "s a step", "steps", "hours", "chip-hours"]
    about = "Compiled for chips that are not here: memory and time are read off the program, which was not run.\n\n"
    return about + markdown_table(header, lines)


def _rows(experiment: Experiment, dataset: str, arms: Mapping[str, Sequence[Values]]) -> str:
    """The table of a data set; columns that nothing stands in are left out."""
    numbers = {arm: spreads(seeds, experiment.measures) for arm, seeds in arms.items()}
    columns: dict[str, list[str]] = {"scenario": [experiment.arms[arm].scenario for arm in arms]}
    for name, measure in experiment.measures.items():
        cells = [f"{of_arm[name]:.{measure.decimals}f}" if name in of_arm else "" for of_arm in numbers.values()]
        columns[measure.label] = cells
    columns["paper"] = [str(experiment.arms[arm].paper or "") for arm in arms]
    columns["prototype of the specification"] = [experiment.arms[arm].prototype.get(dataset, "") for arm in arms]
    kept = {label: cells for label, cells in columns.items() if any(cells)}
    return markdown_table(["", *kept], zip(arms, *kept.values(), strict=True))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]], left: int = 1) -> str:
    """A Markdown table; its first columns are aligned left, the others right."""
    lines = [header, [*["---"] * left, *["---:"] * (len(header) - left)], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def figure(experiment: Experiment, found: Found):
    """A panel for each data set: of the measure that matters, every seed of every arm, and the mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    height = 1.2 + 0.35 * max(map(len, found.values()))
    shown, axes = plt.subplots(1, len(found), figsize=(6 * len(found), height), squeeze=False)
    for axis, (dataset, arms) in zip(axes[0], found.items(), strict=True):
        for place, seeds in enumerate(arms.values()):
            values = [values[experiment.first] for values in seeds if experiment.first in values]
            axis.plot(values, [place] * len(values), "o", color="tab:blue", alpha=0.5)
            if values:
                axis.plot(np.mean(values), place, "|", color="black", markersize=14)
        axis.set_yticks(range(len(arms)), list(arms))
        axis.invert_yaxis()
        axis.set(title=dataset, xlabel=experiment.measures[experiment.first].label)
        axis.grid(axis="x", alpha=0.3)
    shown.tight_layout()
    return shown
