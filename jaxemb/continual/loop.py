"""The loop over a stream: train on task after task, score every task after each."""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import itertools
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from jaxemb import parallel
from jaxemb.checks import at_least, checked, each, is_array, numbers, real, size
from jaxemb.continual.streams import Columns, Experience, count
from jaxemb.files import locked, made_directory
from jaxemb.objectives import Objective
from jaxemb.progress import Audience, progress_bar
from jaxemb.train import (
    Checkpoints,
    NonFiniteError,
    Runner,
    TrainState,
    begin_task,
    end_task,
    init_state,
    make_train_step,
    trainable,
)
from jaxemb.train.description import describe
from jaxemb.train.run import differences
from jaxemb.train.step import TrainStep
from jaxemb.transforms import Task, Transform, identity
from jaxemb.trees import PyTree

_log = logging.getLogger(__name__)
Compete = Literal["task", "seen", "all"]
Evaluate = Callable[[TrainState, Experience, int, np.ndarray | None], float]
"""A score of a train state on the test data of an experience; see `run_stream`."""


@dataclasses.dataclass(frozen=True, repr=False)
class StreamResult:
    """What a run over T tasks gives; it is printed as its scores.

    Attributes:
      names: those of the tasks.
      R: by evaluator, scores `[T, T]`: `R[name][i, j]` that of task j after training task i.
      b: by evaluator, scores `[T]` at initialisation, when all classes compete.
      state: the train state after the last task.
      losses: by task, the minimised function in every step, `[steps]`.
      seconds: of training by task, `[T]`; the first one's include compilation.
      parameters: numbers that are trained, the transform's included.
      state_bytes: what the transform carries beside them, such as a replay memory, a teacher, importances.
    """

    names: tuple[str, ...]
    R: Mapping[str, np.ndarray]
    b: Mapping[str, np.ndarray]
    state: TrainState
    losses: tuple[np.ndarray, ...]
    seconds: np.ndarray
    parameters: int
    state_bytes: int

    def __repr__(self) -> str:
        return "\n\n".join(f"{name}, after each task (rows)\n{_table(self.names, R)}" for name, R in self.R.items())


def _table(names: Sequence[str], R: np.ndarray) -> str:
    """Scores by task learnt and task scored, and the mean over the tasks so far."""
    width = max(map(len, names))
    row = lambda name, cells: f"{name:<{width}}  " + "  ".join(f"{cell:>{max(width, 6)}}" for cell in cells)
    number = lambda score: "" if np.isnan(score) else f"{score:.4f}"
    means = [np.mean(scores[: i + 1]) for i, scores in enumerate(R)]
    lines = [row(name, map(number, (*scores, mean))) for name, scores, mean in zip(names, R, means, strict=True)]
    return "\n".join(line.rstrip() for line in (row("", (*names, "so far")), *lines))


