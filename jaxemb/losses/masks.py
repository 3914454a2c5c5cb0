"""Masks of false negatives: which candidates are not to be counted as a record's negatives.

A `Mask` is a closure `mask(i, j, ...)` of the numbers of some rows and columns: a rule and the facts that it looks at,
of each record, of each query text and of each candidate text. It is evaluated some rows at a time, so that no `[N, M]`
array exists, and combined with others by `|`, `&` and `~`:

    mask = duplicates(query_ids, document_ids) | guided(guide_queries, guide_documents, margin=0.05)
    losses.info_nce(queries, documents, mask=mask)

Whatever the rule says, losses never mask a record's own positive.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxemb.checks import checked, non_negative, shapes
from jaxemb.losses.program import one_program
from jaxemb.losses.reductions import at
from jaxemb.nn.similarity import dot, paired, unit
from jaxemb.trees import PyTree

#: All queries, all positive documents, or all documents and hard negatives, those of one record next to each other.
Side = Literal["queries", "documents", "candidates"]


class Pairs(NamedTuple):
    """What a rule sees of r records' rows and c texts' columns of a block of similarities.

    Attributes:
      record: facts of the r records.
      row: facts of the text on the rows' side, which is the record's query or its document.
      column: facts of the c texts, all queries or all candidates.
      similarity: of the model's embeddings, `[r, c]`, without gradient.
      positive: similarity of each record's own query and document, `[r]`, without gradient.
    """

    record: PyTree
    row: PyTree
    column: PyTree
    similarity: jax.Array
    positive: jax.Array


Rule = Callable[[Pairs], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """A rule that says which pairs of a record and a text are no negatives, and the facts that it needs.

    Attributes:
      rule: `Pairs -> bool [r, c]`, True where a text is *not* a negative of the record; a hashable function. Rules that
        compare equal, with facts of the same shapes, share a compiled program.
      record: facts of each record, arrays `[N, ...]`.
      query: facts of each query text, arrays `[N, ...]`.
      document: facts of each candidate text, arrays `[N, 1 + K, ...]`: a record's positive, then its hard negatives.
      nan: numbers that losses add, 0 or, where a fact is NaN, which a rule compares as if it were far away, NaN.
    """

    rule: Rule = dataclasses.field(metadata={"static": True})
    record: PyTree = ()
    query: PyTree = ()
    document: PyTree = ()
    nan: PyTree = ()

    def __call__(
        self,
        i: jax.Array,
        j: jax.Array | None,
        *,
        rows: Side,
        columns: Side,
        similarity: jax.Array,
        positive: jax.Array,
    ) -> jax.Array:
        """What is removed of the texts number j (None: all) of the columns' side, in the rows of the records i.

        Args:
          i, j: int `[r]` and `[c]`.
          rows, columns: the sides that the similarities are between.
          similarity, positive: `[r, c]` and `[r]`.

        Returns:
          bool `[r, c]`; the record's own positive is left to the caller.
        """
        constant = jax.lax.stop_gradient((similarity, positive))
        return self.rule(Pairs(at(self.record, i), at(self._texts(rows), i), at(self._texts(columns), j), *constant))

    def _texts(self, side: Side) -> PyTree:
        """The facts of all texts of a side."""
        if side == "queries":
            return self.query
        if side == "documents":
            return jax.tree.map(lambda x: x[:, 0], self.document)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), self.document)

    def __or__(self, other: "Mask") -> "Mask":
        """Masks what either masks."""
        return _both(_Either(self.rule, other.rule), self, other)

    def __and__(self, other: "Mask") -> "Mask":
        """Masks what both mask."""
        return _both(_Both(self.rule, other.rule), self, other)

    def __invert__(self) -> "Mask":
        """Masks what this does not."""
        return dataclasses.replace(self, rule=_Not(self.rule))

    def added_to(self, values: jax.Array) -> jax.Array:
        """The embeddings or scores, NaN throughout if what the rule compares is NaN."""
        return sum(jax.lax.stop_gradient(jax.tree.leaves(self.nan)), start=values)

    def check(self, records: int, slots: int) -> None:
        """Raises a ValueError unless the facts are those of N records with 1 + K candidates each."""
        for name, facts, shape in (
            ("record", self.record, (records,)),
            ("query", self.query, (records,)),
            ("document", self.document, (records, slots)),
        ):
            for leaf in jax.tree.leaves(facts):
                if leaf.shape[: len(shape)] != shape:
                    raise ValueError(
                        f"mask: the facts of each {name} must begin with {shape}, for {records} records of {slots - 1} "
                        f"hard negatives each; got shape {leaf.shape}"
                    )


@one_program(shapes(query_ids="N", document_ids="N", negative_ids="N K | N", known="N P"))
def duplicates(
    query_ids: jax.Array,
    document_ids: jax.Array,
    negative_ids: jax.Array | None = None,
    *,
    known: jax.Array | None = None,
    per_query: int = 4,
) -> Mask:
    """Masks what the batch itself, or the user, knows to be relevant.

    Ids stand for texts, such as hashes, and are compared across columns. A text is no negative of record i if

    - it is the query or the document of i, or one of the `known` positives of i,
    - it belongs to a record with the same query or the same document as i (its query or its positive), or
    - it is a positive document of the query of i elsewhere in the batch, whichever record it appears in here; of these,
      `per_query` documents are looked at for each query.

    Args:
      query_ids, document_ids: `[N]`.
      negative_ids: of the hard negatives, `[N, K]` (or `[N]`); needed if the loss has any.
      known: ids of other texts that are relevant to each record, `[N, P]`, padded with -1.
      per_query: how many documents of the same query are compared, at least 1.

    Raises:
      ValueError: for shapes that do not fit, or per_query < 1.
    """
    queries, documents, negatives = _columns(query_ids, document_ids, negative_ids)
    if per_query < 1:
        raise ValueError(f"per_query must be at least 1; got {per_query}")
    n = queries.shape[0]
    related = [queries[:, None], _documents_of_query(queries, documents, min(per_query, n))]
    if known is not None:
        related.append(jnp.asarray(known))
    nobody = jnp.full_like(negatives, -1)
    # The partner of a text is the other text of its record; a hard negative has none.
    return Mask(
        _is_related,
        record={"related": jnp.concatenate(related, axis=1), "query": queries, "document": documents},
        query={"id": queries, "query": queries, "document": documents},
        document={
            "id": _candidates(documents, negatives),
            "query": _candidates(queries, nobody),
            "document": _candidates(documents, nobody),
        },
    )


def _is_related(pairs: Pairs) -> jax.Array:
    record, column = pairs.record, pairs.column
    equal = lambda a, b: (a[:, None] == b[None, :]) & (b != -1)[None, :]
    same = equal(record["query"], column["query"]) | equal(record["document"], column["document"])
    for i in range(record["related"].shape[1]):
        same |= equal(record["related"][:, i], column["id"])
    return same


def _documents_of_query(queries: jax.Array, documents: jax.Array, count: int) -> jax.Array:
    """Of each record, documents of records with the same query, its own first: `[N, count]`, padded with -1."""
    n = queries.shape[0]
    order = jnp.argsort(queries)
    ranked = queries[order]
    start, end = (jnp.searchsorted(ranked, queries, side=side) for side in ("left", "right"))
    positions = start[:, None] + jnp.arange(count)
    found = documents[order[jnp.minimum(positions, n - 1)]]
    others = jnp.where(positions < end[:, None], found, -1)
    return jnp.concatenate([documents[:, None], others], axis=1)


@one_program(shapes(labels="N", negative_labels="N K | N"))
def same_label(labels: jax.Array, negative_labels: jax.Array | None = None) -> Mask:
    """Masks the texts of records with the same label; labels of -1 are unknown, and equal to none.

    Args:
      labels: `[N]`.
      negative_labels: of the hard negatives, `[N, K]` (or `[N]`); needed if the loss has any.

    Raises:
      ValueError: for shapes that do not fit.
    """
    labels, _, negatives = _columns(labels, labels, negative_labels)
    return Mask(_has_label, record=labels, query=labels, document=_candidates(labels, negatives))


def _has_label(pairs: Pairs) -> jax.Array:
    return (pairs.record[:, None] == pairs.column[None, :]) & (pairs.column != -1)[None, :]


@one_program(shapes(alone="N"))
def other_records(alone: jax.Array, negatives: int = 0, *, documents: bool = True) -> Mask:
    """Masks the texts of other records: in-batch negatives that are off, for the records for which they are off.

    Where documents are labels, or answer many queries, those of other records may be right as well: NV-Embed trains on
    such data with the own hard negatives alone, and so do its records of classes beside records of questions.

    Args:
      alone: whether a record is compared with no text but its own, bool `[N]`.
      negatives: K, hard negatives of each record.
      documents: mask the others' documents too; without, their hard negatives alone.

    Raises:
      ValueError: for shapes that do not fit, or negatives < 0.

    References:
      Lee et al. 2024 (NV-Embed), arXiv 2405.17428.
    """
    if negatives < 0:
        raise ValueError(f"negatives must be at least 0; got {negatives}")
    alone = jnp.asarray(alone, bool)
    number = jnp.arange(len(alone))
    by_slot = jnp.broadcast_to(number[:, None], (len(alone), 1 + negatives))
    is_document = jnp.broadcast_to(jnp.arange(1 + negatives) == 0, by_slot.shape)
    return Mask(
        _IsOfAnother(documents),
        record={"number": number, "alone": alone},
        query={"number": number, "is_document": jnp.ones_like(alone)},
        document={"number": by_slot, "is_document": is_document},
    )


@dataclasses.dataclass(frozen=True)
class _IsOfAnother:
    documents: bool

    def __call__(self, pairs: Pairs) -> jax.Array:
        others = pairs.record["number"][:, None] != pairs.column["number"][None, :]
        masked = others if self.documents else others & ~pairs.column["is_document"][None, :]
        return masked & pairs.record["alone"][:, None]


@one_program(shapes(queries="N D", documents="N D", negatives="N K D | N D"), margin=non_negative)
def guided(
    queries: jax.Array,
    documents: jax.Array,
    negatives: jax.Array | None = None,
    *,
    margin: float = 0.0,
    strategy: str = "absolute",
) -> Mask:
    """Masks what a guide model finds closer than the record's own pair (GISTEmbed).

    With cosines `G` of the guide's embeddings and `t_i = G(query_i, document_i)`, a pair of texts is masked in the row
    of record i if `G > t_i - margin` ("absolute") or `G > t_i - |t_i| margin` ("relative").

    Args:
      queries, documents: the guide's embeddings, `[N, D]` of any D.
      negatives: the guide's embeddings of the hard negatives, `[N, K, D]` (or `[N, D]`); needed if the loss has any.
      margin: >= 0; 0 masks only what is closer than the positive.
      strategy: "absolute" or "relative".

    Returns:
      the mask; losses with it are NaN if a number of the guide's embeddings is.

    Raises:
      ValueError: for shapes that do not fit, a margin < 0, or an unknown strategy.

    References:
      Solatorio 2024, arXiv 2402.16829.
    """
    _check_strategy(strategy)
    queries, documents, negatives = _columns(queries, documents, negatives)
    queries, documents, negatives = unit(queries), unit(documents), unit(negatives)
    own = paired(dot, queries, documents)
    return Mask(
        _is_closer,
        record=own - (margin if strategy == "absolute" else jnp.abs(own) * margin),
        query=queries,
        document=_candidates(documents, negatives),
        nan=sum(jnp.where(jnp.isnan(x).any(), jnp.nan, 0.0) for x in (queries, documents, negatives)),
    )


def _is_closer(pairs: Pairs) -> jax.Array:
    return dot(pairs.row, pairs.column) > pairs.record[:, None]


@checked()
def near_positive(margin: float = 0.0, strategy: str = "absolute") -> Mask:
    """Masks what the model itself finds closer than the record's own pair, by more than a margin.

    With the model's similarities s and `p_i = s(query_i, document_i)`, masked if `s > p_i + margin` ("absolute"; Qwen3
    Embedding has 0.1) or `s > p_i + |p_i| margin` ("relative").

    Raises:
      ValueError: for an unknown strategy, or a margin that is not a finite number known before compilation.
    """
    _check_strategy(strategy)
    return Mask(_IsNearPositive(_number("margin", margin), strategy == "relative"))


@checked()
def above(threshold: float) -> Mask:
    """Masks what the model finds more similar than a threshold; raises a ValueError for one that is not finite."""
    return Mask(_IsAbove(_number("threshold", threshold)))


def _number(name: str, value) -> float:
    # A part of the rule, which decides the program: a value that is traced would be compared with later ones.
    if isinstance(value, jax.core.Tracer) or not np.isfinite(value):
        raise ValueError(f"{name} must be a finite number that is known before compilation; got {value}")
    return float(value)


@one_program()
def dense(allowed: jax.Array) -> Mask:
    """The mask of a matrix, for small batches.

    Args:
      allowed: bool `[N, N (1 + K)]`: whether a candidate may be a negative of a record; columns are all positive
        documents, then the hard negatives slot by slot. Query j counts as record i's negative if document i counts
        as record j's.

    Raises:
      ValueError: for a shape that does not fit.
    """
    allowed = jnp.asarray(allowed, bool)
    if allowed.ndim != 2 or allowed.shape[1] % allowed.shape[0]:
        raise ValueError(f"allowed must be [N, N (1 + K)]; got {allowed.shape}")
    n, m = allowed.shape
    index = jnp.arange(m).reshape(-1, n).T
    return Mask(
        _is_not_allowed,
        record={"allowed": allowed, "index": index[:, 0]},
        query={"allowed": allowed},
        document={"index": index},
    )


def _is_not_allowed(pairs: Pairs) -> jax.Array:
    if "index" in pairs.column:
        return ~jnp.take(pairs.record["allowed"], pairs.column["index"], axis=1)
    return ~jnp.take(pairs.column["allowed"], pairs.record["index"], axis=1).T


@dataclasses.dataclass(frozen=True)
class _IsNearPositive:
    margin: float
    relative: bool

    def __call__(self, pairs: Pairs) -> jax.Array:
        margin = jnp.abs(pairs.positive) * self.margin if self.relative else self.margin
        return pairs.similarity > (pairs.positive + margin)[:, None]


@dataclasses.dataclass(frozen=True)
class _IsAbove:
    threshold: float

    def __call__(self, pairs: Pairs) -> jax.Array:
        return pairs.similarity > self.threshold


@dataclasses.dataclass(frozen=True)
class _Either:
    first: Rule
    second: Rule

    def __call__(self, pairs: Pairs) -> jax.Array:
        return self.first(_view(pairs, 0)) | self.second(_view(pairs, 1))


@dataclasses.dataclass(frozen=True)
class _Both:
    first: Rule
    second: Rule

    def __call__(self, pairs: Pairs) -> jax.Array:
        return self.first(_view(pairs, 0)) & self.second(_view(pairs, 1))


@dataclasses.dataclass(frozen=True)
class _Not:
    rule: Rule

    def __call__(self, pairs: Pairs) -> jax.Array:
        return ~self.rule(pairs)


def _both(rule: Rule, a: Mask, b: Mask) -> Mask:
    return Mask(rule, (a.record, b.record), (a.query, b.query), (a.document, b.document), (a.nan, b.nan))


def _view(pairs: Pairs, i: int) -> Pairs:
    """What the i-th of two combined rules sees."""
    return pairs._replace(record=pairs.record[i], row=pairs.row[i], column=pairs.column[i])


def _candidates(documents: jax.Array, negatives: jax.Array) -> jax.Array:
    """`[N, ...]` and `[N, K, ...]` to `[N, 1 + K, ...]`."""
    return jnp.concatenate([documents[:, None], negatives], axis=1)


def _columns(queries, documents, negatives) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The facts of queries and documents `[N, ...]` and of hard negatives `[N, K, ...]`."""
    queries, documents = jnp.asarray(queries), jnp.asarray(documents)
    if negatives is None:
        return queries, documents, jnp.zeros_like(documents)[:, None][:, :0]
    negatives = jnp.asarray(negatives)
    return queries, documents, negatives[:, None] if negatives.ndim == documents.ndim else negatives


def _check_strategy(strategy: str) -> None:
    if strategy not in ("absolute", "relative"):
        raise ValueError(f"strategy must be 'absolute' or 'relative'; got {strategy!r}")
