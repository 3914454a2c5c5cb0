"""HyperInterval as a transform; see `hyper_interval`."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxemb.checks import checked
from jaxemb.interval import CentredBox
from jaxemb.transforms.base import Context, Task, Trained, Transform, Variables, nothing, output_of
from jaxemb.transforms.continual import hypernetwork as hyper
from jaxemb.transforms.continual.hyper_interval.boxes import moved, old_weights, present_weights, schedules
from jaxemb.transforms.continual.hyper_interval.config import (
    HyperIntervalConfig,
    HyperIntervalParams,
    HyperIntervalState,
)
from jaxemb.transforms.continual.hyper_interval.losses import box_losses, box_regulariser
from jaxemb.transforms.continual.hyper_interval.promises import recorded
from jaxemb.transforms.continual.hyper_interval.selection import kept_params, next_kept, nothing_kept, stacked_held_out
from jaxemb.trees import PyTree


@checked()
def hyper_interval(config: HyperIntervalConfig, held_out: Sequence[Mapping[str, Any]] | None = None) -> Transform:
    """Trains boxes of weights, all of which solve their task in the worst case, and holds those of old tasks in place.

    Each task has a box of embeddings (`task_boxes`); the hypernetwork maps it to a box of weights (`propagate`), whose
    middle the model of a forward pass has. With logits z of the middle, and for each record the worst logits over the
    box, `ẑ_j` = the lower bound for its label's j, else the upper, the loss of task t is

        kappa CE(z) + (1 - kappa) CE(ẑ) + beta R,  R = 1/t^2 sum_{j<t} |theta_j - theta*_j|^2  (`output_regulariser`),

    in place of the losses of the objective, `objectives.classification` of the same columns, which gives z. Kappa
    falls from 1, and gamma grows from 0, in the first half of every task (`schedules`). The old weights `theta*` are
    with the full gamma. The model needs `model(inputs, key=key) -> logits [N, C]`; its bound is `interval.bound`, for
    inputs of any sign.

    Give a task's steps in `Task.steps`; with 0, gamma and kappa are constant. `at_task` and
    `task_predictor` of hypernetworks evaluate older tasks, with the full gamma; `at_universal` makes one model for all.

    At the end of a task `selection` says which of its parameters are kept, and with `config.records` the promises of
    its records are stored, see `promises`.

    Args:
      config: see there.
      held_out: by task, as many records of each, columns as of a batch: what `config.select` looks at, if it does.

    Raises:
      ValueError: as `hypernetwork`; for a selection without what it looks at; when traced, if the batch lacks labels.

    Warns:
      UserWarning: for the "official" selection.

    References:
      Krukowski et al. 2024, arXiv 2405.15444, and github.com/gmum/HyperInterval, which the equations follow.
    """

    valid = stacked_held_out(config, held_out)

    def init(key: jax.Array, model: PyTree) -> Variables:
        logits = jnp.full((config.tasks, config.embed_dim), 1 / config.embed_dim, jnp.float32)
        network, embeddings, chunks = hyper.init_network(config, key, model)
        params = HyperIntervalParams(network, embeddings, chunks, logits)
        zero, middle = jnp.zeros((), jnp.int32), jnp.zeros(config.embed_dim)
        state = HyperIntervalState(
            task=zero,
            begun=zero,
            step=zero,
            steps=zero,
            old=old_weights(config, params, model),
            residual=jnp.zeros(config.tasks),
            promises=jnp.full(config.records, jnp.nan, jnp.float32),
            kept=nothing_kept(config, params),
            candidate=config.lookahead.init(params) if config.lookahead else (),
            given=(CentredBox(middle, middle), jnp.zeros((), bool)),
        )
        return Variables(params, state)

    def begin_task(task: Task, context: Context, params: HyperIntervalParams, state: HyperIntervalState):
        hyper.check_number(config, task.number)
        if config.warm_start and task.number > 0:
            start = lambda rows: rows.at[task.number].set(rows[task.number - 1])
            params = params._replace(embeddings=start(params.embeddings), radius_logits=start(params.radius_logits))
        state = state._replace(
            task=jnp.asarray(task.number, jnp.int32),
            begun=jnp.maximum(state.begun, task.number + 1),
            step=jnp.zeros((), jnp.int32),
            steps=jnp.asarray(task.steps, jnp.int32),
            old=jax.jit(old_weights, static_argnums=0)(config, params, context.stored),
            kept=nothing_kept(config, params),
            candidate=config.lookahead.init(params) if config.lookahead else (),
            given=(state.given[0], jnp.zeros((), bool)),
        )
        return context.trained._replace(params=params), state

    def model(model: PyTree, params: HyperIntervalParams, state: HyperIntervalState) -> PyTree:
        return hyper.put(config, model, present_weights(config, params, state, model).centre)

    def after_step(context: Context, params, state: HyperIntervalState) -> HyperIntervalState:
        candidate = hyper.next_candidate(config, context, state.candidate)
        kept = next_kept(config, valid, context, params, state)
        return state._replace(step=state.step + 1, candidate=candidate, kept=kept)

    return Transform(
        init=init,
        trains=nothing,
        begin_task=begin_task,
        model=model,
        loss=functools.partial(_loss, config),
        auxiliary_loss=functools.partial(box_regulariser, config),
        gradients=lambda grads, context, params, state: hyper.computed_once(grads, state.task),
        updates=functools.partial(_updates, config),
        after_step=after_step,
        end_task=functools.partial(_end_task, config),
    )


def _loss(
    config: HyperIntervalConfig,
    losses: jax.Array,
    context: Context,
    params: HyperIntervalParams,
    state: HyperIntervalState,
) -> jax.Array:
    """The losses that take the place of the objective's, which are those of the middle."""
    batch, stored = context.batch, context.stored
    if config.label not in batch:
        raise ValueError(f"the batch has no {config.label}; it has {', '.join(sorted(batch))}")
    kappa, _ = schedules(config, state.step, state.steps)
    middle = output_of(context, "logits", "hyper_interval")
    weights = present_weights(config, params, state, stored)
    return box_losses(config, context.model, stored, weights, batch, kappa, context.objective_key, middle)


def _updates(config: HyperIntervalConfig, updates: Trained, context: Context, params, state: HyperIntervalState):
    """Only the present task's box moves, and its radii only if they are trained."""
    updates = hyper.only_task(updates, state.task, ("embeddings", "radius_logits"))
    if config.radii_learn:
        return updates
    fixed = updates.params._replace(radius_logits=jnp.zeros_like(updates.params.radius_logits))
    return updates._replace(params=fixed)


def _end_task(
    config: HyperIntervalConfig, task: Task, context: Context, params: HyperIntervalParams, state: HyperIntervalState
) -> tuple[Trained, HyperIntervalState]:
    """Keeps the selected parameters; of those are the residual and the promises."""
    params = kept_params(params, state)
    far = moved(config, params, state.old, context.stored)
    residual = state.residual + jnp.where(jnp.arange(config.tasks) < task.number, far, 0)
    state = state._replace(residual=residual.at[task.number].set(0))
    state = state._replace(promises=recorded(config, task, context, params, state))
    return context.trained._replace(params=params), state
