"""The `Transform` type: a training method as a named tuple of pure functions, composed by `chain`.

What optax is to optimisers, this is to training methods. A method has *params*, trained with the model, and
*state*, carried from step to step; each hook is a pure function of them. The train step calls the hooks in a
fixed order and knows no method by name:

    init(key, model)                            once, before training
    trains(model)                               which arrays of the model are trained; static
    begin_task(task, context, params, state)    at the start of every task (ordinary training is one task)
      model(model, params, state)               every step: the model that the forward pass uses
      batch(batch, context, ...)                every step: the batch that the objective sees
      loss(losses, context, ...)                every step: the objective's losses, replaced or weighted
      auxiliary_loss(context, params, state)    every step: a term added to their mean
      gradients(grads, context, ...)            every step: before the optimiser
      updates(updates, context, ...)            every step: after the optimiser
      after_step(context, ...)                  every step: the next state
    end_task(task, context, params, state)      at the end of every task

`trains`, `begin_task` and `end_task` run on the host; the other hooks are traced into the one compiled train step,
which minimises `mean(loss(objective(model, batch))) + auxiliary_loss`.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Optional, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxemb.checks import arrays, checked
from jaxemb.nn.kernels import is_kernel
from jaxemb.trees import PyTree, by_path

State = TypeVar("State")


class Trained(NamedTuple):
    """What the optimiser trains. Gradients and updates have this structure too.

    Attributes:
      model: the model as it is stored, before any `model` hook, with None in place of the arrays that are not trained
        (see `Transform.trains`). A None is no leaf, so that `jax.tree.map` passes over it. Only between steps, in
        `begin_task` and `end_task`, is it the whole model, any array of which they may replace.
      params: the parameters of the transform whose hook is called.
      rest: the parameters of the other transforms of the chain. A method that acts on all that is trained
        (gradient projection, weight penalties) maps over the whole `Trained`; one that acts on the model or on
        itself replaces only that field.
    """

    model: PyTree
    params: PyTree = ()
    rest: tuple[PyTree, ...] = ()


class Variables(NamedTuple):
    """What a transform brings along: its trainable `params` and its `state`."""

    params: PyTree = ()
    state: PyTree = ()


class Context(NamedTuple):
    """What a hook may look at.

    With gradient accumulation over A micro-batches, `batch`, `loss` and `auxiliary_loss` see one of them at a time;
    the hooks after them see all of them: `raw_batch`, `batch` and `outputs` then have a leading axis A.

    Attributes:
      step: number of optimiser steps finished before this one, int32 scalar.
      key: a key of this step's (in `batch` and the losses: of the micro-batch's) and this transform's own. In `batch`
        it may be None: then nothing is to be random.
      objective: `(model, batch, key) -> (losses [N], outputs)`, for methods that evaluate it on other data
        (replay, gradient projection, Fisher information).
      apply: `Trained -> model`, all `model` hooks with the current state: what makes the model of a forward pass
        from what is trained, differentiably.
      trained: model and params; before the update up to `updates`, after it in `after_step`.
      stored: the model as it is stored, whole: `trained.model` and what is not trained.
      prepare: `(raw batch, Trained, key or None) -> batch`, all `batch` hooks: what the objective is to see of other
        data. (The batches of a `Task` are prepared already, without a key.)
      objective_key: the key that the objective has in this step, for methods that want the same dropout.
      raw_batch: the batch of this step before any `batch` hook (every-step hooks).
      batch: what the objective has seen of it (every-step hooks after `batch`).
      model: `apply(trained)`, the model of this forward pass (only in `loss` and `auxiliary_loss`).
      outputs: what the objective returned beside its losses, such as embeddings by column (from `loss` on).
      gradients: the gradient of the whole loss, before any `gradients` hook (`updates`, `after_step`).
      updates: what was added to `trained` (only in `after_step`).
      stacked: whether batches and outputs have the axis of micro-batches.
    """

    step: jax.Array
    key: jax.Array
    objective: Callable
    apply: Callable[[Trained], PyTree]
    trained: Trained
    stored: PyTree = None
    prepare: Callable[[PyTree, Trained, jax.Array | None], PyTree] = lambda batch, trained, key: batch
    objective_key: jax.Array | None = None
    raw_batch: PyTree = None
    batch: PyTree = None
    model: PyTree = None
    outputs: PyTree = None
    gradients: Trained | None = None
    updates: Trained | None = None
    stacked: bool = False


class Task(NamedTuple):
    """What the loop says about a task; ordinary training is one task, number 0.

    Attributes:
      number: that of the task, from 0.
      batches: makes an iterator over the task's training data in batches for the objective: once through it where the
        loop knows its end, in batches of one size. None if the loop has no data to give.
      steps: optimiser steps that the task takes.
      classes: the classes of its data, bool `[C]`; None where there are no classes.
    """

    number: int
    batches: Callable[[], Iterable[PyTree]] | None = None
    steps: int = 0
    classes: np.ndarray | None = None


def everything(model: PyTree) -> PyTree:
    """The mask of `Transform.trains` that is True for all arrays."""
    return jax.tree.map(lambda _: True, model)


def nothing(model: PyTree) -> PyTree:
    """The mask of `Transform.trains` that is False for all arrays: the stored model stays as it is."""
    return jax.tree.map(lambda _: False, model)


def _nothing_changes(task: Task, context: Context, params: PyTree, state: PyTree) -> tuple[Trained, PyTree]:
    return context.trained, state


class Transform(NamedTuple):
    """A training method. Every hook defaults to doing nothing, so a method defines only what it changes.

    Attributes:
      init: `(key, model) -> Variables`.
      trains: `model -> mask`, a tree of bools like the stored model: False for arrays that are not trained. They have
        no gradient and no moments in the optimiser, and may be of any type. It depends on paths, shapes and types
        alone. Arrays that are not floating-point are never trained.
      begin_task, end_task: `(task, context, params, state) -> (Trained, state)`, the next `context.trained` and the
        next state.
      model: `(model, params, state) -> model`.
      batch: `(batch, context, params, state) -> batch`: changed inputs (augmentation), more columns (a temperature that
        is trained). Columns that it does not know it leaves alone.
      loss: `(losses, context, params, state) -> losses`, the objective's `[N]` to those that count, `[M]`; their mean
        is minimised.
      auxiliary_loss: `(context, params, state) -> scalar`, which is added to that mean, whatever `loss` hooks do.
      gradients, updates: `(Trained, context, params, state) -> Trained`. An update in place of a None moves an array
        that the optimiser does not train, such as running statistics.
      after_step: `(context, params, state) -> state`; `params` are those after the update.
      parts: the transforms of a chain; None for a transform that is not a chain.
    """

    init: Callable[[jax.Array, PyTree], Variables] = lambda key, model: Variables()
    trains: Callable[[PyTree], PyTree] = everything
    begin_task: Callable[[Task, Context, PyTree, PyTree], tuple[Trained, PyTree]] = _nothing_changes
    model: Callable[[PyTree, PyTree, PyTree], PyTree] = lambda model, params, state: model
    batch: Callable[[PyTree, Context, PyTree, PyTree], PyTree] = lambda batch, context, params, state: batch
    loss: Callable[[jax.Array, Context, PyTree, PyTree], jax.Array] = lambda losses, context, params, state: losses
    auxiliary_loss: Callable[[Context, PyTree, PyTree], jax.Array] = lambda context, params, state: jnp.zeros(())
    gradients: Callable[[Trained, Context, PyTree, PyTree], Trained] = lambda grads, context, params, state: grads
    updates: Callable[[Trained, Context, PyTree, PyTree], Trained] = lambda updates, context, params, state: updates
    after_step: Callable[[Context, PyTree, PyTree], PyTree] = lambda context, params, state: state
    end_task: Callable[[Task, Context, PyTree, PyTree], tuple[Trained, PyTree]] = _nothing_changes
    parts: Optional[tuple["Transform", ...]] = None  # noqa: UP045 (a forward reference)


def call_hook(transform: Transform, hook: str, *arguments: Any) -> Any:
    """What the hook gives, which is checked: `getattr(transform, hook)(*arguments)`.

    Raises:
      ValueError: naming the hook and who made it, if what it gives is not what `Transform` says.
    """
    given = getattr(transform, hook)(*arguments)
    if problem := _CHECKS[hook](given, *arguments):
        raise ValueError(f"{_name(transform, hook)} must give {problem}")
    return given


def _name(transform: Transform, hook: str) -> str:
    """The hook, and the function that it is or that made it."""
    function = getattr(transform, hook)
    while hasattr(function, "func"):  # a functools.partial
        function = function.func
    maker = getattr(function, "__qualname__", type(function).__qualname__).partition(".<locals>")[0]
    return f"Transform.{hook} of {function.__module__}.{maker}"


def _like_model(given: Any, model: PyTree) -> str | None:
    got: Any = jax.tree.structure(given)
    return None if got == jax.tree.structure(model) else f"a tree of bools like the model; {_difference(given, model)}"


def _like_trained(given: Any, trained: Trained, *_: Any) -> str | None:
    return _another(given, trained, "a Trained like the one it is given")


def _like_state(given: Any, context: Context, params: PyTree, state: PyTree) -> str | None:
    return _another(given, state, "a state like the one before", types=True)


def _another(given: Any, wanted: PyTree, what: str, types: bool = False) -> str | None:
    """What is wrong with a tree that is to be of the structure and shapes of another one; a None is like anything."""
    flat: Any = lambda tree: jax.tree.flatten(tree, is_leaf=lambda leaf: leaf is None)
    (here, structure), (there, expected) = flat(given), flat(wanted)
    if structure != expected:
        return f"{what}; {_difference(given, wanted)}"
    kind = lambda leaf: f"{jnp.result_type(leaf) if types else ''}{list(np.shape(leaf))}"
    pairs = [(kind(a), kind(b)) for a, b in zip(here, there, strict=True) if a is not None and b is not None]
    if differ := [pair for pair in pairs if pair[0] != pair[1]]:
        return f"{what}; got an array {differ[0][0]} in place of {differ[0][1]}"
    return None


def _difference(given: PyTree, wanted: PyTree) -> str:
    if type(given) is not type(wanted):
        return f"got {_described(given)}"
    paths = lambda tree: jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: leaf is None)
    here, there = ({jax.tree_util.keystr(path) for path, _ in paths(tree)} for tree in (given, wanted))
    return f"it lacks {sorted(there - here)[:3]} and has {sorted(here - there)[:3]} besides"


def _pair(first: type | None, what: str) -> Callable[..., str | None]:
    def check(given: Any, *_: Any) -> str | None:
        is_pair = isinstance(given, tuple) and len(given) == 2 and (first is None or isinstance(given[0], first))
        return None if is_pair else f"{what}; got {_described(given)}"

    return check


def _of_axes(axes: int, what: str) -> Callable[..., str | None]:
    return lambda given, *_: None if jnp.ndim(given) == axes else f"{what}; got an array of shape {jnp.shape(given)}"


def _is_batch(given: Any, batch: PyTree, *_: Any) -> str | None:
    return None if isinstance(given, type(batch)) else f"a batch, {_described(batch)}; got {_described(given)}"


def _is_model(given: Any, model: PyTree, *_: Any) -> str | None:
    return "a model; got None" if given is None and model is not None else None


def _described(value: Any) -> str:
    return f"{type(value).__name__} {value!s:.60}"


_CHECKS: dict[str, Callable[..., str | None]] = {
    "init": _pair(None, "Variables(params, state)"),
    "trains": _like_model,
    "begin_task": _pair(Trained, "a pair, the next Trained and the next state"),
    "end_task": _pair(Trained, "a pair, the next Trained and the next state"),
    "model": _is_model,
    "batch": _is_batch,
    "loss": _of_axes(1, "one value per record, [N]"),
    "auxiliary_loss": _of_axes(0, "one number"),
    "gradients": _like_trained,
    "updates": _like_trained,
    "after_step": _like_state,
}


def identity() -> Transform:
    """The transform that changes nothing: the chain of no transforms, and the unit of `chain`."""
    return Transform(parts=())


@checked()
def chain(*transforms: Transform) -> Transform:
    """The transforms, one after another, as one transform.

    Every hook runs from left to right, each transform seeing what those before it made:

      init        every model is what the transforms before it make of it, as in `model`
      trains      what all of them train of the stored model
      model       `t_n.model(... t_1.model(model))`
      batch, loss, gradients, updates, begin_task, end_task   each takes what the previous one gave
      auxiliary_loss   the terms are added up
      after_step  each computes its own next state from the same context

    Keys are independent: each transform has its own. Chains are flattened and identities vanish, so
    `chain(a, chain(b, c))` and `chain(chain(a, b), c)` *are* `chain(a, b, c)`, with the same parameter and state trees,
    and `chain(a, identity())` *is* `a`. The params and the state of a chain are tuples with one entry per transform.
    """
    parts = tuple(part for t in transforms for part in _parts(t))
    if len(parts) < 2:
        return parts[0] if parts else identity()

    def init(key, model):
        variables = []
        for part, part_key in zip(parts, jax.random.split(key, len(parts)), strict=True):
            variables.append(call_hook(part, "init", part_key, model))
            model = call_hook(part, "model", model, *variables[-1])
        return Variables(*zip(*variables, strict=True))

    def trains(model):
        return jax.tree.map(lambda *flags: all(flags), *(call_hook(part, "trains", model) for part in parts))

    def apply(model, params, state):
        for part, p, s in zip(parts, params, state, strict=True):
            model = call_hook(part, "model", model, p, s)
        return model

    def passed_on(hook):
        def run(value, context, params, state):
            for i, part in enumerate(parts):
                value = call_hook(part, hook, value, _seen_by(i, context), params[i], state[i])
            return value

        return run

    def from_each(hook, combine):
        def run(context, params, state):
            seen = ((part, _seen_by(i, context), params[i], state[i]) for i, part in enumerate(parts))
            return combine(call_hook(part, hook, *of_part) for part, *of_part in seen)

        return run

    def one_by_one(hook):
        def run(trained, context, params, state):
            for i, part in enumerate(parts):
                view = call_hook(part, hook, _focus(i, trained), _seen_by(i, context), params[i], state[i])
                trained = _unfocus(i, view, len(parts))
            return trained

        return run

    def task_hook(hook):
        def run(task, context, params, state):
            next_state = []
            for i, part in enumerate(parts):
                seen = _seen_by(i, context)
                view, s = call_hook(part, hook, task, seen, seen.trained.params, state[i])
                context = context._replace(trained=_unfocus(i, view, len(parts)), stored=view.model)
                next_state.append(s)
            return context.trained, tuple(next_state)

        return run

    return Transform(
        init=init,
        trains=trains,
        begin_task=task_hook("begin_task"),
        model=apply,
        batch=passed_on("batch"),
        loss=passed_on("loss"),
        auxiliary_loss=from_each("auxiliary_loss", sum),
        gradients=one_by_one("gradients"),
        updates=one_by_one("updates"),
        after_step=from_each("after_step", tuple),
        end_task=task_hook("end_task"),
        parts=parts,
    )


def _parts(transform: Transform) -> tuple[Transform, ...]:
    return (transform,) if transform.parts is None else transform.parts


@checked(model=arrays)
def trained_arrays(transform: Transform, model: PyTree) -> PyTree:
    """The mask of the arrays that the transform trains of the model as it is stored; a tree of bools like it.

    Raises:
      ValueError: if `Transform.trains` gives a tree of another structure, or trains a quantised kernel, which is named.
    """
    is_float = lambda leaf: jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    mask = call_hook(transform, "trains", model)
    for path, flags in by_path(mask, is_kernel).items():
        if is_kernel(flags) and any(jax.tree.leaves(flags)):
            raise ValueError(
                f"{path} is quantised, and so cannot be trained: train adapters beside it, as lora does, or keep it "
                "as it is, with frozen(where); of nn.dense_kernels(model) all can be trained"
            )
    return jax.tree.map(lambda leaf, flag: bool(flag) and is_float(leaf), model, mask)


@checked()
def find_state(tree: PyTree, kind: type[State]) -> State:
    """The one node of type `kind`, a transform's state, in `tree`: a train state, or what a chain carries.

    Raises:
      ValueError: if there is none, or there are several.
    """
    is_kind = lambda node: isinstance(node, kind)
    found = [node for node in jax.tree.leaves(tree, is_leaf=is_kind) if is_kind(node)]
    if len(found) != 1:
        raise ValueError(f"tree must be a state with exactly one {kind.__name__}; found {len(found)}")
    return found[0]


def output_of(context: Context, name: str, method: str, dim: int | None = None) -> jax.Array:
    """The objective's output of this name, `[N, D]` (or of any shape, where no D is asked for).

    Raises:
      ValueError: if the objective returns none, or of another shape; names the `method`.
    """
    outputs = context.outputs
    if not isinstance(outputs, dict) or name not in outputs:
        has = ", ".join(sorted(outputs)) if isinstance(outputs, dict) else type(outputs).__name__
        raise ValueError(f"{method} needs the objective's output {name!r}; it returns {has or 'none'}")
    if dim is not None and (outputs[name].ndim != 2 + context.stacked or outputs[name].shape[-1] != dim):
        raise ValueError(f"{method}: output {name!r} must be [N, {dim}]; got {outputs[name].shape}")
    return outputs[name]


def with_column(batch: dict[str, Any], name: str, value: jax.Array, method: str) -> dict[str, Any]:
    """The batch with one column more.

    Raises:
      ValueError: if it has a column of that name already; names the `method`.
    """
    if name in batch:
        raise ValueError(f"{method} adds the column {name!r}, which the batch has already; give it another name")
    return {**batch, name: value}


def _focus(i: int, trained: Trained) -> Trained:
    """A chain's `Trained` as its i-th transform sees it."""
    return Trained(trained.model, trained.params[i], (*trained.params[:i], *trained.params[i + 1 :], *trained.rest))


def _unfocus(i: int, view: Trained, size: int) -> Trained:
    """The inverse of `_focus`, for a chain of `size` transforms."""
    others, rest = view.rest[: size - 1], view.rest[size - 1 :]
    return Trained(view.model, (*others[:i], view.params, *others[i:]), rest)


def _seen_by(i: int, context: Context) -> Context:
    """A chain's context as its i-th transform sees it."""
    size = len(context.trained.params)
    focus = lambda trained: None if trained is None else _focus(i, trained)
    return context._replace(
        key=None if context.key is None else jax.random.fold_in(context.key, i),
        apply=lambda view: context.apply(_unfocus(i, view, size)),
        prepare=lambda batch, view, key: context.prepare(batch, _unfocus(i, view, size), key),
        trained=_focus(i, context.trained),
        gradients=focus(context.gradients),
        updates=focus(context.updates),
    )
