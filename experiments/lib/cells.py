"""Measuring the cells of an experiment, an arm on a data set with a seed each, and keeping what was measured."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import logging
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
from jaxemb.files import kind, parse_json, read_bytes, read_json, write_json
from jaxemb.settings import REQUIRED, Settings, inner
from jaxemb.train.description import describe

logger = logging.getLogger(__name__)

CHOICE_SEED = 1_000_000  # with which settings are chosen; no result has it


class ResultsError(ValueError):
    """Results that cannot be read, or not be written where they are to be."""


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

    Raises:
      ResultsError: `results.json` cannot be read, or a file is where a directory is to be.
    """

    def __init__(self, experiment: Experiment, preset: str, out: Path, seeds: int | None = None) -> None:
        self.experiment, self.name, self.out = experiment, preset, out
        self.preset = experiment.presets[preset]
        self.seeds = range(seeds or self.preset.seeds)
        self._sources = sources.experiments()  # as they are now, not when a cell is done, hours later
        self._loaded: tuple[Any, Any] = (None, None)  # the data of the last cell
        if (folder := out / "cells").exists() and not folder.is_dir():
            raise ResultsError(f"{folder} must be a directory, and is a file; remove it")
        self._told: set[str] = set()  # what cannot be read
        self._complete = out / "results.json"
        self._before: Mapping[str, Any] = {}
        if self._complete.exists():
            try:
                complete = read_json(self._complete, dict, finite=False, error=ResultsError)
            except OSError as error:
                raise ResultsError(f"{self._complete}: {error.strerror}") from error
            self._before = inner(Settings(complete, str(self._complete), ResultsError), "cells", REQUIRED)

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
        """What was measured before by these modules of `experiments` with these settings.

        What is damaged is not kept, with a warning.

        Raises:
          ResultsError: where the file of the cell is to be is a directory, or what is not ours to read.
        """
        arm, path = self._arm(cell), self.out / "cells" / cell.file
        if arm is None or not (path.exists() or cell.file in self._before):
            return None
        made_by = self._made_by(arm)
        where = str(path) if path.exists() else f"{self._complete}: {cell.file}"
        try:
            kept = parse_json(read_bytes(path), finite=False) if path.exists() else self._before[cell.file]
            return self._record(kept, made_by)
        except OSError as error:
            raise ResultsError(f"{where}: {error.strerror}") from error
        except ValueError as error:
            if where not in self._told:
                logger.warning("%s: %s; the cell is measured again", where, error)
            self._told.add(where)
            return None

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
        try:
            found = self._found(values)
        except ValueError as error:
            raise ValueError(f"{cell}: {error}") from None
        seconds = time.process_time() - began
        described = experiment.describe(data)
        record = Record(self._made_by(arm), sources.library(), made_on(), values, described, seconds)
        (self.out / "cells").mkdir(parents=True, exist_ok=True)
        write_json(self.out / "cells" / cell.file, dataclasses.asdict(record))
        print(f"{cell}: {', '.join(f'{k} {v:.2f}' for k, v in found.items())}, {seconds:.0f} s of CPU", flush=True)
        return record

    def _record(self, kept: Any, made_by: str) -> Record | None:
        """What a file holds; None if other code or settings made it, a ValueError if it is no record."""
        names = [field.name for field in dataclasses.fields(Record)]
        if not isinstance(kept, dict):
            raise ValueError(f"expected a JSON object of {', '.join(names)}; got {kind(kept)}")
        if isinstance(kept.get("made_by"), str) and kept["made_by"] != made_by:
            return None
        if wrong := sorted(kept.keys() ^ set(names)):
            raise ValueError(f"expected a JSON object of {', '.join(names)}; missing or unknown: {', '.join(wrong)}")
        kinds = {"values": dict, "cpu_seconds": (int, float)}  # others are texts
        if wrong := [name for name in names if not isinstance(kept[name], kinds.get(name, str))]:
            raise ValueError(f"{wrong[0]} must not be {kind(kept[wrong[0]])}")
        self._found(kept["values"])
        return Record(**kept)

    def _found(self, values: Mapping[str, Any]) -> dict[str, float]:
        """The measures among the values; a ValueError if there is none, or one is not finite."""
        found = {name: values[name] for name in self.experiment.measures if name in values}
        if not found or not all(isinstance(one, int | float) and math.isfinite(one) for one in found.values()):
            raise ValueError(f"measures must be finite numbers; got {found}")
        return found

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
