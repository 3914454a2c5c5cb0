"""Cross-batch memory: the embeddings of earlier batches as more negatives."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxemb.checks import at_least, checked
from jaxemb.losses.memory_info_nce import memory_info_nce
from jaxemb.losses.reductions import TILE
from jaxemb.nn.similarity import Similarity
from jaxemb.transforms.base import Transform, Variables, output_of
from jaxemb.trees import PyTree


class Memory(NamedTuple):
    """A ring of embeddings.

    Attributes:
      embeddings: f32 `[M, D]`; the oldest are at `next`, the newest before it, round the end of the array.
      ids: those of their records, int32 `[M]`; -1 for places still empty.
      next: the place that is written next, int32 scalar.
    """

    embeddings: jax.Array
    ids: jax.Array
    next: jax.Array


@checked(tile=at_least(1))
def cross_batch_memory(
    size: int,
    dim: int,
    *,
    query: str = "query",
    document: str = "document",
    weight: float = 1.0,
    start: int = 0,
    temperature: float = 0.05,
    similarity: str | Similarity = "cosine",
    tile: int = TILE,
) -> Transform:
    """Adds `weight * mean_i memory_info_nce` against the documents of the last batches to the loss.

    As long as the model moves slowly, embeddings of some steps ago are still about right, and come without another
    forward pass: a batch of N sees `size` negatives more for N x size x dim multiplications and size x dim floats.
    A document of the same record, from an earlier epoch, is no negative. Works with every objective that returns the
    embeddings of its columns, as `on_columns` does, and with cached gradients and accumulation.

    Args:
      size: documents that are remembered, first in, first out; at least 1. A step writes only the places of its own.
      dim: D of the embeddings.
      query, document: the objective's outputs that are compared, `[N, D]` each.
      weight: > 0; 1 in the paper.
      start: steps before the memory counts; while the model changes fast, what it remembers is wrong.
      temperature, similarity, tile: as in `memory_info_nce`.

    Raises:
      ValueError: for a size, dim, weight, temperature or tile that is not positive, or a negative start; in the first
        step, if the objective's outputs lack one of the columns or have another D.

    References:
      Wang et al. 2020, arXiv 1912.06798.
    """
    for name, value in {"size": size, "dim": dim, "weight": weight, "temperature": temperature}.items():
        if not value > 0:
            raise ValueError(f"{name} must be > 0; got {value}")
    if start < 0:
        raise ValueError(f"start must be >= 0; got {start}")

    def init(key: jax.Array, model: PyTree) -> Variables:
        nothing = jnp.zeros((size, dim), jnp.float32), jnp.full(size, -1, jnp.int32)
        return Variables(state=Memory(*nothing, next=jnp.zeros((), jnp.int32)))

    def auxiliary_loss(context, params, memory: Memory) -> jax.Array:
        queries, documents = (output_of(context, name, "cross_batch_memory", dim) for name in (query, document))
        losses = memory_info_nce(
            queries,
            documents,
            memory.embeddings,
            context.batch["id"],
            jnp.where(context.step >= start, memory.ids, -1),
            temperature=temperature,
            similarity=similarity,
            tile=tile,
        )
        return weight * jnp.mean(losses)

    def after_step(context, params, memory: Memory) -> Memory:
        # Micro-batches of accumulated steps come stacked.
        embeddings = jax.lax.stop_gradient(context.outputs[document]).reshape(-1, dim)[-size:]
        places = (memory.next + jnp.arange(len(embeddings))) % size
        written = lambda old, new: old.at[places].set(new.astype(old.dtype), unique_indices=True)
        return Memory(
            written(memory.embeddings, embeddings),
            written(memory.ids, context.batch["id"].reshape(-1)[-size:]),
            (memory.next + len(embeddings)) % size,
        )

    return Transform(init=init, auxiliary_loss=auxiliary_loss, after_step=after_step)
