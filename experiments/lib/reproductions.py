"""Writes `docs/reproductions.md`: of every experiment what its paper claims first, and what we found.

python -m experiments.lib.reproductions
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.lib.datasets import REPOSITORY
from experiments.lib.report import interval_text, markdown_table
from jaxemb.files import read_json, write_text
from jaxemb.settings import Settings

PAGE = REPOSITORY / "docs" / "reproductions.md"
OF_NO_PAPER = ("code_search", "continual_retrieval", "continual_text", "stsb")
"""Experiments that compare methods, or try an own recipe; no paper makes their claims."""
_ABOUT = """# Reproductions

Of every experiment of a paper the claim that it makes first, what the paper reports, and the difference that we
measured, with its 95 % interval, which covers what the seeds draw, and neither other data nor, where all seeds share
them, other test records. *Shown* is a claim with which the whole interval agrees, *opposite* one with which it
disagrees. The tables have the other claims, the conditions and what was tried.
`python -m experiments.lib.reproductions` makes this page.

"""


def page(results: Path) -> str:
    """The page of all results under a directory; those without `results.json` are named below it.

    So are the experiments of no paper, and those, beside that directory, that have no results.
    """
    files = sorted(results.glob("*/results.json"))
    summaries = [Settings(read_json(path, dict), str(path), ValueError) for path in files]
    rows = [row for summary in summaries if summary["name"] not in OF_NO_PAPER for row in _rows(summary)]
    header = ["experiment", "claim", "data", "paper", "difference", "verdict", "command", "CPU minutes"]
    text = _ABOUT + (markdown_table(header, rows, left=len(header)) if rows else "No experiment has a row yet.\n")
    if own := [summary["name"] for summary in summaries if summary["name"] in OF_NO_PAPER]:
        links = ", ".join(f"[{name}](../experiments/results/{name}/table.md)" for name in own)
        text += f"\nComparisons of our own, which no paper claims: {links}.\n"
    others = [path.name for path in sorted(results.iterdir()) if not (path / "results.json").exists()]
    if others:
        links = ", ".join(f"[{name}](../experiments/results/{name}/table.md)" for name in others)
        text += f"\nTables that do not judge their claims by intervals yet: {links}.\n"
    programs = [path for path in sorted(results.parent.glob("*.py")) if "main(EXPERIMENT)" in path.read_text("utf-8")]
    if absent := [path.stem for path in programs if not (results / path.stem).exists()]:
        links = ", ".join(f"[{name}](../experiments/{name}.py)" for name in absent)
        text += f"\nExperiments without results: {links}.\n"
    return text


def _rows(summary: Mapping[str, Any]) -> Sequence[Sequence[str]]:
    first = [claim for claim in summary["claims"] if claim["claim"] == summary["claims"][0]["claim"]]
    return [
        [
            f"[{summary['title'].partition(':')[0]}](../experiments/results/{summary['name']}/table.md)",
            row["claim"],
            row["dataset"],
            row["paper"] or "–",
            f"{interval_text(row, 2)} {row['measure']}",
            f"**{row['verdict']}**",
            f"`{summary['command']}`",
            f"{summary['cpu_minutes']:.0f}",
        ]
        for row in first
    ]


if __name__ == "__main__":
    write_text(PAGE, page(REPOSITORY / "experiments" / "results"))
