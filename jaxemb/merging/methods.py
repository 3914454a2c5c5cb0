"""Merging without training: averages, task arithmetic, TIES, DARE, SLERP, Fisher and RegMean."""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from jaxemb.checks import arrays, check_finite, checked, each, finite, positive
from jaxemb.merging.trees import (
    Match,
    apply_task_vectors,
    match_vectors,
    numbered,
    stacked_layers,
    wide,
)
from jaxemb.trees import PyTree, Where, by_path, selects

_LINEAR = 0.9995  # of the cosine: beyond it SLERP is a linear interpolation


@checked(models=each(arrays))
def merge_average(
    models: Sequence[PyTree], weights: Sequence[float] | None = None, *, include: Where | None = None
) -> PyTree:
    """`sum_i w_i theta_i / sum_i w_i`, computed in float32 or wider.

    >>> merge_average([{"w": jnp.zeros(2)}, {"w": jnp.ones(2)}], [0.25, 0.75])
    {'w': Array([0.75, 0.75], dtype=float32)}

    Args:
      models: n models.
      weights: n numbers with a positive sum; None for equal ones.
      include: which tensors are merged; the others are the first model's. None for all.

    Raises:
      ValueError: if there are no models, they do not match, a tensor that is merged is not floating-point, the weights
        are not n finite numbers with a positive sum, or a result overflows.
    """
    match = Match.of(numbered("models", models), include)
    shares = _shares(weights, len(models))
    return match.map(lambda path, *xs: sum(w * x for w, x in zip(shares, xs, strict=True)))


@checked(base=arrays, vectors=each(arrays), scale=finite)
def merge_task_arithmetic(base: PyTree, vectors: Sequence[PyTree], scale: float = 0.3) -> PyTree:
    """`base + scale * sum_i tau_i` (Ilharco et al. 2023, arXiv 2212.04089); scales of 0.3 to 0.4 are typical.

    Raises:
      ValueError: if there are no vectors, the trees do not match, or a result overflows.
    """
    return apply_task_vectors(base, vectors, jnp.ones(len(vectors)), scale)


