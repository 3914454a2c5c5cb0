"""The `Transform` type: a training method as a named tuple of pure functions, composed by `chain`.

What optax is to optimisers, this is to training methods. A method has *params*, trained with the model, and
*state*, carried from step to step; each hook is a pure function of them. The train step calls the hooks in a
fixed order and knows no method by name:

    init(key, model)                            once, before training
    begin_task(task, context, params, state)    at the start of every task (ordinary training is one task)
      model(model, params, state)               every step: the model that the forward pass uses
      loss(context, params, state)              every step: a term added to the objective
      gradients(grads, context, ...)            every step: before the optimiser
      updates(updates, context, ...)            every step: after the optimiser
      after_step(context, ...)                  every step: the next carried state
    end_task(task, context, params, state)      at the end of every task

`begin_task` and `end_task` run on the host; the other hooks are traced into the one compiled train step.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple, Optional, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxemb.trees import PyTree

State = TypeVar("State")


class Trained(NamedTuple):
    """What the optimiser trains. Gradients and updates have this structure too.

    Attributes:
      model: the model as it is stored, before any `model` hook.
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

    With gradient accumulation over A micro-batches, `loss` sees one of them at a time; the hooks after it see all
    of them: `batch` and `outputs` then have a leading axis A.

    Attributes:
      step: number of optimiser steps finished before this one, int32 scalar.
      key: a key of this step's own, the same for every transform of a chain.
      objective: `(model, batch, key) -> (losses [N], outputs)`, for methods that evaluate it on other data
        (replay, gradient projection, Fisher information).
      apply: `Trained -> model`, all `model` hooks with the current state: what makes the model of a forward pass
        from what is trained, differentiably.
      trained: model and params; before the update in `loss`, `gradients` and `updates`, after it in `after_step`.
      batch: the batch of this step (every-step hooks).
      model: `apply(trained)`, the model of this forward pass (only in `loss`).
      outputs: what the objective returned beside its losses, such as embeddings by column (every-step hooks).
      gradients: the gradient of the whole loss, before any `gradients` hook (`updates`, `after_step`).
      updates: what was added to `trained` (only in `after_step`).
    """

    step: jax.Array
    key: jax.Array
    objective: Callable
    apply: Callable[[Trained], PyTree]
    trained: Trained
    batch: PyTree = None
    model: PyTree = None
    outputs: PyTree = None
    gradients: Trained | None = None
    updates: Trained | None = None


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


def _nothing_changes(task: Task, context: Context, params: PyTree, state: PyTree) -> tuple[Trained, PyTree]:
    return context.trained, state


class Transform(NamedTuple):
    """A training method. Every hook defaults to doing nothing, so a method defines only what it changes.

    Attributes:
      init: `(key, model) -> Variables`.
      begin_task, end_task: `(task, context, params, state) -> (Trained, state)`, the next `context.trained` and the
        next state.
      model: `(model, params, state) -> model`.
      loss: `(context, params, state) -> scalar`.
      gradients, updates: `(Trained, context, params, state) -> Trained`.
      after_step: `(context, params, state) -> state`; `params` are those after the update.
      parts: the transforms of a chain; None for a transform that is not a chain.
    """

    init: Callable[[jax.Array, PyTree], Variables] = lambda key, model: Variables()
    begin_task: Callable[[Task, Context, PyTree, PyTree], tuple[Trained, PyTree]] = _nothing_changes
    model: Callable[[PyTree, PyTree, PyTree], PyTree] = lambda model, params, state: model
    loss: Callable[[Context, PyTree, PyTree], jax.Array] = lambda context, params, state: jnp.zeros(())
    gradients: Callable[[Trained, Context, PyTree, PyTree], Trained] = lambda grads, context, params, state: grads
    updates: Callable[[Trained, Context, PyTree, PyTree], Trained] = lambda updates, context, params, state: updates
    after_step: Callable[[Context, PyTree, PyTree], PyTree] = lambda context, params, state: state
    end_task: Callable[[Task, Context, PyTree, PyTree], tuple[Trained, PyTree]] = _nothing_changes
    parts: Optional[tuple["Transform", ...]] = None  # noqa: UP045 (a forward reference)


def identity() -> Transform:
    """The transform that changes nothing: the chain of no transforms, and the unit of `chain`."""
    return Transform(parts=())


def chain(*transforms: Transform) -> Transform:
    """The transforms, one after another, as one transform.

    Every hook runs from left to right, each transform seeing what those before it made:

      init        every model is what the transforms before it make of it, as in `model`; keys are independent
      model       `t_n.model(... t_1.model(model))`
      loss        the terms are added up
      gradients, updates, begin_task, end_task   each takes the previous one's `Trained`
      after_step  each computes its own next state from the same context

    Chains are flattened and identities vanish, so `chain(a, chain(b, c))` and `chain(chain(a, b), c)` *are*
    `chain(a, b, c)`, with the same parameter and state trees, and `chain(a, identity())` *is* `a`. The params
    and the state of a chain are tuples with one entry per transform.
    """
    parts = tuple(part for t in transforms for part in (t.parts if t.parts is not None else (t,)))
    match parts:
        case ():
            return identity()
        case (only,):
            return only

    def init(key, model):
        variables = []
        for part, part_key in zip(parts, jax.random.split(key, len(parts)), strict=True):
            variables.append(part.init(part_key, model))
            model = part.model(model, *variables[-1])
        return Variables(tuple(v.params for v in variables), tuple(v.state for v in variables))

    def apply(model, params, state):
        for part, p, s in zip(parts, params, state, strict=True):
            model = part.model(model, p, s)
        return model

    def loss(context, params, state):
        return sum(part.loss(_seen_by(i, context), params[i], state[i]) for i, part in enumerate(parts))

    def one_by_one(hook):
        def run(trained, context, params, state):
            for i, part in enumerate(parts):
                view = getattr(part, hook)(_focus(i, trained), _seen_by(i, context), params[i], state[i])
                trained = _unfocus(i, view, len(parts))
            return trained

        return run

    def task_hook(hook):
        def run(task, context, params, state):
            next_state = []
            for i, part in enumerate(parts):
                seen = _seen_by(i, context)
                view, s = getattr(part, hook)(task, seen, seen.trained.params, state[i])
                context = context._replace(trained=_unfocus(i, view, len(parts)))
                next_state.append(s)
            return context.trained, tuple(next_state)

        return run

    def after_step(context, params, state):
        return tuple(part.after_step(_seen_by(i, context), params[i], state[i]) for i, part in enumerate(parts))

    return Transform(
        init=init,
        begin_task=task_hook("begin_task"),
        model=apply,
        loss=loss,
        gradients=one_by_one("gradients"),
        updates=one_by_one("updates"),
        after_step=after_step,
        end_task=task_hook("end_task"),
        parts=parts,
    )


def find_state(tree: PyTree, kind: type[State]) -> State:
    """The one node of type `kind`, a transform's state, in `tree`: a train state, or what a chain carries.

    Raises:
      ValueError: if there is none, or there are several.
    """
    is_kind = lambda node: isinstance(node, kind)
    found = [node for node in jax.tree.leaves(tree, is_leaf=is_kind) if is_kind(node)]
    if len(found) != 1:
        raise ValueError(f"the state must contain exactly one {kind.__name__}; found {len(found)}")
    return found[0]


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
        apply=lambda view: context.apply(_unfocus(i, view, size)),
        trained=_focus(i, context.trained),
        gradients=focus(context.gradients),
        updates=focus(context.updates),
    )
