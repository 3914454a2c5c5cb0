"""The training loop: batches in, a trained model, its checkpoints and its log out."""

import contextlib
import dataclasses
import json
import logging
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec

from jaxemb import parallel
from jaxemb.train.accumulation import stack_batches
from jaxemb.train.checkpoints import Checkpoints, wait_for_all
from jaxemb.train.logging import RunLog
from jaxemb.train.run import Run, differences
from jaxemb.train.state import TrainState, apply_transform, begin_task, end_task, init_state
from jaxemb.train.step import make_train_step
from jaxemb.transforms import Task

if TYPE_CHECKING:
    from jaxemb.sentence_embedder import SentenceEmbedder

_log = logging.getLogger(__name__)


class NonFiniteError(ArithmeticError):
    """A loss or gradient was not finite.

    Attributes:
      step: the step that would have been finished.
      ids: the record ids of its batch.
      checkpoint: the last checkpoint, or None if there is none yet.
      state: the state before the step.
    """

    def __init__(self, step: int, ids: list[int], loss: float, grad_norm: float, checkpoint: Path | None, state):
        self.step, self.ids, self.checkpoint, self.state = step, ids, checkpoint, state
        shown = ", ".join(map(str, ids[:20])) + (f", ... ({len(ids)} in all)" if len(ids) > 20 else "")
        super().__init__(
            f"step {step}: loss {loss}, gradient norm {grad_norm}; the parameters are those before this step. "
            f"Record ids of the batch: {shown}. Last good checkpoint: {checkpoint or 'none yet'}"
        )


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
    batches: Any = iter(run.data(embedder))
    checkpoints = Checkpoints(out / "checkpoints", run.keep)
    done = _Progress()
    if restored := checkpoints.restore_newest(state):
        state, loop = restored
        done = _Progress(**loop["progress"])
        batches.set_state(loop["data"])
    start = int(state.step)
    # Without a mesh, to say where results lie would tie them to their device, and the first state is tied to none:
    # `jit` would take the second state for one of another kind, and compile the step again.
    placed: Any = {} if run.mesh is None else {"out_shardings": (jax.tree.map(lambda leaf: leaf.sharding, state), None)}
    step_of_run = make_train_step(run.objective, run.optimizer, run.transform, accumulate=run.accumulate)
    train_step = jax.jit(step_of_run, donate_argnums=0, **placed)
    running: deque[tuple[int, np.ndarray, dict[str, jax.Array]]] = deque()  # steps the device may still be at
    finished: list[tuple[int, np.ndarray, dict[str, jax.Array]]] = []  # steps whose metrics are still on the device
    clock: float | None = None  # since when the next step to finish has been running; None while it compiles

    def finish_step() -> None:
        """Waits for the oldest running step; at a step of the log, metrics are fetched and written."""
        nonlocal clock
        step, ids, metrics = running.popleft()
        jax.block_until_ready(metrics)
        now = time.perf_counter()
        if clock is not None:
            done.seconds, done.records = done.seconds + now - clock, done.records + len(ids)
        clock = now
        finished.append((step, ids, metrics))
        log.advance(step)
        if step % run.log_every == 0 or step == run.steps:
            last = fetch_metrics()
            pace = {"records_per_second": done.records / done.seconds} if done.seconds else {}
            values = {"loss": float(np.mean(done.losses)), **last, **pace}
            log.write(step, {f"train/{name}": value for name, value in values.items()})
            done.losses, done.records, done.seconds = [], 0, 0.0

    def fetch_metrics() -> dict[str, float]:
        """Adds the losses of the finished steps to the window of the log; the other metrics of the last one."""
        metrics: dict[str, float] = {}
        for (step, ids, _), fetched in zip(finished, jax.device_get([m for *_, m in finished]), strict=True):
            metrics = {name: value.item() for name, value in fetched.items()}
            if not metrics.pop("finite"):
                last = checkpoints.steps()
                path = checkpoints.path(last[-1]) if last else None
                raise NonFiniteError(step, ids.tolist(), metrics["loss"], metrics["grad_norm"], path, state)
            done.losses.append(metrics.pop("loss"))
        finished.clear()
        return metrics

    def finish_all() -> None:
        while running:
            finish_step()
        fetch_metrics()

    def evaluate(step: int) -> bool:
        """Whether the model of this step is the best so far."""
        current = embedder.replace(model=_evaluated_model(run, state))
        with parallel.in_force(run.mesh):
            for name, evaluator in run.evaluators.items():
                done.metrics |= {f"{name}/{key}": float(value) for key, value in evaluator(current).items()}
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
        checkpoints.save(step, state, loop, best=done.best["step"] if done.best else None)

    with checkpoints, _sigterm() as stop, RunLog(out, steps=run.steps, resumed_at=start, progress=progress) as log:
        if start == 0 and run.evaluators and evaluate(0):
            save(0)
        for step in range(start + 1, run.steps + 1):
            batch, ids = _next_batch(run, batches, step)
            with parallel.in_force(run.mesh):
                state, metrics = train_step(state, batch)
            running.append((step, ids, metrics))
            if len(running) > 1:
                finish_step()  # the one before: the device is never left waiting for the host
            is_last = step == run.steps
            must_evaluate = bool(run.evaluators) and (is_last or step % run.evaluate_every == 0)
            must_save = is_last or step % run.checkpoint_every == 0
            if must_evaluate:
                finish_all()
                must_save |= evaluate(step)
            stopping = stop(step) and not is_last
            if must_evaluate or must_save or stopping:
                finish_all()
                if must_save or stopping:
                    save(step)
                if stopping:
                    checkpoints.finish()
                    _log.warning("SIGTERM: saved %s", checkpoints.path(step))
                    raise SystemExit(0)
                clock = time.perf_counter()

    if done.best:
        best, _ = checkpoints.restore(done.best["step"], state)
        _save(embedder.replace(model=_whole(run, _evaluated_model(run, best))), out / "best")
    state = end_task(run.transform, run.objective, state, _task(run, embedder))
    final = embedder.replace(model=_whole(run, _evaluated_model(run, state)))
    _save(final, out / "model")
    return Result(final, done.metrics, done.best, state)


def _initial_state(run: Run, embedder: "SentenceEmbedder") -> TrainState:
    state = init_state(jax.random.key(run.seed, impl=run.prng), embedder.model, run.optimizer, run.transform)
    return _place(run, begin_task(run.transform, run.objective, state, _task(run, embedder)))


def _task(run: Run, embedder: "SentenceEmbedder") -> Task:
    return Task(0, batches=lambda: run.data(embedder), steps=run.steps)


def _place(run: Run, state: TrainState) -> TrainState:
    if run.mesh is None:
        return state
    return parallel.place(state, run.mesh, run.rules or ((r".*", PartitionSpec()),))


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
        if lines := differences(json.loads(path.read_text()), description):
            raise ValueError(f"{out} holds a different run; choose another directory. " + "; ".join(lines))
    elif jax.process_index() == 0:
        out.mkdir(parents=True, exist_ok=True)
        if run.source is not None:
            shutil.copyfile(run.source, out / "config.py")
        path.write_text(json.dumps(description, indent=1) + "\n")


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