@checked(base=arrays, vectors=each(arrays), scale=finite)
def merge_ties(
    base: PyTree,
    vectors: Sequence[PyTree],
    *,
    density: float = 0.2,
    scale: float = 1.0,
    scope: Literal["model", "tensor"] = "model",
    zero_sum: Literal["majority", "positive"] = "majority",
    stacked: Where = stacked_layers,
) -> PyTree:
    """Trim, elect a sign, and average those that agree (Yadav et al. 2023, arXiv 2306.01708).

    Of every `tau_i` the `density` share of the largest magnitudes is kept and the rest set to 0. Each entry's sign is
    that of `sum_i tau_i`, and the merged vector is the mean over the `tau_i` of that sign, not over all n:

        theta = base + scale * sum_i [sign tau_i = sign] tau_i / #{i: sign tau_i = sign}

    Args:
      base: the model that all vectors begin at.
      vectors: of `task_vector`.
      density: share that is kept, in (0, 1]: `max(1, floor(density * size))` entries, and those as large as the last.
      scale: of the merged vector.
      scope: what is trimmed as one: the whole flattened model, as in the paper, or each tensor, as in mergekit.
      zero_sum: the sign of entries that sum to 0: that of most entries (of the scope), as the authors' code has it, or
        positive, as mergekit has it.
      stacked: which tensors are stacks of layers' tensors, which counts with the scope "tensor".

    Raises:
      ValueError: if there are no vectors, the trees do not match, an option is something else, or a result overflows.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density must be in (0, 1]; got {density}")
    if scope not in ("model", "tensor"):
        raise ValueError(f"scope must be 'model' or 'tensor'; got {scope!r}")
    if zero_sum not in ("majority", "positive"):
        raise ValueError(f"zero_sum must be 'majority' or 'positive'; got {zero_sum!r}")
    match = match_vectors(base, vectors)
    places = [(path, ts) for path, ts in zip(match.paths, match.tensors, strict=True) if ts is not None]
    flat = [jnp.stack([_rows(path, wide(t), stacked) for t in ts[1:]]) for path, ts in places]  # [n, R, S] each
    if scope == "tensor":
        merged = [_ties(entries, density, zero_sum) for entries in flat]
    else:
        whole = jnp.concatenate([entries.reshape(len(vectors), 1, -1) for entries in flat], axis=-1)
        sizes = [math.prod(entries.shape[1:]) for entries in flat]
        merged = jnp.split(_ties(whole, density, zero_sum)[0], list(itertools.accumulate(sizes))[:-1])
    vector = {path: m for (path, _), m in zip(places, merged, strict=True)}
    return match.map(lambda path, leaf, *_: leaf + scale * vector[path].reshape(leaf.shape))


@checked(vector=arrays)
def dare(
    key: jax.Array,
    vector: PyTree,
    drop_rate: float,
    *,
    rescale: Literal["inverse", "l1"] | None = "inverse",
    stacked: Where = stacked_layers,
) -> PyTree:
    """Drops entries of a task vector at random, and makes up for them: `tau m / (1 - p)`, `m ~ Bernoulli(1 - p)`.

    The result is a vector for any of the merges (Yu et al. 2024, arXiv 2311.03099).

    Args:
      key: of the random choice; vectors that are merged need different ones.
      vector: of `task_vector`.
      drop_rate: p, in [0, 1).
      rescale: "inverse", by 1 / (1 - p), which keeps the mean; "l1", to the L1 norm of each tensor, as mergekit has it;
        None, not at all.
      stacked: which tensors are stacks of layers' tensors; "l1" is of each layer's.

    Raises:
      ValueError: if a tensor is not floating-point, or an option is something else.
    """
    if not 0 <= drop_rate < 1:
        raise ValueError(f"drop_rate must be in [0, 1); got {drop_rate}")
    if rescale not in ("inverse", "l1", None):
        raise ValueError(f"rescale must be 'inverse', 'l1' or None; got {rescale!r}")
    match = Match.of({"vector": vector})
    keys = dict(zip(match.paths, jax.random.split(key, len(match.paths)), strict=True))

    def drop(path, x):
        kept = jnp.where(jax.random.bernoulli(keys[path], 1.0 - drop_rate, x.shape), x, 0)
        if rescale == "l1":
            before, after = (jnp.abs(_rows(path, y, stacked)).sum(axis=1, keepdims=True) for y in (x, kept))
            return (_rows(path, kept, stacked) * jnp.where(after > 0, before / after, 1)).reshape(x.shape)
        return kept / (1 - drop_rate) if rescale == "inverse" else kept

    return match.map(drop)


@checked(first=arrays, second=arrays)
def merge_slerp(
    first: PyTree, second: PyTree, t: float = 0.5, *, include: Where | None = None, stacked: Where = stacked_layers
) -> PyTree:
    """Spherical interpolation of two models, tensor by tensor, on the weights themselves:

        sin((1 - t) omega) / sin(omega) theta_a + sin(t omega) / sin(omega) theta_b

    with omega the angle between the two, and linear where `|cos omega| > 0.9995` or a tensor is 0
    (Shoemake 1985, as mergekit applies it).

    Args:
      first, second: the models; t = 0 gives the first.
      t: in [0, 1].
      include: which tensors are merged; the others are the first model's. None for all.
      stacked: which tensors are stacks of layers' tensors, each of which has an angle of its own.

    Raises:
      ValueError: if the models do not match, a tensor that is merged is not floating-point, or t is outside [0, 1].
    """
    if not 0 <= t <= 1:
        raise ValueError(f"t must be in [0, 1]; got {t}")

    def interpolate(path, a, b):
        rows = _rows(path, a, stacked), _rows(path, b, stacked)
        largest = [jnp.abs(x).max(axis=1, keepdims=True, initial=0) for x in rows]
        nonzero = jnp.minimum(*largest) > 0
        scaled = [x / _scale(top) for x, top in zip(rows, largest, strict=True)]  # so that squares fit
        norms = [jnp.where(nonzero, jnp.linalg.norm(x, axis=1, keepdims=True), 1) for x in scaled]
        cosine = jnp.clip(jnp.sum(scaled[0] / norms[0] * (scaled[1] / norms[1]), axis=1, keepdims=True), -1, 1)
        curved = nonzero & (jnp.abs(cosine) <= _LINEAR)
        omega = jnp.arccos(jnp.where(curved, cosine, 0))
        of_first = jnp.where(curved, jnp.sin((1 - t) * omega) / jnp.sin(omega), 1 - t)
        of_second = jnp.where(curved, jnp.sin(t * omega) / jnp.sin(omega), t)
        return (of_first * rows[0] + of_second * rows[1]).reshape(a.shape)

    return Match.of({"first": first, "second": second}, include).map(interpolate)


@checked(models=each(arrays), fishers=each(arrays), floor=positive)
def merge_fisher(
    models: Sequence[PyTree],
    fishers: Sequence[PyTree],
    weights: Sequence[float] | None = None,
    *,
    floor: float = 1e-8,
    include: Where | None = None,
) -> PyTree:
    """`sum_i w_i F_i theta_i / sum_i w_i F_i`, entry by entry (Matena and Raffel 2022, arXiv 2111.09832).

    Args:
      models: n models.
      fishers: their diagonal Fisher informations, from `collect_fisher`.
      weights: n numbers with a positive sum; None for equal ones.
      floor: smallest information that an entry counts with, so that one without any becomes the average.
      include: which tensors are merged; the others are the first model's. None for all.

    Raises:
      ValueError: if there are no models, or not one Fisher information for each, the trees do not match, a tensor that
        is merged is not floating-point, the floor is not positive, the weights are bad, or a result overflows.
    """
    if len(fishers) != len(models):
        raise ValueError(f"fishers must be one for each of {len(models)} models; got {len(fishers)}")
    match = Match.of(numbered("models", models) | numbered("fishers", fishers), include)
    shares = _shares(weights, len(models))

    def merge(path, *xs):
        raised = [jnp.maximum(f, floor) for f in xs[len(models) :]]
        scale = _scale(functools.reduce(jnp.maximum, raised))  # so that sums and products fit
        information = [w * (f / scale) for w, f in zip(shares, raised, strict=True)]
        return sum(f * x for f, x in zip(information, xs, strict=False)) / sum(information)

    return match.map(merge)


@checked(models=each(arrays))
def merge_regmean(
    models: Sequence[PyTree],
    grams: Sequence[Mapping[str, jax.Array]],
    *,
    alpha: float = 0.9,
    ridge: float = 1e-6,
    include: Where | None = None,
) -> PyTree:
    """Linear layers so that their outputs change least, `argmin_W sum_i ||X_i W - X_i W_i||^2`; the rest is averaged:

        W = (sum_i G_i)^-1 sum_i G_i W_i,    G_i = X_i^T X_i, its off-diagonals times alpha

    (Jin et al. 2023, arXiv 2212.09849.)

    Args:
      models: n models.
      grams: of each model the matrices G by the paths of the kernels, from `collect_grams`: `[in, in]` for a kernel
        `[in, out]`, `[L, in, in]` for a stack `[L, in, out]`.
      alpha: in [0, 1]: 1 is least squares; 0.9 is the paper's, 0.1 for T5-like models.
      ridge: added to each diagonal, in units of its mean, so that an input that never occurred is averaged.
      include: which tensors are merged; the others are the first model's. None for all.

    Raises:
      ValueError: if there are no models, or not one set of matrices for each, the trees do not match, a matrix has
        another shape or no kernel, a number is out of its range, or a result is not finite.
    """
    match = Match.of(numbered("models", models), include)
    if len(grams) != len(models):
        raise ValueError(f"grams must be one set of matrices for each of {len(models)} models; got {len(grams)}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1]; got {alpha}")
    if not ridge >= 0:
        raise ValueError(f"ridge must be >= 0; got {ridge}")
    shapes = {path: jnp.shape(leaf) for path, leaf in by_path(models[0]).items()}
    for i, of_model in enumerate(grams):
        for path, gram in of_model.items():
            if set(of_model) != set(grams[0]) or path not in shapes:
                raise ValueError(f"grams {i} must be of the kernels of grams 0 and of the models; got {path}")
            expected = (*shapes[path][:-1], shapes[path][-2]) if len(shapes[path]) > 1 else None
            if gram.shape != expected:
                raise ValueError(f"grams {i}: {path} must have shape {expected}; got {gram.shape}")
            check_finite(f"grams {i}: {path}", gram)

    def damped(gram):
        diagonal = jnp.eye(gram.shape[-1], dtype=gram.dtype) * gram
        mean = jnp.trace(gram, axis1=-2, axis2=-1)[..., None, None] / gram.shape[-1]
        return alpha * gram + (1 - alpha) * diagonal + ridge * mean * jnp.eye(gram.shape[-1], dtype=gram.dtype)

    def merge(path, *xs):
        if path not in grams[0]:
            return sum(xs) / len(xs)
        given = [wide(of_model[path]) for of_model in grams]
        largest = functools.reduce(jnp.maximum, [jnp.abs(g).max(axis=(-2, -1), keepdims=True) for g in given])
        weights = [damped(g / _scale(largest)) for g in given]  # so that sums fit
        return jnp.linalg.solve(sum(weights), sum(g @ x for g, x in zip(weights, xs, strict=True)))

    return match.map(merge)


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    given = [1.0] * count if weights is None else [float(w) for w in weights]
    largest = max(map(abs, given), default=0.0)
    scaled = [w / largest for w in given] if 0 < largest < math.inf else []  # whose sum is finite
    if len(given) != count or not sum(scaled) > 0:
        raise ValueError(f"weights must be {count} finite numbers with a positive sum; got {given}")
    return [w / sum(scaled) for w in scaled]


def _scale(largest: jax.Array) -> jax.Array:
    """What numbers up to `largest` are divided by so that their squares fit; its own inverse does too."""
    return jnp.clip(largest, 1e-30, 1e30)


def _rows(path: str, x: jax.Array, stacked: Where) -> jax.Array:
    """`x` as `[tensors, entries]`."""
    tensors = x.shape[0] if selects(stacked)(path) else 1
    return x.reshape(tensors, x.size // max(tensors, 1))


def _ties(vectors: jax.Array, density: float, zero_sum: str) -> jax.Array:
    """The merged vector `[R, S]` of `[n, R, S]`; each row is trimmed by itself."""
    size = vectors.shape[-1]
    if not size:
        return vectors.sum(axis=0)
    magnitudes = jnp.abs(vectors)
    smallest = jnp.sort(magnitudes, axis=-1)[..., size - max(1, int(density * size)), None]
    trimmed = jnp.where(magnitudes >= smallest, vectors, 0)
    sign = jnp.sign(trimmed.sum(axis=0))
    otherwise = jnp.sign(sign.sum(axis=-1, keepdims=True)) if zero_sum == "majority" else 1
    positive = jnp.where(sign == 0, otherwise, sign) > 0
    agrees = jnp.where(positive, trimmed > 0, trimmed < 0)
    return jnp.where(agrees, trimmed, 0).sum(axis=0) / jnp.maximum(agrees.sum(axis=0), 1)
