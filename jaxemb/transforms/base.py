"""The `Transform` type: a training method as a named tuple of pure functions, composed by `chain`.

What optax is to optimisers, this is to training methods. A method has *params*, trained with the model, and
*state*, carried from step to step; each hook is a pure function of them. The train step calls the hooks in a
fixed order and knows no method by name:

    init(key, model)                        once, before training
    begin_task(model, params, state, task)  at the start of every task (ordinary training is one task)
      model(model, params, state)           every step: the model that the forward pass uses
      loss(context, params, state)          every step: a term added to the objective
      gradients(grads, context, ...)        every step: before the optimiser
      updates(updates, context, ...)        every step: after the optimiser
      after_step(context, ...)              every step: the next carried state
    end_task(model, params, state, task)    at the end of every task
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PyTree = Any


class Trained(NamedTuple):
    """What the optimiser trains: the model and the transform's own parameters. Gradients have this structure too."""

    model: PyTree
    params: PyTree


class Carried(NamedTuple):
    """What a transform brings along: its trainable `params` and its `state`."""

    params: PyTree = ()
    state: PyTree = ()


class Context(NamedTuple):
    """What a hook may look at.

    Attributes:
      step: number of finished optimiser steps, int32 scalar.
      batch: the batch of this step.
      trained: model and params; before the update in `loss`, `gradients` and `updates`, after it in `after_step`.
      model: the model of the forward pass, after every `model` hook (only in `loss`).
      outputs: what the objective returned beside its losses, such as the embeddings by column (only in `loss`).
      key: a key of this step's own.
      objective: the objective, for methods that evaluate it on other data (replay, gradient projection).
    """

    step: jax.Array
    batch: PyTree
    trained: Trained
    model: PyTree
    outputs: PyTree
    key: jax.Array
    objective: Callable


class Transform(NamedTuple):
    """A training method. Every hook defaults to doing nothing, so a method defines only what it changes."""

    init: Callable[[jax.Array, PyTree], Carried] = lambda key, model: Carried()
    begin_task: Callable[[PyTree, PyTree, PyTree, Any], tuple[PyTree, Carried]] = (
        lambda model, params, state, task: (model, Carried(params, state))
    )
    model: Callable[[PyTree, PyTree, PyTree], PyTree] = lambda model, params, state: model
    loss: Callable[[Context, PyTree, PyTree], jax.Array] = lambda context, params, state: jnp.zeros(())
    gradients: Callable[[Trained, Context, PyTree, PyTree], Trained] = lambda grads, context, params, state: grads
    updates: Callable[[Trained, Context, PyTree, PyTree], Trained] = lambda updates, context, params, state: updates
    after_step: Callable[[Context, PyTree, PyTree], PyTree] = lambda context, params, state: state
    end_task: Callable[[PyTree, PyTree, PyTree, Any], tuple[PyTree, Carried]] = (
        lambda model, params, state, task: (model, Carried(params, state))
    )


def identity() -> Transform:
    """The transform that changes nothing; the unit of `chain`."""
    return Transform()
