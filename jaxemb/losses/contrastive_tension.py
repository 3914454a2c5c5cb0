"""Contrastive tension: two copies of a model learn, without labels, to agree on a sentence and on nothing else."""

import jax
import jax.numpy as jnp
import optax

from jaxemb.checks import positive, shapes
from jaxemb.losses.info_nce import symmetric_info_nce
from jaxemb.losses.masks import Mask
from jaxemb.losses.program import one_program
from jaxemb.losses.reductions import TILE
from jaxemb.nn.classes import check_shares
from jaxemb.nn.similarity import Similarity, dot, paired


@one_program(shapes(first="N D", second="N D", labels="N"), labels=check_shares)
def contrastive_tension(first: jax.Array, second: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether two sentences are the same one, told by the inner product of one model's and the other model's embedding:

        L = sum_i BCE(sigmoid(<first_i, second_i>), labels_i)

    The two models start as copies and drift apart; the second is kept. The paper draws 7 pairs of different sentences
    for each pair of identical ones.

    Args:
      first: the first model's embedding of one sentence of each pair, `[N, D]`.
      second: the second model's embedding of the other, `[N, D]`.
      labels: 1 = the same sentence, 0 = different ones, `[N]`.

    Returns:
      f32 `[N]`, N times the term of each pair, whose mean is L, the value of sentence-transformers'
      ContrastiveTensionLoss. L is a sum: it grows with the batch.

    Raises:
      ValueError: for shapes that do not fit, or labels outside 0..1.

    References:
      Carlsson et al. 2021, https://openreview.net/forum?id=Ov_sMNau-PF.
    """
    labels = jnp.asarray(labels, jnp.float32)
    return len(labels) * optax.losses.sigmoid_binary_cross_entropy(paired(dot, first, second), labels)


@one_program(shapes(first="N D", second="N D"), temperature=positive)
def contrastive_tension_in_batch(
    first: jax.Array,
    second: jax.Array,
    *,
    temperature: float | jax.Array = 0.05,
    similarity: str | Similarity = "cosine",
    mask: Mask | jax.Array | None = None,
    tile: int = TILE,
) -> jax.Array:
    """Contrastive tension whose pairs of different sentences are all those of the batch: `symmetric_info_nce`.

    Args:
      first: the first model's embeddings of N sentences, `[N, D]`.
      second: the second model's embeddings of the same sentences, `[N, D]`.
      temperature: > 0; the reference trains `log(1 / temperature)`, from log 20.
      similarity, mask, tile: as in `info_nce`.

    Returns:
      f32 `[N]`, whose mean is the value of sentence-transformers' ContrastiveTensionLossInBatchNegatives.

    Raises:
      ValueError: as `info_nce`.
    """
    return symmetric_info_nce(first, second, temperature=temperature, similarity=similarity, mask=mask, tile=tile)
