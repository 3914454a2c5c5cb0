"""AnglE: pairs of texts ranked by the angle between their embeddings as complex vectors."""

import jax
import jax.numpy as jnp

from jaxemb.checks import positive, shapes
from jaxemb.losses.cosent import pair_ranking
from jaxemb.losses.program import one_program
from jaxemb.nn.similarity import unit


@one_program(shapes(first="N D", second="N D"))
def angle_similarity(first: jax.Array, second: jax.Array) -> jax.Array:
    """How alike two embeddings are when their first half holds real and their second half imaginary parts.

    With `u = a + ib` and `v = c + id`, halves of unit vectors,

        s(u, v) = |Re <u, v> + Im <u, v>| = |ac + bd + bc - ad|,   in 0..sqrt(2)

    where the cosine alone has a gradient that vanishes near 1. This is AnglE's sum over the quotient `u / v` scaled by
    the lengths of both, in which the division cancels. An odd dimension is padded with one zero.

    Args:
      first, second: `[N, D]`.

    Returns:
      f32 `[N]`.

    Raises:
      ValueError: for shapes that do not fit.

    References:
      Li & Li 2024, https://arxiv.org/abs/2309.12871.
    """
    odd = first.shape[1] % 2
    u, v = (unit(jnp.pad(x, ((0, 0), (0, odd)))) for x in (first, second))
    (a, b), (c, d) = jnp.split(u, 2, axis=1), jnp.split(v, 2, axis=1)
    return jnp.abs(jnp.sum(a * c + b * d + b * c - a * d, axis=1))


@one_program(shapes(first="N D", second="N D", scores="N"), scale=positive)
def angle(first: jax.Array, second: jax.Array, scores: jax.Array, *, scale: float = 20.0) -> jax.Array:
    """Ranks pairs of texts by their scores: `pair_ranking` of `s_i = angle_similarity(first_i, second_i)`.

    AnglE as a whole is a weighted sum of this, `cosent` and `info_nce`.

    Args:
      first, second: the two texts of each pair, `[N, D]`.
      scores: how similar people find them, any unit, larger is more alike, `[N]`.
      scale: > 0.

    Returns:
      f32 `[N]`, N times the same number, whose mean is the value of sentence-transformers' AnglELoss.

    Raises:
      ValueError: for shapes that do not fit or a scale <= 0.

    References:
      Li & Li 2024, https://arxiv.org/abs/2309.12871.
    """
    return pair_ranking(angle_similarity(first, second), scores, scale=scale)


@one_program(shapes(queries="N D", documents="N D", negatives="N K D | N D"), scale=positive)
def angle_with_negatives(
    queries: jax.Array, documents: jax.Array, negatives: jax.Array, *, scale: float = 20.0
) -> jax.Array:
    """`angle` for records without scores: each pair of query and document ranks above each of query and negative.

    Args:
      queries, documents: `[N, D]`.
      negatives: hard negatives of each query, `[N, K, D]` (or `[N, D]` for K = 1).
      scale: > 0.

    Returns:
      f32 `[N]`, N times the same number, whose mean is the value of AnglELoss with more than two columns.

    Raises:
      ValueError: for shapes that do not fit or a scale <= 0.
    """
    if negatives.ndim == 2:
        negatives = negatives[:, None, :]
    n, dim = queries.shape
    candidates = jnp.concatenate([documents[:, None, :], negatives], axis=1)
    per_query = candidates.shape[1]
    similarities = angle_similarity(jnp.repeat(queries, per_query, axis=0), candidates.reshape(-1, dim))
    return pair_ranking(similarities, jnp.tile(jnp.arange(per_query) == 0, n), scale=scale)[:n]
