"""What the experiments need that are not on `lib.suite` yet: command line, means over seeds, and result files."""

import argparse
import dataclasses
import importlib.metadata
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from experiments.lib.datasets import REPOSITORY, WithColumns, data_dir, vectors  # noqa: F401
from experiments.lib.report import markdown_table  # noqa: F401
from jaxemb.files import write_figure, write_text

Preset = TypeVar("Preset")


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of a result over seeds (0 for one seed), and the values themselves."""

    mean: float
    std: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        numbers = tuple(float(value) for value in values)
        return cls(float(np.mean(numbers)), float(np.std(numbers, ddof=1)) if len(numbers) > 1 else 0.0, numbers)

    def __format__(self, spec: str) -> str:
        return f"{self.mean:{spec}} ± {self.std:{spec.lstrip('+')}}" if len(self.values) > 1 else f"{self.mean:{spec}}"


def arguments(name: str, about: str, presets: Mapping[str, Preset]) -> tuple[str, Preset, int, Path]:
    """Parses `--preset`, `--seeds` and `--out`.

    Returns:
      The preset's name, the preset, the number of seeds (by default the preset's), the directory of the results (by
      default `experiments/results/<name>`, of other presets than `small` a subdirectory of that).
    """
    parser = argparse.ArgumentParser(prog=f"python -m experiments.{name}", description=about)
    parser.add_argument("--preset", choices=sorted(presets), default="small", help="how much to do (default: small)")
    parser.add_argument("--seeds", type=int, help="number of seeds (default: the preset's)")
    parser.add_argument("--out", type=Path, help="directory of the results")
    args = parser.parse_args()
    if args.seeds is not None and args.seeds < 1:
        parser.error(f"--seeds must be at least 1; got {args.seeds}")
    results = REPOSITORY / "experiments" / "results" / name
    preset: Any = presets[args.preset]
    out = args.out or (results if args.preset == "small" else results / args.preset)
    return args.preset, preset, args.seeds or preset.seeds, out


def environment() -> dict[str, Any]:
    """The software and devices that results come from."""
    import jax

    versions = {name: importlib.metadata.version(name) for name in ("jaxemb", "jax", "flax", "optax", "numpy")}
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **versions,
        "device": device.device_kind,
        "devices": jax.device_count(),
    }


def spreads(results: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    """The spread of every measure over the seeds' results."""
    return {name: Spread.of(result[name] for result in results) for name in results[0]}


def paired(results: Sequence[Mapping[str, float]], base: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """The differences from `base`, seed by seed."""
    return [{name: a[name] - b[name] for name in b} for a, b in zip(results, base, strict=True)]


def intents(name: str, split: str, per_intent: int | None = None) -> tuple[list[str], np.ndarray]:
    """Sentences and the numbers of their intents, int32, in alphabetical order of the intents.

    Args:
      name: "banking77" (train, test), "clinc150" (train, val, test), "hwu64", "snips" or "atis" (train, valid, test).
      split: see above.
      per_intent: the first so many of each intent; None for all.
    """
    from jaxemb.data import read

    source = read(data_dir() / "intents" / f"{name}.{split}.tsv.gz", names=("text", "label"))
    records = source.__getitems__(range(len(source)))
    _, labels = np.unique([record["label"] for record in records], return_inverse=True)
    kept = [i for label in range(labels.max() + 1) for i in np.flatnonzero(labels == label)[:per_intent]]
    return [records[i]["text"] for i in kept], labels[kept].astype(np.int32)


def dots(panels: Mapping[str, Mapping[str, Sequence[float]]]):
    """A figure with a panel for each measure: the values of each method's seeds and their mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    height = 1.2 + 0.35 * max(map(len, panels.values()))
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), height), sharey=True, squeeze=False)
    for axis, (label, methods) in zip(axes[0], panels.items(), strict=True):
        for place, values in enumerate(methods.values()):
            axis.plot(values, [place] * len(values), "o", color="tab:blue", alpha=0.5)
            if len(values):  # a method may lack a measure
                axis.plot(np.mean(values), place, "|", color="black", markersize=14)
        axis.set_yticks(range(len(methods)), list(methods))
        axis.set(xlabel=label)
        axis.grid(axis="x", alpha=0.3)
    axes[0][0].invert_yaxis()
    figure.tight_layout()
    return figure


def write(path: Path, text: str) -> None:
    """Writes a file, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def write_results(out: Path, metrics: Mapping[str, Any], table: str, figure=None) -> None:
    """Writes `metrics.json` (with the environment), `table.md`, and the matplotlib `figure` as `figure.png`."""
    plain = json.dumps({**metrics, "environment": environment()}, indent=1, default=_plain)
    write(out / "metrics.json", plain + "\n")
    write(out / "table.md", table)
    if figure is not None:
        write_figure(out / "figure.png", figure, dpi=150, bbox_inches="tight")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"results must be JSON; got {type(value).__name__}")
