"""The nearest mean classifier: one mean of features per class, from sums and counts, and no training."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxemb.transforms.base import Carried, Context, PyTree, Task, Transform

Metric = Literal["euclidean", "cosine"]
Policy = Literal["stale", "drift"]


class NMCState(NamedTuple):
    """Sums of the features of each class, f32 `[C, D]`, and their numbers, int32 `[C]`; both add up over devices."""

    sums: jax.Array
    counts: jax.Array


def nmc_init(classes: int, dim: int) -> NMCState:
    """No class seen yet.

    Raises:
      ValueError: for fewer than one class or dimension.
    """
    if classes < 1 or dim < 1:
        raise ValueError(f"classes and dim must be at least 1; got {classes} and {dim}")
    return NMCState(jnp.zeros((classes, dim), jnp.float32), jnp.zeros(classes, jnp.int32))


def nmc_update(state: NMCState, features: jax.Array, labels: jax.Array, weights: jax.Array | None = None) -> NMCState:
    """Adds features to the sums of their classes: the same state for any order, batching or split of the data.

    With features and labels sharded over devices, XLA adds up the devices' sums.

    Args:
      state: C classes.
      features: `[B, D]`; summed in f32. For the cosine metric give them in unit length (`unit`).
      labels: int `[B]`, 0..C-1.
      weights: how often each record counts, int or bool `[B]`; 0 for padding, whatever its label. None is once.

    Raises:
      ValueError: for shapes that do not fit and weights that are not integers; outside of `jit` also for a label
        outside 0..C-1 and features that are not finite (inside, such a label counts for no class).
    """
    classes, dim = state.sums.shape
    if features.ndim != 2 or features.shape[1] != dim:
        raise ValueError(f"features must be [B, {dim}]; got {features.shape}")
    if labels.shape != features.shape[:1] or (weights is not None and weights.shape != labels.shape):
        shapes = labels.shape if weights is None else (labels.shape, weights.shape)
        raise ValueError(f"labels and weights must be one for each of {features.shape[0]} features; got {shapes}")
    if weights is not None and not (weights.dtype == bool or jnp.issubdtype(weights.dtype, jnp.integer)):
        raise ValueError(f"weights must be integers or bool, as they are counted; got {weights.dtype}")
    used = jnp.ones(labels.shape, jnp.int32) if weights is None else jnp.asarray(weights, jnp.int32)
    if not _traced(features, labels, used):
        real = np.asarray(used) != 0
        wrong = np.asarray(labels)[real & ((np.asarray(labels) < 0) | (np.asarray(labels) >= classes))]
        if wrong.size:
            raise ValueError(f"labels must be in 0..{classes - 1}; got {wrong[0]}")
        if not np.isfinite(np.asarray(features, np.float32)[real]).all():
            raise ValueError("features must be finite")
    slot = jnp.where((labels >= 0) & (labels < classes) & (used != 0), labels, classes)  # `classes` is dropped
    rows = jnp.where((used != 0)[:, None], features.astype(jnp.float32), 0.0) * used[:, None]
    sums = jax.ops.segment_sum(rows, slot, classes)
    return NMCState(state.sums + sums, state.counts + jax.ops.segment_sum(used, slot, classes))


def nmc_merge(a: NMCState, b: NMCState) -> NMCState:
    """The state of the data of both."""
    return NMCState(a.sums + b.sums, a.counts + b.counts)


def nmc_means(state: NMCState, normalise: bool = False) -> jax.Array:
    """Means `[C, D]`, scaled to unit length if `normalise`; 0 for a class without features.

    Raises:
      ValueError: outside of `jit`, if a class that has features has a zero mean, which has no direction.
    """
    means = state.sums / jnp.maximum(state.counts, 1)[:, None]
    if not normalise:
        return means
    if not _traced(*state) and (zero := np.asarray((state.counts > 0) & ~jnp.any(means != 0, axis=1))).any():
        raise ValueError(f"the mean of class {int(np.argmax(zero))} is zero: it has no cosine")
    return unit(means)


def nmc_logits(
    state: NMCState, features: jax.Array, metric: Metric = "euclidean", class_mask: jax.Array | None = None
) -> jax.Array:
    """The nearer the mean, the larger the logit, `[B, C]` f32.

        euclidean   f·M_c - |M_c|²/2,  that is -|f - M_c|²/2 without the term -|f|²/2, which all classes share
        cosine      f·M_c / (|f| |M_c|)

    A class without features has -inf, and so has one outside of the mask.

    Args:
      state: C classes.
      features: `[B, D]`.
      metric: for "cosine" the state should be that of features of unit length.
      class_mask: the classes that compete, bool `[C]` or `[B, C]`, such as those of a task; None for all.

    Raises:
      ValueError: for another metric and shapes that do not fit; outside of `jit` also as long as no class was seen, and
        for "cosine" if the mean of a class is zero.
    """
    if metric not in ("euclidean", "cosine"):
        raise ValueError(f"metric must be 'euclidean' or 'cosine'; got {metric!r}")
    if features.ndim != 2 or features.shape[1] != state.sums.shape[1]:
        raise ValueError(f"features must be [B, {state.sums.shape[1]}]; got {features.shape}")
    if not _traced(*state) and not np.asarray(state.counts > 0).any():
        raise ValueError("no class was seen yet: there is no mean to compare with")
    means = nmc_means(state, normalise=metric == "cosine")
    x = features.astype(jnp.float32)
    x = unit(x) if metric == "cosine" else x
    logits = jnp.matmul(x, means.T, precision="highest")
    if metric == "euclidean":
        logits = logits - 0.5 * jnp.sum(jnp.square(means), axis=1)
    competes = state.counts > 0 if class_mask is None else (state.counts > 0) & class_mask
    return jnp.where(competes, logits, -jnp.inf)


def nmc_predict(
    state: NMCState, features: jax.Array, metric: Metric = "euclidean", class_mask: jax.Array | None = None
) -> jax.Array:
    """The nearest class, int32 `[B]`; arguments and errors are those of `nmc_logits`."""
    return jnp.argmax(nmc_logits(state, features, metric, class_mask), axis=-1).astype(jnp.int32)


def nmc_prequential(
    state: NMCState, features: jax.Array, labels: jax.Array, metric: Metric = "euclidean"
) -> tuple[NMCState, jax.Array]:
    """Task-free evaluation of a stream of S batches: each is predicted before the state learns from it.

    Args:
      state: what was learnt before the stream.
      features, labels: `[S, B, D]` and int `[S, B]`, in the order of arrival.

    Returns:
      The state after the stream, and the accuracy of each batch, f32 `[S]`; 0 as long as no class was seen.
    """

    def one(state: NMCState, batch: tuple[jax.Array, jax.Array]) -> tuple[NMCState, jax.Array]:
        x, y = batch
        right = (nmc_predict(state, x, metric) == y) & jnp.any(state.counts > 0)
        return nmc_update(state, unit(x) if metric == "cosine" else x, y), jnp.mean(right.astype(jnp.float32))

    return jax.lax.scan(one, state, (features, labels))


def unit(features: jax.Array) -> jax.Array:
    """The features in unit length, f32; a zero stays zero."""
    x = features.astype(jnp.float32)
    norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.where(norm > 0, norm, 1.0)


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

    Predictions are `nmc_logits(find_state(state, NMCState), express(transform, state).features(inputs), metric)`.

    Args:
      classes: C, of the whole stream.
      dim: D of the features.
      metric: "cosine" sums features in unit length.
      frozen: the model is not trained: one pass over the data and no replay give the best the means can be. With
        False the model learns and the means are of what its features were, step by step.
      output: name of the objective's output `[N, D]`.
      label: column of labels.

    Raises:
      ValueError: for another metric, sizes below 1; in the first step, if the features have another D.

    Source: Janson et al. 2022, arXiv 2210.04428.
    """
    _check_metric(metric)
    still = lambda trained: trained._replace(model=jax.tree.map(jnp.zeros_like, trained.model))

    def after_step(context: Context, params: PyTree, state: NMCState) -> NMCState:
        features = _scaled(context.outputs[output], metric)
        return nmc_update(state, features.reshape(-1, features.shape[-1]), context.batch[label].reshape(-1))

    return Transform(
        init=lambda key, model: Carried(state=nmc_init(classes, dim)),
        # Zero gradients spare the backward pass, zero updates the weight decay.
        gradients=lambda grads, context, params, state: still(grads) if frozen else grads,
        updates=lambda updates, context, params, state: still(updates) if frozen else updates,
        after_step=after_step,
    )