@checked(model=numbers, batch_size=size, steps=size)
def run_stream(
    experiences: Sequence[Experience],
    model: PyTree,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    transform: Transform | None = None,
    *,
    epochs: int | Sequence[int] | None = None,
    steps: int | None = None,
    batch_size: int,
    evaluate: Mapping[str, Evaluate],
    compete: Compete = "seen",
    seed: int = 0,
    reset_optimizer: bool = False,
    boundaries: bool = True,
    future: bool = True,
    chunk: int = 500,
    checkpoints: str | Path | None = None,
    mesh: Mesh | None = None,
    rules: parallel.Rules = parallel.REPLICATED,
    progress: bool = True,
) -> StreamResult:
    """Trains on the experiences one after another, and scores all of them after each.

        embedder = jaxemb.load("my-model")
        tokens = lambda texts: pad(embedder.tokenizer(texts, 32), length=32)
        columns = lambda texts, labels: {"input": tokens(texts), "label": np.array(labels)}
        stream = split_by_class(columns(*train), columns(*test), 5)  # of texts and the numbers of their classes
        model = Classifier.init(jax.random.key(0), embedder.model, embedder.model.dim, classes=10)
        scores = {"class": accuracy()}
        print(run_stream(stream, model, classification(), adam, ewc(100.0), steps=200, batch_size=16, evaluate=scores))

    The data of one task lie on the device, and its steps run there in a loop (convolutions on a CPU, which XLA runs
    slowly in a loop, one by one): one program, compiled once, serves all tasks of a stream, whatever their sizes. In an
    epoch every record comes once, in an order that depends on seed, task and epoch; a last batch that would not be full
    is left out, and a task smaller than a batch repeats its records.

    A batch has the columns of the training data, "id" (int32, the number of the record in the stream, unless a column
    has that name) and, where tasks have classes, "classes": bool `[C]`, those that compete.

    Args:
      experiences: the T tasks.
      model: what is trained.
      objective, optimizer, transform: as for `jaxemb.train.make_train_step`; None is `identity()`.
      epochs: number of passes over each task's data, one for all or one for each; or else
      steps: number of optimiser steps on each task.
      batch_size: records in a batch, also in those of `Task.batches`.
      evaluate: by name, `(state, experience, number, seen) -> score`, more is better. `number` is that of the
        experience to score; `seen` are the classes so far, bool `[C]` (all of them at initialisation; None where tasks
        have no classes). One that has a method `remember(state, experiences, number)` is told the state before the
        first task (number -1) and straight after each task (its number), before it scores.
      compete: which classes a batch's "classes" are: the task's, all seen so far with the task's, or all.
      seed: of the transform, of the order of records, and of the keys of the steps; the model comes initialised.
      reset_optimizer: begin every task with a new optimiser state.
      boundaries: tell the transform where tasks begin and end; False is the task-free setting.
      future: also score tasks that are still to come and the model at initialisation; False leaves NaN there, which
        saves half of the work where scores are dear (probes) and forward transfer is of no interest.
      chunk: largest number of steps in one call of the compiled program.
      checkpoints: directory; a run that was stopped and starts again there goes on after its last finished task, and
        ends with the same values, bit for bit.
      mesh: the devices that share the work: every batch is split over them, the data of a task are on each whole, and
        the state lies as `rules` say. It is in force while evaluators run.
      rules: path rules, of paths in the state.
      progress: say on stderr when a task is learnt, with its loss and scores; on a terminal show a bar, too.

    Raises:
      ValueError: for no experience, both or neither of epochs and steps, sizes below 1, a batch size that does not
        split over the mesh, experiences whose training data have different columns, shapes or types, or a column
        "classes" beside classes, or checkpoints of another run, of which it says what differs.
      TypeError: if an evaluator gives no number. Of one that gives NaN a warning tells.
      NonFiniteError: if a loss or gradient is not finite; a note says which task it was.
      InUseError: if another process trains with the same checkpoints.
    """
    transform = identity() if transform is None else transform
    epochs = epochs if epochs is None or isinstance(epochs, int) else np.asarray(epochs).tolist()
    _check(experiences, epochs, steps, batch_size, chunk, compete, mesh)
    stream = _Stream.of(experiences, epochs, steps, batch_size, compete, seed, mesh)
    about = stream.about() | {"reset_optimizer": reset_optimizer, "boundaries": boundaries, "future": future}
    about |= {"evaluate": sorted(evaluate)}
    done = _Progress.new(len(experiences), evaluate)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(_alone_in(checkpoints))
        store = None if directory is None else Checkpoints(directory, keep=1)
        state = init_state(jax.random.key(seed), model, optimizer, transform, mesh=mesh, rules=rules)
        learner = _Learner(stream, objective, optimizer, transform, state, chunk, rules, store)
        scores = _Scores(evaluate, stream, future)
        if store is not None:
            about |= {"data": _digests(experiences), "model": _digest(model), "objective": describe(objective)}
            about |= {"optimizer": describe(optimizer), "transform": describe(transform.parts or transform)}
            done = _restored(store, learner, about) or done
        say, advance = stack.enter_context(_telling(sum(stream.steps[len(done.seconds) :]), progress))

        if done.seconds:
            say(f"going on after {len(done.seconds)} of {len(experiences)} tasks")
        else:
            done.b = scores.at_first(learner.state)
        for number in range(len(done.seconds), len(experiences)):
            began, name = time.perf_counter(), experiences[number].name
            losses = learner.learn(number, advance, reset_optimizer=reset_optimizer, boundaries=boundaries)
            done.seconds.append(time.perf_counter() - began)
            done.losses.append(losses)
            for measure, row in scores.after(learner.state, number).items():
                done.R[measure][number] = row
            means = (f"{measure} {np.mean(R[number][: number + 1]):.4f}" for measure, R in done.R.items())
            say(
                f"task {number + 1}/{len(experiences)} {name!r}: {len(losses)} steps in {done.seconds[-1]:.1f} s, "
                f"loss {losses[-1]:.4g}; on the tasks so far {', '.join(means) or '-'}"
            )
            if store is not None:
                store.save(number + 1, learner.state, {"about": about, "done": dataclasses.asdict(done)})
                store.finish()
        return done.result(stream, transform, learner.state)


