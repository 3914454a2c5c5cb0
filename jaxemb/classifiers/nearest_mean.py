"""The nearest mean classifier: one mean of features per class, from sums and counts, and no training."""

import functools
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxemb.checks import check_finite, checked, shapes, size
from jaxemb.nn import unit
from jaxemb.nn.classes import check_labels

Metric = Literal["euclidean", "unit", "cosine"]


class NMCState(NamedTuple):
    """Sums of the features of each class, f32 `[C, D]`, and their numbers, int32 `[C]`; both add up over devices."""

    sums: jax.Array
    counts: jax.Array


@checked(classes=size, dim=size)
def nmc_init(classes: int, dim: int) -> NMCState:
    """No class seen yet.

    Raises:
      ValueError: for fewer than one class or dimension.
    """
    return NMCState(jnp.zeros((classes, dim), jnp.float32), jnp.zeros(classes, jnp.int32))


@checked()
def nmc_update(state: NMCState, features: jax.Array, labels: jax.Array, weights: jax.Array | None = None) -> NMCState:
    """Adds features to the sums of their classes: the same state for any order, batching or split of the data.

    With features and labels sharded over devices, XLA adds up the devices' sums.

    Args:
      state: C classes.
      features: `[B, D]`; summed in f32. For the metrics "unit" and "cosine" give what `nmc_features` makes of them.
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
    used = np.ones(labels.shape, np.int32) if weights is None else weights.astype(np.int32)
    if not _traced(features, labels, used):
        real = np.asarray(used) != 0
        check_labels(np.asarray(labels)[real], classes)
        check_finite("features", np.asarray(features, np.float32)[real])
    return _added(state, features, labels, used)


@jax.jit
def _added(state: NMCState, features: jax.Array, labels: jax.Array, used: jax.Array) -> NMCState:
    classes = len(state.counts)
    slot = jnp.where((labels >= 0) & (labels < classes) & (used != 0), labels, classes)  # `classes` is dropped
    rows = jnp.where((used != 0)[:, None], features.astype(jnp.float32), 0.0) * used[:, None]
    sums = jax.ops.segment_sum(rows, slot, classes)
    return NMCState(state.sums + sums, state.counts + jax.ops.segment_sum(used, slot, classes))


@checked()
@jax.jit
def nmc_merge(a: NMCState, b: NMCState) -> NMCState:
    """The state of the data of both."""
    return NMCState(a.sums + b.sums, a.counts + b.counts)


@checked()
def nmc_means(state: NMCState, normalise: bool = False) -> jax.Array:
    """Means `[C, D]`, scaled to unit length if `normalise`; 0 for a class without features.

    Raises:
      ValueError: outside of `jit`, if a class that has features has a zero mean, which has no direction.
    """
    means = _means(state)
    if not normalise:
        return means
    if not _traced(*state):
        zero = (np.asarray(state.counts) > 0) & ~np.any(np.asarray(means) != 0, axis=1)
        if zero.any():
            raise ValueError(f"the mean of class {int(np.argmax(zero))} is zero: it has no cosine")
    return jax.jit(unit)(means)


@jax.jit
def _means(state: NMCState) -> jax.Array:
    return state.sums / jnp.maximum(state.counts, 1)[:, None]


@checked(shapes(features="... D"))
def nmc_features(features: jax.Array, metric: Metric) -> jax.Array:
    """What a metric sums of features `[..., D]`, f32: for "unit" and "cosine" they are brought to unit length."""
    check_metric(metric)
    return features.astype(jnp.float32) if metric == "euclidean" else unit(features.astype(jnp.float32))


@checked()
def nmc_logits(
    state: NMCState, features: jax.Array, metric: Metric = "euclidean", class_mask: jax.Array | None = None
) -> jax.Array:
    """The nearer the mean, the larger the logit, `[B, C]` f32.

        euclidean   f·M_c - |M_c|²/2,  that is -|f - M_c|²/2 without the term -|f|²/2, which all classes share
        unit        as euclidean, of f / |f|
        cosine      f·M_c / (|f| |M_c|)

    "unit" is the published rule: means of features of unit length, which are not of unit length themselves. So a class
    whose features are spread, its mean short, is at a disadvantage, which "cosine" (iCaRL's rule) takes away. A class
    without features has -inf, and so has one outside of the mask.

    Args:
      state: C classes.
      features: `[B, D]`.
      metric: for "unit" and "cosine" the state should be that of features of unit length (`nmc_features`).
      class_mask: the classes that compete, bool `[C]` or `[B, C]`, such as those of a task; None for all.

    Raises:
      ValueError: for another metric and shapes that do not fit; outside of `jit` also as long as no class was seen, for
        features that are not finite, or too large for a finite logit, and for "cosine" if the mean of a class is zero.

    Source: Janson et al. 2022, arXiv 2210.04428; "unit" as in its code, https://github.com/PaulJanson002/pretrained-cl;
    "cosine": Rebuffi et al. 2017, arXiv 1611.07725.
    """
    check_metric(metric)
    if features.ndim != 2 or features.shape[1] != state.sums.shape[1]:
        raise ValueError(f"features must be [B, {state.sums.shape[1]}]; got {features.shape}")
    check_seen(state, features)
    means = nmc_means(state, normalise=metric == "cosine")
    return check_logits(_compared(means, state.counts, features, metric, class_mask), state.counts, class_mask)


@functools.partial(jax.jit, static_argnames="metric")
def _compared(means: jax.Array, counts: jax.Array, features: jax.Array, metric: Metric, class_mask) -> jax.Array:
    logits = jnp.matmul(nmc_features(features, metric), means.T, precision="highest")
    if metric != "cosine":
        logits = logits - 0.5 * jnp.sum(jnp.square(means), axis=1)
    competes = counts > 0 if class_mask is None else (counts > 0) & class_mask
    return jnp.where(competes, logits, -jnp.inf)


@checked()
def nmc_predict(
    state: NMCState, features: jax.Array, metric: Metric = "euclidean", class_mask: jax.Array | None = None
) -> jax.Array:
    """The nearest class, int32 `[B]`; arguments and errors are those of `nmc_logits`."""
    return jnp.argmax(nmc_logits(state, features, metric, class_mask), axis=-1).astype(jnp.int32)


@checked(shapes(features="S B D", labels="S B"))
def nmc_prequential(
    state: NMCState, features: jax.Array, labels: jax.Array, metric: Metric = "euclidean"
) -> tuple[NMCState, jax.Array]:
    """Task-free evaluation of a stream of S batches: each is predicted before the state learns from it.

    Args:
      state: what was learnt before the stream.
      features, labels: `[S, B, D]` and int `[S, B]`, in the order of arrival.

    Returns:
      The state after the stream, and the accuracy of each batch, f32 `[S]`; 0 as long as no class was seen.

    Raises:
      ValueError: for shapes that do not fit; outside of `jit` also for a label outside 0..C-1.
    """
    check_labels(labels, len(state.counts))

    def one(state: NMCState, batch: tuple[jax.Array, jax.Array]) -> tuple[NMCState, jax.Array]:
        x, y = batch
        right = (nmc_predict(state, x, metric) == y) & jnp.any(state.counts > 0)
        return nmc_update(state, nmc_features(x, metric), y), jnp.mean(right.astype(jnp.float32))

    return jax.lax.scan(one, state, (features, labels))


def check_seen(state: NMCState, features: jax.Array) -> None:
    """Raises ValueError, outside of `jit`, as long as no class was seen, and for features that are not finite."""
    if not _traced(*state) and not np.asarray(state.counts).any():
        raise ValueError("no class was seen yet: there is no mean to compare with")
    check_finite("features", features)


def check_logits(logits: jax.Array, counts: jax.Array, class_mask: jax.Array | None = None) -> jax.Array:
    """The logits. Raises ValueError, outside of `jit`, if that of a class that competes is not finite."""
    mask = np.ones(1, bool) if class_mask is None else class_mask
    if not _traced(logits, counts, mask) and np.any(~np.isfinite(logits) & (np.asarray(counts) > 0) & np.asarray(mask)):
        raise ValueError("features must have finite logits in float32; they are too large, or the classes do not vary")
    return logits


def check_metric(metric: str) -> None:
    """Raises ValueError unless it is one of them."""
    if metric not in get_args(Metric):
        raise ValueError(f"metric must be 'euclidean', 'unit' or 'cosine'; got {metric!r}")


def _traced(*arrays: jax.Array | np.ndarray) -> bool:
    return any(isinstance(array, jax.core.Tracer) for array in arrays)
