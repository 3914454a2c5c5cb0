"""Hard-negative mining: the documents that a model takes for answers to a query, and that are none.

`hard_negatives` works on embeddings, `mine_hard_negatives` on a model and texts; the first is what the second calls.
"""

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from jaxemb.checks import at_least, checked, filled, one_of, shapes
from jaxemb.data.records import Source
from jaxemb.retrieval.exact import topk_search
from jaxemb.similarity import PAIRED
from jaxemb.text_encoder import TextEncoder, stored_prompt

if TYPE_CHECKING:
    from jax.sharding import Mesh

Sampling = Literal["top", "random"]
OutputFormat = Literal["triplet", "n-tuple", "n-tuple-scores", "list", "labeled-pair", "labeled-list"]
Record = dict[str, Any]

_PAIRS = 65_536  # pairs of texts or of vectors that are scored at a time


class Negatives(NamedTuple):
    """Hard negatives of Q queries.

    Attributes:
      ids: corpus rows, most similar first, int32 `[Q, n]`; -1 where too few were left.
      scores: their scores, f32 `[Q, n]`; -inf where there is none.
      positive_scores: the score of every positive pair, f32 `[P]`.
      discarded: how many candidates each condition removed, of those that the conditions before it had left.
      ranked: how many rows were candidates of each query; a larger `range_max` finds more unless that is all of them.
    """

    ids: np.ndarray
    scores: np.ndarray
    positive_scores: np.ndarray
    discarded: Mapping[str, int]
    ranked: int


@checked(
    shapes(queries="Q D", corpus="N D"),
    num_negatives=at_least(1),
    range_min=at_least(0),
    range_max=at_least(1),
    corpus=filled,
)
def hard_negatives(
    queries: np.ndarray,
    corpus: np.ndarray,
    positives: np.ndarray,
    *,
    num_negatives: int = 3,
    range_min: int = 0,
    range_max: int | None = None,
    max_score: float | None = None,
    min_score: float | None = None,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    percentile: float | None = None,
    sampling_strategy: Sampling = "top",
    seed: int = 0,
    include_positives: bool = False,
    rescore: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    metric: str = "cosine",
    mesh: "Mesh | None" = None,
) -> Negatives:
    """For each query, corpus rows that are similar to it but are none of its positives.

    The candidates are the `range_max` + (most positives of a query) rows most similar to the query, found exactly, by
    `topk_search`. The positives among them go. With s_pos the lowest score of the query's positives, a candidate of
    score s is discarded if

        absolute_margin   s + m > s_pos
        relative_margin   s > s_pos - |s_pos| m       (0.05: NV-Retriever's TopK-PercPos at 95 %)
        percentile        s > the p-th percentile of the scores of all positive pairs
        max_score         s > max_score
        min_score         s < min_score

    Of the `range_max` best that remain the first `range_min` are skipped, and from the rest come the negatives.
    Memory grows with `Q * range_max`, whatever the size of the corpus.

    Args:
      queries: `[Q, D]`.
      corpus: `[N, D]`; may be memory-mapped.
      positives: pairs of a query's row and the row of a document that answers it, int `[P, 2]`.
      num_negatives: n, wanted for each query; of more than a query can have in the corpus, as many as it can.
      range_min: how many of the most similar to skip, as they may be positives that nobody has marked.
      range_max: the rank up to which to look; None takes range_min + n + (most positives), with 10 n for n where a
        margin, a percentile, `max_score` or `rescore` is given.
      max_score: see above, as the next four.
      min_score: see above.
      absolute_margin: see above.
      relative_margin: see above.
      percentile: p, in [0, 100].
      sampling_strategy: "top" takes the most similar, "random" any of those in the range.
      seed: of "random".
      include_positives: leave the positives among the candidates; for data to test rerankers with.
      rescore: a better judge, such as a cross-encoder: query rows `[M]` and corpus rows `[M]` to scores `[M]`. Its
        scores of candidates and positives replace the similarities, in conditions, order and result.
      metric: "cosine", "dot" or "euclidean", as for `topk_search`.
      mesh: split the corpus over these devices.

    Returns:
      The `Negatives`.

    Raises:
      ValueError: for options out of range, `range_max - range_min < num_negatives`, positives that do not fit, a margin
        for a query without positives, scores that are not finite; and as `topk_search`.

    References:
      Moreira et al. 2024 (NV-Retriever, arXiv 2407.15831); sentence-transformers' `mine_hard_negatives`.
    """
    limits = {
        "absolute_margin": absolute_margin,
        "relative_margin": relative_margin,
        "percentile": percentile,
        "max_score": max_score,
        "min_score": min_score,
    }
    _check(limits, sampling_strategy)
    positives = _checked_positives(positives, len(queries), len(corpus))
    of, document = positives.T
    positives_of = np.bincount(of, minlength=len(queries))
    most_positives = int(positives_of.max(initial=0))
    num_negatives = min(num_negatives, len(corpus))
    if range_max is None:
        widened = rescore is not None or any(limits[name] is not None for name in limits if name != "min_score")
        range_max = range_min + num_negatives * (10 if widened else 1) + most_positives
    if range_max - range_min < num_negatives:
        raise ValueError(
            f"range_max must leave num_negatives = {num_negatives} candidates after range_min = {range_min}; "
            f"got {range_max}"
        )
    fewest_positives = int(positives_of.min()) if len(queries) and not include_positives else 0
    num_negatives = min(num_negatives, max(1, len(corpus) - fewest_positives - range_min))

    scores, ids = topk_search(queries, corpus, range_max + most_positives, metric=metric, mesh=mesh)
    kept, ranked = ids >= 0, ids.shape[1]
    if not include_positives:
        kept &= ~_are_positives(ids, positives)
    if rescore is None:
        positive_scores = _pair_scores(queries, corpus, of, document, metric)
    else:
        scores[kept] = _rescored(rescore, np.nonzero(kept)[0], ids[kept])
        positive_scores = _rescored(rescore, of, document)

    discarded = {}
    for name, fails in _failures(scores, positive_scores, of, limits):
        discarded[name] = int(np.count_nonzero(fails & kept))
        kept &= ~fails
    lots = np.random.default_rng(seed) if sampling_strategy == "random" else None
    ids, scores = _taken(ids, np.where(kept, scores, -np.inf), slice(range_min, range_max), num_negatives, lots)
    return Negatives(ids, scores, positive_scores, discarded, ranked)


