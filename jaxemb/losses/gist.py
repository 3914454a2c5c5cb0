"""GISTEmbed: in-batch negatives that a guide model finds closer than the positive are left out."""

import jax

from jaxemb.checks import non_negative, positive, shapes
from jaxemb.losses.info_nce import Direction, info_nce
from jaxemb.losses.masks import guided
from jaxemb.losses.program import one_program
from jaxemb.losses.reductions import TILE


@one_program(
    shapes(guide_queries="N G", guide_documents="N G", guide_negatives="N K G | N G"),
    temperature=positive,
    margin=non_negative,
)
def gist(
    queries: jax.Array,
    documents: jax.Array,
    negatives: jax.Array | None = None,
    *,
    guide_queries: jax.Array,
    guide_documents: jax.Array,
    guide_negatives: jax.Array | None = None,
    temperature: float | jax.Array = 0.01,
    margin: float = 0.0,
    strategy: str = "absolute",
    contrast_queries: bool = True,
    contrast_documents: bool = True,
    tile: int = TILE,
) -> jax.Array:
    """`info_nce` with the mask `masks.guided`, and with other queries and other documents as negatives, too.

    The guide's embeddings may come from the batch (computed ahead) or from a frozen model; they get no gradient.

    Args:
      queries, documents: `[N, D]`.
      negatives: `[N, K, D]` or `[N, D]`.
      guide_queries, guide_documents, guide_negatives: the guide's embeddings of the same texts, of any dimension.
      temperature: > 0.
      margin, strategy: of the mask, see `masks.guided`.
      contrast_queries: count other queries as negatives (direction q2q).
      contrast_documents: count other documents as negatives of the own document (direction p2p).
      tile: as in `info_nce`.

    Returns:
      f32 `[N]`; the mean is the value of sentence-transformers' GISTEmbedLoss, but for one case: a record's own query
      and document are never its negatives, also where the guide gives both the same embedding. A NaN of the guide
      gives NaN.

    Raises:
      ValueError: as `info_nce` and `masks.guided`.

    References:
      Solatorio 2024, arXiv 2402.16829.
    """
    directions: list[Direction] = ["q2d"]
    if contrast_queries:
        directions.append("q2q")
    if contrast_documents:
        directions.append("p2p")
    mask = guided(guide_queries, guide_documents, guide_negatives, margin=margin, strategy=strategy)
    return info_nce(queries, documents, negatives, temperature=temperature, directions=directions, mask=mask, tile=tile)