class NMCHeadState(NamedTuple):
    """The means, and the model before the task, where drift is estimated (else None)."""

    means: NMCState
    before: PyTree


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
    _check_metric(metric)
    if policy not in ("stale", "drift"):
        raise ValueError(f"policy must be 'stale' or 'drift'; got {policy!r}")
    if not sigma > 0:
        raise ValueError(f"sigma must be > 0; got {sigma}")

    def begin_task(task: Task, context: Context, params: PyTree, state: NMCHeadState):
        before = None if policy == "stale" else context.express(context.trained)
        return context.trained, NMCHeadState(state.means, before)

    def end_task(task: Task, context: Context, params: PyTree, state: NMCHeadState):
        if task.batches is None:
            raise ValueError("nmc_head needs the task's data at its end; the loop gives none")
        features = jax.jit(lambda model, batch: _scaled(context.objective(model, batch, None)[1][output], metric))
        model, new, old, moved = context.express(context.trained), nmc_init(classes, dim), [], []
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
        init=lambda key, model: Carried(
            state=NMCHeadState(nmc_init(classes, dim), None if policy == "stale" else model)
        ),
        begin_task=begin_task,
        end_task=end_task,
    )


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


def _scaled(features: jax.Array, metric: Metric) -> jax.Array:
    return unit(features) if metric == "cosine" else features.astype(jnp.float32)


def _check_metric(metric: str) -> None:
    if metric not in ("euclidean", "cosine"):
        raise ValueError(f"metric must be 'euclidean' or 'cosine'; got {metric!r}")


def _traced(*arrays: jax.Array) -> bool:
    return any(isinstance(array, jax.core.Tracer) for array in arrays)
