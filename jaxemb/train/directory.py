"""The directory of a run: whose it is, and that nobody else trains there."""

import contextlib
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxemb import files
from jaxemb.checkpoints import sentence_transformers
from jaxemb.train.checkpoints import wait_for_all
from jaxemb.train.run import Run, differences, extensions

_log = logging.getLogger(__name__)
_ANEW = "start anew with overwrite=True"  # which the command line calls --overwrite
_WRITTEN = ("model", "best", "checkpoints", "tensorboard", "run.json", "config.py", "metrics.jsonl")  # by a run
_OF_OTHERS = ("modules.json", "config.json", "vectors.npy")  # what models and search indices are known by


class RunLostError(RuntimeError):
    """The directory of a run was removed or replaced while it was trained."""


class RunDirectory:
    """The directory `path` of `run`, locked while the context lasts.

    It is the run's from its first checkpoint on: a start that failed before has nothing to keep, and another run may
    take its place.

    Attributes:
      longer: in what this run, which has more steps, differs from the one that is gone on with; empty if in nothing.

    Raises:
      FileExistsError: if it holds a run and is neither to be resumed nor overwritten, a model that is no run's, a
        search index, or a link in place of what runs write.
      ValueError: if it holds a different run.
      NotADirectoryError: if it is a file.
      InUseError: if another process trains there.
    """

    def __init__(self, path: Path, run: Run, *, resume: bool, overwrite: bool):
        self.path, self._run, self._resume, self._overwrite = path, run, resume, overwrite
        self.longer: list[str] = []
        self._description = run.describe()
        self._is_claimed = False
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "RunDirectory":
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"a run needs a directory; {self.path} is a file")
        with contextlib.ExitStack() as stack:
            if jax.process_index() == 0:
                files.made_directory(self.path)
                stack.enter_context(files.locked(self.path, wait=False))
            starts_anew = self._check()
            wait_for_all("looked")  # before process 0 changes anything
            if starts_anew and jax.process_index() == 0:
                self._remove_run()
            self._open = stack.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        self._open.close()

    def claim(self) -> None:
        """Says whose directory it is, once there is something to keep, and later sees that it still is."""
        if self._is_claimed:
            return self.check()
        self._is_claimed = True
        if jax.process_index() == 0:
            if self._run.source is not None:
                files.write_bytes(self.path / "config.py", Path(self._run.source).read_bytes())
            files.write_json(self.path / "run.json", self._description)

    def check(self) -> None:
        """Raises RunLostError if the directory is no longer there."""
        if self._is_claimed and jax.process_index() == 0 and not (self.path / "run.json").exists():
            raise RunLostError(f"{self.path} was removed or replaced while the run was trained in it")

    def _check(self) -> bool:
        """Whether another run makes place for this one, as it has nothing to keep or is to be overwritten."""
        for link in (path for name in _WRITTEN if (path := self.path / name).is_symlink()):
            raise FileExistsError(f"{link} is a link, through which a run would overwrite {link.resolve()}; remove it")
        saved, kept = self._saved(), self._kept()
        others = [name for name in _OF_OTHERS if (self.path / name).exists()]
        if others and saved is None and not kept:
            raise FileExistsError(f"{self.path} holds a model or an index ({others[0]}); choose another directory")
        models = [name for name in ("model", "best") if (self.path / name).exists()]
        if models and saved is None and not kept:
            raise FileExistsError(
                f"{self.path / models[0]} is there, and no run that made it; choose another directory"
            )
        if self._overwrite:
            return True
        if (kept or models) and not self._resume:
            raise FileExistsError(f"{self.path} already holds a run; resume it, {_ANEW} or choose another directory")
        if saved is None:
            return not self._resume
        lines, longer = (of(saved, self._description) for of in (differences, extensions))
        if not (kept or models):
            return bool(lines or longer) or not self._resume
        if lines:
            remedy = f"{_ANEW}, choose another directory or, to go on regardless, remove {self.path / 'run.json'}"
            raise ValueError(f"{self.path} holds a different run: {'; '.join(lines)}. To train this one, {remedy}")
        self.longer = longer
        if not longer and saved.get("source_sha256") != self._description.get("source_sha256"):
            _log.warning("the config file is not the text in %s, but gives the same run", self.path / "config.py")
        return False

    def _remove_run(self) -> None:
        """Removes what runs write, and nothing else."""
        for pattern in ("run.json", "config.py", "metrics.jsonl", "tensorboard/events.out.tfevents.*"):
            for path in self.path.glob(pattern):
                if self._run.source is None or not path.samefile(self._run.source):
                    path.unlink()
        for path in self.path.glob("checkpoints/step_*"):
            if path.is_dir() and re.fullmatch(r"step_\d+(\.\w+)?", path.name):
                shutil.rmtree(path)
        for name in ("model", "best"):
            files.remove(self.path / name, sentence_transformers.CONTENTS)

    def _saved(self) -> Mapping[str, Any] | None:
        path = self.path / "run.json"
        try:
            return files.read_json(path, dict)
        except FileNotFoundError:
            return None
        except ValueError as error:
            _log.warning("%s; which run %s holds cannot be told, and it is taken for this one", error, self.path)
            return None

    def _kept(self) -> bool:
        names = [path.name for path in self.path.glob("checkpoints/step_*") if path.is_dir()]
        found = (re.fullmatch(r"step_(\d+)(\.replaced)?", name) for name in names)
        return any(name and int(name[1]) for name in found)
