"""The loop over a stream: train on task after task, score every task after each."""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
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
from jaxemb.checks import checked, numbers, size
from jaxemb.continual.streams import Columns, Experience, count
from jaxemb.files import checked_path, locked
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
        split over the mesh, experiences whose training data have different columns, shapes or types, or checkpoints of
        another run.
      NonFiniteError: if a loss or gradient is not finite; a note says which task it was.
      InUseError: if another process trains with the same checkpoints.
    """
    # The loop in one piece: training, scores and checkpoints act on the same state and progress.
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(_alone_in(checkpoints))
        transform = identity() if transform is None else transform
        lengths = _check(experiences, epochs, steps, batch_size, chunk, compete)
        shards = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
        if batch_size % shards:
            raise ValueError(f"batch_size must divide by the {shards} shards of the mesh; got {batch_size}")
        place = (lambda state: state) if mesh is None else functools.partial(parallel.place, mesh=mesh, rules=rules)
        state = init_state(jax.random.key(seed), model, optimizer, transform, mesh=mesh, rules=rules)
        passes = [epochs or 1] * len(lengths) if not isinstance(epochs, Sequence) else epochs
        totals = [steps or n * max(1, size // batch_size) for n, size in zip(passes, lengths, strict=True)]
        chunk = min(chunk, max(totals))
        step = make_train_step(objective, optimizer, transform)
        in_loop, metrics = _traced(step, state, experiences[0], _classes(experiences, 0, compete), batch_size)
        store = None if directory is None else Checkpoints(directory, keep=1)
        last_checkpoint = lambda: store.path(store.steps()[-1]) if store is not None and store.steps() else None
        call = _in_a_loop(step, metrics, chunk) if in_loop else _on_rows(step)
        runner = Runner(call, state, mesh=mesh, last_checkpoint=last_checkpoint)
        # Its own function, so that a new optimiser state does not share its buffers with the trained one.
        fresh = jax.jit(lambda state: jax.tree.map(jnp.copy, optimizer.init(trainable(transform, state))))
        offsets = np.concatenate([[0], np.cumsum(lengths)])

        done = _Progress.new(len(experiences), evaluate)
        about = {"experiences": [[e.name, n] for e, n in zip(experiences, lengths, strict=True)], "steps": totals}
        about |= {"batch_size": batch_size, "compete": compete, "seed": seed, "reset_optimizer": reset_optimizer}
        about |= {"boundaries": boundaries, "future": future, "evaluate": sorted(evaluate)}
        if store is not None:
            about |= {"data": _digest(experiences), "objective": describe(objective), "optimizer": describe(optimizer)}
            about |= {"transform": describe(transform if transform.parts is None else transform.parts)}
        if store is not None and (restored := store.restore_newest(state)):
            runner.state, saved = restored
            if lines := differences(saved["about"], about):
                raise ValueError(f"{checkpoints} holds the checkpoints of another run: {'; '.join(lines)}")
            done = _Progress.from_json(saved["done"])

        say, advance = stack.enter_context(_telling(sum(totals[len(done.seconds) :]), progress))

        def remember(number: int) -> None:
            for score in evaluate.values():
                if hasattr(score, "remember"):
                    score.remember(runner.state, experiences, number)

        if not done.seconds:
            remember(-1)
            every = _classes(experiences, len(experiences) - 1, "all")
            with parallel.in_force(mesh):
                for name, score in evaluate.items() if future else ():
                    done.b[name] = [float(score(runner.state, e, j, every)) for j, e in enumerate(experiences)]

        if done.seconds:
            say(f"going on after {len(done.seconds)} of {len(experiences)} tasks")
        for number in range(len(done.seconds), len(experiences)):
            began = time.perf_counter()
            data = _on_device(experiences[number], offsets[number], max(lengths), mesh)
            classes = _classes(experiences, number, compete)
            order = functools.partial(_epoch, seed, number, lengths[number], batch_size)
            all_ids = np.asarray(experiences[number].train.get("id", np.arange(lengths[number]) + offsets[number]))
            ids_of = all_ids.__getitem__
            task = Task(
                number,
                batches=functools.partial(_once, data, order, classes),
                steps=totals[number],
                classes=experiences[number].classes,
            )
            if boundaries:
                runner.state = place(begin_task(transform, objective, runner.state, task))
            if reset_optimizer and number > 0:
                runner.state = place(dataclasses.replace(runner.state, opt_state=fresh(runner.state)))

            batches, losses, before = _forever(order), [], int(runner.state.step)
            for start in range(0, totals[number], chunk):
                n = min(chunk, totals[number] - start)
                rows = np.zeros((chunk, batch_size), np.int32)
                rows[:n] = [next(batches) for _ in range(n)]
                if in_loop:
                    runner.start((data, rows, classes, n), ids_of(rows[:n]), steps=n)
                else:
                    for row in rows[:n]:
                        runner.start((data, row, classes), ids_of(row))
                runner.wait()
                try:
                    losses += [of_step["loss"] for of_step in runner.read()]
                except NonFiniteError as error:
                    name, of_task = experiences[number].name, error.step - before
                    error.add_note(f"It is step {of_task} of {totals[number]} of task {number}, {name!r}.")
                    raise
                advance(n, f"{number + 1}/{len(experiences)} {experiences[number].name}")
            if boundaries:
                runner.state = place(end_task(transform, objective, runner.state, task))
            del data, task  # the device need not hold them beside the evaluators' arrays
            done.seconds.append(time.perf_counter() - began)
            done.losses.append(losses)

            remember(number)
            seen = _classes(experiences, number, "seen")
            with parallel.in_force(mesh):
                for name, score in evaluate.items():
                    scored = experiences if future else experiences[: number + 1]
                    row = [float(score(runner.state, e, j, seen)) for j, e in enumerate(scored)]
                    done.R[name][number] = row + [float("nan")] * (len(experiences) - len(row))
            means = (f"{name} {np.mean(R[number][: number + 1]):.4f}" for name, R in done.R.items())
            say(
                f"task {number + 1}/{len(experiences)} {experiences[number].name!r}: {totals[number]} steps in "
                f"{done.seconds[-1]:.1f} s, loss {losses[-1]:.4g}; on the tasks so far {', '.join(means) or '-'}"
            )
            if store is not None:
                store.save(number + 1, runner.state, {"about": about, "done": dataclasses.asdict(done)})
                store.finish()

        return StreamResult(
            names=tuple(e.name for e in experiences),
            R={name: np.array(matrix) for name, matrix in done.R.items()},
            b={name: np.array(values) for name, values in done.b.items()},
            state=runner.state,
            losses=tuple(np.array(values, np.float32) for values in done.losses),
            seconds=np.array(done.seconds),
            parameters=sum(leaf.size for leaf in jax.tree.leaves(trainable(transform, runner.state))),
            state_bytes=sum(leaf.nbytes for leaf in jax.tree.leaves(runner.state.method_state)),
        )


@contextlib.contextmanager
def _alone_in(directory: str | Path | None) -> Iterator[Path | None]:
    """The directory, made if absent, while no other process trains there. Raises InUseError if one does."""
    if directory is None:
        yield None
        return
    (path := checked_path(directory)).mkdir(parents=True, exist_ok=True)
    with locked(path, wait=False):
        yield path


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


def _digest(experiences: Sequence[Experience]) -> str:
    """Tells the training data of two streams apart."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves([dict(e.train) for e in experiences]):
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


