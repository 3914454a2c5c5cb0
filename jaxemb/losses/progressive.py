"""Weights of a batch's records by the difficulty of their negatives, changing as training advances (PEG)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxemb.checks import finite, positive
from jaxemb.losses.masks import Mask
from jaxemb.losses.program import one_program
from jaxemb.losses.records import Tile, make_records
from jaxemb.losses.reductions import LOG_SUM_EXP, TILE, top
from jaxemb.nn.similarity import Similarity


def _at_least_1(name: str, value) -> None:
    if not np.asarray(value) >= 1:
        raise ValueError(f"{name} must be >= 1; got {value}")


class Weighted(NamedTuple):
    """Losses and what their weights came from; all `[N]`, f32.

    Attributes:
      losses: `weights * InfoNCE`.
      weights: of mean 1, without gradient.
      difficulty: mean similarity of the hardest negatives minus that of the positive.
    """

    losses: jax.Array
    weights: jax.Array
    difficulty: jax.Array


@one_program(alpha=finite, max_weight=_at_least_1, temperature=positive)
def progressive_info_nce(
    queries: jax.Array,
    documents: jax.Array,
    negatives: jax.Array | None = None,
    *,
    alpha: float | jax.Array,
    hardest: int = 5,
    max_weight: float = 5.0,
    temperature: float | jax.Array = 0.02,
    similarity: str | Similarity = "cosine",
    mask: Mask | jax.Array | None = None,
    tile: int = TILE,
) -> Weighted:
    """InfoNCE of each record times `progressive_weights` of its difficulty

        delta_i = mean of the `hardest` largest s(q_i, c) over the allowed negatives c - s(q_i, d_i)

    The largest ones come from the same pass over the similarities as the loss.

    Args:
      queries, documents, negatives, temperature, similarity, mask, tile: as in `info_nce`.
      alpha: < 0 favours easy records, > 0 difficult ones, 0 is InfoNCE; let it follow a schedule of the step.
      hardest: number of negatives that make the difficulty, at least 1.
      max_weight: see `progressive_weights`.

    Raises:
      ValueError: as `info_nce` and `progressive_weights`, or for hardest < 1.

    References:
      Wu et al. 2023 (PEG), arXiv 2311.11691, weights every record by the difficulty of its negatives as training
      advances but gives no equation that could be confirmed: this one is ours.
    """
    if hardest < 1:
        raise ValueError(f"hardest must be at least 1; got {hardest}")
    records = make_records(queries, documents, negatives, similarity=similarity, mask=mask)
    entries = Partial(_logits_and_similarities, 1 / jnp.float32(temperature))
    losses, negative = records.reduce(entries, (LOG_SUM_EXP, top(hardest)), tile=tile)
    exists = negative > -jnp.inf
    mean = jnp.where(exists, negative, 0.0).sum(axis=1) / jnp.maximum(exists.sum(axis=1), 1)
    difficulty = jnp.where(exists[:, 0], mean - jax.lax.stop_gradient(records.positive), 0.0)
    weights = progressive_weights(difficulty, alpha=alpha, max_weight=max_weight)
    return Weighted(weights * losses, weights, difficulty)


@one_program(alpha=finite, max_weight=_at_least_1)
def progressive_weights(difficulty: jax.Array, *, alpha: float | jax.Array, max_weight: float = 5.0) -> jax.Array:
    """`w_i = N softmax_i(alpha difficulty_i)`, clipped to [1 / max_weight, max_weight] and made to have mean 1 again.

    Args:
      difficulty: `[N]`, of the whole batch on all devices.
      alpha: finite; 0 gives ones.
      max_weight: >= 1, may be infinite.

    Returns:
      f32 `[N]`, without gradient.

    Raises:
      ValueError: for a shape other than [N], a max_weight < 1, or an alpha that is not finite.
    """
    if difficulty.ndim != 1:
        raise ValueError(f"difficulty must be [N]; got {difficulty.shape}")
    weights = len(difficulty) * jax.nn.softmax(alpha * jax.lax.stop_gradient(difficulty).astype(jnp.float32))
    weights = jnp.clip(weights, 1 / max_weight, max_weight)
    return weights / weights.mean()


def _logits_and_similarities(inverse_temperature, tile: Tile):
    logits = (tile.similarity - tile.positive[:, None]) * inverse_temperature
    negative = jnp.where(tile.removed | tile.is_positive, -jnp.inf, jax.lax.stop_gradient(tile.similarity))
    return jnp.where(tile.removed, -jnp.inf, logits), negative