def _failures(
    scores: np.ndarray, positive_scores: np.ndarray, of: np.ndarray, limits: Mapping[str, float | None]
) -> Iterator[tuple[str, np.ndarray]]:
    """The names of the conditions that are given, and which of the candidates `[Q, k]` they discard."""
    lowest = np.full(len(scores), np.inf, np.float32)
    np.minimum.at(lowest, of, positive_scores)
    has_margin = limits["absolute_margin"] is not None or limits["relative_margin"] is not None
    if has_margin and np.isinf(lowest).any():
        raise ValueError(f"a margin needs positives; query {int(np.argmax(lowest))} has none")
    lowest = lowest[:, None]
    for name, limit in limits.items():
        if limit is None:
            continue
        limit = float(limit)  # a plain float leaves f32 comparisons in f32
        match name:
            case "absolute_margin":
                yield name, scores + limit > lowest
            case "relative_margin":
                yield name, scores > lowest - np.abs(lowest) * limit
            case "percentile":
                if not len(positive_scores):
                    raise ValueError("percentile: there are no positives")
                yield name, scores > np.percentile(positive_scores, limit)
            case "max_score":
                yield name, scores > limit
            case "min_score":
                yield name, scores < limit


def _taken(
    ids: np.ndarray, scores: np.ndarray, ranks: slice, n: int, lots: np.random.Generator | None
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and scores `[Q, n]` of the best, or with `lots` of any, of the candidates at these ranks.

    A candidate of score -inf is none; where too few are left stand -1 and -inf.
    """
    order = np.argsort(-scores, axis=1, kind="stable")[:, ranks]
    if lots is not None:
        lot = lots.random(order.shape)
        lot[np.take_along_axis(scores, order, axis=1) == -np.inf] = np.inf
        order = np.take_along_axis(order, np.sort(np.argsort(lot, axis=1)[:, :n], axis=1), axis=1)
    order = order[:, :n]
    scores = np.take_along_axis(scores, order, axis=1)
    ids = np.where(scores == -np.inf, -1, np.take_along_axis(ids, order, axis=1))
    missing = ((0, 0), (0, n - ids.shape[1]))
    return (
        np.pad(ids, missing, constant_values=-1).astype(np.int32),
        np.pad(scores, missing, constant_values=-np.inf).astype(np.float32),
    )


@dataclasses.dataclass(frozen=True)
class Mined:
    """Texts and the hard negatives found for them. Made by `mine_hard_negatives`.

    Attributes:
      queries: the Q different queries.
      corpus: the N different documents, positives included.
      positives: pairs of a query's and a document's number, int `[P, 2]`, ordered by query.
      negatives: numbers and scores of the negatives of each query.
      query_column: what the queries are called in records.
      positive_column: what the positives are called.
      keep: names of further columns that records have.
      pairs: by a pair of `positives`, these columns of its record.
      documents: these columns of each document: of the first record that has it.
    """

    queries: Sequence[str]
    corpus: Sequence[str]
    positives: np.ndarray
    negatives: Negatives
    query_column: str = "query"
    positive_column: str = "positive"
    keep: Sequence[str] = ()
    pairs: Mapping[tuple[int, int], Record] = dataclasses.field(default_factory=dict, repr=False)
    documents: Sequence[Record] = dataclasses.field(default=(), repr=False)

    def records(self, output_format: OutputFormat = "triplet", *, output_scores: bool = False) -> list[Record]:
        """Records to train with. The columns after the query's, by format:

            triplet         positive, "negative": a record for each pair of them
            n-tuple         positive, "negative_1", ... "negative_n"; a positive without n negatives is left out
            list            positive, "negatives": the same, as one list; a column of lists is what `batches` and
                            `on_columns(info_nce, "query", "positive", negatives="negatives")` take
            labeled-pair    a document, "label": 1 for positives and 0 for negatives
            labeled-list    a list of a positive and its negatives, "labels"; what has no negative is left out

        Columns of `keep` are those of the pair; a negative's stand under its own column's name, as "negatives_id" or
        "negative_id". In labelled formats they are each document's.

        Args:
          output_format: one of these, or "n-tuple-scores": "n-tuple" with scores.
          output_scores: add "scores", those of the positive and the negatives; in labelled formats "score" or "scores"
            takes the place of the labels.

        Raises:
          ValueError: for an unknown format, columns as `check_columns` refuses, or positives among the negatives in
            another format than "n-tuple" or "list", which keep the ranking.
        """
        found, names = self.negatives, (self.query_column, self.positive_column, *self.keep)
        check_columns(names, output_format, output_scores=output_scores, num_negatives=found.ids.shape[1])
        if output_format == "n-tuple-scores":
            output_format, output_scores = "n-tuple", True
        if output_format not in ("n-tuple", "list") and _are_positives(found.ids, self.positives).any():
            raise ValueError(f"{output_format!r} cannot tell positives among the negatives; use 'n-tuple' or 'list'")
        format, n = _FORMATS[output_format], found.ids.shape[1]
        records: list[Record] = []
        scored = zip(self.positives.tolist(), found.positive_scores.tolist(), strict=True)
        for query, group in itertools.groupby(scored, key=lambda pair: pair[0][0]):
            positives = [(document, score) for (_, document), score in group]
            candidates = zip(found.ids[query].tolist(), found.scores[query].tolist(), strict=True)
            negatives = [(document, score) for document, score in candidates if document >= 0]
            for columns in format(positives, negatives, n, output_scores):
                records.append({self.query_column: self.queries[query], **self._written(query, columns)})
        return records

    def _written(self, query: int, columns: Record) -> Record:
        """Texts and kept columns in place of the numbers of documents."""
        each = lambda number, of: [of(n) for n in number] if isinstance(number, list) else of(number)
        are_documents = lambda name: name.startswith(("positive", "negative"))
        names = {"positive": self.positive_column}
        written = {
            names.get(name, name): each(value, self.corpus.__getitem__) if are_documents(name) else value
            for name, value in columns.items()
        }
        for name, value in columns.items() if self.keep else ():
            if are_documents(name):
                pairs = {} if isinstance(value, list) else self.pairs
                kept = each(value, lambda document, pairs=pairs: pairs.get((query, document), self.documents[document]))
                prefix = "" if name == "positive" else f"{name}_"
                written |= {f"{prefix}{column}": each(kept, lambda row, c=column: row[c]) for column in self.keep}
        return written


# What the formats make of a query's positives and negatives, of which n are wanted: numbers and scores of documents

Scored = list[tuple[int, float]]


def _triplets(positives: Scored, negatives: Scored, n: int, scores: bool) -> Iterator[Record]:
    for positive, s in positives:
        for negative, t in negatives:
            yield {"positive": positive, "negative": negative} | ({"scores": [s, t]} if scores else {})


def _lists(positives: Scored, negatives: Scored, n: int, scores: bool) -> Iterator[Record]:
    documents, values = [document for document, _ in negatives], [score for _, score in negatives]
    for positive, s in positives:
        if len(documents) == n:
            yield {"positive": positive, "negatives": documents} | ({"scores": [s, *values]} if scores else {})


def _tuples(positives: Scored, negatives: Scored, n: int, scores: bool) -> Iterator[Record]:
    for columns in _lists(positives, negatives, n, scores):
        numbered = {f"negative_{i}": document for i, document in enumerate(columns.pop("negatives"), 1)}
        yield {"positive": columns.pop("positive"), **numbered, **columns}


def _labelled_pairs(positives: Scored, negatives: Scored, n: int, scores: bool) -> Iterator[Record]:
    for label, documents in ((1, positives), (0, negatives)):
        for document, s in documents:
            yield {"positive": document} | ({"score": s} if scores else {"label": label})


def _labelled_lists(positives: Scored, negatives: Scored, n: int, scores: bool) -> Iterator[Record]:
    documents, values = [document for document, _ in negatives], [score for _, score in negatives]
    for positive, s in positives if documents else ():
        shown = {"scores": [s, *values]} if scores else {"labels": [1] + [0] * len(documents)}
        yield {"positive": [positive, *documents]} | shown


_FORMATS = {
    "triplet": _triplets,
    "n-tuple": _tuples,
    "list": _lists,
    "labeled-pair": _labelled_pairs,
    "labeled-list": _labelled_lists,
}


def check_columns(
    columns: Sequence[str], output_format: OutputFormat, *, output_scores: bool = False, num_negatives: int = 3
) -> None:
    """Raises a ValueError if records of this format, see `Mined.records`, would have two columns of one name.

    Args:
      columns: what the records' columns of queries, of positives, and those to keep are called.
      output_format, output_scores: as of `Mined.records`.
      num_negatives: how many negatives a query has.
    """
    if output_format == "n-tuple-scores":
        output_format, output_scores = "n-tuple", True
    if output_format not in _FORMATS:
        raise ValueError(f"output_format must be one of {[*_FORMATS, 'n-tuple-scores']}; got {output_format!r}")
    _, _, *keep = columns
    (names, *_) = _FORMATS[output_format]([(0, 0.0)], [(0, 0.0)] * num_negatives, num_negatives, output_scores)
    own = [name for name in names if name != "positive"]
    own += [f"{name}_{column}" for name in own if name.startswith("negative") for column in keep]
    if twice := [name for name in columns if [*columns, *own].count(name) > 1]:
        raise ValueError(
            f"the result ({output_format}) would have two columns {twice[0]!r}; rename that of the records, or choose "
            "another format"
        )


@checked()
def mine_hard_negatives(
    embedder: TextEncoder,
    records: Source | Sequence[Mapping[str, Any]],
    corpus: Sequence[str | Mapping[str, Any]] | None = None,
    *,
    query_column: str = "query",
    positive_column: str = "positive",
    keep: Sequence[str] = (),
    query_prompt: str | None = None,
    query_prompt_name: str | None = None,
    corpus_prompt: str | None = None,
    corpus_prompt_name: str | None = None,
    cross_encoder: Callable[[list[tuple[str, str]]], Any] | None = None,
    metric: str | None = None,
    encode_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Mined:
    """Encodes queries and documents, and finds hard negatives for each query among the documents.

        mined = mine_hard_negatives(embedder, read("pairs.csv"), relative_margin=0.05, num_negatives=5)
        source = from_list(mined.records("list"))

    A text is encoded once. Records of one query (with the same text) hold its positives. Nothing is kept on disk.

    Args:
      embedder: the model: anything with an `encode` as `SentenceEmbedder` has.
      records: a `jaxemb.data.Source` or sequence of records with a query and a positive each.
      corpus: documents to search beside the positives, texts or records like those; None searches these alone.
      query_column: the records' column of queries.
      positive_column: the records' column of positives.
      keep: further columns, such as an id, that the result is to show of pairs and negatives; see `Mined.records`.
      query_prompt: text to put in front of queries.
      query_prompt_name: or a prompt of the model; None takes the one called "query" where there is one.
      corpus_prompt: text to put in front of documents.
      corpus_prompt_name: None takes "document", "passage" or "corpus" where there is one.
      cross_encoder: a better judge of (query, document) pairs: a list of M pairs to M scores, such as the `predict` of
        sentence-transformers' CrossEncoder. See `rescore` of `hard_negatives`.
      metric: None takes the model's own similarity, else cosine.
      encode_options: other options of `encode`, such as `{"show_progress": True}`.
      **options: those of `hard_negatives`.

    Raises:
      ValueError: no records, a record without a text in a column (named), a column to keep that is none, an unknown
        prompt; and as `hard_negatives`.
      TypeError: for options that `encode` does not have.
    """
    if not len(records):
        raise ValueError("records must not be empty")
    for name, column in {"query_column": query_column, "positive_column": positive_column}.items():
        if not column:
            raise ValueError(f"{name} must be the name of a column; got ''")
    rows = records.__getitems__(range(len(records))) if isinstance(records, Source) else records
    pairs = [
        (_text(record, query_column, number), _text(record, positive_column, number))
        for number, record in enumerate(rows)
    ]
    _check_kept(keep, query_column, positive_column, rows)
    others = [{positive_column: text} if isinstance(text, str) else text for text in corpus or ()]
    queries = list(dict.fromkeys(query for query, _ in pairs))
    documents = list(
        dict.fromkeys([*(_text(record, positive_column, n) for n, record in enumerate(others)), *(p for _, p in pairs)])
    )
    query_number = {text: number for number, text in enumerate(queries)}
    document_number = {text: number for number, text in enumerate(documents)}
    numbered = dict.fromkeys((query_number[query], document_number[positive]) for query, positive in pairs)
    positives = np.array(sorted(numbered, key=lambda pair: pair[0]))  # stable: positives of a query keep their order

    encoding = encode_options or {}
    _check_options(embedder, encoding)

    def encode(of: str, texts: list[str], prompt: str | None, name: str | None, *stored: str) -> np.ndarray:
        if prompt is not None:
            if name is not None:
                raise ValueError(f"{of}_prompt and {of}_prompt_name exclude each other; got {prompt!r} and {name!r}")
            return np.asarray(embedder.encode(texts, prompt=prompt, **encoding))  # type: ignore[call-arg]
        name = stored_prompt(embedder, *stored, given=name, argument=f"{of}_prompt_name")
        return np.asarray(embedder.encode(texts, prompt_name=name, **encoding))

    def rescore(query_rows: np.ndarray, document_rows: np.ndarray) -> np.ndarray:
        assert cross_encoder is not None
        texts = zip(query_rows.tolist(), document_rows.tolist(), strict=True)
        return np.asarray(cross_encoder([(queries[q], documents[d]) for q, d in texts]))

    negatives = hard_negatives(
        encode("query", queries, query_prompt, query_prompt_name, "query"),
        encode("corpus", documents, corpus_prompt, corpus_prompt_name, "document", "passage", "corpus"),
        positives,
        rescore=None if cross_encoder is None else rescore,
        metric=metric or getattr(embedder, "similarity_fn_name", None) or "cosine",
        **options,
    )
    kept = _kept_columns(keep, rows, others, {query_column: query_number, positive_column: document_number})
    return Mined(queries, documents, positives, negatives, query_column, positive_column, keep, *kept)


def _kept_columns(
    keep: Sequence[str],
    pairs: Sequence[Mapping[str, Any]],
    others: Sequence[Mapping[str, Any]],
    numbers: Mapping[str, Mapping[str, int]],
) -> tuple[dict[tuple[int, int], Record], list[Record]]:
    """These columns of pairs, as their own first records say, and of documents, as the first of all that have them do;
    `numbers` has those of the texts of queries and of documents."""
    (query_column, queries), (positive_column, documents) = numbers.items()
    of_pairs: dict[tuple[int, int], Record] = {}
    of_documents: list[Record] = [dict.fromkeys(keep) for _ in documents] if keep else []
    for record in pairs if keep else ():
        number = queries[record[query_column]], documents[record[positive_column]]
        of_pairs.setdefault(number, {name: record.get(name) for name in keep})
    for record in (*others, *pairs) if keep else ():
        known = of_documents[documents[record[positive_column]]]
        known |= {name: record.get(name) for name in keep if known[name] is None}
    return of_pairs, of_documents


def _check_kept(keep: Sequence[str], query_column: str, positive_column: str, rows: Sequence[Mapping]) -> None:
    further = [name for name in rows[0] if name not in (query_column, positive_column)]
    if bad := next((name for name in keep if name not in further), None):
        raise ValueError(f"keep must name further columns of the records, such as {sorted(further)}; got {bad!r}")


def _check_options(embedder: TextEncoder, options: Mapping[str, Any]) -> None:
    """Raises a TypeError for options that the model's `encode` does not have, or has from here already."""
    try:
        inspect.signature(embedder.encode).bind([], prompt_name=None, **options)
    except TypeError as error:
        raise TypeError(f"encode_options: {error}") from None


def _text(record: Mapping[str, Any], column: str, number: int) -> str:
    value = record.get(column)
    if not isinstance(value, str):
        got = f"the columns {sorted(record)}" if value is None else f"{type(value).__name__} {value!r:.60}"
        raise ValueError(f"record {number}: expected a text in column {column!r}; got {got}")
    if not value.strip():
        raise ValueError(f"record {number}: expected a text in column {column!r}; got {value!r}, which is blank")
    return value


def _are_positives(ids: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Which of the candidates `[Q, k]` are positives of their query."""
    width = max(int(ids.max(initial=0)), int(positives[:, 1].max(initial=0))) + 1
    keys = np.arange(len(ids), dtype=np.int64)[:, None] * width + ids
    return np.isin(keys, positives[:, 0].astype(np.int64) * width + positives[:, 1]) & (ids >= 0)


def _pair_scores(queries, corpus, of: np.ndarray, document: np.ndarray, metric: str) -> np.ndarray:
    """The similarity of each pair, f32 `[P]`, as `topk_search` computes it."""
    scores = np.zeros(len(of), np.float32)
    for start in range(0, len(of), _PAIRS):
        part = slice(start, start + _PAIRS)
        a, b = np.asarray(queries[of[part]], np.float32), np.asarray(corpus[document[part]], np.float32)
        scores[part] = PAIRED[metric](a, b)
    return scores


def _rescored(rescore: Callable, query_rows: np.ndarray, corpus_rows: np.ndarray) -> np.ndarray:
    scores = np.zeros(len(query_rows), np.float32)
    for start in range(0, len(query_rows), _PAIRS):
        part = slice(start, start + _PAIRS)
        found = np.asarray(rescore(query_rows[part], corpus_rows[part]), np.float32)
        if found.shape != query_rows[part].shape:
            raise ValueError(f"rescoring {len(query_rows[part])} pairs must give a score each; got {found.shape}")
        if not np.isfinite(found).all():
            raise ValueError(f"rescoring gave a score that is not finite: {found[~np.isfinite(found)][0]}")
        scores[part] = found
    return scores


def _check(limits: Mapping[str, float | None], sampling_strategy: str) -> None:
    one_of("sampling_strategy", sampling_strategy, ("top", "random"))
    for name, limit in limits.items():
        if limit is not None and not np.isfinite(limit):
            raise ValueError(f"{name} must be finite; got {limit}")
    percentile = limits["percentile"]
    if percentile is not None and not 0 <= percentile <= 100:
        raise ValueError(f"percentile must be in [0, 100]; got {percentile}")


def _checked_positives(positives: np.ndarray, queries: int, documents: int) -> np.ndarray:
    positives = np.asarray(positives)
    if positives.ndim != 2 or positives.shape[1] != 2 or not np.issubdtype(positives.dtype, np.integer):
        raise ValueError(f"positives must be integers [P, 2]; got {positives.dtype} {positives.shape}")
    bad = (positives < 0) | (positives >= (queries, documents))
    if bad.any():
        number = int(np.argmax(bad.any(axis=1)))
        raise ValueError(
            f"positives[{number}] must name one of {queries} queries and one of {documents} documents; "
            f"got {positives[number].tolist()}"
        )
    return positives
