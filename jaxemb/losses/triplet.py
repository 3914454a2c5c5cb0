"""Triplet losses: an anchor is to be nearer to its positive than to a negative, by a margin.

The triplets are given, or found in a batch of labelled texts (Hermans et al. 2017, https://arxiv.org/abs/1703.07737).
Only differences of distances matter, so that d is minus the similarity, and nothing of size `[N, N, N]` is made.
"""

import jax
import jax.numpy as jnp

from jaxemb.checks import non_negative, shapes
from jaxemb.losses.program import one_program
from jaxemb.nn.similarity import Similarity, similarity_function


@one_program(shapes(anchors="N D", positives="N D", negatives="N K D | N D"), margin=non_negative)
def triplet(
    anchors: jax.Array,
    positives: jax.Array,
    negatives: jax.Array,
    *,
    margin: float = 5.0,
    similarity: str | Similarity = "euclidean",
) -> jax.Array:
    """`loss_i = mean_k max(0, d(a_i, p_i) - d(a_i, n_ik) + margin)`, with d the negative similarity.

    >>> anchor, other = jnp.zeros((1, 2)), jnp.array([[3.0, 4.0]])
    >>> print(triplet(anchor, anchor + 1, other, margin=5.0))  # 5 + sqrt(2) - 5
    [1.414...]

    Args:
      anchors, positives: `[N, D]`.
      negatives: `[N, D]`, or K of each anchor, `[N, K, D]`.
      margin: >= 0, in units of the distance.
      similarity: "euclidean", "cosine", "dot", or a function `[..., N, D], [..., M, D] -> [..., N, M]`.

    Returns:
      f32 `[N]`, whose mean is the value of sentence-transformers' TripletLoss.

    Raises:
      ValueError: for shapes that do not fit, a negative margin, an unknown similarity.

    References:
      Schroff et al. 2015 (FaceNet), with distances that are not squared.
    """
    if negatives.ndim == 2:
        negatives = negatives[:, None, :]
    candidates = jnp.concatenate([positives[:, None, :], negatives], axis=1)
    distances = -similarity_function(similarity)(anchors[:, None, :], candidates)[:, 0, :]
    return jax.nn.relu(distances[:, :1] - distances[:, 1:] + margin).mean(axis=1)


@one_program(shapes(embeddings="N D", labels="N", mask="N N"), margin=non_negative)
def batch_all_triplet(
    embeddings: jax.Array,
    labels: jax.Array,
    *,
    margin: float = 5.0,
    similarity: str | Similarity = "euclidean",
    mask: jax.Array | None = None,
) -> jax.Array:
    """The mean over all triplets (a, p, n) of the batch that violate the margin:

        L = mean_{(a, p, n): l_apn > 0} l_apn,   l_apn = d_ap - d_an + margin,   p != a of a's label, n of another

    There are O(N^3) triplets. With the negatives of an anchor sorted by distance, those that violate the margin for
    one p come first, and a running sum gives the sum over them: O(N^2 log N) work and O(N^2) memory.

    Args:
      embeddings: `[N, D]`.
      labels: the class of each text, `[N]`.
      margin: >= 0, in units of the distance.
      similarity: "euclidean", "cosine", "dot", or a function `[N, D], [M, D] -> [N, M]`; d is its negative.
      mask: bool `[N, N]`; where False, n is no negative of a. Positives are never masked.

    Returns:
      f32 `[N]`, each anchor's share times N, whose mean is L, the value of sentence-transformers'
      BatchAllTripletLoss; 0 if no triplet violates the margin.

    Raises:
      ValueError: for shapes that do not fit, a negative margin, an unknown similarity.
    """
    distances, positive, negative = _batch(embeddings, labels, similarity, mask)
    negatives = jnp.sort(jnp.where(negative, distances, jnp.inf), axis=1)
    # Relative to the nearest negative, so that running sums of large distances do not drown small violations.
    nearest = jax.lax.stop_gradient(jnp.where(jnp.isfinite(negatives[:, :1]), negatives[:, :1], 0.0))
    limits = distances + margin - nearest
    violating = jax.vmap(lambda row, limit: jnp.searchsorted(row, limit, side="left"))(negatives - nearest, limits)
    finite = jnp.where(jnp.isfinite(negatives), negatives - nearest, 0.0)
    sums = jnp.pad(jnp.cumsum(finite, axis=1), ((0, 0), (1, 0)))
    violations = jnp.where(positive, violating * limits - jnp.take_along_axis(sums, violating, axis=1), 0.0)
    count = jnp.sum(jnp.where(positive, violating, 0).astype(jnp.float32))
    return len(labels) * violations.sum(axis=1) / jnp.maximum(count, 1.0)


