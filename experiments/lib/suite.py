"""Runs an experiment: its presets, seeds and arms, resumed where it stopped, to a table that says what is shown.

A file of `experiments/` says what is compared, in about a hundred lines, and ends with

    EXPERIMENT = Experiment(name=..., about=__doc__, presets=..., arms=..., data=..., measure=..., ...)

    if __name__ == "__main__":
        main(EXPERIMENT)

    python -m experiments.peg --preset small             # everything, then the table
    python -m experiments.peg --preset small --seed 0    # a share of the work; the last process writes the table

Every cell, an arm on a data set with a seed, is kept in `cells/` of the results when it is measured, with a hash of its
settings and of the text of all modules of `experiments` that are imported, and is not measured again as long as these
are the same: a change of any of these files, be it of a word, has everything measured again. The library, data files
and kept vectors are not part of that hash; if cells were measured with different states of the library, the table says
so. When all are there, `table.md`, `figure.png` and `results.json` are written; what `notes.md` beside them says
becomes part of the table, and so does what the full recipe takes, if `jaxemb compile ... --json` was written to
`recipes/` there.
"""

import argparse
import collections
import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.lib import report, sources
from experiments.lib.cells import CHOICE_SEED, Cell, Cells, Record, ResultsError, plain
from experiments.lib.datasets import REPOSITORY, AbsentError
from experiments.lib.experiment import Arm, Claim, Experiment, Measure, Preset, Reported
from jaxemb.compilation import enable_persistent_cache
from jaxemb.files import read_json, write_figure, write_json, write_text

__all__ = ["CHOICE_SEED", "Arm", "Claim", "Experiment", "Measure", "Preset", "Reported", "main", "run"]


def main(experiment: Experiment, argv: Sequence[str] | None = None) -> None:
    """The command line of an experiment."""
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{experiment.name}", description=experiment.about.splitlines()[0]
    )
    parser.add_argument(
        "--preset", choices=sorted(experiment.presets), default="small", help="how much (default: small)"
    )
    parser.add_argument("--out", type=Path, help="directory of the results")
    parser.add_argument("--seeds", type=int, help="how many seeds (default: the preset's)")
    parser.add_argument("--seed", type=int, action="append", help="measure this seed only; may be repeated")
    parser.add_argument("--arm", choices=[*experiment.arms], action="append", help="measure this arm only; as --seed")
    args = parser.parse_args(argv)
    if args.seeds is not None and args.seeds < 1:
        parser.error(f"--seeds must be at least 1; got {args.seeds}")
    seeds = args.seeds or experiment.presets[args.preset].seeds
    if unknown := [seed for seed in args.seed or () if seed not in range(seeds)]:
        parser.error(f"--seed must be in 0..{seeds - 1}; got {unknown[0]}")
    if args.out is not None and (file := next((p for p in (args.out, *args.out.parents) if p.is_file()), None)):
        parser.error(f"--out must be a directory; {file} is a file")
    results = REPOSITORY / "experiments" / "results" / experiment.name
    out = args.out or (results if args.preset == "small" else results / args.preset)
    enable_persistent_cache()
    try:
        run(experiment, args.preset, out, seeds=args.seeds, only_seeds=args.seed, only_arms=args.arm)
    except (AbsentError, ResultsError) as error:
        sys.exit(f"{parser.prog}: {error}")


def run(
    experiment: Experiment,
    preset: str,
    out: Path,
    *,
    seeds: int | None = None,
    only_seeds: Sequence[int] | None = None,
    only_arms: Sequence[str] | None = None,
) -> None:
    """Measures what is not measured yet, and writes the results as soon as everything is.

    Args:
      experiment: what is run.
      preset: its name.
      out: directory of the results.
      seeds: how many; None for the preset's.
      only_seeds, only_arms: what is measured in this process; None for all.
    """
    cells = Cells(experiment, preset, out, seeds)
    for line in _libraries(filter(None, map(cells.kept, cells)), sources.library()):
        print(line)
    for cell in cells:
        if cell.seed in (only_seeds or cells.seeds) and cell.arm in (only_arms or experiment.arms):
            cells.measured(cell)
    if missing := [cell for cell in cells if cells.kept(cell) is None]:
        print(f"{len(missing)} cells are still to be measured, such as {missing[0]}")
    else:
        write(cells)
        print(f"results are in {out}")


