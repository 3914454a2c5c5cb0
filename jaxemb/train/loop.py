"""The training loop: batches in, a trained model, its checkpoints and its log out."""

import bisect
import dataclasses
import hashlib
import itertools
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxemb import parallel
from jaxemb.backends import without_absent_tpu
from jaxemb.checks import checked, real
from jaxemb.files import checked_path
from jaxemb.train.accumulation import stack_batches
from jaxemb.train.checkpoints import Checkpoints, DamagedCheckpointError, wait_for_all
from jaxemb.train.directory import RunDirectory
from jaxemb.train.logging import RunLog
from jaxemb.train.run import Run, RunTask
from jaxemb.train.runner import Runner
from jaxemb.train.state import TrainState, apply_transform, begin_task, end_task, init_state
from jaxemb.train.step import make_train_step
from jaxemb.train.stopping import Stop, interruptible, stopping
from jaxemb.transforms import Task, Transform
from jaxemb.trees import by_path

if TYPE_CHECKING:
    from jaxemb.sentence_embedder import SentenceEmbedder

_log = logging.getLogger(__name__)


class Best(TypedDict):
    """The best evaluation so far."""

    step: int
    value: float


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished run gives.

    Attributes:
      embedder: the trained embedder, as saved in `out/model`.
      metrics: results of the last evaluation.
      best: the best evaluation, whose model is saved in `out/best`; None without one.
      state: the last train state.
      initial: results of the evaluation before the first step.
      after: by the name of each task, results of the evaluation after it.
      steps_taken: by this call; 0 of a run that was finished, whose results are those of then.
    """

    embedder: "SentenceEmbedder"
    metrics: Mapping[str, float]
    best: Best | None
    state: TrainState
    initial: Mapping[str, float] = dataclasses.field(default_factory=dict)
    after: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    steps_taken: int = 0

    def scores(self, number: str) -> tuple[np.ndarray, np.ndarray]:
        """What `jaxemb.continual.metrics` takes, of a run whose evaluators are called like its tasks.

            R, b = result.scores("ndcg@10")
            continual.metrics.summarise(R, b)

        Args:
          number: which of an evaluator's numbers.

        Returns:
          R `[T, T]`, `R[i, j]` the number of evaluator j after training task i, and b `[T]`, that before training.

        Raises:
          ValueError: naming a result that there is not.
        """
        wanted = [f"{name}/{number}" for name in self.after]
        rows = [self.initial, *self.after.values()]
        if missing := sorted({name for name in wanted for row in rows if name not in row}):
            raise ValueError(f"there is no result {missing[0]!r}; there are {sorted(rows[-1])}")
        values = np.array([[row[name] for name in wanted] for row in rows])
        return values[1:], values[0]


@checked()
def fit(run: Run, out: str | Path, *, resume: bool = True, overwrite: bool = False, progress: bool = True) -> Result:
    """Trains, or goes on training, in the directory `out`.

    A run that was killed and is started again ends with the parameters, bit for bit, of one that was not. SIGTERM
    saves a checkpoint and exits with code 0; so does Ctrl-C, with a KeyboardInterrupt, and a second Ctrl-C quits at
    once. Of several processes one that gets the signal is enough: all save after the same step, and the others exit
    with code 0. An evaluator that fails loses no step; several processes save before they evaluate.

    A run in `out` that is not this one is refused, and what differs is named. How it is watched and where it runs may
    differ, and so may the number of steps, if it is larger, or of several tasks, if those there come first: a run that
    is finished, too, goes on from its last checkpoint. The schedule of the learning rate is then that of the new number
    of steps, as if it had been so from the first: one that had fallen to 0 rises again.

        out/run.json, config.py    what the run is
        out/metrics.jsonl          losses and evaluation results; with tensorboardX also out/tensorboard
        out/checkpoints/           see `jaxemb.train.checkpoints`
        out/model/, best/          the final and the best model, as the embedder saves them

    Args:
      run: what to train.
      out: the run's directory, made if absent; of several processes the same one, which all can write to.
      resume: go on from the newest intact checkpoint in `out`; if False, `out` must hold no run.
      overwrite: remove the run that `out` holds, and nothing else, and start anew.
      progress: show a bar on a terminal, lines elsewhere.

    Raises:
      FileExistsError: if `out` holds a run and neither `resume` nor `overwrite`, or `out/model` is there and no run is.
      ValueError: if `out` is a URL or holds a different run, a batch does not split over the devices, the data ends
        early or is not what it was, or `run.best` names no evaluation result.
      NonFiniteError: if a loss or gradient is not finite.
      RunLostError: if `out` is removed meanwhile.
      InUseError: if another process trains there.
    """
    without_absent_tpu()
    if "://" in str(out):
        raise ValueError(f"out must be a directory; got {str(out)!r}: mount the bucket and name the directory there")
    run = dataclasses.replace(run, mesh=run.mesh or parallel.default_mesh())
    path = checked_path(out)
    with stopping() as stop, RunDirectory(path, run, resume=resume, overwrite=overwrite) as directory:
        embedder = run.make_embedder()
        _warn_of_tasks_without_evaluator(run)
        state = _initial_state(run, embedder)
        _check_savable(run, embedder, state)
        with Checkpoints(directory.path / "checkpoints", run.keep) as checkpoints:
            restored = checkpoints.restore_newest(state)
            state = restored[0] if restored else state
            resumed_at = int(state.step) if restored else None
            again = restored is not None and not restored[1].get("is_evaluated", True)
            about: dict[str, Any] = {"steps": run.steps, "resumed_at": resumed_at, "best": run.best and run.best[0]}
            log = RunLog(directory.path, **about, evaluates=again, progress=progress)
            with interruptible(stop), log:
                if run.mesh is not None and run.mesh.size > 1:
                    sizes = ", ".join(f"{name}={size}" for name, size in run.mesh.shape.items() if size > 1)
                    log.say(f"training on {run.mesh.size} devices, mesh {sizes}")
                loop = _Loop(run, embedder, state, directory, checkpoints, log, stop)
                loop.train(restored and restored[1])
                result = loop.finish()
        if stop.received is not None:
            stop.leave("the run is finished")
        return result


@dataclasses.dataclass
class _Progress:
    """What the loop carries beside the state; a checkpoint holds it as JSON.

    Attributes:
      losses: since the last line of the log.
      records, seconds: as long.
      metrics: results of the last evaluation.
      initial, after: see `Result`; `after` without names.
      is_evaluated: whether the evaluation of this step, if there is to be one, has been.
      task: the number of the task that is trained, or begins next.
      data: where the data of that task are; None before it begins.
      first_batch: a digest of the task's first batch, as this one of so many processes sees it.
      end: data and first_batch at the end of the task before, for a run that becomes longer.
      processes: how many they are.
    """

    losses: list[float] = dataclasses.field(default_factory=list)
    records: int = 0
    seconds: float = 0.0
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    best: Best | None = None
    initial: dict[str, float] = dataclasses.field(default_factory=dict)
    after: list[dict[str, float]] = dataclasses.field(default_factory=list)
    is_evaluated: bool = False
    task: int = 0
    data: Any = None
    first_batch: str | None = None
    end: tuple[Any, str | None] | None = None
    processes: int = 1


class _Loop:
    """A run on its way: its state, what is known about it, and where both are kept.

    Training, evaluation and checkpoints act on the same state, progress and clock.
    """

    def __init__(
        self,
        run: Run,
        embedder: "SentenceEmbedder",
        state: TrainState,
        directory: RunDirectory,
        checkpoints: Checkpoints,
        log: RunLog,
        stop: Stop,
    ):
        self._run, self._embedder, self._log, self._stop = run, embedder, log, stop
        self._directory, self._checkpoints, self._done = directory, checkpoints, _Progress()
        step = make_train_step(run.objective, run.optimizer, run.transform, accumulate=run.accumulate)
        last = lambda: checkpoints.path(steps[-1]) if (steps := checkpoints.steps()) else None
        self._runner = Runner(step, state, mesh=run.mesh, done=self._write_log, last_checkpoint=last)
        self._step, self._saved_at = int(state.step), time.monotonic()
        self._nan = set[str]()  # the evaluation results that have been NaN
        self._first, self._is_silent = self._step, True  # where this call began; whether nothing has been evaluated yet
        self._ends = list(itertools.accumulate(task.steps for task in run.all_tasks))
        self._batches: Any = None  # those of the task that is trained
        self._is_longer = False

    def train(self, restored: Mapping[str, Any] | None) -> None:
        """Takes the steps that are left, from where the last checkpoint was."""
        if restored:
            try:
                self._done = _Progress(**restored)
            except TypeError as error:
                path = self._checkpoints.path(self._step)
                raise ValueError(f"checkpoint {path} is of another version of jaxemb: {error}") from error
            self._log.say(f"resuming at step {self._step}")
            if self._directory.longer or (self._is_over() and self._step < self._run.steps):
                self._lengthen()
        else:
            self._log.say("no checkpoint yet: starting at 0")
        if self._step >= self._run.steps:
            _log.warning(
                "%s holds this run, finished: nothing is trained, and its results are those of then; "
                "more steps go on from here, overwrite starts anew",
                self._directory.path,
            )
        if self._done.data is None:
            self._pause(evaluate=not self._done.is_evaluated)
        for number, task in list(enumerate(self._run.all_tasks))[self._done.task :]:
            self._train_task(number, task)

    def finish(self) -> Result:
        """Saves the models."""
        run, done, state = self._run, self._done, self._runner.state
        self._directory.check()
        final = self._embedder.replace(model=_whole(run, _evaluated_model(run, state)))
        _save(final, self._directory.path / "model")
        if done.best:
            try:
                best, _ = self._checkpoints.restore(done.best["step"], state)
            except DamagedCheckpointError as error:
                _log.warning("%s; %s is not written", error, self._directory.path / "best")
                done.best = None
            else:
                best_model = _whole(run, _evaluated_model(run, best))
                _save(self._embedder.replace(model=best_model), self._directory.path / "best")
        after = {task.name: metrics for task, metrics in zip(run.all_tasks, done.after, strict=False)}
        return Result(final, done.metrics, done.best, state, done.initial, after, self._step - self._first)

    def _is_over(self) -> bool:
        """Whether all tasks have ended."""
        return self._done.task == len(self._ends)

    def _lengthen(self) -> None:
        """Says what more steps change, and goes on with the last task if it was at its end."""
        run, done, path = self._run, self._done, self._directory.path
        self._log.say(f"going on to step {run.steps}: more than before")
        self._is_longer = True
        if changed := [line for line in self._directory.longer if line.startswith("optimizer")]:
            _log.warning(
                "from step %d on the learning rate follows the schedule of %d steps, as if it had from the first: %s",
                *(self._step, run.steps, "; ".join(changed)),
            )
        if not self._is_over():
            return
        if _ends_tasks(run.transform):
            raise ValueError(
                f"{path} is finished, and its method has changed the model for its end (Transform.end_task): for more "
                "steps choose another directory or start anew with overwrite=True"
            )
        if done.end is None:
            raise ValueError(f"{path} was finished by a version of jaxemb that did not keep where its data were")
        done.task -= 1
        done.data, done.first_batch = done.end
        del done.after[done.task :]

    def _train_task(self, number: int, task: RunTask) -> None:
        run, done = self._run, self._done
        told = _told(run, number, self._embedder)
        batches = task.data(self._embedder)
        if done.data is None:
            self._hook(begin_task, told)
            self._batches = _iterator(batches)
        else:
            self._batches = self._resumed(task, batches)
            self._pause(evaluate=not done.is_evaluated)
        for step in range(self._step + 1, self._ends[number] + 1):
            batch, ids = self._next_batch(task, step)
            if step == self._first + 1:
                self._compile(batch)
            self._runner.start(batch, ids)
            self._step = step
            if step < self._ends[number]:
                save = step % run.checkpoint_every == 0 or self._is_due()
                self._pause(evaluate=step % run.evaluate_every == 0, save=save)
        self._settle()
        done.end = self._batches.get_state(), done.first_batch
        self._hook(end_task, told)
        self._batches, done.first_batch, done.task = None, None, number + 1
        self._pause(evaluate=True, save=True)

    def _compile(self, batch: Any) -> None:
        """Compiles the step before the first is taken, and says so, and what memory it needs."""
        self._log.say(
            "compiling the training step, here and for each new shape of a batch: seconds to minutes, "
            "also where XLA calls it very slow"
        )
        if (memory := self._runner.memory(batch)) is not None:
            self._log.say(str(memory))

    def _hook(self, hook, told: Task) -> None:
        state = hook(self._run.transform, self._run.objective, self._runner.state, told)
        self._runner.state = _placed(self._run, state)
        self._runner.go_on()

    def _resumed(self, task: RunTask, batches: Any) -> Iterator:
        """The task's batches from where they were."""
        seen = self._done.first_batch if self._done.processes == jax.process_count() else None
        if seen is not None and seen != _digest(next(iter(batches))):
            raise ValueError(
                f"the data of {self._directory.path} has changed: the first batch of the task {task.name!r} is another "
                "one; bring back what it was, or choose another directory"
            )
        iterator = _iterator(batches)
        iterator.set_state(self._done.data)
        return iterator

    def _next_batch(self, task: RunTask, step: int) -> tuple[Any, np.ndarray]:
        """The batch of a step, brought to its devices while the step before runs, and its record ids."""
        try:
            parts = [next(self._batches) for _ in range(self._run.accumulate)]
        except StopIteration:
            data = f"the data of task {task.name!r}" if self._run.tasks else "the data"
            remedy = "let it repeat or lower the steps" if self._run.tasks else "let it repeat or lower Run.steps"
            raise ValueError(f"{data} ended at step {step} of {self._run.steps}; {remedy}") from None
        if "id" not in parts[0]:
            raise ValueError(f"batches must have the numbers of their records as 'id'; got {sorted(parts[0])}")
        if self._done.first_batch is None:
            self._done.first_batch, self._done.processes = _digest(parts[0]), jax.process_count()
        batch = parts[0] if self._run.accumulate == 1 else stack_batches(parts)
        ids = np.asarray(batch["id"]).ravel()
        if self._run.mesh is None:
            return parallel.put(batch, None), ids
        return parallel.shard_batch(batch, self._run.mesh, axis=int(self._run.accumulate > 1)), ids

    # Between steps

    def _pause(self, *, evaluate: bool, save: bool = False) -> None:
        """Evaluates, saves and stops, as far as it is time."""
        evaluate &= bool(self._run.evaluators)
        self._done.is_evaluated = not evaluate
        if evaluate:
            self._settle()
            if self._step and jax.process_count() > 1:  # one that fails cannot save without the others
                self._save()
                self._checkpoints.finish()
                save = self._batches is None
            save |= self._evaluate()
        stopping = self._stop(self._step)
        if not (evaluate or save or stopping):
            return
        self._settle()
        is_last = self._step == self._run.steps and self._is_over()
        if save or stopping:
            self._save()
        if stopping and not is_last:
            self._checkpoints.finish()
            saved = f"saved {self._checkpoints.path(self._step)}"
            _log.warning("%s: %s", self._stop.name, saved)
            self._stop.leave(saved)
        self._runner.go_on()

    def _settle(self) -> None:
        self._runner.wait()
        self._read_metrics()

    def _evaluate(self) -> bool:
        """Whether the model of this step is the best so far."""
        run, done = self._run, self._done
        try:
            done.metrics = done.metrics | self._evaluated()
        except BaseException as error:
            # A resumed run begins with this evaluation. Several processes have saved before it.
            if self._step and jax.process_count() == 1 and not isinstance(error, KeyboardInterrupt):
                self._save()
                self._checkpoints.finish()
            raise
        done.is_evaluated = True
        self._write(done.metrics)
        if self._step == 0:
            done.initial = done.metrics
        elif self._batches is None:
            done.after.append(done.metrics)
        if run.best is None:
            return False
        value = done.metrics[run.best[0]]
        if not run.is_better(value, done.best["value"] if done.best else None):
            return False
        done.best = {"step": self._step, "value": value}
        return True

    def _evaluated(self) -> dict[str, float]:
        run, found = self._run, dict[str, float]()
        current = self._embedder.replace(model=_evaluated_model(run, self._runner.state))
        if self._is_silent:
            when = f"at step {self._step}" if self._step else "before the first step"
            self._log.say(f"evaluating {when}: {', '.join(run.evaluators)}")
            self._is_silent = False
        with self._stop.during("evaluation"), parallel.in_force(run.mesh):
            for name, evaluator in run.evaluators.items():
                found |= _numbers(name, evaluator(current))
        if nan := [name for name, value in found.items() if np.isnan(value) and name not in self._nan]:
            _log.warning("step %d: the evaluation results %s are NaN, which is never the best", self._step, nan)
            self._nan.update(nan)
        if run.best is not None and run.best[0] not in found:
            raise ValueError(f"Run.best is {run.best[0]!r}, but the evaluation results are {sorted(found)}")
        return found

    def _is_due(self) -> bool:
        """Whether it is time for a checkpoint: for several processes process 0 says so, at lines of the log."""
        is_due = time.monotonic() - self._saved_at >= 60 * self._run.checkpoint_minutes
        if jax.process_count() == 1:
            return is_due
        return self._step % self._run.log_every == 0 and bool(multihost_utils.broadcast_one_to_all(np.int32(is_due)))

    def _save(self) -> None:
        done = self._done
        self._saved_at = time.monotonic()
        self._directory.claim()
        self._log.sync()
        done.data = None if self._batches is None else self._batches.get_state()
        best = done.best["step"] if done.best else None
        self._checkpoints.save(self._step, self._runner.state, dataclasses.asdict(done), best=best)

    # The log

    def _read_metrics(self) -> dict[str, float]:
        """Adds those of the steps done to the window of the log; gives those of the last."""
        found, done = self._runner.read(), self._done
        done.losses += [metrics["loss"] for metrics in found]
        done.records, done.seconds = done.records + self._runner.records, done.seconds + self._runner.seconds
        self._runner.records, self._runner.seconds = 0, 0.0
        return found[-1] if found else {}

    def _write_log(self, step: int) -> None:
        self._log.advance(step)
        if step % self._run.log_every == 0 or step in self._ends:
            done, metrics = self._done, self._read_metrics()
            pace = {"records_per_second": done.records / done.seconds} if done.seconds else {}
            values = metrics | {"loss": float(np.mean(done.losses))} | pace
            self._write({f"train/{name}": value for name, value in values.items()}, step)
            self._warn_of_rate(step, values.get("learning_rate"))
            done.losses, done.records, done.seconds = [], 0, 0.0

    def _warn_of_rate(self, step: int, rate: float | None) -> None:
        """Says once that the steps by which a run became longer train nothing."""
        if self._is_longer and rate == 0:
            self._is_longer = False
            _log.warning(
                "step %d: the learning rate is 0, as the optimiser's schedule is still that of fewer steps; "
                "let it follow the steps of the run",
                step,
            )

    def _write(self, values: Mapping[str, float], step: int | None = None) -> None:
        step = self._step if step is None else step
        task = {"task": bisect.bisect_left(self._ends, step)} if len(self._ends) > 1 else {}
        self._log.write(step, {**task, **values})


