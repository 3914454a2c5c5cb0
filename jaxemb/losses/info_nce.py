"""InfoNCE, also known as multiple-negatives ranking: the right document against all others of the batch."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxemb.checks import non_negative, positive
from jaxemb.losses.masks import Mask, Side
from jaxemb.losses.program import one_program
from jaxemb.losses.records import Tile, make_records
from jaxemb.losses.reductions import LOG_SUM_EXP, TILE
from jaxemb.nn.similarity import Similarity

Direction = Literal["q2d", "d2q", "q2q", "d2d", "p2p"]
Partition = Literal["joint", "per_direction"]
Hardness = Literal["in_batch_negatives", "hard_negatives", "all_negatives"]

# Of each direction: the texts on the rows' side and on the columns', and whether a record's own texts are left out.
_BLOCKS: dict[str, tuple[Side, Side, bool]] = {
    "q2d": ("queries", "candidates", False),
    "d2q": ("documents", "queries", False),
    "q2q": ("queries", "queries", True),
    "d2d": ("documents", "candidates", True),
    "p2p": ("documents", "documents", True),
}


@one_program(temperature=positive, hardness_strength=non_negative)
def info_nce(
    queries: jax.Array,
    documents: jax.Array,
    negatives: jax.Array | None = None,
    *,
    temperature: float | jax.Array = 0.05,
    similarity: str | Similarity = "cosine",
    directions: Sequence[Direction] = ("q2d",),
    partition: Partition = "joint",
    mask: Mask | jax.Array | None = None,
    hardness: Hardness | None = None,
    hardness_strength: float = 0.0,
    tile: int = TILE,
) -> jax.Array:
    """Cross-entropy of picking each query's own document among all candidates of the batch.

    The candidates c are all N documents, then all hard negatives slot by slot: M = N (1 + K) of them. With
    `z_ic = s(q_i, c) / temperature` and the own document in column i,

        loss_i = log sum_{c allowed} exp(z_ic) - z_ii

    `directions` adds blocks of logits to the sum over the candidates of query i:

        q2d  s(q_i, c)     every candidate; always there
        d2q  s(q_j, d_i)   every query against the own document (the positive pair is in this block as well)
        q2q  s(q_i, q_j)   every other query
        d2d  s(d_i, c)     every candidate except those of record i
        p2p  s(d_i, d_j)   every other record's document (d2d without the hard negatives)

    `partition="joint"` is one softmax over all blocks (all four directions: the GTE loss); `"per_direction"` averages
    one cross-entropy per block and allows q2d and d2q only, as the others do not hold the positive.

    No `[N, M]` array is formed for more than `tile` queries: memory is O(M D + tile M), with the gradient (see
    `jaxemb.losses.reductions`). Under `jax.set_mesh`, each device takes its part of the records.

    >>> print(info_nce(jnp.eye(2), jnp.eye(2), temperature=1.0))  # log(1 + 1/e)
    [0.313... 0.313...]

    Args:
      queries: `[N, D]`.
      documents: the positive document of each query, `[N, D]`.
      negatives: hard negatives of each query, `[N, K, D]` (or `[N, D]` for K = 1).
      temperature: > 0; the inverse of sentence-transformers' `scale`.
      similarity: "cosine", "dot", "euclidean" (negative distance), or a function `[N, D], [M, D] -> [N, M]`.
      directions: which blocks; "q2d" must be among them.
      partition: "joint" or "per_direction".
      mask: false negatives, such as `masks.duplicates(...)`; or bool `[N, M]`, columns in the order of the candidates
        above, False where candidate c is no negative of record i. The own positive is never masked.
      hardness: which of q2d's negatives get harder: those of other records, the own hard ones, or both. Their logits
        grow by `hardness_strength * stop_gradient(s)` (Lan et al. 2025, eq. 5), after the temperature.
      hardness_strength: >= 0.
      tile: queries (or documents) whose logits exist at a time, on each device.

    Returns:
      f32 `[N]`, whose mean is the value of sentence-transformers' MultipleNegativesRankingLoss. A row whose negatives
      are all masked has loss 0 and gradient 0.

    Raises:
      ValueError: for shapes that do not fit, a temperature <= 0, unknown or impossible directions and options.

    References:
      van den Oord et al. 2018 (InfoNCE); Henderson et al. 2017 (in-batch negatives); Li et al. 2023 (GTE).
    """
    _check_options(directions, partition, hardness)
    records = make_records(queries, documents, negatives, similarity=similarity, mask=mask)
    blocks: list[jax.Array] = []
    for direction in directions:
        rows, columns, without_own = _BLOCKS[direction]
        harder = hardness if direction == "q2d" else None
        entries = Partial(_Logits(without_own, harder), 1 / jnp.float32(temperature), hardness_strength)
        blocks += records.reduce(entries, (LOG_SUM_EXP,), rows=rows, columns=columns, tile=tile)
    if partition == "joint":
        return functools.reduce(jnp.logaddexp, blocks)
    return jnp.mean(jnp.stack(blocks), axis=0)


@dataclasses.dataclass(frozen=True)
class _Logits:
    """Logits relative to the positive's, so that small losses do not drown in the rounding of large logits."""

    without_own: bool
    hardness: Hardness | None

    def __call__(self, inverse_temperature, strength, tile: Tile):
        logits = (tile.similarity - tile.positive[:, None]) * inverse_temperature
        if self.hardness is not None:
            harder = {
                "in_batch_negatives": ~tile.own,
                "hard_negatives": tile.own & ~tile.is_positive,
                "all_negatives": ~tile.is_positive,
            }[self.hardness]
            logits += jnp.where(harder, strength * jax.lax.stop_gradient(tile.similarity), 0.0)
        removed = tile.removed | tile.own if self.without_own else tile.removed
        return (jnp.where(removed, -jnp.inf, logits),)


@one_program(temperature=positive)
def symmetric_info_nce(
    queries: jax.Array,
    documents: jax.Array,
    *,
    temperature: float | jax.Array = 0.05,
    similarity: str | Similarity = "cosine",
    mask: Mask | jax.Array | None = None,
    tile: int = TILE,
) -> jax.Array:
    """CLIP's loss: the mean of the cross-entropies query to document and document to query.

    `info_nce` with directions q2d and d2q, each with its own softmax; `temperature` may be a trained scalar.

    Returns:
      f32 `[N]`, whose mean is CLIP's loss (Radford et al. 2021, figure 3) with `logit_scale = 1 / temperature`.

    Raises:
      ValueError: as `info_nce`.
    """
    return info_nce(
        queries,
        documents,
        temperature=temperature,
        similarity=similarity,
        directions=("q2d", "d2q"),
        partition="per_direction",
        mask=mask,
        tile=tile,
    )


def _check_options(directions, partition, hardness) -> None:
    known = _BLOCKS.keys()
    if "q2d" not in directions or not set(directions) <= known or len(set(directions)) != len(directions):
        raise ValueError(f"directions must be distinct ones of {sorted(known)} with 'q2d'; got {tuple(directions)}")
    if partition not in ("joint", "per_direction"):
        raise ValueError(f"partition must be 'joint' or 'per_direction'; got {partition!r}")
    if partition == "per_direction" and not set(directions) <= {"q2d", "d2q"}:
        raise ValueError(
            f"partition='per_direction' needs the positive in every direction, which q2q, d2d and p2p lack; "
            f"got directions={tuple(directions)}"
        )
    if hardness not in (None, "in_batch_negatives", "hard_negatives", "all_negatives"):
        raise ValueError(
            f"hardness must be 'in_batch_negatives', 'hard_negatives', 'all_negatives' or None; got {hardness!r}"
        )
