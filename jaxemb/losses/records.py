"""The texts of a batch of records against each other: what all losses with in-batch negatives are written on."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxemb.losses.masks import Mask, Pairs, Rule, dense
from jaxemb.losses.reductions import Block, Reduction, reduce_rows
from jaxemb.nn.similarity import Similarity, cosine, dot, paired, similarity_function, unit

Side = Literal["queries", "documents", "candidates"]


class Tile(NamedTuple):
    """Some rows and columns of the similarities of a batch; row i belongs to record i.

    Attributes:
      similarity: `[r, c]`, f32.
      positive: the similarity of each record's own query and document, `[r]`.
      own: whether the column's text belongs to the row's record, bool `[r, c]`.
      is_positive: whether it is the record's own query or document, bool `[r, c]`.
      removed: whether the mask removes the pair, bool `[r, c]`; never where `is_positive`.
      facts: facts of the rows and of the columns that the loss brought along.
    """

    similarity: jax.Array
    positive: jax.Array
    own: jax.Array
    is_positive: jax.Array
    removed: jax.Array
    facts: tuple[Any, Any]


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
        entries: Callable[[Any, Tile], Block],
        reductions: tuple[Reduction, ...],
        shared: Any = (),
        *,
        rows: Side = "queries",
        columns: Side = "candidates",
        row_facts: Any = (),
        column_facts: Any = (),
        tile: int,
    ) -> Block:
        """`reductions` of `entries(shared, Tile)` over all texts of a side, for every record: `[N, ...]` each.

        `entries` is a hashable function of its arguments alone. `row_facts` and `column_facts` come without gradient.
        """
        mask = Mask(_nothing) if self.mask is None else self.mask
        row_side, column_side = self._side(rows, mask), self._side(columns, mask)
        n = self.queries.shape[0]
        return reduce_rows(
            _Entries(entries, self.similarity, mask.rule, rows != "queries" and columns == "queries"),
            reductions,
            shared,
            (row_side[0].reshape(n, -1, self.queries.shape[1])[:, 0], self.positive),
            column_side[0],
            (jnp.arange(n), mask.record, jax.tree.map(lambda x: x[:n], row_side[1]), row_facts),
            (*self._places(columns), column_side[1], column_facts),
            tile=tile,
        )

    def _side(self, side: Side, mask: Mask) -> tuple[jax.Array, Any]:
        """The embeddings and the mask's facts of all texts of a side, those of one record next to each other."""
        if side == "queries":
            return self.queries, mask.query
        if side == "documents":
            return self.candidates[:, 0], jax.tree.map(lambda x: x[:, 0], mask.document)
        flat = lambda x: x.reshape(-1, *x.shape[2:])
        return flat(self.candidates), jax.tree.map(flat, mask.document)

    def _places(self, side: Side) -> tuple[jax.Array, jax.Array]:
        """The record and the slot (0: query or document) of all texts of a side."""
        n, slots = self.candidates.shape[0], self.candidates.shape[1] if side == "candidates" else 1
        return jnp.repeat(jnp.arange(n), slots), jnp.tile(jnp.arange(slots), n)


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
      similarity: "cosine", "dot", "euclidean", or a function `[N, D], [M, D] -> [N, M]`.
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
    score = similarity_function(similarity)
    if score is cosine:  # normalise once, not once per tile
        queries, candidates, score = unit(queries), unit(candidates), dot
    return Records(queries, candidates, paired(score, queries, candidates[:, 0]), score, mask)


@dataclasses.dataclass(frozen=True)
class _Entries:
    """From embeddings and facts of some rows and columns to a `Tile`, and from that to the loss's entries."""

    entries: Callable[[Any, Tile], Block]
    similarity: Similarity
    rule: Rule
    queries_on_the_right: bool  # a similarity takes queries on the left

    def __call__(self, shared, rows, columns, row_facts, column_facts) -> Block:
        embeddings, positive = rows
        row_record, record_facts, row_text, row_extra = row_facts
        column_record, slot, column_text, column_extra = column_facts
        if self.queries_on_the_right:
            similarity = self.similarity(columns, embeddings).T
        else:
            similarity = self.similarity(embeddings, columns)
        own = row_record[:, None] == column_record[None, :]
        is_positive = own & (slot == 0)[None, :]
        constant = jax.lax.stop_gradient((similarity, positive))
        removed = self.rule(Pairs(record_facts, row_text, column_text, *constant)) & ~is_positive
        return self.entries(shared, Tile(similarity, positive, own, is_positive, removed, (row_extra, column_extra)))


def _nothing(pairs: Pairs) -> jax.Array:
    return jnp.zeros(pairs.similarity.shape, bool)
