"""SigLIP: every pair of a batch is a question of its own, answered yes or no."""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxemb.checks import finite, positive
from jaxemb.losses.masks import Mask
from jaxemb.losses.program import one_program
from jaxemb.losses.records import Tile, make_records
from jaxemb.losses.reductions import SUM, TILE
from jaxemb.nn.similarity import Similarity


@one_program(temperature=positive, bias=finite)
def siglip(
    queries: jax.Array,
    documents: jax.Array,
    negatives: jax.Array | None = None,
    *,
    temperature: float | jax.Array = 0.1,
    bias: float | jax.Array = -10.0,
    similarity: str | Similarity = "cosine",
    mask: Mask | jax.Array | None = None,
    tile: int = TILE,
) -> jax.Array:
    """The sigmoid loss. With `y_ic` = +1 for the own document, -1 for every other candidate:

        loss_i = -sum_{c allowed} log sigmoid(y_ic (s(q_i, c) / temperature + bias))

    >>> print(siglip(jnp.eye(2), jnp.eye(2), temperature=1.0, bias=0.0))  # log(1 + 1/e) + log 2
    [1.006... 1.006...]

    Args:
      queries, documents, negatives, similarity, mask, tile: as in `info_nce`.
      temperature: > 0; usually trained as `exp(-t)` from t = log 10.
      bias: usually trained, from -10, so that a batch of mostly negatives begins near its optimum.

    Returns:
      f32 `[N]`: a sum over candidates, whose mean over the queries is the paper's loss (divided by N, not N^2).

    Raises:
      ValueError: for shapes that do not fit or a temperature <= 0.

    References:
      Zhai et al. 2023, arXiv 2303.15343, equation 1 and algorithm 1.
    """
    records = make_records(queries, documents, negatives, similarity=similarity, mask=mask)
    return records.reduce(Partial(_surprise, 1 / jnp.float32(temperature), bias), (SUM,), tile=tile)[0]


def _surprise(inverse_temperature, bias, tile: Tile):
    """`-log sigmoid(y z)`."""
    logits = tile.similarity * inverse_temperature + bias
    return (jnp.where(tile.removed, 0.0, jax.nn.softplus(jnp.where(tile.is_positive, -logits, logits))),)