def _traced(
    train_step: TrainStep, state: TrainState, first: Experience, classes, batch_size: int
) -> tuple[bool, PyTree]:
    """Whether steps run on the device in a loop, and the shapes of their metrics.

    XLA makes convolutions on a CPU tens of times slower inside of a loop.
    """
    like = lambda leaf: jax.ShapeDtypeStruct((batch_size, *np.shape(leaf)[1:]), jnp.result_type(leaf))
    batch = jax.tree.map(like, {"id": np.zeros(1, np.int32), **first.train})
    batch = batch if classes is None else {**batch, "classes": classes}
    program, (_, metrics) = jax.make_jaxpr(train_step, return_shape=True)(state, batch)
    return jax.default_backend() != "cpu" or "conv_general_dilated" not in str(program), metrics


@jax.jit
def _batch(data: Columns, rows: jax.Array, classes: jax.Array | np.ndarray | None) -> dict[str, Any]:
    """The records of `rows`, split over the mesh in force."""
    axes = tuple(parallel.batch_axes())
    split = lambda leaf: jax.lax.with_sharding_constraint(leaf, PartitionSpec(axes)) if axes else leaf
    batch = dict(jax.tree.map(lambda leaf: split(leaf[rows]), data))
    return batch if classes is None else {**batch, "classes": classes}