@one_program(shapes(embeddings="N D", labels="N", mask="N N"), margin=non_negative)
def batch_hard_triplet(
    embeddings: jax.Array,
    labels: jax.Array,
    *,
    margin: float = 5.0,
    soft_margin: bool = False,
    similarity: str | Similarity = "euclidean",
    mask: jax.Array | None = None,
) -> jax.Array:
    """Each anchor with its furthest positive and its nearest negative in the batch:

        loss_a = max(0, max_p d_ap - min_n d_an + margin)         p != a of a's label, n of another label
        loss_a = log(1 + exp(max_p d_ap - min_n d_an))            with `soft_margin`, which has no margin to choose

    Args:
      embeddings: `[N, D]`.
      labels: the class of each text, `[N]`.
      margin: >= 0, in units of the distance; not used with `soft_margin`.
      soft_margin: the second form.
      similarity: "euclidean", "cosine", "dot", or a function `[N, D], [M, D] -> [N, M]`; d is its negative.
      mask: bool `[N, N]`; where False, n is no negative of a. Positives are never masked.

    Returns:
      f32 `[N]`, whose mean is the value of sentence-transformers' BatchHardTripletLoss and
      BatchHardSoftMarginTripletLoss. An anchor without a positive or without a negative has loss 0, where the
      reference makes one up (distance 0 and the largest distance of the row).

    Raises:
      ValueError: for shapes that do not fit, a negative margin, an unknown similarity.

    References:
      Hermans et al. 2017, equation 5 and section 3 (soft margin).
    """
    distances, positive, negative = _batch(embeddings, labels, similarity, mask)
    complete = positive.any(axis=1) & negative.any(axis=1)
    furthest = jnp.max(jnp.where(positive, distances, -jnp.inf), axis=1)
    nearest = jnp.min(jnp.where(negative, distances, jnp.inf), axis=1)
    difference = jnp.where(complete, furthest, 0.0) - jnp.where(complete, nearest, 0.0)
    losses = jax.nn.softplus(difference) if soft_margin else jax.nn.relu(difference + margin)
    return jnp.where(complete, losses, 0.0)


@one_program(shapes(embeddings="N D", labels="N", mask="N N"), margin=non_negative)
def batch_semi_hard_triplet(
    embeddings: jax.Array,
    labels: jax.Array,
    *,
    margin: float = 5.0,
    similarity: str | Similarity = "euclidean",
    mask: jax.Array | None = None,
) -> jax.Array:
    """Each anchor and positive with the nearest negative that is further than the positive:

        L = mean_{(a, p)} max(0, d_ap - d_an(a,p) + margin),   n(a, p) = argmin_{n: d_an > d_ap} d_an

    or with the furthest negative if none is further than the positive.

    Args:
      embeddings: `[N, D]`.
      labels: the class of each text, `[N]`.
      margin: >= 0, in units of the distance.
      similarity: "euclidean", "cosine", "dot", or a function `[N, D], [M, D] -> [N, M]`; d is its negative.
      mask: bool `[N, N]`; where False, n is no negative of a. Positives are never masked.

    Returns:
      f32 `[N]`, each anchor's share times N, whose mean is L, the value of sentence-transformers'
      BatchSemiHardTripletLoss. Pairs of an anchor without negatives are left out; 0 if there are no others.

    Raises:
      ValueError: for shapes that do not fit, a negative margin, an unknown similarity.

    References:
      Schroff et al. 2015 (FaceNet), section 3.2.
    """
    distances, positive, negative = _batch(embeddings, labels, similarity, mask)
    negatives = jnp.sort(jnp.where(negative, distances, jnp.inf), axis=1)
    further = jax.vmap(lambda row, limit: jnp.searchsorted(row, limit, side="right"))(negatives, distances)
    n_negatives = negative.sum(axis=1, keepdims=True)
    chosen = jnp.take_along_axis(negatives, jnp.clip(further, 0, jnp.maximum(n_negatives - 1, 0)), axis=1)
    pairs = positive & (n_negatives > 0)
    losses = jnp.where(pairs, jax.nn.relu(distances - jnp.where(pairs, chosen, 0.0) + margin), 0.0)
    return len(labels) * losses.sum(axis=1) / jnp.maximum(pairs.sum(), 1)


def _batch(embeddings, labels, similarity, mask) -> tuple[jax.Array, jax.Array, jax.Array]:
    """All distances, and which are those of an anchor (row) to a positive and to a negative, `[N, N]` each."""
    labels = jnp.asarray(labels)
    same = labels[:, None] == labels[None, :]
    negative = ~same if mask is None else ~same & mask
    return -similarity_function(similarity)(embeddings, embeddings), same & ~jnp.eye(len(labels), dtype=bool), negative
