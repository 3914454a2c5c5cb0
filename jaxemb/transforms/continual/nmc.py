"""Nearest class means beside a model, or as its head."""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxemb.checks import checked, size
from jaxemb.classifiers.nearest_mean import (
    Metric,
    NMCState,
    check_metric,
    nmc_features,
    nmc_init,
    nmc_means,
    nmc_merge,
    nmc_update,
)
from jaxemb.transforms.base import Context, Task, Transform, Variables, everything, nothing, output_of
from jaxemb.trees import PyTree

Policy = Literal["stale", "drift"]


@checked(classes=size, dim=size)
def nmc(
    classes: int,
    dim: int,
    *,
    metric: Metric = "euclidean",
    frozen: bool = True,
    output: str = "features",
    label: str = "label",
) -> Transform:
    """Keeps class means of the objective's features, of every batch that comes by; needs no task boundaries.

    Predictions are `nmc_logits(find_state(state, NMCState), features, metric)`, of the features of
    `apply_transform(transform, state)`.

    Args:
      classes: C, of the whole stream.
      dim: D of the features.
      metric: that of `nmc_logits`; "unit" is the published one.
      frozen: the model is not trained: one pass over the data and no replay give the best the means can be. With
        False the model learns and the means are of what its features were, step by step.
      output: name of the objective's output `[N, D]`.
      label: column of labels.

    Raises:
      ValueError: for another metric, sizes below 1; in the first step, if the features have another D.

    Source: Janson et al. 2022, arXiv 2210.04428.
    """
    check_metric(metric)

    def after_step(context: Context, params: PyTree, state: NMCState) -> NMCState:
        features = nmc_features(output_of(context, output, "nmc"), metric)
        return nmc_update(state, features.reshape(-1, features.shape[-1]), context.batch[label].reshape(-1))

    return Transform(
        init=lambda key, model: Variables(state=nmc_init(classes, dim)),
        trains=nothing if frozen else everything,
        after_step=after_step,
    )


class NMCHeadState(NamedTuple):
    """The means, and the model before the task, where drift is estimated (else None)."""

    means: NMCState
    before: PyTree


@checked(classes=size, dim=size)
def nmc_head(
    classes: int,
    dim: int,
    *,
    metric: Metric = "euclidean",
    policy: Policy = "stale",
    sigma: float = 0.3,
    output: str = "features",
    label: str = "label",
) -> Transform:
    """Nearest means as the head of a model that is trained: at the end of a task, the means of its classes.

    Training goes on as without it; predictions as for `nmc`. Means of earlier tasks were made by an earlier model:

      stale   they stay
      drift   each moves by what features of the task's data near it moved, f before and f' after the task:
              `M_c += sum_n w_nc (f'_n - f_n) / sum_n w_nc`, `w_nc = exp(-|f_n - M_c|² / (2 sigma²))`

    (To compute them again takes stored records: `icarl`.)

    Args:
      classes, dim, metric, output, label: as for `nmc`.
      policy: see above.
      sigma: > 0, in units of the features.

    Raises:
      ValueError: for another metric or policy, a sigma that is not positive; at the end of a task, if the loop has no
        data to give.

    Source: Yu et al. 2020, arXiv 2004.00440 (semantic drift compensation).
    """
    check_metric(metric)
    if policy not in ("stale", "drift"):
        raise ValueError(f"policy must be 'stale' or 'drift'; got {policy!r}")
    if not sigma > 0:
        raise ValueError(f"sigma must be > 0; got {sigma}")

    def begin_task(task: Task, context: Context, params: PyTree, state: NMCHeadState):
        before = None if policy == "stale" else context.apply(context.trained)
        return context.trained, NMCHeadState(state.means, before)

    @functools.partial(jax.jit, static_argnums=0)  # once, not once per task
    def features_by(objective: Callable, model: PyTree, batch: PyTree) -> jax.Array:
        return nmc_features(objective(model, batch, None)[1][output], metric)

    def end_task(task: Task, context: Context, params: PyTree, state: NMCHeadState):
        if task.batches is None:
            raise ValueError("nmc_head needs the task's data at its end; the loop gives none")
        model, new, old, moved = context.apply(context.trained), nmc_init(classes, dim), [], []
        features = functools.partial(features_by, context.objective)
        for batch in task.batches():
            now = features(model, batch)
            new = nmc_update(new, now, batch[label])
            if policy == "drift":
                old.append(features(state.before, batch))
                moved.append(now - old[-1])
        means = state.means
        if policy == "drift" and bool(jnp.any(means.counts > 0)):
            means = compensated(means, jnp.concatenate(old), jnp.concatenate(moved), sigma)
        return context.trained, NMCHeadState(nmc_merge(means, new), state.before)

    return Transform(
        init=lambda key, model: Variables(
            state=NMCHeadState(nmc_init(classes, dim), None if policy == "stale" else model)
        ),
        begin_task=begin_task,
        end_task=end_task,
    )


@jax.jit
def compensated(state: NMCState, features: jax.Array, moved: jax.Array, sigma: float) -> NMCState:
    """The means moved as features near them were: `M_c += softmax_n(-|f_n - M_c|² / (2 sigma²))_n · moved_n`.

    Args:
      state: C classes.
      features, moved: before the move, and by how much, `[N, D]` each.
      sigma: > 0.
    """
    means = nmc_means(state)
    square = jnp.sum(jnp.square(features), axis=1) - 2 * jnp.matmul(means, features.T, precision="highest")
    weights = jax.nn.softmax(-square / (2 * sigma**2), axis=1)  # |M_c|² is the same for every n
    return NMCState(state.sums + state.counts[:, None] * (weights @ moved), state.counts)
