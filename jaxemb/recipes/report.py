"""One self-contained HTML page about a retrieval fine-tuning run: figures, pictures and examples; needs no network."""

import dataclasses
import importlib.resources
import io
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxemb.files import write_text
from jaxemb.packages import remedy

_BEFORE, _AFTER = "#8a94a3", "#2457d6"
_GROUP_COLOURS = (
    "#2457d6",
    "#d9822b",
    "#2f9e63",
    "#c23b4b",
    "#7b57c4",
    "#0f97a8",
    "#b5568f",
    "#8c7a1d",
    "#5577a0",
    "#5b6b2e",
)
_OTHER_COLOUR = "#b6bdc8"


class Hit(NamedTuple):
    """One search result: what was found, its similarity, and whether it is the right answer."""

    text: str
    score: float
    right: bool


class Example(NamedTuple):
    """A question with its first hits before and after training."""

    query: str
    before: Sequence[Hit]
    after: Sequence[Hit]
    rank_before: int
    rank_after: int


class Point(NamedTuple):
    """A dot of the map: where it is, the group that colours it, the text it shows."""

    x: float
    y: float
    group: str
    text: str


@dataclasses.dataclass(frozen=True)
class Report:
    """What the page shows.

    Attributes:
      title, summary: heading and the sentence below it.
      losses: `(step, loss)` pairs in order.
      validation: `(step, value)` pairs of the measure that chose the model.
      before, after: metrics by name, such as `ndcg@10`; `NAME_se` is the standard error of NAME.
      change: the difference of `ndcg@10` and its standard error over the same questions.
      examples: questions with hits.
      points: the map.
      details: rows of the table that says how it was made.
      commands: what the reader can do next, as shell lines.
    """

    title: str
    summary: str
    losses: Sequence[tuple[float, float]]
    validation: Sequence[tuple[float, float]]
    before: Mapping[str, float]
    after: Mapping[str, float]
    change: Mapping[str, float]
    examples: Sequence[Example]
    points: Sequence[Point]
    details: Mapping[str, str]
    commands: str

    def html(self) -> str:
        """The page."""
        page = string.Template(importlib.resources.files("jaxemb.recipes").joinpath("report.html").read_text("utf-8"))
        return page.substitute(
            title=escape(self.title),
            summary=escape(self.summary),
            cards=_cards(self.before, self.after),
            loss_note="InfoNCE over the batch: each docstring must pick its own body out of all bodies of the batch.",
            loss_chart=_loss_chart(self.losses, self.validation),
            recall_note="Share of the questions whose answer is among the first k hits, ± one standard error.",
            recall_chart=_recall_chart(self.before, self.after),
            figures_note="On modules that were held out, ± one standard error over the questions. Question by "
            f"question, nDCG@10 changes by {self.change['ndcg@10']:+.4f} ± {self.change['ndcg@10_se']:.4f}.",
            figures=_figures(self.before, self.after),
            examples_note="Docstrings of held-out modules as questions. Of those whose answer moved, five are shown, "
            "evenly from the large rises to the large falls. The function that the docstring belongs to is marked.",
            examples="\n".join(map(_example, self.examples)),
            map_note="Each dot is a function, placed by its embedding after training, seen from the side where the "
            "packages lie farthest apart. Point at a dot to see what it is.",
            map=_map(self.points),
            details=_table(self.details),
            commands=escape(self.commands),
        )

    def write(self, path: str | Path) -> Path:
        """Writes the page to `path`."""
        write_text(path, self.html())
        return Path(path)


def principal_components(vectors: np.ndarray, groups: Sequence[str] | None = None, n: int = 2) -> np.ndarray:
    """Coordinates of `vectors` `[N, D]` on the `n` directions in which they vary most, `[N, n]`, signs fixed.

    With `groups` `[N]` those directions in which the groups' means vary most, each weighted by its number of members:
    the view that keeps the groups apart.
    """
    centred = np.asarray(vectors, np.float64) - np.mean(vectors, axis=0, dtype=np.float64)
    spread = centred
    if groups is not None:
        _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        sums = np.zeros((len(sizes), centred.shape[1]))
        np.add.at(sums, group, centred)
        spread = (sums / sizes[:, None])[group]
    _, axes = np.linalg.eigh(spread.T @ spread)
    axes = axes[:, ::-1][:, :n]
    return centred @ (axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(n)]))


def _recalls(metrics: Mapping[str, float]) -> list[tuple[int, float, float]]:
    """`(k, recall, standard error)` in order of k."""
    found = {
        int(name.removeprefix("recall@")): name for name in metrics if name.startswith("recall@") and name[7:].isdigit()
    }
    return [(k, metrics[name], metrics.get(f"{name}_se", 0.0)) for k, name in sorted(found.items())]


