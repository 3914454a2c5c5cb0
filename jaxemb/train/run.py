"""A training run as a value, and how one is read from a Python config file."""

import dataclasses
import hashlib
import inspect
import math
import runpy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import optax
from jax.sharding import Mesh

from jaxemb.checks import check_types, checked, described, is_array
from jaxemb.objectives import Objective
from jaxemb.train import description
from jaxemb.train.state import TrainState
from jaxemb.transforms import Transform, identity
from jaxemb.trees import by_path

if TYPE_CHECKING:
    from jaxemb.parallel.mesh import Rules
    from jaxemb.sentence_embedder import SentenceEmbedder

Evaluator = Callable[["SentenceEmbedder"], Mapping[str, float]]
Data = Callable[["SentenceEmbedder"], Iterable[Mapping[str, Any]]]
# What may change when a run is resumed: how it is watched, where it runs, and the text that says so.
_CONFIG = "__config__"  # the module's name of every config file: what a file is called does not tell runs apart
_MAY_CHANGE = frozenset(
    {
        *("log_every", "evaluators", "evaluate_every", "checkpoint_every", "checkpoint_minutes", "keep"),
        *("mesh", "rules", "source_sha256"),
    }
)
_SCHEDULES = frozenset({"learning_rate", "schedule_fn", "schedules", "step_size_fn"})  # what optax calls them


class _Sum(int):
    """Steps that are the sum of those of tasks: `dataclasses.replace(run, tasks=...)` hands it to a run of others."""


