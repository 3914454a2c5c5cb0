"""Labelled pairs of texts: contrastive, online contrastive, squared error of the cosine, and NLI classification."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxemb.checks import non_negative
from jaxemb.losses.program import one_program
from jaxemb.nn.classes import check_labels, check_shares, class_cross_entropy
from jaxemb.nn.similarity import cosine, paired

Distance = Callable[[jax.Array, jax.Array], jax.Array]
Feature = Literal["both", "difference", "product"]

_DISTANCES: Mapping[str, Distance] = {
    "cosine": lambda first, second: 1.0 - paired(cosine, first, second),
    "euclidean": lambda first, second: optax.safe_norm(_f32(first) - _f32(second), 0.0, axis=-1),
}


@one_program(labels=check_shares, margin=non_negative)
def contrastive(
    first: jax.Array,
    second: jax.Array,
    labels: jax.Array,
    *,
    margin: float = 0.5,
    distance: str | Distance = "cosine",
) -> jax.Array:
    """Draws like pairs together and pushes unlike ones at least `margin` apart: with `d_i = d(first_i, second_i)`,

        loss_i = (y_i d_i^2 + (1 - y_i) max(0, margin - d_i)^2) / 2

    >>> print(contrastive(jnp.eye(2), jnp.eye(2), jnp.array([1, 0])))  # alike as it should be; alike, margin 0.5
    [0.    0.125]

    Args:
      first, second: the two texts of each pair, `[N, D]`.
      labels: y, 1 = alike, 0 = not (a number between weighs the two terms), `[N]`.
      margin: >= 0, in units of the distance.
      distance: "cosine" (1 - cosine, in 0..2), "euclidean", or a function `[N, D], [N, D] -> [N]`.

    Returns:
      f32 `[N]`, whose mean is the value of sentence-transformers' ContrastiveLoss.

    Raises:
      ValueError: for shapes that do not fit, labels outside 0..1, a negative margin, an unknown distance.

    References:
      Hadsell et al. 2006, equation 4.
    """
    distances, labels = _labelled_distances(first, second, labels, distance)
    positive, negative = jnp.square(distances), jnp.square(jax.nn.relu(margin - distances))
    return 0.5 * (labels * positive + (1.0 - labels) * negative)


@one_program(margin=non_negative)
def online_contrastive(
    first: jax.Array,
    second: jax.Array,
    labels: jax.Array,
    *,
    margin: float = 0.5,
    distance: str | Distance = "cosine",
) -> jax.Array:
    """The contrastive loss of the hard pairs alone, summed over the batch:

        L = sum_{i like, d_i > min_{j unlike} d_j} d_i^2 + sum_{i unlike, d_i < max_{j like} d_j} max(0, margin - d_i)^2

    so a like pair counts if it is further apart than some unlike pair, and the reverse. In a batch of one kind, the
    pairs beyond their own mean distance count.

    Args:
      first, second: the two texts of each pair, `[N, D]`.
      labels: 1 = alike, 0 = not; a pair with any other number is ignored, `[N]`.
      margin: >= 0, in units of the distance.
      distance: "cosine" (1 - cosine, in 0..2), "euclidean", or a function `[N, D], [N, D] -> [N]`.

    Returns:
      f32 `[N]`, N times the term of each pair, whose mean is L, the value of sentence-transformers'
      OnlineContrastiveLoss. L is a sum: it grows with the batch. One NaN makes all NaN.

    Raises:
      ValueError: for shapes that do not fit, a negative margin, an unknown distance.
    """
    distances, labels = _labelled_distances(first, second, labels, distance)
    like, unlike = labels == 1, labels == 0
    largest = jnp.max(distances, initial=-jnp.inf, where=like)
    smallest = jnp.min(distances, initial=jnp.inf, where=unlike)
    mean = lambda of: jnp.sum(distances, where=of) / jnp.maximum(jnp.sum(of), 1)
    hard_like = like & (distances > jnp.where(unlike.any(), smallest, mean(like)))
    hard_unlike = unlike & (distances < jnp.where(like.any(), largest, mean(unlike)))
    terms = hard_like * jnp.square(distances) + hard_unlike * jnp.square(jax.nn.relu(margin - distances))
    # A NaN compares with nothing, so that no pair would be hard.
    is_spoiled = jnp.isnan(largest) | jnp.isnan(smallest) | jnp.isnan(labels).any()
    return len(terms) * terms + jnp.where(is_spoiled, jnp.nan, 0.0)


@one_program()
def cosine_similarity_mse(first: jax.Array, second: jax.Array, scores: jax.Array) -> jax.Array:
    """The squared error of the cosine as a prediction of the score: `loss_i = (cos(first_i, second_i) - scores_i)^2`.

    >>> print(cosine_similarity_mse(jnp.eye(2), jnp.eye(2), jnp.array([1.0, 0.5])))
    [0.   0.25]

    Args:
      first, second: the two texts of each pair, `[N, D]`.
      scores: their similarity, in -1..1, `[N]`.

    Returns:
      f32 `[N]`, whose mean is the value of sentence-transformers' CosineSimilarityLoss.

    Raises:
      ValueError: for shapes that do not fit.

    References:
      Reimers & Gurevych 2019, section 3.
    """
    _check(first, second, scores, "scores")
    return jnp.square(paired(cosine, first, second) - _f32(scores))


def _labels_are_classes(given: Mapping[str, Any]) -> None:
    if jnp.ndim(given["kernel"]) == 2:
        check_labels(given["labels"], jnp.shape(given["kernel"])[1], says=", as kernel says")


@one_program(_labels_are_classes)
def softmax_nli(
    first: jax.Array,
    second: jax.Array,
    labels: jax.Array,
    *,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    features: Sequence[Feature] = ("both", "difference"),
) -> jax.Array:
    """Classifies the relation of two texts from their embeddings u and v with a linear layer that is trained along:

        loss_i = cross-entropy([u_i; v_i; |u_i - v_i|] W + b, labels_i)

    Args:
      first, second: u and v, such as premise and hypothesis, `[N, D]`.
      labels: the class of each pair, integers in 0..C - 1, `[N]`.
      kernel: W, `[F, C]`. F is D times the number of vectors side by side: 3 D by default.
      bias: b, `[C]`; None means 0.
      features: which vectors, in this order: "both" u and v, the "difference" |u - v|, the "product" u v.

    Returns:
      f32 `[N]`, whose mean is the value of sentence-transformers' SoftmaxLoss with its classifier's weights.

    Raises:
      ValueError: for shapes that do not fit, labels that are no integers or, outside of traced code, not in 0..C - 1
        (there they have NaN), unknown features or none.

    References:
      Reimers & Gurevych 2019, section 3; Conneau et al. 2017 (features).
    """
    _check(first, second, labels, "labels")
    if not features or not set(features) <= {"both", "difference", "product"}:
        raise ValueError(f"features must be some of 'both', 'difference', 'product'; got {tuple(features)}")
    u, v = _f32(first), _f32(second)
    vectors = {"both": [u, v], "difference": [jnp.abs(u - v)], "product": [u * v]}
    x = jnp.concatenate([vector for name in features for vector in vectors[name]], axis=1)
    if kernel.ndim != 2 or kernel.shape[0] != x.shape[1] or (bias is not None and bias.shape != kernel.shape[1:]):
        raise ValueError(
            f"kernel must be [F, C] with F = {x.shape[1]} and bias [C]; "
            f"got {kernel.shape} and {None if bias is None else bias.shape}"
        )
    logits = jnp.matmul(x, _f32(kernel), precision=jax.lax.Precision.HIGHEST) + (0.0 if bias is None else bias)
    return class_cross_entropy(logits, jnp.asarray(labels))


def _labelled_distances(first, second, labels, distance) -> tuple[jax.Array, jax.Array]:
    _check(first, second, labels, "labels")
    if not callable(distance) and distance not in _DISTANCES:
        raise ValueError(f"distance must be one of {sorted(_DISTANCES)} or a function; got {distance!r}")
    function = distance if callable(distance) else _DISTANCES[distance]
    return function(first, second), _f32(labels)


def _check(first, second, values, name: str) -> None:
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(f"first and second must both be [N, D]; got {first.shape} and {second.shape}")
    if jnp.shape(values) != first.shape[:1]:
        raise ValueError(f"{name} must be [N] with N = {first.shape[0]}; got {jnp.shape(values)}")


def _f32(x) -> jax.Array:
    return jnp.asarray(x, jnp.float32)
