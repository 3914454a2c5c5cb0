"""CoSENT: pairs of texts with graded scores, trained on the order of the scores alone."""

import jax
import jax.numpy as jnp

from jaxemb.checks import positive
from jaxemb.losses.program import one_program
from jaxemb.nn.similarity import Similarity, paired, similarity_function


@one_program(scale=positive)
def cosent(
    first: jax.Array,
    second: jax.Array,
    scores: jax.Array,
    *,
    scale: float = 20.0,
    similarity: str | Similarity = "cosine",
) -> jax.Array:
    """Ranks pairs of texts by their scores: `pair_ranking` of `s_i = s(first_i, second_i)`.

    >>> print(cosent(jnp.eye(2), jnp.eye(2)[jnp.array([0, 0])], jnp.array([0.2, 0.9])))  # the wrong order
    [20. 20.]

    Args:
      first, second: the two texts of each pair, `[N, D]`.
      scores: how similar people find them, any unit, larger is more alike, `[N]`.
      scale: > 0.
      similarity: "cosine", "dot", "euclidean", or a function `[..., N, D], [..., M, D] -> [..., N, M]`.

    Returns:
      f32 `[N]`, N times the same number, whose mean is the value of sentence-transformers' CoSENTLoss.

    Raises:
      ValueError: for shapes that do not fit or a scale <= 0.

    References:
      Su 2022, https://kexue.fm/archives/8847.
    """
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(f"first and second must both be [N, D]; got {first.shape} and {second.shape}")
    return pair_ranking(paired(similarity_function(similarity), first, second), scores, scale=scale)


@one_program(scale=positive)
def pair_ranking(similarities: jax.Array, scores: jax.Array, *, scale: float = 20.0) -> jax.Array:
    """A smooth count of the wrongly ordered pairs of examples:

        L = log(1 + sum_{(i, j): scores_i < scores_j} exp(scale (s_i - s_j)))

    The sum has O(N^2) terms; sorted by score, the inner sum over i is a running one, so N log N work and N memory do.

    >>> print(pair_ranking(jnp.array([0.9, 0.1]), jnp.array([1.0, 0.0]), scale=1.0))  # log(1 + exp(0.1 - 0.9))
    [0.371... 0.371...]

    Args:
      similarities: `[N]`.
      scores: `[N]`; examples of equal score are not compared.
      scale: > 0.

    Returns:
      f32 `[N]`. L belongs to the whole batch, so every example gets it: the mean is L, and its gradient L's.

    Raises:
      ValueError: for shapes that do not fit or a scale <= 0.
    """
    if similarities.ndim != 1 or jnp.shape(scores) != similarities.shape:
        raise ValueError(f"similarities and scores must both be [N]; got {similarities.shape} and {jnp.shape(scores)}")
    scores = jnp.asarray(scores)
    order = jnp.argsort(scores)
    ranked, logits = scores[order], scale * similarities[order]
    n_lower = jnp.searchsorted(ranked, ranked, side="left")  # examples of a strictly lower score
    lower = jax.lax.cumlogsumexp(logits)[n_lower - 1]
    terms = jnp.where(n_lower > 0, lower - logits, -jnp.inf)
    loss = jax.nn.logsumexp(jnp.append(terms, 0.0))
    loss = jnp.where(jnp.isnan(scores).any(), jnp.nan, loss)  # which sorts as the largest
    return jnp.full(similarities.shape, loss)