@dataclasses.dataclass(frozen=True)
class RunTask:
    """One of several tasks of a run: its data come for some steps, and are then gone.

    Attributes:
      name: what logs and results call it.
      data, steps: as those of a `Run` of one task. Batches of all tasks are best of one shape, for which one program
        is compiled.
      classes: the classes of its data, bool `[C]`, for methods of classifiers; None where there are none.
    """

    name: str
    data: Data
    steps: int
    classes: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What is trained, on what, how and for how long.

    Ordinary training is one task, `data` for `steps`; a continual run has several in `tasks`, one after another.

    Attributes:
      embedder: makes the embedder to start from, such as `lambda: jaxemb.load(...)`; with a mesh, what does not fit on
        one device is loaded there: `lambda: jaxemb.load(..., mesh=mesh, rules=rules)`. Of a model that is none,
        `lambda: checkpoints.Parameters(model)`.
      data: from the embedder to the batches: an iterable whose iterators have `get_state` and `set_state`, as grain's
        do. A batch is a dict of `Tokens` and arrays, with the record ids under "id".
      steps: number of optimiser steps; of several tasks their sum, which is known.
      tasks: in place of `data` and `steps`, tasks with names of their own. The transform is told where each begins and
        ends (`Transform.begin_task`, `end_task`), and each ends with an evaluation.
      objective: `(model, batch, key) -> (losses [N], outputs)`.
      optimizer: an optax optimiser of what is trained; `jaxemb.train.adamw` makes the usual one.
      transform: the training method.
      evaluators: name -> function of an embedder to numbers; the results are called `name/number`. They run with `mesh`
        in force, so that encoding and search are split over it, and with the model spread as in training; several
        processes call them alike.
      evaluate_every: steps between evaluations; there is always one before the first step and after the last of a task.
      checkpoint_every: steps between checkpoints; there is always one after the last step of a task.
      checkpoint_minutes: the same by time, whichever comes first; where several processes train as one, process 0 says
        when, at lines of the log.
      keep: number of newest checkpoints that are kept; the best one is kept beside them.
      best: the evaluation result that makes a checkpoint the best, and whether it should be "max" or "min". None
        for no best checkpoint.
      accumulate: batches per optimiser step.
      seed: of parameters that the transform adds, and of dropout.
      prng: generator of the random bits. "threefry2x32" gives the same bits on every platform and mesh; in a MiniLM
        step on CPU its dropout takes 7 % of the time, and "rbg", the device's own generator, 16 %. "rbg" compiles
        faster, and is worth a measurement on an accelerator.
      log_every: steps between two lines of the log; its loss is the mean over them.
      evaluated_model: the model to evaluate and save, given the train state, such as `transforms.ema_model`. None
        for the model that the forward pass uses.
      mesh: devices to train on; None for all that there are, which share each batch (`parallel.default_mesh`).
      rules: path rules that place the state on the mesh; None for a copy on every device.
      source: the config file that the run was made from; it is copied into the output directory.
      options: the options that the config file was given.
    """

    embedder: Callable[[], "SentenceEmbedder"]
    objective: Objective
    optimizer: optax.GradientTransformation
    data: Data | None = None
    steps: int = 0
    tasks: Sequence[RunTask] = ()
    transform: Transform = dataclasses.field(default_factory=identity)
    evaluators: Mapping[str, Evaluator] = dataclasses.field(default_factory=dict)
    evaluate_every: int = 500
    checkpoint_every: int = 500
    checkpoint_minutes: float = 5.0
    keep: int = 2
    best: tuple[str, Literal["max", "min"]] | None = None
    accumulate: int = 1
    seed: int = 0
    prng: Literal["threefry2x32", "rbg"] = "threefry2x32"
    log_every: int = 10
    evaluated_model: Callable[[TrainState], Any] | None = None
    mesh: Mesh | None = None
    rules: "Rules | None" = None
    source: Path | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check_types(self, "tasks", "evaluators", "best", "seed", "evaluated_model", "mesh", "source", "options")
        for name in ("embedder", "objective"):
            if not callable(getattr(self, name)):
                raise TypeError(f"Run.{name} must be a function; got {getattr(self, name)!r}")
        self._check_tasks()
        for name, kind in (("optimizer", optax.GradientTransformation), ("transform", Transform)):
            # GradientTransformationExtraArgs is a GradientTransformation.
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"Run.{name} must be a {kind.__name__}; got {getattr(self, name)!r}")
        for name in ("evaluate_every", "checkpoint_every", "keep", "accumulate", "log_every"):
            _check_count(f"Run.{name}", getattr(self, name))
        if isinstance(minutes := self.checkpoint_minutes, bool) or not (
            isinstance(minutes, int | float) and minutes >= 0
        ):
            raise ValueError(f"Run.checkpoint_minutes must be a number of at least 0; got {minutes!r}")
        if self.best is not None:
            if len(self.best) != 2 or self.best[1] not in ("max", "min"):
                raise ValueError(f'Run.best must be (name of a result, "max" or "min"); got {self.best!r}')
            if self.best[0].partition("/")[0] not in self.evaluators:
                raise ValueError(f"Run.best is {self.best[0]!r}, but the evaluators are {sorted(self.evaluators)}")
        if self.prng not in ("threefry2x32", "rbg"):
            raise ValueError(f'Run.prng must be "threefry2x32" or "rbg"; got {self.prng!r}')
        if self.rules is not None and self.mesh is None:
            raise ValueError("Run.rules place arrays on a mesh: Run.mesh must be given, too")

    def make_embedder(self) -> "SentenceEmbedder":
        """What `embedder` makes, seen to be something that can be trained and saved.

        Raises:
          TypeError: if it is not.
        """
        made = self.embedder()
        if absent := [name for name in ("model", "replace", "save") if not hasattr(made, name)]:
            raise TypeError(
                "Run.embedder must make what has model, replace and save, as jaxemb.load does; got "
                f"{type(made).__name__} without {', '.join(absent)}: of any other model, return "
                "jaxemb.checkpoints.Parameters(model)"
            )
        for name, leaf in by_path(made.model).items():
            if not is_array(leaf):
                raise TypeError(f"Run.embedder must make a model of arrays; {name or 'it'} is {described(leaf)}")
        return made

    @property
    def all_tasks(self) -> tuple[RunTask, ...]:
        """The tasks; of ordinary training, the one."""
        if self.data is not None:
            return (RunTask("train", self.data, self.steps),)
        return tuple(self.tasks)

    def _check_tasks(self) -> None:
        if bool(self.tasks) == (self.data is not None):
            raise TypeError("Run takes data and steps, or tasks; got " + ("both" if self.tasks else "none of them"))
        if len(names := [task.name for task in self.tasks]) > len(set(names)):
            raise ValueError(f"Run.tasks must have names of their own; got {names}")
        for where, task in zip([f"Run.tasks[{name!r}]" for name in names] or ["Run"], self.all_tasks, strict=True):
            if not callable(task.data):
                raise TypeError(f"{where}.data must be a function; got {task.data!r}")
            _check_count(f"{where}.steps", task.steps)
        if self.tasks:
            total = _Sum(sum(task.steps for task in self.tasks))
            if self.steps not in (0, total) and not isinstance(self.steps, _Sum):
                raise ValueError(f"Run.steps of several tasks is their sum, {total}; got {self.steps}: leave it out")
            object.__setattr__(self, "steps", total)
        elif isinstance(self.steps, _Sum):
            raise ValueError(f"Run.steps must be given with Run.data; {self.steps} is the sum of other tasks")

    def describe(self) -> dict[str, Any]:
        """The run as JSON: what makes its numbers, down to the values that functions close over, as it is; evaluators,
        which only watch it, by their names."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "source"}
        fields |= {"mesh": self.mesh and dict(self.mesh.shape), "rules": self.rules and len(self.rules)}
        fields |= {"evaluators": sorted(self.evaluators), "options": {k: repr(v) for k, v in self.options.items()}}
        fields["transform"] = self.transform if self.transform.parts is None else self.transform.parts
        text = None if self.source is None else Path(self.source).read_bytes()
        fields["source_sha256"] = None if text is None else hashlib.sha256(text).hexdigest()
        return {name: description.describe(value) for name, value in fields.items() if value is not None}

    def is_better(self, value: float, than: float | None) -> bool:
        """Whether `value` of the `best` result is better `than` another one; NaN is never better."""
        if self.best is None or math.isnan(value):
            return False
        return than is None or (value > than if self.best[1] == "max" else value < than)