def _cards(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    cards = []
    for name, label in (
        ("ndcg@10", "nDCG@10"),
        ("recall@1", "first hit is right"),
        ("recall@10", "right within ten hits"),
    ):
        old, new = before[name], after[name]
        cards.append(
            f'<div class="card"><b><i>{old:.3f} →</i> {new:.3f}</b><span>{label}, {(new - old) / old:+.1%}</span></div>'
        )
    return "".join(cards)


def _figures(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    rows = []
    for name in (n for n in after if n in before and not n.endswith("_se") and f"{n}_se" in after):
        old, new = (f"{m[name]:.4f} ± {m[f'{name}_se']:.4f}" for m in (before, after))
        change = f"{(after[name] - before[name]) / before[name]:+.1%}" if before[name] else ""
        cells = "".join(f'<td class="number">{cell}</td>' for cell in (old, new, change))
        rows.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
    head = "".join(f'<th class="number">{cell}</th>' for cell in ("before", "after", "change"))
    return f"<table><tr><th>measure</th>{head}</tr>{''.join(rows)}</table>"


def _example(example: Example) -> str:
    lists = "".join(
        f'<ol><li class="head">{label} (right answer at rank {rank})</li>{"".join(map(_hit, hits))}</ol>'
        for label, hits, rank in (
            ("before", example.before, example.rank_before),
            ("after", example.after, example.rank_after),
        )
    )
    return f'<p class="query"><q>{escape(example.query)}</q></p><div class="hits">{lists}</div>'


def _hit(hit: Hit) -> str:
    mark = ' class="right"' if hit.right else ""
    return f"<li{mark}><code>{escape(hit.text)}</code><span>{hit.score:.2f}</span></li>"


def _table(rows: Mapping[str, str]) -> str:
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows.items())
    return f"<table>{cells}</table>"


def _map(points: Sequence[Point], width: int = 1000, height: int = 620, margin: int = 18) -> str:
    """The map as SVG; the axes have no units, so each is stretched to the frame."""
    xy = np.array([(p.x, p.y) for p in points])
    unit = (xy - xy.min(axis=0)) / np.maximum(np.ptp(xy, axis=0), 1e-12)
    x = margin + unit[:, 0] * (width - 2 * margin)
    y = height - margin - unit[:, 1] * (height - 2 * margin)
    largest = [group for group, _ in Counter(p.group for p in points).most_common(len(_GROUP_COLOURS))]
    colours = dict(zip(largest, _GROUP_COLOURS, strict=False))
    # The uncoloured dots lie below the others.
    order = sorted(range(len(points)), key=lambda i: points[i].group in colours)
    circles = "\n".join(
        f'<circle cx="{x[i]:.1f}" cy="{y[i]:.1f}" r="3.6" fill="{colours.get(points[i].group, _OTHER_COLOUR)}">'
        f"<title>{escape(points[i].text)}</title></circle>"
        for i in order
    )
    entries = [*colours.items(), ("other", _OTHER_COLOUR)]
    legend = "".join(f'<li><i style="background:{colour}"></i>{escape(group)}</li>' for group, colour in entries)
    svg = f'<svg class="map" viewBox="0 0 {width} {height}" role="img" aria-label="map of the code">\n{circles}\n</svg>'
    return f'{svg}<ul class="legend">{legend}</ul>'


def _svg(figure) -> str:
    """A matplotlib figure as inline SVG: text stays text, in the page's font."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "jaxemb"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace("font: ", "font-family: inherit; font: ")


def _axes(x_label: str, y_label: str):
    with remedy():
        from matplotlib.figure import Figure  # without pyplot, so that no display and no global state are involved

    figure = Figure(figsize=(5.6, 3.3), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label, color="#5d6878")
    axes.set_ylabel(y_label, color="#5d6878")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c9d0d9")
    axes.tick_params(colors="#5d6878", length=3)
    axes.grid(axis="y", color="#e3e7ed", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _loss_chart(losses: Sequence[tuple[float, float]], validation: Sequence[tuple[float, float]]) -> str:
    figure, axes = _axes("step", "loss")
    axes.xaxis.get_major_locator().set_params(integer=True)
    steps, values = np.array(losses, float).reshape(-1, 2).T
    axes.plot(steps, values, color=_AFTER, alpha=0.25, linewidth=1)
    width = max(1, len(values) // 20)
    smooth = np.convolve(values, np.ones(width) / width, mode="valid") if len(values) else values
    axes.plot(steps[width - 1 :], smooth, color=_AFTER, linewidth=2, label="loss, smoothed")
    if len(validation):
        right = axes.twinx()
        right.plot(*np.array(validation, float).T, color="#d9822b", marker="o", markersize=4, linewidth=1.5)
        right.set_ylabel("validation nDCG@10", color="#d9822b")
        right.spines[["top", "left", "right"]].set_visible(False)
        right.tick_params(colors="#d9822b", length=3)
    return _svg(figure)


def _recall_chart(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    figure, axes = _axes("k", "recall@k")
    for metrics, label, colour in ((before, "before", _BEFORE), (after, "after", _AFTER)):
        k, recall, error = np.array(_recalls(metrics), float).T
        axes.errorbar(k, recall, error, color=colour, marker="o", markersize=5, linewidth=2, capsize=3, label=label)
        axes.set_xscale("log")
        axes.set_xticks(k, [f"{int(i)}" for i in k])
        axes.minorticks_off()
    axes.legend(frameon=False, loc="lower right", labelcolor="#5d6878")
    return _svg(figure)
