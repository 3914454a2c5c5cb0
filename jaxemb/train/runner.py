"""Running compiled train steps, one ahead of the host: what every loop is made of."""

import dataclasses
import functools
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxemb import parallel
from jaxemb.checks import arrays, checked, numbers
from jaxemb.objectives import Objective
from jaxemb.train.memory import StepMemory
from jaxemb.train.state import TrainState, begin_task, end_task, init_state
from jaxemb.train.step import TrainStep, make_train_step
from jaxemb.transforms import Task, Transform, identity
from jaxemb.trees import PyTree


class NonFiniteError(ArithmeticError):
    """A loss or gradient was not finite.

    Attributes:
      step: the step that would have been finished.
      ids: the record ids of its batch, where it had some.
      checkpoint: the last checkpoint, or None if there is none.
      state: the state before the step.
    """

    def __init__(self, step: int, ids: list[int], loss: float, grad_norm: float, checkpoint: Path | None, state):
        self.step, self.ids, self.checkpoint, self.state = step, ids, checkpoint, state
        shown = ", ".join(map(str, ids[:20])) + (f", ... ({len(ids)} in all)" if len(ids) > 20 else "")
        super().__init__(
            f"step {step}: loss {loss}, gradient norm {grad_norm}; the parameters are those before this step. "
            f"Record ids of the batch: {shown or 'unknown'}. Last good checkpoint: {checkpoint or 'none yet'}"
        )


_NO_IDS = np.zeros(0, int)
_READ_EVERY = 100  # steps after which `train` looks whether all is finite


class _Call(NamedTuple):
    number: int  # of its last step
    steps: int
    ids: np.ndarray
    metrics: dict[str, jax.Array]


class Runner:
    """A train state, and the steps that move it on.

    A step is started once the one before the last is done, so that the device always has one to go on with and the host
    is never further ahead; metrics stay on the device until they are read.

    Attributes:
      state: after the last step that was started; another one may be put in its place between steps.
      records, seconds: records of the steps done, and the time that they took; the time of compiling the first one is
        left out, and so is that between `wait` and `go_on`.

    Args:
      step: see `make_train_step`; it is compiled, and overwrites the state that it is given.
      state: the first one.
      mesh: is in force in every step.
      done: is called with the number of every step that is done.
      last_checkpoint: names the last checkpoint, for a `NonFiniteError`.
    """

    def __init__(
        self,
        step: TrainStep,
        state: TrainState,
        *,
        mesh: Mesh | None = None,
        done: Callable[[int], None] = lambda step: None,
        last_checkpoint: Callable[[], Path | None] = lambda: None,
    ):
        # Without a mesh, to say where results lie would tie them to their device, and the first state is tied to none:
        # `jit` would take the second state for one of another kind, and compile the step again.
        where: Any = {} if mesh is None else {"out_shardings": (jax.tree.map(lambda leaf: leaf.sharding, state), None)}
        self._step = jax.jit(step, donate_argnums=0, **where)
        self._mesh, self._done, self._last_checkpoint = mesh, done, last_checkpoint
        self.state, self.records, self.seconds = state, 0, 0.0
        self._number = int(state.step)
        self._running: deque[_Call] = deque()  # the device may still be at these
        self._unread: list[_Call] = []
        self._clock: float | None = None  # since when the next step to be done has been running

    def memory(self, batch: PyTree) -> StepMemory | None:
        """What a step on such a batch takes; it is compiled for it, which the first step then needs not be."""
        with parallel.in_force(self._mesh):
            return StepMemory.of(self._step.lower(self.state, batch).compile())

    def start(self, batch: PyTree, ids: np.ndarray = _NO_IDS, *, steps: int = 1) -> None:
        """Starts a step, and waits for the one before.

        Args:
          batch: on its devices.
          ids: those of its records; of several steps `[steps, B]`.
          steps: how many steps the compiled function takes of it; with several, its metrics are `[>= steps]`.
        """
        with parallel.in_force(self._mesh):
            self.state, metrics = self._step(self.state, batch)
        self._number += steps
        self._running.append(_Call(self._number, steps, ids, metrics))
        if len(self._running) > 1:
            self._finish_one()

    def wait(self) -> None:
        """Waits for all steps."""
        while self._running:
            self._finish_one()

    def go_on(self) -> None:
        """Says that the time since `wait` was not spent on steps."""
        if self._clock is not None:  # the first step has been compiled
            self._clock = time.perf_counter()

    def read(self) -> list[dict[str, float]]:
        """The metrics of every step that is done and has not been read.

        Raises:
          NonFiniteError: if one of them was not finite. It and those after it have changed nothing.
        """
        fetched, found = jax.device_get([call.metrics for call in self._unread]), []
        for call, metrics in zip(self._unread, fetched, strict=True):
            for i in range(call.steps):
                values = {name: (x[i] if x.ndim else x).item() for name, x in metrics.items()}
                if not values.pop("finite"):
                    number, numbers = call.number - call.steps + 1 + i, (values["loss"], values["grad_norm"])
                    ids = call.ids[i] if call.ids.ndim > 1 else call.ids
                    before = dataclasses.replace(self.state, finite=jnp.ones((), bool))
                    raise NonFiniteError(number, ids.tolist(), *numbers, self._last_checkpoint(), before)
                found.append(values)
        self._unread.clear()
        return found

    def _finish_one(self) -> None:
        call = self._running.popleft()
        jax.block_until_ready(call.metrics)
        now = time.perf_counter()
        if self._clock is not None:
            self.seconds, self.records = self.seconds + now - self._clock, self.records + call.ids.size
        self._clock = now
        self._unread.append(call)
        self._done(call.number)


@checked(model=numbers)
def train(
    model: PyTree,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    batches: Iterable[Mapping[str, Any]],
    *,
    transform: Transform | None = None,
    seed: int = 0,
    mesh: Mesh | None = None,
    rules: parallel.Rules = parallel.REPLICATED,
) -> TrainState:
    """The state after one step on each of the batches: a task, in memory, without a log.

        state = train(model, objective, optax.adam(1e-3), itertools.islice(batches, 100))
        state.model                       # as it is stored
        apply_transform(transform, state)  # with what the method makes of it

    Args:
      model: anything that the objective takes.
      objective, optimizer, transform: see `make_train_step`.
      batches: of one shape, so that one program is compiled. A method that looks at the task's data at its beginning or
        end needs a collection of them, which can be gone through again.
      seed: of the method's parameters and of dropout.
      mesh, rules: the devices that share the batches, and where the state lies; see `init_state`.

    Raises:
      NonFiniteError: if a loss or gradient was not finite.
    """
    transform = identity() if transform is None else transform
    task = Task(0)
    if isinstance(batches, Collection):
        task = Task(0, batches=lambda: batches, steps=len(batches))
    place = (lambda state: state) if mesh is None else functools.partial(parallel.place, mesh=mesh, rules=rules)
    state = init_state(jax.random.key(seed), model, optimizer, transform, mesh=mesh, rules=rules)
    state = place(begin_task(transform, objective, state, task))
    runner = Runner(make_train_step(objective, optimizer, transform), state, mesh=mesh)
    for number, batch in enumerate(batches, 1):
        if number == 1:
            arrays("batches[0]", batch)
        ids = np.ravel(batch["id"]) if "id" in batch else _NO_IDS
        runner.start(parallel.put(batch, None) if mesh is None else parallel.shard_batch(batch, mesh), ids)
        if number % _READ_EVERY == 0:
            runner.read()
    runner.wait()
    runner.read()
    return place(end_task(transform, objective, runner.state, task))
