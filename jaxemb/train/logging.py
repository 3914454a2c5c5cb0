"""What a run writes while it trains: `metrics.jsonl`, TensorBoard events, and a line or a bar for whoever watches.

Two packages are optional: without tensorboardX there are no events, and without rich there are lines instead of a bar.
"""

import importlib.util
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO, cast

import jax

from jaxemb import files
from jaxemb.checks import checked
from jaxemb.progress import Audience

logger = logging.getLogger(__name__)

# By which of many results models are compared, and how many of the others a line shows at least.
_MAIN = ("ndcg@10", "cosine_spearman", "accuracy")
_SHOWN = 4


class RunLog:
    """The log of one run, to be used as a context manager.

    A line of `metrics.jsonl` is `{"step": s, name: number, ...}`: the step's `train/...` or evaluation results. After a
    resume at step s the file holds the lines up to s of the run before, then those that follow, each step once.

    Args:
      out: the run's directory.
      steps: number of steps of the run.
      resumed_at: finished steps that the run begins with, and goes on from; later lines of an earlier process are
        dropped. None for a run that begins anew: all are.
      evaluates: whether the evaluation of that step comes again, and with it its line.
      best: the evaluation result that comes first; of many the lines show a few, see `headlines`.
      progress: whether to show progress: a bar with loss, records per second and the time left on a terminal, one
        plain line per log entry elsewhere.
    """

    def __init__(
        self,
        out: Path,
        *,
        steps: int,
        resumed_at: int | None = None,
        evaluates: bool = False,
        best: str | None = None,
        progress: bool = True,
    ):
        self._best = best
        self._out, self._steps, self._resumed_at = Path(out), steps, resumed_at or 0
        self._is_first = jax.process_index() == 0
        self._progress = progress and self._is_first
        self._kept = -1 if resumed_at is None else resumed_at  # the last step whose lines stay
        self._evaluates = evaluates
        self._done, self._started = self._resumed_at, time.perf_counter()
        self._bar: Any = None
        self._audience = cast(TextIO, Audience(sys.stderr))

    def __enter__(self) -> "RunLog":
        if self._is_first:
            path = self._out / "metrics.jsonl"
            _drop_after(path, self._kept, evaluations=self._evaluates)
            self._file = path.open("a", encoding="utf-8")
            self._board = _tensorboard(self._out / "tensorboard", self._resumed_at)
        if self._progress and self._audience.isatty() and importlib.util.find_spec("rich"):
            self._bar, self._task = _bar(self._steps, self._resumed_at, self._audience)
            self._bar.start()
        return self

    def __exit__(self, *exception) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._is_first:
            self._file.close()
            if self._board is not None:
                self._board.close()

    def advance(self, step: int) -> None:
        """Says that `step` is finished."""
        self._done = step
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the numbers of a step."""
        if not self._is_first:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if math.isfinite(value):  # of others tensorboardX warns without their names
                    self._board.add_scalar(name, value, step)
        if self._bar is not None and "train/loss" in values:
            rate = values.get("train/records_per_second", 0.0)
            return self._bar.update(self._task, loss=values["train/loss"], rate=rate)
        self.say(self._line(step, values))

    def say(self, text: str) -> None:
        """Tells whoever watches."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        elif self._progress:
            print(text, file=self._audience, flush=True)

    def sync(self) -> None:
        """Returns once what was logged is on the disk."""
        if self._is_first:
            os.fsync(self._file.fileno())
            if self._board is not None:
                self._board.flush()

    def _line(self, step: int, values: Mapping[str, float]) -> str:
        is_training = "train/loss" in values
        shown = list(values) if is_training else headlines(values, self._best)
        numbers = "  ".join(f"{name} {values[name]:.4g}" for name in shown)
        numbers += f"  ({more} more in metrics.jsonl)" if (more := len(values) - len(shown)) else ""
        pace = (time.perf_counter() - self._started) / max(self._done - self._resumed_at, 1)
        left = f"  left {_clock(pace * (self._steps - step))}" if is_training else ""
        return f"step {step}/{self._steps}  {numbers}{left}"


def headlines(results: Mapping[str, float], best: str | None = None) -> list[str]:
    """The names of the few results to show of many: `best`, one of every evaluator, at least four in all.

    Of an evaluator's the first are nDCG@10, Spearman's correlation of cosines and accuracy; then in their own order.
    """
    rank = lambda name: _MAIN.index(number) if (number := name.rpartition("/")[2]) in _MAIN else len(_MAIN)
    names = sorted(results, key=lambda name: (name != best, rank(name)))
    firsts = {name.partition("/")[0]: name for name in reversed(names)}
    shown = [name for name in names if name in firsts.values()]
    others = [name for name in names if name not in shown]
    return shown + others[: max(0, _SHOWN - len(shown))]


@checked()
def read_metrics(out: str | Path) -> list[dict[str, float]]:
    """The lines of a run's `metrics.jsonl`. One that is damaged, or was not finished, is left out, with a warning."""
    if not (path := Path(out) / "metrics.jsonl").is_file():
        raise FileNotFoundError(f"no such file: {path}; out must be the directory of a run")
    return [values for _, values in _intact_lines(path)]


def _intact_lines(path: Path) -> Iterator[tuple[bytes, dict[str, float]]]:
    for number, line in enumerate(files.read_bytes(path).splitlines(keepends=True), 1):
        try:
            values = files.parse_json(line, dict, finite=False)
            if not (line.endswith(b"\n") and isinstance(values.get("step"), int)):
                raise ValueError("it has no step" if line.endswith(b"\n") else "it is not finished")
        except ValueError as error:
            logger.warning("%s, line %d is left out: %s", path, number, error)
        else:
            yield line, values


def _drop_after(path: Path, step: int, *, evaluations: bool) -> None:
    """Keeps the lines of steps up to `step`, but for `evaluations` of that step itself."""
    if path.exists():
        goes = lambda values: evaluations and values["step"] == step and "train/loss" not in values
        kept = [line for line, values in _intact_lines(path) if values["step"] <= step and not goes(values)]
        files.write_bytes(path, b"".join(kept))


def _tensorboard(directory: Path, resumed_at: int):
    """A writer that hides what an earlier process wrote of later steps; None without tensorboardX."""
    # tensorboardX imports torch if it is there, for its types alone: seconds, and gigabytes on some machines.
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]  # makes the import fail
    try:
        from tensorboardX import SummaryWriter
    except ModuleNotFoundError as error:
        if error.name != "tensorboardX":
            raise
        logger.warning("%s is not written: pip install tensorboardX", directory)
        return None
    finally:
        if hidden:
            del sys.modules["torch"]
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(f"{directory} is a file; expected the directory of TensorBoard's events")
    return SummaryWriter(str(directory), purge_step=resumed_at + 1 if resumed_at else None)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def _bar(steps: int, done: int, audience: TextIO):
    from rich import progress
    from rich.console import Console

    bar = progress.Progress(
        progress.TextColumn("training"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("loss {task.fields[loss]:.4f}"),
        progress.TextColumn("{task.fields[rate]:,.0f} pairs/s"),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
        console=Console(file=audience),
    )
    return bar, bar.add_task("training", total=steps, completed=done, loss=float("nan"), rate=0.0)
