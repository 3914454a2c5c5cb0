"""InfoNCE, also known as multiple-negatives ranking: the right document against all others of the batch."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from jaxemb.losses.similarity import Similarity, similarity_function

Direction = Literal["q2d", "d2q", "q2q", "d2d"]
Partition = Literal["joint", "per_direction"]
Hardness = Literal["in_batch_negatives", "hard_negatives", "all_negatives"]


def info_nce(
    queries: jax.Array,
    documents: jax.Array,
    negatives: jax.Array | None = None,
    *,
    temperature: float | jax.Array = 0.05,
    similarity: str | Similarity = "cosine",
    directions: Sequence[Direction] = ("q2d",),
    partition: Partition = "joint",
    mask: jax.Array | None = None,
    hardness: Hardness | None = None,
    hardness_strength: float = 0.0,
) -> jax.Array:
    """Cross-entropy of picking each query's own document among all candidates of the batch.

    The candidates c are all N documents, then all hard negatives slot by slot: M = N (1 + K) of them. With
    `z_ic = s(q_i, c) / temperature` and the own document in column i,

        loss_i = log sum_{c allowed} exp(z_ic) - z_ii

    `directions` adds blocks of logits to the sum over the candidates of query i:

        q2d  s(q_i, c)     every candidate; always there
        d2q  s(q_j, d_i)   every query against the own document (the positive pair is in this block as well)
        q2q  s(q_i, q_j)   every other query
        d2d  s(d_i, c)     every candidate except those of record i

    `partition="joint"` is one softmax over all blocks (all four directions: the GTE loss); `"per_direction"` averages
    one cross-entropy per block and allows q2d and d2q only, as the other two do not hold the positive.

    Args:
      queries: `[N, D]`.
      documents: the positive document of each query, `[N, D]`.
      negatives: hard negatives of each query, `[N, K, D]` (or `[N, D]` for K = 1).
      temperature: > 0; the inverse of sentence-transformers' `scale`.
      similarity: "cosine", "dot", "euclidean" (negative distance), or a function `[N, D], [M, D] -> [N, M]`.
      directions: which blocks; "q2d" must be among them.
      partition: "joint" or "per_direction".
      mask: bool `[N, M]`; where False, candidate c is no negative of record i. It holds for q2d and d2d, and
        transposed (query j against record i's document) for d2q and q2q. The own positive is never masked.
      hardness: which of q2d's negatives get harder: those of other records, the own hard ones, or both. Their logits
        grow by `hardness_strength * stop_gradient(s)` (Lan et al. 2025, eq. 5), after the temperature.
      hardness_strength: >= 0.

    Returns:
      f32 `[N]`, whose mean is the value of sentence-transformers' MultipleNegativesRankingLoss. A row whose negatives
      are all masked has loss 0 and gradient 0.

    Raises:
      ValueError: for shapes that do not fit, a temperature <= 0, unknown or impossible directions and options.

    References:
      van den Oord et al. 2018 (InfoNCE); Henderson et al. 2017 (in-batch negatives); Li et al. 2023 (GTE).
    """
    if negatives is not None and negatives.ndim == 2:
        negatives = negatives[:, None, :]
    _check_shapes(queries, documents, negatives)
    _check_options(temperature, directions, partition, hardness, hardness_strength)
    score = similarity_function(similarity)
    n, dim = queries.shape
    candidates = documents
    if negatives is not None:
        candidates = jnp.concatenate([documents, negatives.swapaxes(0, 1).reshape(-1, dim)])
    m = candidates.shape[0]
    if mask is not None and mask.shape != (n, m):
        raise ValueError(f"mask must be [N, N (1 + K)] = {(n, m)}; got {mask.shape}")

    rows, columns = jnp.arange(n)[:, None], jnp.arange(m)[None, :]
    positive = columns == rows
    own = columns % n == rows  # the own document and the own hard negatives
    allowed = jnp.ones((n, m), bool) if mask is None else mask | positive

    similarities = score(queries, candidates)
    logits = similarities / temperature
    if hardness is not None:
        harder = {"in_batch_negatives": ~own, "hard_negatives": own & ~positive, "all_negatives": ~positive}[hardness]
        logits += jnp.where(harder, hardness_strength * jax.lax.stop_gradient(similarities), 0.0)

    # Logits relative to the positive's, so that small losses do not drown in the rounding of large logits.
    positives = jnp.diagonal(similarities)[:, None] / temperature
    blocks = []
    for direction in directions:
        if direction == "q2d":
            block, keep = logits, allowed
        elif direction == "d2q":
            block, keep = similarities[:, :n].T / temperature, allowed[:, :n].T
        elif direction == "q2q":
            block, keep = score(queries, queries) / temperature, allowed[:, :n].T & ~own[:, :n]
        else:
            block, keep = score(documents, candidates) / temperature, allowed & ~own
        blocks.append(jnp.where(keep, block - positives, -jnp.inf))

    if partition == "joint":
        return jax.nn.logsumexp(jnp.concatenate(blocks, axis=1), axis=1)
    return jnp.mean(jnp.stack([jax.nn.logsumexp(block, axis=1) for block in blocks]), axis=0)


def symmetric_info_nce(
    queries: jax.Array,
    documents: jax.Array,
    *,
    temperature: float | jax.Array = 0.05,
    similarity: str | Similarity = "cosine",
    mask: jax.Array | None = None,
) -> jax.Array:
    """CLIP's loss: the mean of the cross-entropies query to document and document to query.

    `info_nce` with directions q2d and d2q, each with its own softmax; `temperature` may be a trained scalar.

    Returns:
      f32 `[N]`, whose mean is CLIP's loss (Radford et al. 2021, figure 3) with `logit_scale = 1 / temperature`.

    Raises:
      ValueError: as `info_nce`.
    """
    return info_nce(
        queries,
        documents,
        temperature=temperature,
        similarity=similarity,
        directions=("q2d", "d2q"),
        partition="per_direction",
        mask=mask,
    )


def _check_shapes(queries, documents, negatives) -> None:
    if queries.ndim != 2 or documents.shape != queries.shape:
        raise ValueError(f"queries and documents must both be [N, D]; got {queries.shape} and {documents.shape}")
    n, dim = queries.shape
    if negatives is not None and (negatives.ndim != 3 or (negatives.shape[0], negatives.shape[2]) != (n, dim)):
        raise ValueError(f"negatives must be [N, K, D] with N = {n} and D = {dim}; got {negatives.shape}")


def _check_options(temperature, directions, partition, hardness, hardness_strength) -> None:
    if not isinstance(temperature, jax.core.Tracer) and not temperature > 0:
        raise ValueError(f"temperature must be > 0; got {temperature}")
    known = {"q2d", "d2q", "q2q", "d2d"}
    if "q2d" not in directions or not set(directions) <= known or len(set(directions)) != len(directions):
        raise ValueError(f"directions must be distinct ones of {sorted(known)} with 'q2d'; got {tuple(directions)}")
    if partition not in ("joint", "per_direction"):
        raise ValueError(f"partition must be 'joint' or 'per_direction'; got {partition!r}")
    if partition == "per_direction" and set(directions) & {"q2q", "d2d"}:
        raise ValueError(
            f"partition='per_direction' needs the positive in every direction, which q2q and d2d lack; "
            f"got directions={tuple(directions)}"
        )
    if hardness not in (None, "in_batch_negatives", "hard_negatives", "all_negatives"):
        raise ValueError(
            f"hardness must be 'in_batch_negatives', 'hard_negatives', 'all_negatives' or None; got {hardness!r}"
        )
    if hardness_strength < 0:
        raise ValueError(f"hardness_strength must be >= 0; got {hardness_strength}")
