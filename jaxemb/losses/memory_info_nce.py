"""InfoNCE against documents of earlier batches."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxemb.checks import positive
from jaxemb.losses.program import one_program
from jaxemb.losses.reductions import LOG_SUM_EXP, TILE, at
from jaxemb.losses.rows import reduce_rows
from jaxemb.nn.similarity import Similarity, paired, similarity_function


@one_program(temperature=positive)
def memory_info_nce(
    queries: jax.Array,
    documents: jax.Array,
    memory: jax.Array,
    ids: jax.Array,
    memory_ids: jax.Array,
    *,
    temperature: float | jax.Array = 0.05,
    similarity: str | Similarity = "cosine",
    tile: int = TILE,
) -> jax.Array:
    """InfoNCE whose negatives are embeddings that all queries share, such as those of earlier batches:

        loss_i = log(1 + sum_m exp((s(q_i, memory_m) - s(q_i, d_i)) / temperature))

    over the m whose id is neither -1 nor that of record i. The memory has no gradient.

    Args:
      queries, documents: `[N, D]`.
      memory: `[M, D]`; M is not limited by the square of anything, as N x M logits are formed `tile` rows at a time.
      ids: of the records, integers `[N]`.
      memory_ids: of the records that the memory's documents belong to, `[M]`; -1 where there is none yet.
      temperature: > 0.
      similarity: as in `info_nce`.
      tile: queries whose logits exist at a time, on each device.

    Returns:
      f32 `[N]`; 0 where nothing in the memory is a negative.

    Raises:
      ValueError: for shapes that do not fit or a temperature <= 0.

    References:
      Wang et al. 2020 (cross-batch memory), arXiv 1912.06798.
    """
    if queries.ndim != 2 or queries.shape != documents.shape or memory.shape[1:] != queries.shape[1:]:
        raise ValueError(
            "queries and documents must be [N, D], memory [M, D]; "
            f"got {queries.shape}, {documents.shape} and {memory.shape}"
        )
    if jnp.shape(ids) != queries.shape[:1] or jnp.shape(memory_ids) != memory.shape[:1]:
        raise ValueError(
            f"ids must be [N], memory_ids [M] with N = {len(queries)}, M = {len(memory)}; "
            f"got {jnp.shape(ids)} and {jnp.shape(memory_ids)}"
        )
    similarity = similarity_function(similarity)
    (total,) = reduce_rows(
        Partial(_Logits(similarity), 1 / jnp.float32(temperature), jnp.asarray(ids), jnp.asarray(memory_ids)),
        (LOG_SUM_EXP,),
        (queries, paired(similarity, queries, documents)),
        jax.lax.stop_gradient(memory),
        tile=tile,
    )
    return jnp.logaddexp(0.0, total)


@dataclasses.dataclass(frozen=True)
class _Logits:
    similarity: Similarity

    def __call__(self, inverse_temperature, ids, memory_ids, rows, memory, i, j):
        queries, positive = rows
        ids, memory_ids = at(ids, i), at(memory_ids, j)
        logits = (self.similarity(queries, memory) - positive[:, None]) * inverse_temperature
        absent = (memory_ids == -1)[None, :] | (ids[:, None] == memory_ids[None, :])
        return (jnp.where(absent, -jnp.inf, logits),)
