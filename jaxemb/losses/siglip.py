"""SigLIP: every pair of a batch is a question of its own, answered yes or no."""

import math

import jax
import jax.numpy as jnp

from jaxemb.losses.masks import Mask
from jaxemb.losses.records import Tile, make_records
from jaxemb.losses.reductions import SUM, TILE
from jaxemb.nn.similarity import Similarity


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
    if not isinstance(temperature, jax.core.Tracer) and not temperature > 0:
        raise ValueError(f"temperature must be > 0; got {temperature}")
    if not isinstance(bias, jax.core.Tracer) and not math.isfinite(bias):
        raise ValueError(f"bias must be finite; got {bias}")
    records = make_records(queries, documents, negatives, similarity=similarity, mask=mask)
    shared = (1 / jnp.float32(temperature), jnp.float32(bias))
    return records.reduce(_surprise, (SUM,), shared, tile=tile)[0]


def _surprise(shared, tile: Tile):
    """`-log sigmoid(y z)`."""
    inverse_temperature, bias = shared
    logits = tile.similarity * inverse_temperature + bias
    return (jnp.where(tile.removed, 0.0, jax.nn.softplus(jnp.where(tile.is_positive, -logits, logits))),)