@dataclasses.dataclass(frozen=True)
class _Stream:
    """The tasks as the loop takes them: how many records and steps each has, and what its batches are.

    Attributes:
      sizes: numbers of training records.
      steps: numbers of steps.
    """

    experiences: Sequence[Experience]
    sizes: tuple[int, ...]
    steps: tuple[int, ...]
    batch_size: int
    compete: Compete
    seed: int
    mesh: Mesh | None

    @classmethod
    def of(cls, experiences, epochs, steps, batch_size, compete, seed, mesh) -> "_Stream":
        sizes = tuple(count(e.train) for e in experiences)
        passes = epochs if isinstance(epochs, list) else [epochs or 1] * len(sizes)
        totals = tuple(int(steps or n * max(1, size // batch_size)) for n, size in zip(passes, sizes, strict=True))
        return cls(experiences, sizes, totals, batch_size, compete, seed, mesh)

    def about(self) -> dict[str, Any]:
        """What tells two streams apart but for their data, as JSON."""
        named = [[e.name, size] for e, size in zip(self.experiences, self.sizes, strict=True)]
        described = {"experiences": named, "steps": list(self.steps), "batch_size": self.batch_size}
        return described | {"compete": self.compete, "seed": self.seed}

    def classes(self, number: int, which: Compete | None = None) -> np.ndarray | None:
        """The classes `[C]` that compete in a task; None where tasks have none."""
        if self.experiences[0].classes is None:
            return None
        masks = np.stack([np.asarray(e.classes) for e in self.experiences])
        rows = {"task": [number], "seen": range(number + 1)}.get(which or self.compete)
        return np.ones(masks.shape[1], bool) if rows is None else np.logical_or.reduce(masks[rows])

    def ids(self, number: int) -> np.ndarray:
        """The numbers of a task's records, int32 `[N]`."""
        rows = np.arange(self.sizes[number], dtype=np.int32) + np.int32(sum(self.sizes[:number]))
        return np.asarray(self.experiences[number].train.get("id", rows))

    def on_device(self, number: int) -> dict[str, Any]:
        """The training columns with "id", every leaf padded to the rows of the largest task, whole on every device."""

        def place(leaf) -> jax.Array:
            leaf = np.asarray(leaf)
            padded = np.pad(leaf, [(0, max(self.sizes) - len(leaf))] + [(0, 0)] * (leaf.ndim - 1))
            return parallel.put(padded, None if self.mesh is None else parallel.replicated(self.mesh))

        columns = {"id": self.ids(number), **self.experiences[number].train}
        return {name: jax.tree.map(place, column) for name, column in columns.items()}

    def epoch(self, number: int, epoch: int) -> np.ndarray:
        """The rows of an epoch's batches, `[steps, B]`."""
        size, batch = self.sizes[number], self.batch_size
        order = np.random.default_rng([self.seed, number, epoch]).permutation(size).astype(np.int32)
        steps = max(1, size // batch)
        return np.resize(order, (steps, batch)) if size < batch else order[: steps * batch].reshape(steps, -1)

    def rows(self, number: int) -> Iterator[np.ndarray]:
        """The rows `[B]` of batch after batch, in epochs without end."""
        return itertools.chain.from_iterable(self.epoch(number, epoch) for epoch in itertools.count())

    def task(self, number: int, data: Columns) -> Task:
        """What a transform is told of a task; its batches are one epoch of the data on the device."""
        classes = self.classes(number)

        def batches() -> Iterator[dict[str, Any]]:
            for rows in self.epoch(number, 0):
                yield _batch(data, jnp.asarray(rows), classes)

        return Task(number, batches=batches, steps=self.steps[number], classes=self.experiences[number].classes)


class _Learner:
    """Learns the tasks of a stream one by one.

    Attributes:
      state: the train state, which may be replaced between tasks.
    """

    def __init__(self, stream: _Stream, objective, optimizer, transform, state: TrainState, chunk, rules, store):
        self._stream, self._objective, self._transform, mesh = stream, objective, transform, stream.mesh
        self._chunk = min(chunk, max(stream.steps))
        step = make_train_step(objective, optimizer, transform)
        self._in_loop, metrics = _traced(step, state, stream)
        self._runner = Runner(
            _in_a_loop(step, metrics, self._chunk) if self._in_loop else _on_rows(step),
            state,
            mesh=mesh,
            last_checkpoint=lambda: store.path(store.steps()[-1]) if store is not None and store.steps() else None,
        )
        # Its own function, so that a new optimiser state does not share its buffers with the trained one.
        self._fresh = jax.jit(lambda state: jax.tree.map(jnp.copy, optimizer.init(trainable(transform, state))))
        self._place = (lambda s: s) if mesh is None else functools.partial(parallel.place, mesh=mesh, rules=rules)

    @property
    def state(self) -> TrainState:
        return self._runner.state

    @state.setter
    def state(self, state: TrainState) -> None:
        self._runner.state = state

    def learn(
        self, number: int, advance: Callable[[int, str], None], *, reset_optimizer: bool, boundaries: bool
    ) -> list[float]:
        """Learns a task and gives the losses of its steps; raises NonFiniteError with a note of the task."""
        stream, name = self._stream, self._stream.experiences[number].name
        data = stream.on_device(number)
        task = stream.task(number, data)
        if boundaries:
            self.state = self._place(begin_task(self._transform, self._objective, self.state, task))
        if reset_optimizer and number > 0:
            self.state = self._place(dataclasses.replace(self.state, opt_state=self._fresh(self.state)))
        losses, before = [], int(self.state.step)
        try:
            for steps in self._steps(number, data):
                losses += [of_step["loss"] for of_step in self._runner.read()]
                advance(steps, f"{number + 1}/{len(stream.experiences)} {name}")
        except NonFiniteError as error:
            error.add_note(f"It is step {error.step - before} of {stream.steps[number]} of task {number}, {name!r}.")
            raise
        if boundaries:
            self.state = self._place(end_task(self._transform, self._objective, self.state, task))
        return losses

    def _steps(self, number: int, data: Columns) -> Iterator[int]:
        """Takes the steps of a task, chunk after chunk, and says how many each had."""
        stream, ids = self._stream, self._stream.ids(number)
        classes, batches = stream.classes(number), stream.rows(number)
        for start in range(0, stream.steps[number], self._chunk):
            n = min(self._chunk, stream.steps[number] - start)
            rows = np.zeros((self._chunk, stream.batch_size), np.int32)
            rows[:n] = list(itertools.islice(batches, n))
            if self._in_loop:
                self._runner.start((data, rows, classes, n), ids[rows[:n]], steps=n)
            else:
                for row in rows[:n]:
                    self._runner.start((data, row, classes), ids[row])
            self._runner.wait()
            yield n


@dataclasses.dataclass(frozen=True)
class _Scores:
    """The evaluators on the tasks of a stream; `future` as in `run_stream`."""

    evaluate: Mapping[str, Evaluate]
    stream: _Stream
    future: bool

    def at_first(self, state: TrainState) -> dict[str, list[float]]:
        """By name, the scores of all tasks at initialisation, where all classes compete."""
        everything = self.stream.experiences
        return self._rows(state, -1, everything if self.future else (), self.stream.classes(0, "all"))

    def after(self, state: TrainState, number: int) -> dict[str, list[float]]:
        """By name, the scores of all tasks after one was learnt, where the classes seen compete."""
        everything = self.stream.experiences
        scored = everything if self.future else everything[: number + 1]
        return self._rows(state, number, scored, self.stream.classes(number, "seen"))

    def _rows(self, state, number, scored: Sequence[Experience], classes) -> dict[str, list[float]]:
        every = self.stream.experiences
        for score in self.evaluate.values():
            if hasattr(score, "remember"):
                score.remember(state, every, number)
        rest = [float("nan")] * (len(every) - len(scored))
        with parallel.in_force(self.stream.mesh):
            return {
                name: [_score(name, e, score(state, e, j, classes)) for j, e in enumerate(scored)] + rest
                for name, score in self.evaluate.items()
            }


def _score(evaluator: str, experience: Experience, found: Any) -> float:
    """What an evaluator gives of a task; a warning says if it is NaN, which looks like what is not scored."""
    score = real(f"evaluate[{evaluator!r}] of task {experience.name!r}", found)
    if np.isnan(score):
        _log.warning("evaluate[%r] of task %r is NaN", evaluator, experience.name)
    return score


@contextlib.contextmanager
def _alone_in(directory: str | Path | None) -> Iterator[Path | None]:
    """The directory, made if absent, while no other process trains there. Raises InUseError if one does."""
    if directory is None:
        yield None
        return
    path = made_directory(directory)
    with locked(path, wait=False):
        yield path


def _restored(store: Checkpoints, learner: _Learner, about: Mapping[str, Any]) -> "_Progress | None":
    """What was done when the newest checkpoint was saved, whose state the learner takes; None if there is none."""
    if not (restored := store.restore_newest(learner.state)):
        return None
    learner.state, saved = restored
    if lines := differences(saved["about"], about):
        raise ValueError(f"{store.path(0).parent} holds the checkpoints of another run: {'; '.join(lines)}")
    return _Progress.from_json(saved["done"])


@contextlib.contextmanager
def _telling(steps: int, progress: bool) -> Iterator[tuple[Callable[[str], None], Callable[..., None]]]:
    """How whoever watches is told something, and how the bar of a terminal is moved."""
    progress = progress and jax.process_index() == 0

    def say(text: str) -> None:
        if progress:
            print(text, file=cast(TextIO, Audience(sys.stderr)), flush=True)

    shows_bar = progress and Audience(sys.stderr).isatty() and importlib.util.find_spec("rich") is not None
    with progress_bar(steps, "steps", enabled=shows_bar) as advance:
        yield say, advance


@dataclasses.dataclass
class _Progress:
    """What is known after some tasks; a checkpoint holds it as JSON."""

    R: dict[str, list[list[float]]]
    b: dict[str, list[float]]
    losses: list[list[float]] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)

    @classmethod
    def new(cls, tasks: int, evaluate: Mapping[str, Evaluate]) -> "_Progress":
        nothing = [float("nan")] * tasks
        return cls({name: [nothing] * tasks for name in evaluate}, {name: nothing for name in evaluate})

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "_Progress":
        return cls(**values)

    def result(self, stream: _Stream, transform: Transform, state: TrainState) -> StreamResult:
        """What `run_stream` gives."""
        return StreamResult(
            names=tuple(e.name for e in stream.experiences),
            R={name: np.array(matrix) for name, matrix in self.R.items()},
            b={name: np.array(values) for name, values in self.b.items()},
            state=state,
            losses=tuple(np.array(values, np.float32) for values in self.losses),
            seconds=np.array(self.seconds),
            parameters=sum(leaf.size for leaf in jax.tree.leaves(trainable(transform, state))),
            state_bytes=sum(leaf.nbytes for leaf in jax.tree.leaves(state.method_state)),
        )


def _digests(experiences: Sequence[Experience]) -> dict[str, str]:
    """Tells the data of two streams apart."""
    columns = lambda part: dict(part) if isinstance(part, Mapping) else part
    parts = ("train", "valid", "test", "classes")
    return {part: _digest([columns(getattr(e, part)) for e in experiences]) for part in parts}


def _digest(tree: PyTree) -> str:
    """Tells two trees apart by their structure, and the types, shapes and values of their leaves."""
    leaves, structure = jax.tree.flatten(tree)
    digest = hashlib.sha256(json.dumps(describe(structure)).encode())
    for leaf in leaves:
        if not is_array(leaf):  # a collection of texts, a number
            digest.update(json.dumps(describe(leaf)).encode())
            continue
        digest.update(f"{leaf.dtype} {leaf.shape}".encode())
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if getattr(leaf, "is_fully_addressable", True):  # what lies on other machines only they can read
            digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _on_rows(train_step: TrainStep):
    """A step of a `Runner` on the batch `(data, rows [B], classes)`."""
    return lambda state, of: train_step(state, _batch(*of))


def _in_a_loop(train_step: TrainStep, metrics: PyTree, chunk: int):
    """n steps of a `Runner` on `(data, rows [chunk, B], classes, n)`; n is data, so that fewer are the same program."""

    def steps(state: TrainState, of):
        data, rows, classes, n = of

        def one(i, carry):
            state, found = train_step(carry[0], _batch(data, rows[i], classes))
            return state, jax.tree.map(lambda all, x: all.at[i].set(x), carry[1], found)

        return jax.lax.fori_loop(0, n, one, (state, jax.tree.map(lambda x: jnp.zeros(chunk, x.dtype), metrics)))

    return steps


def _traced(train_step: TrainStep, state: TrainState, stream: _Stream) -> tuple[bool, PyTree]:
    """Whether steps run on the device in a loop, and the shapes of their metrics.

    XLA makes convolutions on a CPU tens of times slower inside of a loop.
    """
    like = lambda leaf: jax.ShapeDtypeStruct((stream.batch_size, *np.shape(leaf)[1:]), jnp.result_type(leaf))
    batch = jax.tree.map(like, {"id": np.zeros(1, np.int32), **stream.experiences[0].train})
    batch = batch if (classes := stream.classes(0)) is None else {**batch, "classes": classes}
    program, (_, metrics) = jax.make_jaxpr(train_step, return_shape=True)(state, batch)
    return jax.default_backend() != "cpu" or "conv_general_dilated" not in str(program), metrics


@jax.jit
def _batch(data: Columns, rows: jax.Array, classes: jax.Array | np.ndarray | None) -> dict[str, Any]:
    """The records of `rows`, split over the mesh in force."""
    axes = tuple(parallel.batch_axes())
    split = lambda leaf: jax.lax.with_sharding_constraint(leaf, PartitionSpec(axes)) if axes else leaf
    batch = dict(jax.tree.map(lambda leaf: split(leaf[rows]), data))
    return batch if classes is None else {**batch, "classes": classes}


def _check(experiences, epochs, steps, batch_size, chunk, compete, mesh) -> None:
    """Raises a ValueError if they do not go together."""
    if not experiences:
        raise ValueError("experiences must not be empty")
    if (epochs is None) == (steps is None):
        raise ValueError(f"give one of epochs and steps; got epochs={epochs}, steps={steps}")
    if isinstance(epochs, list) and len(epochs) != len(experiences):
        raise ValueError(f"epochs must be one number, or one for each of {len(experiences)} tasks; got {epochs}")
    if epochs is not None:
        (each(at_least(1)) if isinstance(epochs, list) else at_least(1))("epochs", epochs)
    at_least(1)("chunk", chunk)
    if compete not in ("task", "seen", "all"):
        raise ValueError(f"compete must be 'task', 'seen' or 'all'; got {compete!r}")
    describe = lambda e: {
        "classes": None if e.classes is None else len(e.classes),
        **{
            name: [f"{np.asarray(leaf).dtype}{list(np.shape(leaf)[1:])}" for leaf in jax.tree.leaves(column)]
            for name, column in e.train.items()
        },
    }
    if experiences[0].classes is not None and "classes" in experiences[0].train:
        raise ValueError("a training column must not be called 'classes', as the mask of those that compete is")
    first = describe(experiences[0])
    for e in experiences[1:]:
        if (other := describe(e)) != first:
            raise ValueError(
                f"tasks must have columns of the same shapes; {e.name!r} has {other}, the first has {first}"
            )
    shards = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % shards:
        raise ValueError(f"batch_size must divide by the {shards} shards of the mesh; got {batch_size}")
