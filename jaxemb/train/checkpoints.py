"""Checkpoints: the train state and where the loop and its data were, written atomically and verified when read.

    checkpoints/
      step_00000500/
        state/           the arrays, by orbax
        loop-0.json      the rest, one file per process: position in the data, unfinished log window, best result
        manifest.json    SHA-256 of every other file, written last

A checkpoint is written beside its final place, brought to the disk and renamed; only then older ones go. One that does
not match its manifest is put aside as `*.corrupt`, with a message, and the one before is used. Files of others beside
them do no harm.
"""

import contextlib
import functools
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxemb import files
from jaxemb.train.state import TrainState
from jaxemb.trees import by_path, map_with_path

_log = logging.getLogger(__name__)


class DamagedCheckpointError(RuntimeError):
    """The files of a checkpoint are not those that were written."""


class UnwrittenCheckpointError(RuntimeError):
    """A checkpoint could not be written, as on a full disk; those before are as they were."""


class Checkpoints:
    """The checkpoints of one run, in `directory`; at most the `keep` newest and the best are kept.

    They are written while training goes on. As a context manager, it waits for what is still being written.
    """

    def __init__(self, directory: Path, keep: int):
        self._directory, self._keep = Path(directory).absolute(), keep
        self._checkpointer: Any = None
        self._complete: Callable[[], None] | None = None  # of several processes, what is left to do of a save
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self._directory.mkdir(parents=True, exist_ok=True)
        if _is_first_process():
            for replaced in self._directory.glob("step_*.replaced"):
                if not (final := replaced.with_suffix("")).exists():  # a process died before the new one was there
                    replaced.rename(final)
            for leftover in (*self._directory.glob("step_*.partial"), *self._directory.glob("step_*.replaced")):
                _remove(leftover)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, *exception) -> None:
        # Where a process fails, the others are elsewhere, and nobody is to wait for them.
        ends_well = kind is None or issubclass(kind, SystemExit)
        if ends_well or jax.process_count() == 1:
            try:
                self.finish()
            except UnwrittenCheckpointError as error:
                if ends_well:
                    raise
                _log.warning("%s", error)  # what went wrong before says more

    def path(self, step: int) -> Path:
        return self._directory / f"step_{step:08d}"

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, oldest first."""
        self.finish()
        return self._complete_steps()

    def _complete_steps(self) -> list[int]:
        names = (p.name for p in self._directory.glob("step_*") if p.is_dir())
        return sorted(int(name[5:]) for name in names if re.fullmatch("step_[0-9]{8,}", name))

    def save(self, step: int, state: TrainState, loop: Mapping[str, Any], *, best: int | None = None) -> None:
        """Begins to write the checkpoint of `step`, from a copy of the state; see `finish`.

        Once it is complete, those that are no longer wanted are removed.

        Args:
          step: the number of finished steps.
          state: the state after them.
          loop: JSON-like; what the loop needs beside the state.
          best: the step whose checkpoint is kept as the best, if any.

        Raises:
          UnwrittenCheckpointError: if it, or the one before, cannot be written.
        """
        import orbax.checkpoint as ocp

        self.finish()
        self._checkpointer = self._checkpointer or ocp.StandardCheckpointer()
        partial = self.path(step).with_suffix(".partial")
        with self._writes(step):
            self._checkpointer.save(partial / "state", _to_arrays(state), force=True)
            partial.mkdir(exist_ok=True)
            files.write_json(partial / f"loop-{jax.process_index()}.json", loop, indent=None)
        complete = functools.partial(self._complete_save, step, best)
        if jax.process_count() == 1:
            self._writing = self._thread.submit(complete)
        else:  # they agree on when it is complete, which they do where all are at the same place
            self._complete = complete

    def finish(self) -> None:
        """Returns once the last checkpoint is complete. Raises what went wrong with it."""
        writing, complete = self._writing, self._complete
        self._writing = self._complete = None
        if writing is not None:
            writing.result()
        if complete is not None:
            complete()

    def _complete_save(self, step: int, best: int | None) -> None:
        final = self.path(step)
        partial = final.with_suffix(".partial")
        with self._writes(step):
            self._checkpointer.wait_until_finished()
        wait_for_all(f"written {step}")
        if _is_first_process():
            with self._writes(step):
                files.write_json(partial / "manifest.json", _digests(partial))
                files.sync_tree(partial)
                replaced = final.with_suffix(".replaced")
                if final.exists():  # the same step again, as the one before was saved without its evaluation
                    final.rename(replaced)
                partial.rename(final)
                files.sync(self._directory)
                _remove(replaced)
            steps = self._complete_steps()
            for old in set(steps) - {*steps[-self._keep :], best}:
                _remove(self.path(old))
        wait_for_all(f"saved {step}")

    @contextlib.contextmanager
    def _writes(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax has many kinds, a ValueError for a full disk among them
            steps = self._complete_steps()
            last = f"the last one is {self.path(steps[-1])}" if steps else "there is none before it"
            why = " ".join(str(error).split())[:300]
            raise UnwrittenCheckpointError(
                f"checkpoint {self.path(step)} could not be written; {last}: {why}"
            ) from error

    def restore_newest(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that is intact, or None if there is none. Damaged ones are put aside.

        Args:
          like: a state of the same structure, shapes, dtypes and placement.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.restore(step, like)
            except DamagedCheckpointError as error:
                then = (
                    "the checkpoint before it is used" if step > steps[0] else "as none is intact, the run starts anew"
                )
                _log.warning("%s; it is put aside and %s", error, then)
            wait_for_all(f"read {step}")
            if _is_first_process():
                aside = self.path(step).with_suffix(".corrupt")
                _remove(aside)
                self.path(step).rename(aside)
            wait_for_all(f"put aside {step}")
        return None

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state and the loop's part of the checkpoint of `step`.

        Raises:
          DamagedCheckpointError: if its files are not those that were written.
          ValueError: if its arrays are not those of `like`.
        """
        import orbax.checkpoint as ocp

        self.finish()
        path = self.path(step)
        if problem := _problem(path):
            raise DamagedCheckpointError(f"checkpoint {path} is damaged ({problem})")
        mine = path / f"loop-{jax.process_index()}.json"
        if not mine.exists():  # fewer processes wrote it; what they say of the run is the same
            mine = path / "loop-0.json"
        try:
            loop = files.read_json(mine, dict, finite=False)
        except (OSError, ValueError) as error:
            raise DamagedCheckpointError(f"checkpoint {path} is damaged ({error})") from error
        with ocp.StandardCheckpointer() as checkpointer:
            wanted = _to_arrays(like)
            saved = checkpointer.metadata(path / "state").item_metadata
            if wrong := _mismatches(wanted, saved):
                raise ValueError(f"checkpoint {path} is of another model or method: {'; '.join(wrong[:5])}")
            arrays = checkpointer.restore(path / "state", jax.tree.map(ocp.utils.to_shape_dtype_struct, wanted))
        return _from_arrays(arrays, like), loop


