"""MegaBatchMargin: the hardest negative of a large batch, with a margin for each side."""

import jax
import jax.numpy as jnp

from jaxemb.losses.similarity import Similarity, similarity_function


def mega_batch_margin(
    queries: jax.Array,
    documents: jax.Array,
    *,
    positive_margin: float = 0.8,
    negative_margin: float = 0.3,
    similarity: str | Similarity = "cosine",
    mask: jax.Array | None = None,
) -> jax.Array:
    """The own document should be more alike than one margin, the most alike other document less than another:

        loss_i = max(0, positive_margin - s_ii) + max(0, max_{j != i} s_ij - negative_margin)

    Args:
      queries: `[N, D]`.
      documents: the positive document of each query, `[N, D]`.
      positive_margin, negative_margin: in units of the similarity.
      similarity: "cosine", "dot", "euclidean" (negative distance), or a function `[N, D], [M, D] -> [N, M]`.
      mask: bool `[N, N]`; where False, document j is no negative of query i. The own document is never masked.

    Returns:
      f32 `[N]`, whose mean is the value of sentence-transformers' MegaBatchMarginLoss. A row without negatives keeps
      the first term alone.

    Raises:
      ValueError: for shapes that do not fit or an unknown similarity.

    References:
      Wieting & Gimpel 2018 (mega-batching), https://arxiv.org/abs/1711.05732; two margins as in the reference code.
    """
    if queries.ndim != 2 or documents.shape != queries.shape:
        raise ValueError(f"queries and documents must both be [N, D]; got {queries.shape} and {documents.shape}")
    n = queries.shape[0]
    if mask is not None and mask.shape != (n, n):
        raise ValueError(f"mask must be [N, N] = {(n, n)}; got {mask.shape}")
    similarities = similarity_function(similarity)(queries, documents)
    negative = ~jnp.eye(n, dtype=bool) if mask is None else mask & ~jnp.eye(n, dtype=bool)
    hardest = jnp.max(jnp.where(negative, similarities, -jnp.inf), axis=1)
    return jax.nn.relu(positive_margin - jnp.diagonal(similarities)) + jax.nn.relu(hardest - negative_margin)
