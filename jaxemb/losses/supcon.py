"""SupCon: all texts of a label are each other's positives."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxemb.checks import positive, shapes
from jaxemb.losses.masks import same_label
from jaxemb.losses.program import one_program
from jaxemb.losses.records import Tile, make_records
from jaxemb.losses.reductions import LOG_SUM_EXP, SUM, TILE, constant
from jaxemb.nn.similarity import Similarity


def _some_alike(name: str, labels) -> None:
    known = np.asarray(labels)[np.asarray(labels) != -1]
    if len(np.unique(known)) == len(known):
        raise ValueError(f"no two of the {len(labels)} {name} are the same, so that no text has a positive")


@one_program(shapes(embeddings="N D", labels="N"), labels=_some_alike, temperature=positive)
def supcon(
    embeddings: jax.Array,
    labels: jax.Array,
    *,
    temperature: float | jax.Array = 0.07,
    similarity: str | Similarity = "cosine",
    tile: int = TILE,
) -> jax.Array:
    """Supervised contrastive loss, the form with the sum over positives outside the logarithm.

    With `z_ij = s(x_i, x_j) / temperature` and the others of the same label `P_i`:

        loss_i = log sum_{j != i} exp(z_ij) - mean_{p in P_i} z_ip

    Several views of one text are several rows with one label.

    >>> print(supcon(jnp.eye(3)[jnp.array([0, 0, 1])], jnp.array([0, 0, 1]), temperature=1.0))
    [0.4698... 0.4698... 0. ]

    Args:
      embeddings: `[N, D]`.
      labels: integers, `[N]`; -1 is the label of no other.
      temperature: > 0.
      similarity: as in `info_nce`.
      tile: rows whose logits exist at a time.

    Returns:
      f32 `[N]`. Rows without a positive have 0 and the others are scaled by N / (their number), so that the mean over
      all rows is the mean over those that have one.

    Raises:
      ValueError: for shapes that do not fit, a temperature <= 0, or labels of which no two are the same.

    References:
      Khosla et al. 2020, arXiv 2004.11362, equation 2 (without the factor temperature / base temperature, which is 1).
    """
    records = make_records(embeddings, embeddings, similarity=similarity, mask=same_label(labels))
    entries = Partial(_by_label, 1 / jnp.float32(temperature))
    total, positives, count = records.reduce(entries, (LOG_SUM_EXP, SUM, constant(SUM)), tile=tile)
    has_positive = count > 0
    loss = jnp.where(has_positive, jnp.where(has_positive, total, 0.0) - positives / jnp.maximum(count, 1.0), 0.0)
    return loss * len(labels) / jnp.maximum(has_positive.sum(), 1)


def _by_label(inverse_temperature, tile: Tile):
    logits = (tile.similarity - tile.positive[:, None]) * inverse_temperature
    positive = tile.removed  # what the mask calls no negative is a positive here
    return jnp.where(tile.own, -jnp.inf, logits), jnp.where(positive, logits, 0.0), 1.0 * positive
