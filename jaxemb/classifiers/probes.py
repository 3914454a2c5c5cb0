"""Classifiers fitted to frozen features, to see what these hold: `fit(features, labels) -> classify`."""

import warnings
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
from scipy.spatial.distance import cdist

from jaxemb.checks import at_least, check_finite, checked, described, is_array, non_negative, positive
from jaxemb.retrieval import topk_search
from jaxemb.similarity import magnitude, unit_rows

Classify = Callable[[np.ndarray], np.ndarray]
Fit = Callable[[np.ndarray, np.ndarray], Classify]
"""Features `[N, D]` and labels `[N]` to what gives other features, `[M, D]`, their labels, `[M]`."""


def _checked(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays. Raises ValueError unless they are finite `[N, D]` and `[N]`, N > 0."""
    features, labels = _finite(features), np.asarray(labels)
    if labels.shape != features.shape[:1] or not len(labels):
        raise ValueError(f"labels must be one for each of N > 0 features [N, D]; got {labels.shape}, {features.shape}")
    if labels.dtype.kind == "f":
        check_finite("labels", labels)
    return features, labels


def _finite(features: np.ndarray, dim: int | None = None) -> np.ndarray:
    """Features in f32 or wider. Raises ValueError unless they are finite and `[N, D]`, of `dim` dimensions if told."""
    features = np.asarray(features)
    if not is_array(features) or features.dtype.kind == "c":
        raise TypeError(f"features must be real numbers; got {described(features)}")
    features = np.asarray(features, np.result_type(features, np.float32))
    if features.ndim != 2 or not np.isfinite(features).all():
        raise ValueError(f"features must be finite, [N, D]; got {features.dtype} {features.shape}")
    if dim is not None and features.shape[1] != dim:
        raise ValueError(f"features must be [M, {dim}], as those it was fitted to; got {features.shape}")
    return features


@checked(C=positive, tolerance=non_negative, steps=at_least(1))
def logistic_regression(C: float = 1.0, *, normalise: bool = False, tolerance: float = 1e-4, steps: int = 1000) -> Fit:
    """Multinomial logistic regression on features, for a `probe`; scikit-learn's `LogisticRegression(C)`.

    Minimises `mean_n -log softmax(f_n W + b)[y_n] + |W|² / (2 C N)` by L-BFGS from zero. Features larger than 1 are
    divided by a power of two meanwhile, which changes the tolerance's unit and not the minimum. Features so small that
    the gradient is within the tolerance from the start are warned about: W stays 0.

    Args:
      C: > 0; inverse strength of the penalty.
      normalise: scale features to unit length first.
      tolerance: >= 0; largest entry of the gradient at the end.
      steps: most iterations.

    Raises:
      ValueError: for an argument out of its range.
    """
    scaled = unit_rows if normalise else lambda features: features

    def fit(features: np.ndarray, labels: np.ndarray) -> Classify:
        features, labels = _checked(features, labels)
        x = scaled(features)
        scale = max(1.0, float(magnitude(x)))
        x, strength = jnp.asarray(x / scale, jnp.float32), C * scale * scale
        classes, y = np.unique(labels, return_inverse=True)
        dim, many = x.shape[1], len(classes)
        if many == 1:
            return lambda other: np.full(len(_finite(other, dim)), classes[0])

        def value_and_grad(flat: np.ndarray):
            value, grad = _logistic(jnp.asarray(flat, jnp.float32).reshape(dim + 1, many), x, y, strength)
            return float(value), np.asarray(grad, np.float64).ravel()

        best = scipy.optimize.minimize(
            value_and_grad,
            np.zeros((dim + 1) * many),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": steps, "gtol": tolerance, "ftol": 1e-9},
        )
        weights = best.x.reshape(dim + 1, many)
        if not best.nit and np.any(features):
            warnings.warn(f"features are too small for a tolerance of {tolerance}: no weight was learnt", stacklevel=2)

        def classify(other: np.ndarray) -> np.ndarray:
            return classes[np.argmax(scaled(_finite(other, dim)) / scale @ weights[:-1] + weights[-1], axis=1)]

        return classify

    return fit


@jax.jit
@jax.value_and_grad
def _logistic(weights: jax.Array, x: jax.Array, y: jax.Array, C: float) -> jax.Array:
    logits = jnp.matmul(x, weights[:-1], precision="highest") + weights[-1]
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, y)
    return jnp.mean(losses) + jnp.sum(jnp.square(weights[:-1])) / (2 * C * len(x))


@checked()
def nearest_mean(metric: Literal["euclidean", "cosine"] = "euclidean") -> Fit:
    """The class whose mean feature is nearest, for a `probe`; "cosine" takes means of features in unit length.

    Raises:
      ValueError: for another metric.
    """
    if metric not in ("euclidean", "cosine"):
        raise ValueError(f"metric must be 'euclidean' or 'cosine'; got {metric!r}")

    def fit(features: np.ndarray, labels: np.ndarray) -> Classify:
        features, labels = _checked(features, labels)
        scale = magnitude(features)
        x = unit_rows(features) if metric == "cosine" else features / scale
        classes = np.unique(labels)
        means = np.stack([x[labels == c].mean(axis=0, dtype=np.float64) for c in classes])
        if metric == "cosine" and not np.any(means != 0, axis=1).all():
            raise ValueError(f"the mean of class {classes[~np.any(means != 0, axis=1)][0]} is zero: it has no cosine")

        def classify(other: np.ndarray) -> np.ndarray:
            other = _finite(other, features.shape[1])
            if metric == "cosine":
                return classes[np.argmax(unit_rows(other) @ unit_rows(means).T, axis=1)]
            top = max(float(scale), float(magnitude(other)))  # so that squares fit
            return classes[np.argmin(cdist(other / top, means * (scale / top)), axis=1)]

        return classify

    return fit


@checked(k=at_least(1))
def nearest_neighbours(k: int = 5, metric: str = "cosine") -> Fit:
    """The most frequent label of the k most similar training features, the lowest of equals, for a `probe`.

    Args:
      k: number of neighbours.
      metric: "cosine", "dot" or "euclidean".

    Raises:
      ValueError: for k below 1.
    """

    def fit(features: np.ndarray, labels: np.ndarray) -> Classify:
        features, labels = _checked(features, labels)
        classes, numbers = np.unique(labels, return_inverse=True)

        def classify(other: np.ndarray) -> np.ndarray:
            other = _finite(other, features.shape[1])
            if metric == "cosine":  # so that squares fit: each row by itself, or all alike
                ours, theirs = magnitude(other, axis=1), magnitude(features, axis=1)
            else:
                ours = theirs = np.maximum(magnitude(other), magnitude(features))
            _, ids = topk_search(other / ours, features / theirs, k, metric=metric)
            votes = numbers[ids]
            return classes[np.argmax((votes[:, :, None] == np.arange(len(classes))).sum(axis=1), axis=1)]

        return classify

    return fit