def _iterator(batches: Any) -> Any:
    """An iterator over batches whose position can be saved and restored."""
    iterator = iter(batches)
    if not (hasattr(iterator, "get_state") and hasattr(iterator, "set_state")):
        raise TypeError(
            "iterators over Run.data must have get_state and set_state, as those of jaxemb.data.batches do, or their "
            f"position cannot be saved; got {type(iterator).__name__}. jaxemb.train.train takes any batches"
        )
    return iterator


def _warn_of_tasks_without_evaluator(run: Run) -> None:
    """Says before the first step what `Result.scores` would say after the last."""
    names = [task.name for task in run.tasks]
    if run.evaluators and (without := [name for name in names if name not in run.evaluators]):
        _log.warning(
            "Run.evaluators has none called %s, as Result.scores needs one for each task; there are %s",
            ", ".join(map(repr, without)),
            sorted(run.evaluators),
        )


def _initial_state(run: Run, embedder: "SentenceEmbedder") -> TrainState:
    rules = run.rules or parallel.REPLICATED
    key = jax.random.key(run.seed, impl=run.prng)
    return init_state(key, embedder.model, run.optimizer, run.transform, mesh=run.mesh, rules=rules)


def _placed(run: Run, state: TrainState) -> TrainState:
    return state if run.mesh is None else parallel.place(state, run.mesh, run.rules or parallel.REPLICATED)


