"""MegaBatchMargin: the hardest negative of a large batch, with a margin for each side."""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxemb.losses.masks import Mask
from jaxemb.losses.program import one_program
from jaxemb.losses.records import Tile, make_records
from jaxemb.losses.reductions import SUM, TILE, at, constant, top
from jaxemb.nn.similarity import Similarity

_ROUNDING = 1e-6  # similarities that differ by no more, relative to their size, are equally large


@one_program()
def mega_batch_margin(
    queries: jax.Array,
    documents: jax.Array,
    *,
    positive_margin: float = 0.8,
    negative_margin: float = 0.3,
    similarity: str | Similarity = "cosine",
    mask: Mask | jax.Array | None = None,
    tile: int = TILE,
) -> jax.Array:
    """The own document should be more alike than one margin, the most alike other document less than another:

        loss_i = max(0, positive_margin - s_ii) + max(0, max_{j != i} s_ij - negative_margin)

    Args:
      queries: `[N, D]`.
      documents: the positive document of each query, `[N, D]`.
      positive_margin, negative_margin: in units of the similarity.
      similarity, mask, tile: as in `info_nce`.

    Returns:
      f32 `[N]`, whose mean is the value of sentence-transformers' MegaBatchMarginLoss. A row without negatives keeps
      the first term alone.

    Raises:
      ValueError: for shapes that do not fit or an unknown similarity.

    References:
      Wieting & Gimpel 2018 (mega-batching), https://arxiv.org/abs/1711.05732; two margins as in the reference code.
    """
    records = make_records(queries, documents, similarity=similarity, mask=mask)
    (largest,) = records.reduce(_negatives, (top(1),), tile=tile)
    # The largest by another pass, which has a gradient; several that are equally large share it.
    total, count = records.reduce(Partial(_largest, largest[:, 0]), (SUM, constant(SUM)), tile=tile)
    hardest = jnp.where(count > 0, total / jnp.maximum(count, 1.0), -jnp.inf)
    return jax.nn.relu(positive_margin - records.positive) + jax.nn.relu(hardest - negative_margin)


def _negatives(tile: Tile):
    return (jnp.where(tile.removed | tile.is_positive, -jnp.inf, tile.similarity),)


def _largest(largest, tile: Tile):
    largest = at(largest, tile.i)[:, None]
    limit = largest - _ROUNDING * jnp.maximum(jnp.abs(largest), 1.0)
    chosen = ~(tile.removed | tile.is_positive) & (tile.similarity >= limit)
    return jnp.where(chosen, tile.similarity, 0.0), 1.0 * chosen
