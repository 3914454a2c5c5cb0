"""The texts of a batch of records against each other: what all losses with in-batch negatives are written on."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxemb.losses.masks import Mask, Side, dense
from jaxemb.losses.reductions import Block, Reduction, length
from jaxemb.losses.rows import reduce_rows
from jaxemb.nn.similarity import Similarity, cosine, dot, paired, similarity_function, unit


class Tile(NamedTuple):
    """Some rows and columns of the similarities of a batch; row i belongs to record i.

    Attributes:
      i, j: numbers of the rows and of the columns (None: all of them), for `jaxemb.losses.reductions.at`.
      similarity: `[r, c]`, f32.
      positive: the similarity of each record's own query and document, `[r]`.
      own: whether the column's text belongs to the row's record, bool `[r, c]`.
      is_positive: whether it is the record's own query or document, bool `[r, c]`.
      removed: whether the mask removes the pair, bool `[r, c]`; never where `is_positive`.
    """

    i: jax.Array
    j: jax.Array | None
    similarity: jax.Array
    positive: jax.Array
    own: jax.Array
    is_positive: jax.Array
    removed: jax.Array


class Records(NamedTuple):
    """A batch of N records: a query, a document and K hard negatives each.

    Attributes:
      queries: `[N, D]`, f32.
      candidates: the document, then the hard negatives of each record, `[N, 1 + K, D]`, f32.
      positive: similarity of each query and its document, `[N]`.
      similarity: `[N, D], [M, D] -> [N, M]`.
      mask: false negatives.
    """

    queries: jax.Array
    candidates: jax.Array
    positive: jax.Array
    similarity: Similarity
    mask: Mask | None

    def reduce(
        self,
        entries: Callable[[Tile], Block],
        reductions: tuple[Reduction, ...],
        *,
        rows: Side = "queries",
        columns: Side = "candidates",
        tile: int,
    ) -> Block:
        """`reductions` of `entries(Tile)` over all texts of a side, for every record: `[N, ...]` each.

        `entries` is a function of the tile and of the arrays that come with it in a `Partial`.
        """
        slots = self.candidates.shape[1] if columns == "candidates" else 1
        mask = jax.lax.stop_gradient(self.mask)
        return reduce_rows(
            _Entries(_as_tree(entries), mask, _as_tree(self.similarity), rows, columns, slots),
            reductions,
            (self.queries if rows == "queries" else self.candidates[:, 0], self.positive),
            self._texts(columns),
            tile=tile,
        )

    def _texts(self, side: Side) -> jax.Array:
        """The embeddings of all texts of a side, those of one record next to each other."""
        if side == "queries":
            return self.queries
        return self.candidates[:, 0] if side == "documents" else self.candidates.reshape(-1, self.queries.shape[1])


def make_records(
    queries: jax.Array,
    documents: jax.Array,
    negatives: jax.Array | None = None,
    *,
    similarity: str | Similarity = "cosine",
    mask: Mask | jax.Array | None = None,
) -> Records:
    """The records of a batch, checked.

    Args:
      queries, documents: `[N, D]`.
      negatives: `[N, K, D]`, or `[N, D]` for K = 1.
      similarity: "cosine", "dot", "euclidean", or a function `[N, D], [M, D] -> [N, M]`; one with weights to learn is
        a module or a `jax.tree_util.Partial` of them.
      mask: a `Mask`, or what `masks.dense` takes.

    Raises:
      ValueError: for shapes that do not fit or an unknown similarity.
    """
    if queries.ndim != 2 or documents.shape != queries.shape:
        raise ValueError(f"queries and documents must both be [N, D]; got {queries.shape} and {documents.shape}")
    n, dim = queries.shape
    candidates = documents[:, None]
    if negatives is not None:
        negatives = negatives[:, None] if negatives.ndim == 2 else negatives
        if negatives.ndim != 3 or (negatives.shape[0], negatives.shape[2]) != (n, dim):
            raise ValueError(f"negatives must be [N, K, D] with N = {n} and D = {dim}; got {negatives.shape}")
        candidates = jnp.concatenate([candidates, negatives], axis=1)
    if mask is not None:
        if not isinstance(mask, Mask):
            if jnp.shape(mask) != (n, n * candidates.shape[1]):
                raise ValueError(f"mask must be [N, N (1 + K)] = {(n, n * candidates.shape[1])}; got {jnp.shape(mask)}")
            mask = dense(mask)
        mask.check(n, candidates.shape[1])
        queries = mask.added_to(queries)
    score = similarity_function(similarity)
    if score is cosine:  # normalise once, not once per tile
        queries, candidates, score = unit(queries), unit(candidates), dot
    return Records(queries, candidates, paired(score, queries, candidates[:, 0]), score, mask)


def _as_tree(function: Callable) -> Callable:
    """A function whose arrays JAX sees: modules and `Partial`s are that already."""
    return Partial(function) if jax.tree_util.all_leaves([function]) else function


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("entries", "mask", "similarity"),
    meta_fields=("rows", "columns", "slots"),
)
@dataclasses.dataclass(frozen=True)
class _Entries:
    """From the embeddings of some rows and columns to a `Tile`, and from that to the loss's entries."""

    entries: Callable[[Tile], Block]
    mask: Mask | None
    similarity: Similarity
    rows: Side
    columns: Side
    slots: int  # texts of a record on the columns' side

    def __call__(self, rows, columns, i, j) -> Block:
        embeddings, positive = rows
        if self.rows != "queries" and self.columns == "queries":  # a similarity takes queries on the left
            similarity = self.similarity(columns, embeddings).T
        else:
            similarity = self.similarity(embeddings, columns)
        text = jnp.arange(length(columns)) if j is None else j
        own = i[:, None] == text // self.slots
        is_positive = own & (text % self.slots == 0)
        if self.mask is None:
            removed = jnp.zeros_like(own)
        else:
            sides = {"rows": self.rows, "columns": self.columns}
            removed = self.mask(i, j, **sides, similarity=similarity, positive=positive) & ~is_positive
        return self.entries(Tile(i, j, similarity, positive, own, is_positive, removed))
