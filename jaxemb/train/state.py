"""What training carries from step to step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxemb import parallel
from jaxemb.checks import checked, numbers
from jaxemb.parallel.mesh import ENCODER_RULES, Rules
from jaxemb.transforms import Context, Task, Trained, Transform, trained_arrays
from jaxemb.transforms.base import call_hook
from jaxemb.trees import PyTree, combine, partition

_METHOD = 0x6D657468  # keeps the keys of methods apart from those that the objective makes of the same key


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a step reads and writes; a pytree.

    Attributes:
      step: number of finished optimiser steps, int32 scalar.
      model: the model as it is stored, before the transform's `model` hook.
      method_params: the transform's own trainable parameters.
      method_state: the transform's state.
      opt_state: the optimiser's state, of `trainable(transform, state)`.
      key: the run's key; the key of a step is `fold_in(key, step)`.
      finite: False once a loss or gradient was not finite. From then on steps change nothing.
    """

    step: jax.Array
    model: PyTree
    method_params: PyTree
    method_state: PyTree
    opt_state: PyTree
    key: jax.Array
    finite: jax.Array


@checked(model=numbers)
def init_state(
    key: jax.Array,
    model: PyTree,
    optimizer: optax.GradientTransformation,
    transform: Transform,
    *,
    mesh: Mesh | None = None,
    rules: Rules = ENCODER_RULES,
) -> TrainState:
    """The state before the first step. Its arrays are copies, so that a step may be given them to overwrite.

    The optimiser's state is of what the transform trains alone: frozen weights have no moments.

    Args:
      key: the run's key.
      model: the model to train; on a mesh best where `jaxemb.load` or `parallel.sharded_init` put it.
      optimizer: of `trainable(transform, state)`.
      transform: the training method.
      mesh: the devices that share the state: its arrays are made there, and none is whole on one device first.
      rules: path rules, of paths in the state and in the model alone.

    Raises:
      ValueError: naming the array that does not split as `rules` say.
    """

    def make(key, model):
        key_init, key_run = jax.random.split(key)
        params, method_state = call_hook(transform, "init", key_init, model)
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            model=model,
            method_params=params,
            method_state=method_state,
            opt_state=(),
            key=key_run,
            finite=jnp.ones((), bool),
        )
        state = dataclasses.replace(state, opt_state=optimizer.init(trainable(transform, state)))
        return _settled(state)

    if mesh is not None:
        model = parallel.place(model, mesh, rules)
    return parallel.sharded_init(make, key, model, mesh=mesh, rules=rules)


@checked()
def trainable(transform: Transform, state: TrainState) -> Trained:
    """What the optimiser trains: the parameters of the method, and the model with None in place of frozen arrays."""
    model, _ = partition(state.model, trained_arrays(transform, state.model))
    return Trained(model, state.method_params)


@checked()
def apply_transform(transform: Transform, state: TrainState) -> PyTree:
    """The model that the forward pass uses, with all that the method makes of it: the one to evaluate and to save."""
    return call_hook(transform, "model", state.model, state.method_params, state.method_state)


@checked()
def begin_task(transform: Transform, objective, state: TrainState, task: Task) -> TrainState:
    """Runs the transform's `begin_task`, on the host."""
    return _task_hook("begin_task", transform, objective, state, task)


@checked()
def end_task(transform: Transform, objective, state: TrainState, task: Task) -> TrainState:
    """Runs the transform's `end_task`, on the host."""
    return _task_hook("end_task", transform, objective, state, task)


def contexts(transform: Transform, objective, state: TrainState, frozen: PyTree) -> Callable[..., Context]:
    """`(trained, key, **others) -> Context` of this state, for hooks.

    Args:
      transform, objective, state: see `make_train_step`.
      frozen: the arrays of the model that `trained.model` has None for.
    """
    stored = lambda trained: combine(trained.model, frozen)

    def apply(trained: Trained) -> PyTree:
        return call_hook(transform, "model", stored(trained), trained.params, state.method_state)

    def prepare(batch: PyTree, trained: Trained, key: jax.Array | None) -> PyTree:
        return call_hook(transform, "batch", batch, context(trained, key), trained.params, state.method_state)

    def context(trained: Trained, key: jax.Array | None, **others) -> Context:
        own: Any = None if key is None else jax.random.fold_in(key, _METHOD)
        same = {"prepare": prepare, "objective_key": key, "stored": stored(trained)}
        return Context(state.step, own, objective, apply, trained, **same, **others)

    return context


def _task_hook(hook: str, transform: Transform, objective, state: TrainState, task: Task) -> TrainState:
    whole = Trained(state.model, state.method_params)
    context = contexts(transform, objective, state, state.model)(whole, jax.random.fold_in(state.key, state.step))
    if (batches := task.batches) is not None:
        task = task._replace(batches=lambda: (context.prepare(batch, whole, None) for batch in batches()))
    trained, method_state = call_hook(transform, hook, task, context, state.method_params, state.method_state)
    state = dataclasses.replace(state, model=trained.model, method_params=trained.params, method_state=method_state)
    return _settled(state)


@jax.jit
def _settled(tree: PyTree) -> PyTree:
    """The tree as a step returns it, so that one compiled step serves before, between and after tasks.

    Arrays are in buffers of their own, as a hook may return one array in two places and a step overwrites its state;
    and none is weakly typed, as `jnp.full(n, 1.0)` is: what comes out of a step is not, and to `jit` the types differ.
    """

    def settled(leaf: jax.Array) -> jax.Array:
        leaf = jnp.copy(leaf)
        return jax.lax.convert_element_type(leaf, leaf.dtype) if leaf.weak_type else leaf

    return jax.tree.map(settled, tree)
