"""Model selection: which of a task's parameters are kept at its end (`HyperIntervalConfig.select`).

  last         those after the last step
  full_gamma   of the second half of the steps, which have the full gamma and the final kappa: those with the least mean
               loss over the task's box on held-out records
  official     what github.com/gmum/HyperInterval keeps. Without nesting: the first parameters with the best accuracy on
               held-out records, at whatever gamma the step has. Nested: those with the least loss of a training batch
               while gamma, rounded to an integer, is the full one. In both, the score is of the parameters before
               the step, and those after it are kept

The last two look at every tenth step and the last one. The official rules can keep parameters that were never trained
with the full gamma, whose promise is then no bound that training has controlled; and with nesting and a gamma that is
no integer, the training of every task is thrown away.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxemb.transforms.base import Context
from jaxemb.transforms.continual.hyper_interval.boxes import present_weights, schedules
from jaxemb.transforms.continual.hyper_interval.config import (
    HyperIntervalConfig,
    HyperIntervalParams,
    HyperIntervalState,
    Kept,
)
from jaxemb.transforms.continual.hyper_interval.losses import box_losses, box_regulariser
from jaxemb.trees import PyTree

EVERY = 10


def stacked_held_out(
    config: HyperIntervalConfig, held_out: Sequence[Mapping[str, Any]] | None
) -> Mapping[str, Any] | None:
    """The held-out records of all tasks, arrays `[T, N, ...]`; warns of what the official selection does.

    Raises:
      ValueError: if the selection needs records that are not given, or they are not as many of each task.
    """
    nested = config.nesting == "cos"
    if config.select == "official":
        discards = nested and round(config.gamma) != config.gamma
        what = (
            f"gamma = {config.gamma} is no integer, so that the training of every task is thrown away"
            if discards
            else "it can keep parameters that were never trained with the full gamma"
        )
        warnings.warn(f"select='official': {what}; see the module `selection`", stacklevel=4)
    if config.select == "last" or (config.select == "official" and nested):
        return None
    if held_out is None or len(held_out) != config.tasks:
        given = "none" if held_out is None else f"those of {len(held_out)}"
        raise ValueError(f"select={config.select!r} needs held_out records of the {config.tasks} tasks; got {given}")
    sizes = [len(records[config.label]) for records in held_out]
    if len(set(sizes)) > 1:
        raise ValueError(f"held_out must be as many records of every task; got {sizes}")
    return jax.tree.map(lambda *arrays: np.stack(arrays), *held_out)


def nothing_kept(config: HyperIntervalConfig, params: HyperIntervalParams) -> Kept | None:
    """What is kept before the first step: the incoming parameters."""
    if config.select == "last":
        return None
    by_accuracy = config.select == "official" and config.nesting == "none"
    return Kept(params, jnp.asarray(0.0 if by_accuracy else jnp.inf))


def kept_params(params: HyperIntervalParams, state: HyperIntervalState) -> HyperIntervalParams:
    """The parameters that the task ends with."""
    return params if state.kept is None else state.kept.params


def next_kept(
    config: HyperIntervalConfig,
    held_out: Mapping[str, Any] | None,
    context: Context,
    params: HyperIntervalParams,
    state: HyperIntervalState,
) -> Kept | None:
    """What is kept after a step, which has made `params`."""
    if (kept := state.kept) is None:
        return None
    _, gamma = schedules(config, state.step, state.steps)
    due = (state.step % EVERY == 0) | (state.step == state.steps - 1)
    records = None if held_out is None else jax.tree.map(lambda rows: jnp.asarray(rows)[state.task], held_out)
    if config.select == "full_gamma":
        due &= state.step >= state.steps // 2
        score = lambda: _held_out_loss(config, context, params, state, records)
    elif config.nesting == "cos":
        due &= jnp.round(gamma) == config.gamma
        score = lambda: _batch_loss(config, context, state)
    else:
        score = lambda: -_held_out_accuracy(config, context, state, records)

    def better() -> Kept:
        new = Kept(params, score())
        return jax.tree.map(lambda a, b: jnp.where(new.score < kept.score, a, b), new, kept)

    return jax.lax.cond(due, better, lambda: kept)


def _before(context: Context):
    """What was trained before the step."""
    return jax.tree.map(jnp.subtract, context.trained, context.updates)


def _held_out_loss(config, context: Context, params, state: HyperIntervalState, records: PyTree) -> jax.Array:
    weights = present_weights(config, params, state.for_task(state.task), context.stored)
    model = context.apply(context.trained)
    return jnp.mean(box_losses(config, model, context.stored, weights, records, config.kappa))


def _held_out_accuracy(config, context: Context, state: HyperIntervalState, records: PyTree) -> jax.Array:
    logits = context.apply(_before(context))(records[config.input])
    if config.classes in records:
        logits = jnp.where(records[config.classes], logits, -jnp.inf)
    return jnp.mean(jnp.argmax(logits, axis=-1) == records[config.label])


def _batch_loss(config, context: Context, state: HyperIntervalState) -> jax.Array:
    """The minimised function, as the step had it."""
    before = _before(context)
    kappa, _ = schedules(config, state.step, state.steps)
    weights = present_weights(config, before.params, state, context.stored)
    model, key = context.apply(before), context.objective_key
    losses = lambda batch: box_losses(config, model, context.stored, weights, batch, kappa, key)
    of_batch = (jax.vmap(losses) if context.stacked else losses)(context.batch)
    return jnp.mean(of_batch) + box_regulariser(config, context._replace(trained=before), before.params, state)