def _to_arrays(state: TrainState) -> dict[str, jax.Array]:
    """The leaves by dotted path, keys as their data."""
    return {name: jax.random.key_data(leaf) if _is_key(leaf) else leaf for name, leaf in by_path(state).items()}


def _from_arrays(arrays: Mapping[str, jax.Array], like: TrainState) -> TrainState:
    def one(name, leaf):
        array = arrays[name]
        return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else array

    return map_with_path(one, like)


def _mismatches(wanted: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    show = lambda leaf: "nothing" if leaf is None else f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
    names = sorted(wanted.keys() | saved.keys())
    shown = ((name, show(saved.get(name)), show(wanted.get(name))) for name in names)
    return [f"{name} is {there} there, {here} here" for name, there, here in shown if there != here]


def _is_key(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _problem(path: Path) -> str | None:
    """What is wrong with the files of a checkpoint, or None."""
    try:
        manifest = files.read_json(path / "manifest.json", dict)
        found = _digests(path)
    except (OSError, ValueError) as error:
        return str(error)
    changed = sorted(name for name, digest in manifest.items() if found.get(name) != digest)
    if "loop-0.json" not in manifest or not any(name.startswith("state/") for name in manifest):
        changed.append("manifest.json")
    return f"missing or changed: {', '.join(changed[:3])}" if changed else None


def _digests(directory: Path) -> dict[str, str]:
    """SHA-256 by relative name of every file under `directory`, but for the manifest itself."""
    paths = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != "manifest.json")
    return {p.relative_to(directory).as_posix(): files.sha256(p) for p in paths}


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_first_process() -> bool:
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Returns once all processes are here; `what` names the place."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)