def write(cells: Cells) -> None:
    """Writes `table.md`, `figure.png`, further plots and `results.json`; all cells must be there."""
    experiment, out = cells.experiment, cells.out
    records = {cell: cells.measured(cell) for cell in cells}
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for cell, record in records.items():
        found.setdefault(cell.dataset, {}).setdefault(cell.arm, []).append(record.values)
    tried = {
        choice: cells.measured(choice) for d, arms in found.items() for a in arms for choice in cells.choices(d, a)
    }
    every = {**records, **tried}
    summary = {
        "name": experiment.name,
        "title": experiment.about.strip().splitlines()[0].rstrip("."),
        "command": f"python -m experiments.{experiment.name} --preset {cells.name}",
        "settings": plain(dataclasses.asdict(cells.preset)) | {"seeds": len(cells.seeds)},
        "claims": report.judged(experiment, found),
        "cpu_minutes": sum(record.cpu_seconds for record in every.values()) / 60,
        "made_on": sorted({record.made_on for record in every.values()}),
        "cells": {cell.file: dataclasses.asdict(record) for cell, record in every.items()},
    }
    described = {cell.dataset: record.data for cell, record in records.items()}
    notes, compiled = out / "notes.md", sorted((out / "recipes").glob("*.json"))
    said = notes.read_text(encoding="utf-8") if notes.exists() else ""
    scores = {cell: record.values[experiment.first] for cell, record in tried.items()}
    made = [*_made(summary), *_libraries(every.values()), *_chosen(scores)]
    write_json(out / "results.json", summary)
    recipes = [read_json(path, dict) for path in compiled]
    write_text(out / "table.md", report.table(experiment, found, described, made, said, recipes))
    plots = experiment.plots(found) if experiment.plots else {}
    for name, figure in {"figure": report.figure(experiment, found), **plots}.items():
        write_figure(out / f"{name}.png", figure, dpi=120, bbox_inches="tight")


def _made(summary: Mapping[str, Any]) -> list[str]:
    """How the results were made."""
    settings = ", ".join(f"{name} {value}" for name, value in summary["settings"].items() if name != "datasets")
    return [f"`{summary['command']}`, {summary['cpu_minutes']:.0f} CPU minutes", settings, *summary["made_on"]]


def _libraries(records: Iterable[Record], *present: str) -> list[str]:
    """A line if records, and what is to be measured at present, are not of one state of the library."""
    counts = collections.Counter(record.library for record in records)
    if len(counts.keys() | set(present)) < 2 or not counts:
        return []
    named = ", ".join(f"{count} of {library}" for library, count in counts.most_common())
    now = f"; it is {present[0]} now" if present else ""
    return [f"cells were measured with different states of the library, by hash: {named}{now}"]


def _chosen(scores: Mapping[Cell, float]) -> list[str]:
    """What was tried for which arm, and whether the best is at an edge of what was tried."""
    tried: dict[str, dict[Cell, float]] = {}
    for cell, score in scores.items():
        tried.setdefault(f"{cell.dataset}, {cell.arm}", {})[cell] = score
    lines = []
    for row, found in tried.items():
        settings = (f"{', '.join(f'{n} {v}' for n, v in cell.choice)}: {score:.1f}" for cell, score in found.items())
        edges = _at_edge(max(found, key=lambda cell: found[cell]), list(found))
        lines.append(f"tried on held-out training data: {row}: {'; '.join(settings)}")
        lines[-1] += f" (the best {', '.join(edges)} is at an edge of what was tried)" if edges else ""
    return lines


def _at_edge(best: Cell, tried: Sequence[Cell]) -> list[str]:
    """The fields of numbers in which the best setting is the smallest or the largest."""
    edges = []
    for name, value in best.choice:
        values = {dict(cell.choice)[name] for cell in tried}
        if len(values) > 1 and all(isinstance(v, int | float) for v in values) and value in (min(values), max(values)):
            edges.append(name)
    return edges
