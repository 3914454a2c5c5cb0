"""Measuring the cells of an experiment, an arm on a data set with a seed each, and keeping what was measured."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import math
import platform
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.lib import sources
from experiments.lib.datasets import REPOSITORY
from experiments.lib.experiment import Experiment
from jaxemb.files import write_json
from jaxemb.train.description import describe

CHOICE_SEED = 1_000_000  # with which settings are chosen; no result has it


@dataclasses.dataclass(frozen=True)
class Cell:
    """An arm on a data set with a seed; with a `choice`, one of the settings that are tried for it."""

    dataset: str
    arm: str
    seed: int
    choice: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        tried = ", ".join(f"{name} {value}" for name, value in self.choice)
        return f"{self.dataset}, {self.arm}, {tried or f'seed {self.seed}'}"

    @property
    def file(self) -> str:
        """The name of its file; it ends with a hash, as the rest may be that of another cell."""
        digest = hashlib.sha256(str(self).encode()).hexdigest()[:6]
        return f"{re.sub(r'[^a-z0-9.]+', '-', str(self).lower())}-{digest}.json"


@dataclasses.dataclass(frozen=True)
class Record:
    """What is kept of a cell.

    Attributes:
      made_by: a hash of the preset, the arm, and the text of every module of `experiments` that is imported. Data
        files, and the vectors that `datasets.vectors` keeps, are no part of it.
      library: a hash of the library's sources. Another library does not make a cell be measured again; that cells of a
        table differ in it is said.
      made_on: commit, software and device.
      values: what was measured.
      data: what is said of the data.
      cpu_seconds: of all cores, with what loading the data took.
    """

    made_by: str
    library: str
    made_on: str
    values: dict[str, Any]
    data: str
    cpu_seconds: float


class Cells:
    """The cells of a preset. What is measured is in `out/cells` at once; what is there is not measured again.

    The same goes for what is in `out/results.json`, which has the cells of a run that is complete.

    Args:
      experiment: what is run.
      preset: its name.
      out: directory of the results.
      seeds: how many; None for the preset's.
    """

    def __init__(self, experiment: Experiment, preset: str, out: Path, seeds: int | None = None) -> None:
        self.experiment, self.name, self.out = experiment, preset, out
        self.preset = experiment.presets[preset]
        self.seeds = range(seeds or self.preset.seeds)
        self._sources = sources.experiments()  # as they are now, not when a cell is done, hours later
        self._loaded: tuple[Any, Any] = (None, None)  # the data of the last cell
        complete = out / "results.json"
        self._before = json.loads(complete.read_text(encoding="utf-8"))["cells"] if complete.exists() else {}

    def __iter__(self) -> Iterator[Cell]:
        """All cells of results, seed by seed."""
        for seed in self.seeds:
            for dataset in self.preset.datasets:
                for arm in self.experiment.arms_on(dataset):
                    yield Cell(dataset, arm, seed)

    def choices(self, dataset: str, arm: str) -> list[Cell]:
        """The settings that are tried for an arm; none where there is no choice."""
        tried = self.experiment.arms[arm].choices()
        return [Cell(dataset, arm, CHOICE_SEED, tuple(one.items())) for one in tried] if len(tried) > 1 else []

    def kept(self, cell: Cell) -> Record | None:
        """What was measured before by these modules of `experiments` with these settings."""
        arm, path = self._arm(cell), self.out / "cells" / cell.file
        if arm is None:
            return None
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else self._before.get(cell.file)
        return Record(**kept) if kept and kept["made_by"] == self._made_by(arm) else None

    def measured(self, cell: Cell) -> Record:
        """What was measured before, or is now.

        Raises:
          ValueError: if a measure is not finite.
        """
        if (record := self.kept(cell)) is not None:
            return record
        for choice in () if cell.choice else self.choices(cell.dataset, cell.arm):
            self.measured(choice)
        experiment, arm, began = self.experiment, self._arm(cell), time.process_time()
        data = self._data(cell)
        values = plain(experiment.measure(self.preset, data, arm, cell.seed))
        found = {name: values[name] for name in experiment.measures if name in values}
        if not found or not all(map(math.isfinite, found.values())):
            raise ValueError(f"{cell}: measures must be finite numbers; got {found}")
        seconds = time.process_time() - began
        described = experiment.describe(data)
        record = Record(self._made_by(arm), sources.library(), made_on(), values, described, seconds)
        (self.out / "cells").mkdir(parents=True, exist_ok=True)
        write_json(self.out / "cells" / cell.file, dataclasses.asdict(record))
        print(f"{cell}: {', '.join(f'{k} {v:.2f}' for k, v in found.items())}, {seconds:.0f} s of CPU", flush=True)
        return record

    def _arm(self, cell: Cell) -> Any:
        """The arm with its settings; None as long as these are not chosen."""
        choice, arm = dict(cell.choice), self.experiment.arms[cell.arm]
        if not choice and (tried := self.choices(cell.dataset, cell.arm)):
            records = {one: self.kept(one) for one in tried}
            if None in records.values():
                return None
            choice = dict(max(tried, key=lambda one: records[one].values[self.experiment.first]).choice)
        return dataclasses.replace(arm, **choice or (arm.choices()[0] if arm.grid else {}))

    def _data(self, cell: Cell) -> Any:
        key = (cell.dataset, cell.seed)
        if self._loaded[0] != key:
            self._loaded = (None, None)  # not both in memory
            load = self.experiment.held_out if cell.choice else self.experiment.data
            self._loaded = key, load(self.preset, cell.dataset, *([] if cell.choice else [cell.seed]))
        return self._loaded[1]

    def _made_by(self, arm: Any) -> str:
        e = self.experiment
        functions = [e.measure, e.data, e.held_out if arm.grid else None]  # they may be defined elsewhere
        made_by = [self._sources, describe([*functions, self.preset, arm])]
        return hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:16]


def plain(value: Any) -> Any:
    """What JSON can hold of it: numbers, and lists for arrays."""
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value if value is None or isinstance(value, str | bool) else np.asarray(value).tolist()


@functools.cache
def made_on() -> str:
    """The commit, with a "+" if files differ from it, the software, and the device."""
    software = [f"{name} {importlib.metadata.version(name)}" for name in ("jaxemb", "jax", "flax", "optax", "numpy")]
    git = functools.partial(subprocess.check_output, cwd=REPOSITORY, stderr=subprocess.DEVNULL, text=True)
    try:
        changed = git(["git", "status", "--porcelain", "--untracked-files=no", "jaxemb", "experiments/*.py"])
        commit = git(["git", "rev-parse", "--short=10", "HEAD"]).strip()
        software.insert(0, f"commit {commit}{'+' if changed else ''}")
    except (OSError, subprocess.CalledProcessError):
        pass  # a copy without history
    devices = jax.devices()
    return ", ".join([*software, f"Python {platform.python_version()}, {len(devices)} x {devices[0].device_kind}"])
