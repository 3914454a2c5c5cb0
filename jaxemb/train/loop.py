"""The training loop: batches in, a trained model, its checkpoints and its log out."""

import contextlib
import dataclasses
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxemb import parallel
from jaxemb.files import read_json, write_bytes, write_json
from jaxemb.train.accumulation import stack_batches
from jaxemb.train.checkpoints import Checkpoints, wait_for_all
from jaxemb.train.logging import RunLog
from jaxemb.train.run import Run, differences
from jaxemb.train.runner import Runner
from jaxemb.train.state import TrainState, apply_transform, begin_task, end_task, init_state
from jaxemb.train.step import make_train_step
from jaxemb.transforms import Task

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
      metrics: results of the evaluation after the last step.
      best: the best evaluation, whose model is saved in `out/best`; None without one.
      state: the last train state.
    """

    embedder: "SentenceEmbedder"
    metrics: Mapping[str, float]
    best: Best | None
    state: TrainState


@dataclasses.dataclass
class _Progress:
    """What the loop carries beside the state; a checkpoint holds it as JSON."""

    losses: list[float] = dataclasses.field(default_factory=list)  # since the last line of the log
    records: int = 0
    seconds: float = 0.0
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    best: Best | None = None


def fit(run: Run, out: str | Path, *, resume: bool = True, progress: bool = True) -> Result:
    """Trains, or goes on training, in the directory `out`.

    A run that was killed and is started again ends with the parameters, bit for bit, of one that was not. SIGTERM
    (to one process, of several) saves a checkpoint and exits with code 0.

        out/run.json, config.py    what the run is
        out/metrics.jsonl          losses and evaluation results; with tensorboardX also out/tensorboard
        out/checkpoints/           see `jaxemb.train.checkpoints`
        out/model/, best/          the final and the best model, as the embedder saves them

    Args:
      run: what to train.
      out: the run's directory, made if absent; of several processes the same one, which all can write to.
      resume: go on from the newest intact checkpoint in `out`; if False, `out` must hold no run.
      progress: show a bar on a terminal, lines elsewhere.

    Raises:
      FileExistsError: if `out` holds a run and `resume` is False.
      ValueError: if `out` is a URL or holds a different run, several processes have no mesh in common, the data ends
        early, or `run.best` names no evaluation result.
      NonFiniteError: if a loss or gradient is not finite.
    """
    # The loop in one piece: steps, log, evaluation and checkpoints act on the same state, progress and clock.
    if "://" in str(out):
        raise ValueError(f"out must be a directory; got {str(out)!r}: mount the bucket and name the directory there")
    if run.mesh is None and jax.process_count() > 1:
        raise ValueError(f"{jax.process_count()} processes train as one on a mesh of all devices: set Run.mesh")
    out = Path(out)
    _claim(out, run, resume)
    embedder = run.embedder()
    state = _initial_state(run, embedder)
    _check_savable(run, embedder, state)
    batches: Any = iter(run.data(embedder))
    checkpoints = Checkpoints(out / "checkpoints", run.keep)
    done = _Progress()
    if restored := checkpoints.restore_newest(state):
        state, loop = restored
        done = _Progress(**loop["progress"])
        batches.set_state(loop["data"])
    start = int(state.step)
    if start >= run.steps:
        _log.warning("%s holds this run, finished: nothing is trained; a changed run needs another directory", out)

    def read_metrics() -> dict[str, float]:
        """Adds those of the steps done to the window of the log; gives those of the last."""
        found = runner.read()
        done.losses += [metrics["loss"] for metrics in found]
        done.records, done.seconds = done.records + runner.records, done.seconds + runner.seconds
        runner.records, runner.seconds = 0, 0.0
        return found[-1] if found else {}

    def write_log(step: int) -> None:
        log.advance(step)
        if step % run.log_every == 0 or step == run.steps:
            metrics = read_metrics()
            pace = {"records_per_second": done.records / done.seconds} if done.seconds else {}
            values = metrics | {"loss": float(np.mean(done.losses))} | pace
            log.write(step, {f"train/{name}": value for name, value in values.items()})
            done.losses, done.records, done.seconds = [], 0, 0.0

    def settle() -> None:
        runner.wait()
        read_metrics()

    def last_checkpoint() -> Path | None:
        return checkpoints.path(steps[-1]) if (steps := checkpoints.steps()) else None

    step_of_run = make_train_step(run.objective, run.optimizer, run.transform, accumulate=run.accumulate)
    runner = Runner(step_of_run, state, mesh=run.mesh, done=write_log, last_checkpoint=last_checkpoint)

    def evaluate(step: int) -> bool:
        """Whether the model of this step is the best so far."""
        current = embedder.replace(model=_evaluated_model(run, runner.state))
        with parallel.in_force(run.mesh):
            for name, evaluator in run.evaluators.items():
                done.metrics |= _numbers(name, evaluator(current))
        log.write(step, done.metrics)
        if run.best is None:
            return False
        if run.best[0] not in done.metrics:
            raise ValueError(f"Run.best is {run.best[0]!r}, but the evaluation results are {sorted(done.metrics)}")
        value = done.metrics[run.best[0]]
        if not run.is_better(value, done.best["value"] if done.best else None):
            return False
        done.best = {"step": step, "value": value}
        return True

    def save(step: int) -> None:
        log.sync()
        loop = {"progress": dataclasses.asdict(done), "data": batches.get_state()}
        checkpoints.save(step, runner.state, loop, best=done.best["step"] if done.best else None)

    with checkpoints, _sigterm() as stop, RunLog(out, steps=run.steps, resumed_at=start, progress=progress) as log:
        if start == 0 and run.evaluators and evaluate(0):
            save(0)
        for step in range(start + 1, run.steps + 1):
            runner.start(*_next_batch(run, batches, step))
            is_last = step == run.steps
            must_evaluate = bool(run.evaluators) and (is_last or step % run.evaluate_every == 0)
            must_save = is_last or step % run.checkpoint_every == 0
            if must_evaluate:
                settle()
                must_save |= evaluate(step)
            stopping = stop(step) and not is_last
            if must_evaluate or must_save or stopping:
                settle()
                if must_save or stopping:
                    save(step)
                if stopping:
                    checkpoints.finish()
                    _log.warning("SIGTERM: saved %s", checkpoints.path(step))
                    raise SystemExit(0)
                runner.go_on()

    state = end_task(run.transform, run.objective, runner.state, _task(run, embedder))
    final = embedder.replace(model=_whole(run, _evaluated_model(run, state)))
    _save(final, out / "model")
    if done.best:
        best, _ = checkpoints.restore(done.best["step"], state)
        _save(embedder.replace(model=_whole(run, _evaluated_model(run, best))), out / "best")
    return Result(final, done.metrics, done.best, state)


def _initial_state(run: Run, embedder: "SentenceEmbedder") -> TrainState:
    rules = run.rules or parallel.REPLICATED
    key = jax.random.key(run.seed, impl=run.prng)
    state = init_state(key, embedder.model, run.optimizer, run.transform, mesh=run.mesh, rules=rules)
    state = begin_task(run.transform, run.objective, state, _task(run, embedder))
    return state if run.mesh is None else parallel.place(state, run.mesh, rules)


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
        return {f"{name}/{key}": float(value) for key, value in found.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise TypeError(f"Run.evaluators[{name!r}] must give numbers by name; got {found!s:.80}") from error


def _task(run: Run, embedder: "SentenceEmbedder") -> Task:
    return Task(0, batches=lambda: run.data(embedder), steps=run.steps)


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


def _next_batch(run: Run, batches: Iterator, step: int) -> tuple[dict[str, Any], np.ndarray]:
    """The batch of a step, on its devices, and its record ids."""
    try:
        parts = [next(batches) for _ in range(run.accumulate)]
    except StopIteration:
        raise ValueError(f"the data ended at step {step} of {run.steps}; let it repeat or lower Run.steps") from None
    batch = parts[0] if run.accumulate == 1 else stack_batches(parts)
    ids = np.asarray(batch["id"]).ravel()
    if run.mesh is not None:
        batch = parallel.shard_batch(batch, run.mesh, axis=int(run.accumulate > 1))
    return batch, ids


def _claim(out: Path, run: Run, resume: bool) -> None:
    """Makes `out` the directory of this run, or sees that it is."""
    description, path = run.describe(), out / "run.json"
    claimed = path.exists()
    wait_for_all("looked")  # before process 0 writes
    if claimed:
        if not resume:
            raise FileExistsError(f"{out} already holds a run; resume it or choose another directory")
        if lines := differences(read_json(path, dict), description):
            raise ValueError(f"{out} holds a different run; choose another directory. " + "; ".join(lines))
    elif jax.process_index() == 0:
        out.mkdir(parents=True, exist_ok=True)
        if run.source is not None:
            write_bytes(out / "config.py", Path(run.source).read_bytes())
        write_json(path, description)


@contextlib.contextmanager
def _sigterm() -> Iterator[Callable[[int], bool]]:
    """A function that says after each step whether to stop: SIGTERM has come, to this process or any of the others.

    Several processes stop after the same step, which JAX lets them agree on; it has taken the signal for that.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # which alone may say what a signal does
        yield lambda step: False
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: event.set())
    try:
        yield lambda step: event.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
