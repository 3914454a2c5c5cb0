"""Classifiers fitted to frozen features, to see what these hold: `fit(features, labels) -> classify`."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
from scipy.spatial.distance import cdist

from jaxemb.checks import at_least, check_finite, checked, non_negative, positive
from jaxemb.retrieval import topk_search
from jaxemb.similarity import unit_rows

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


def _finite(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features)
    if features.ndim != 2 or not np.isfinite(features).all():
        raise ValueError(f"features must be finite, [N, D]; got {features.dtype} {features.shape}")
    return features


@checked(C=positive, tolerance=non_negative, steps=at_least(1))
def logistic_regression(C: float = 1.0, *, normalise: bool = False, tolerance: float = 1e-4, steps: int = 1000) -> Fit:
    """Multinomial logistic regression on features, for a `probe`; scikit-learn's `LogisticRegression(C)`.

    Minimises `mean_n -log softmax(f_n W + b)[y_n] + |W|² / (2 C N)` by L-BFGS from zero.

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
        x = jnp.asarray(scaled(features), jnp.float32)
        classes, y = np.unique(labels, return_inverse=True)
        if len(classes) == 1:
            return lambda other: np.full(len(other), classes[0])
        dim, many = x.shape[1], len(classes)

        def value_and_grad(flat: np.ndarray):
            value, grad = _logistic(jnp.asarray(flat, jnp.float32).reshape(dim + 1, many), x, y, C)
            return float(value), np.asarray(grad, np.float64).ravel()

        best = scipy.optimize.minimize(
            value_and_grad,
            np.zeros((dim + 1) * many),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": steps, "gtol": tolerance, "ftol": 1e-9},
        )
        weights = best.x.reshape(dim + 1, many)
        return lambda other: classes[np.argmax(scaled(_finite(other)) @ weights[:-1] + weights[-1], axis=1)]

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
        x = unit_rows(features) if metric == "cosine" else features
        classes = np.unique(labels)
        means = np.stack([x[labels == c].mean(axis=0, dtype=np.float64) for c in classes])
        if metric == "cosine" and not np.any(means != 0, axis=1).all():
            raise ValueError(f"the mean of class {classes[~np.any(means != 0, axis=1)][0]} is zero: it has no cosine")
        return lambda other: classes[np.argmin(cdist(_finite(other), means, metric), axis=1)]

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
            _, ids = topk_search(other, features, k, metric=metric)
            votes = numbers[ids]
            return classes[np.argmax((votes[:, :, None] == np.arange(len(classes))).sum(axis=1), axis=1)]

        return classify

    return fit
