"""Variants of InfoNCE that change what the softmax divides by: decoupled and hardness-weighted denominators."""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxemb.checks import non_negative, positive
from jaxemb.losses.masks import Mask
from jaxemb.losses.program import one_program
from jaxemb.losses.records import Tile, make_records
from jaxemb.losses.reductions import LOG_SUM_EXP, SUM, TILE, constant
from jaxemb.nn.similarity import Similarity


@one_program(temperature=positive, sigma=positive)
def decoupled_contrastive(
    queries: jax.Array,
    documents: jax.Array,
    negatives: jax.Array | None = None,
    *,
    temperature: float | jax.Array = 0.1,
    sigma: float | None = None,
    similarity: str | Similarity = "cosine",
    mask: Mask | jax.Array | None = None,
    tile: int = TILE,
) -> jax.Array:
    """InfoNCE without the positive in the denominator (DCL). With `z_ic = s(q_i, c) / temperature`:

        loss_i = -w_i z_ii + log sum_{c allowed, not d_i} exp(z_ic)

    w = 1, or with `sigma` (DCLW) `w_i = 2 - exp(s_ii / sigma) / mean_k exp(s_kk / sigma)`, without gradient.

    Args:
      queries, documents, negatives, similarity, mask, tile: as in `info_nce`.
      temperature: > 0.
      sigma: > 0 for DCLW (the paper has 0.5), None for DCL.

    Returns:
      f32 `[N]`, possibly negative; 0 for a row without negatives.

    Raises:
      ValueError: for shapes that do not fit, or a temperature or sigma <= 0.

    References:
      Yeh et al. 2022, arXiv 2110.06848, equations 5 and 6.
    """
    records = make_records(queries, documents, negatives, similarity=similarity, mask=mask)
    inverse_temperature = 1 / jnp.float32(temperature)
    (relative,) = records.reduce(Partial(_negative_logits, inverse_temperature), (LOG_SUM_EXP,), tile=tile)
    loss = jnp.where(relative == -jnp.inf, 0.0 * records.positive, relative)  # which keeps a NaN
    if sigma is not None:
        weights = 2 - jax.nn.softmax(jax.lax.stop_gradient(records.positive) / sigma) * len(queries)
        loss += jnp.where(relative == -jnp.inf, 0.0, (1 - weights) * records.positive * inverse_temperature)
    return loss


@one_program(temperature=positive, alpha=positive, beta=non_negative)
def hard_negative_nce(
    queries: jax.Array,
    documents: jax.Array,
    negatives: jax.Array | None = None,
    *,
    temperature: float | jax.Array = 0.05,
    alpha: float = 1.0,
    beta: float = 0.0,
    similarity: str | Similarity = "cosine",
    mask: Mask | jax.Array | None = None,
    tile: int = TILE,
) -> jax.Array:
    """InfoNCE whose negatives count by their hardness (HN-NCE of DiHT):

        loss_i = log(alpha exp(z_ii) + sum_c w_ic exp(z_ic)) - z_ii
        w_ic = C_i exp(beta z_ic) / sum_c' exp(beta z_ic')

    with sums over the C_i allowed negatives c of row i; w has no gradient. alpha = 1 and beta = 0 is `info_nce`.

    Args:
      queries, documents, negatives, similarity, mask, tile: as in `info_nce`.
      temperature: > 0.
      alpha: weight of the positive in the denominator, > 0.
      beta: >= 0; larger values count hard negatives more.

    Returns:
      f32 `[N]`.

    Raises:
      ValueError: for shapes that do not fit, a temperature or alpha <= 0, or a beta < 0.

    References:
      Radenovic et al. 2023, arXiv 2301.02280, equation 4.
    """
    records = make_records(queries, documents, negatives, similarity=similarity, mask=mask)
    hard, normaliser, count = records.reduce(
        Partial(_by_hardness, 1 / jnp.float32(temperature), beta),
        (LOG_SUM_EXP, constant(LOG_SUM_EXP), constant(SUM)),
        tile=tile,
    )
    any_negative = count > 0
    total = jnp.where(any_negative, hard - normaliser + jnp.log(jnp.maximum(count, 1.0)), -jnp.inf)
    total += 0.0 * records.positive  # which keeps a NaN where there is no negative
    return jnp.logaddexp(jnp.log(jnp.float32(alpha)), total)


def _negative_logits(inverse_temperature, tile: Tile):
    """Logits relative to the positive's, without it."""
    logits = (tile.similarity - tile.positive[:, None]) * inverse_temperature
    return (jnp.where(tile.removed | tile.is_positive, -jnp.inf, logits),)


def _by_hardness(inverse_temperature, beta, tile: Tile):
    (logits,) = _negative_logits(inverse_temperature, tile)
    absent = tile.removed | tile.is_positive
    hardness = jnp.where(absent, -jnp.inf, beta * jax.lax.stop_gradient(jnp.where(absent, 0.0, logits)))
    return logits + jnp.where(absent, 0.0, hardness), hardness, 1.0 - absent