def _on_device(experience: Experience, offset: int, size: int, mesh: Mesh | None) -> dict[str, Any]:
    """The training columns with "id", every leaf padded to `size` rows, whole on every device of the mesh."""

    def place(leaf) -> jax.Array:
        leaf = np.asarray(leaf)
        padded = np.pad(leaf, [(0, size - len(leaf))] + [(0, 0)] * (leaf.ndim - 1))
        return parallel.put(padded, None if mesh is None else parallel.replicated(mesh))

    ids = np.arange(count(experience.train), dtype=np.int32) + np.int32(offset)
    columns = {"id": ids, **experience.train}
    return {name: jax.tree.map(place, column) for name, column in columns.items()}


def _epoch(seed: int, number: int, size: int, batch_size: int, epoch: int) -> np.ndarray:
    """The rows of an epoch's batches, `[steps, B]`."""
    order = np.random.default_rng([seed, number, epoch]).permutation(size).astype(np.int32)
    steps = max(1, size // batch_size)
    return (
        np.resize(order, (steps, batch_size)) if size < batch_size else order[: steps * batch_size].reshape(steps, -1)
    )


def _once(data: Columns, order: Callable[[int], np.ndarray], classes: np.ndarray | None) -> Iterator[dict[str, Any]]:
    for rows in order(0):
        yield _batch(data, jnp.asarray(rows), classes)


def _forever(order: Callable[[int], np.ndarray]) -> Iterator[np.ndarray]:
    epoch = 0
    while True:
        yield from order(epoch)
        epoch += 1


def _classes(experiences: Sequence[Experience], number: int, which: Compete) -> np.ndarray | None:
    if experiences[0].classes is None:
        return None
    masks = np.stack([np.asarray(e.classes) for e in experiences])
    return {"task": masks[number], "seen": masks[: number + 1].any(axis=0), "all": np.ones(masks.shape[1], bool)}[which]


def _check(experiences, epochs, steps, batch_size, chunk, compete) -> list[int]:
    """The numbers of training records."""
    if not experiences:
        raise ValueError("experiences must not be empty")
    if (epochs is None) == (steps is None):
        raise ValueError(f"give one of epochs and steps; got epochs={epochs}, steps={steps}")
    if isinstance(epochs, Sequence) and len(epochs) != len(experiences):
        raise ValueError(f"epochs must be one number, or one for each of {len(experiences)} tasks; got {epochs}")
    least = min(epochs) if isinstance(epochs, Sequence) else epochs
    for name, value in {"epochs": least, "steps": steps, "batch_size": batch_size, "chunk": chunk}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
    if compete not in ("task", "seen", "all"):
        raise ValueError(f"compete must be 'task', 'seen' or 'all'; got {compete!r}")
    describe = lambda e: {
        "classes": None if e.classes is None else len(e.classes),
        **{
            name: [f"{np.asarray(leaf).dtype}{list(np.shape(leaf)[1:])}" for leaf in jax.tree.leaves(column)]
            for name, column in e.train.items()
        },
    }
    first = describe(experiences[0])
    for e in experiences[1:]:
        if (other := describe(e)) != first:
            raise ValueError(
                f"tasks must have columns of the same shapes; {e.name!r} has {other}, the first has {first}"
            )
    return [count(e.train) for e in experiences]
