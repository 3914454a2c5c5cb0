"""What every experiment needs: its command line, the data directory, means over seeds, and result files."""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
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


def data_dir() -> Path:
    """The directory of the data sets: `$JAXEMB_DATA`, or `../shared/data` beside the repository.

    Raises:
      FileNotFoundError: if it is not there.
    """
    path = Path(os.environ.get("JAXEMB_DATA") or REPOSITORY.parent / "shared" / "data")
    if not path.is_dir():
        raise FileNotFoundError(f"the data directory {path} is absent; set JAXEMB_DATA")
    return path


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


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; the first column is aligned left, the others right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def write_results(out: Path, metrics: Mapping[str, Any], table: str, figure=None) -> None:
    """Writes `metrics.json` (with the environment), `table.md`, and the matplotlib `figure` as `figure.png`."""
    out.mkdir(parents=True, exist_ok=True)
    plain = json.dumps({**metrics, "environment": environment()}, indent=1, default=_plain)
    (out / "metrics.json").write_text(plain + "\n", encoding="utf-8")
    (out / "table.md").write_text(table, encoding="utf-8")
    if figure is not None:
        figure.savefig(out / "figure.png", dpi=150, bbox_inches="tight")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"results must be JSON; got {type(value).__name__}")