def differences(saved: Mapping[str, Any], described: Mapping[str, Any]) -> list[str]:
    """What makes two descriptions those of different runs, one line each; more steps do not."""
    return [_line(change) for change in _changes(saved, described) if not _is_of_length(change, saved, described)]


def extensions(saved: Mapping[str, Any], described: Mapping[str, Any]) -> list[str]:
    """What differs as the second run has more steps: their number, and the schedule of the learning rate."""
    return [_line(change) for change in _changes(saved, described) if _is_of_length(change, saved, described)]


def _changes(saved: Mapping[str, Any], described: Mapping[str, Any]) -> Iterator[description.Change]:
    before, after = saved.get("tasks"), described.get("tasks")
    if isinstance(before, list) and isinstance(after, list) and 0 < len(before) < len(after):
        described = {**described, "tasks": after[: len(before)]}
    for name in sorted((saved.keys() | described.keys()) - _MAY_CHANGE):
        yield from description.changes(saved.get(name), described.get(name), name)


def _is_of_length(change: description.Change, saved: Mapping[str, Any], described: Mapping[str, Any]) -> bool:
    """Whether a change is one to more steps, or follows from it."""
    before, after = saved.get("steps"), described.get("steps")
    if not (isinstance(before, int) and isinstance(after, int) and before < after):
        return False
    if change.path[0] == "optimizer":
        return not _SCHEDULES.isdisjoint(change.path[:-1])
    if change.path[0] == "options":
        return change.after == repr(after) and change.before in (None, repr(before))
    return (change.before, change.after) == (before, after)


def _line(change: description.Change) -> str:
    return f"{change.name}: {_shown(change.before)} there, {_shown(change.after)} here"


def _shown(value: Any) -> str:
    return text if len(text := repr(value)) <= 100 else f"{text[:97]}..."


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}")


@checked()
def load_run(path: str | Path, options: Mapping[str, Any] | None = None) -> Run:
    """The run of a Python config file: what its function `run(**options)` returns.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no text, has no function `run`, or that returns something else than a `Run`.
      TypeError: if `run` has no option of a name in `options`.
    """
    path, options = Path(path), dict(options or {})
    if not path.is_file():
        raise FileNotFoundError(f"no config file {path}")
    if b"\0" in path.read_bytes():
        raise ValueError(f"{path} is no Python file: it has null bytes")
    config = runpy.run_path(str(path), run_name=_CONFIG)
    if not callable(config.get("run")):
        raise ValueError(f"{path} must define a function run(**options) that returns a jaxemb.train.Run")
    try:
        signature = inspect.signature(config["run"])
        signature.bind(**options)
    except TypeError as error:
        raise TypeError(f"options: {path}: run{signature}: {error}") from None
    run = config["run"](**options)
    if not isinstance(run, Run):
        raise ValueError(f"run() of {path} must return a jaxemb.train.Run; got {type(run).__name__}")
    return dataclasses.replace(run, source=path, options=options)