def _check_savable(run: Run, embedder: "SentenceEmbedder", state: TrainState) -> None:
    """Sees before the first step that the model can be saved after the last."""
    if run.evaluated_model is None and hasattr(embedder, "check_savable"):
        made = jax.eval_shape(lambda state: apply_transform(run.transform, state), state)
        try:
            embedder.replace(model=made).check_savable()
        except (ValueError, AttributeError) as error:
            remedy = "set Run.evaluated_model to what is to be saved, such as `lambda state: state.model`"
            raise ValueError(f"the model that training gives could not be saved ({error}); {remedy}") from error


def _numbers(name: str, found: Any) -> dict[str, float]:
    """What an evaluator gives, by `name/number`."""
    try:
        return {f"{name}/{key}": real(str(key), value) for key, value in found.items()}
    except (AttributeError, TypeError) as error:
        raise TypeError(f"Run.evaluators[{name!r}] must give numbers by name; got {found!s:.80}") from error


def _ends_tasks(transform: Transform) -> bool:
    """Whether it does something at the end of a task."""
    parts = (transform,) if transform.parts is None else transform.parts
    return any(part.end_task is not Transform().end_task for part in parts)


def _told(run: Run, number: int, embedder: "SentenceEmbedder") -> Task:
    """What the transform is told about a task: of data without an end as many batches as the steps take."""
    task = run.all_tasks[number]
    batches = lambda: itertools.islice(task.data(embedder), task.steps * run.accumulate)
    return Task(number, batches, task.steps, task.classes)


def _evaluated_model(run: Run, state: TrainState) -> Any:
    """The model to evaluate and save, split over the mesh as the state is."""
    return apply_transform(run.transform, state) if run.evaluated_model is None else run.evaluated_model(state)


def _whole(run: Run, model: Any) -> Any:
    """The model as it is saved: each of several processes gets all of it, in the host's memory."""
    if run.mesh is None or jax.process_count() == 1:
        return model
    whole = jax.jit(lambda leaf: leaf, out_shardings=parallel.replicated(run.mesh))
    return jax.tree.map(lambda leaf: np.asarray(whole(leaf)), model)  # one by one: it may not fit on a device


def _save(embedder: "SentenceEmbedder", path: Path) -> None:
    """Process 0 writes; the others wait for it."""
    if jax.process_index() == 0:
        embedder.save(path)
    wait_for_all(f"saved {path.name}")


def _digest(batch: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, leaf in sorted(by_path(dict(batch)).items()):
        digest.update(f"{name} {np.shape(leaf)}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
