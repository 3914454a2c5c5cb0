"""Retrieval: how well a model ranks the documents of a corpus for queries with known relevant documents."""

import dataclasses
import inspect
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from jaxemb.checks import check_types, checked, described, encodable, instance, one_of
from jaxemb.data.records import read
from jaxemb.evaluate import metrics
from jaxemb.retrieval.exact import topk_search
from jaxemb.text_encoder import Evaluator, TextEncoder, encode_finite, stored_prompt

Qrels = Mapping[str, Mapping[str, int]]
TieBreak = Literal["trec", "lower_id"]
DEFAULT_KS = (1, 3, 5, 10, 100)


@dataclasses.dataclass(frozen=True)
class RetrievalSet:
    """A test collection: texts by id, and `qrels[query id][document id]` = relevance level (> 0 is relevant).

    Raises:
      TypeError: for anything else, naming the argument.
      ValueError: for a level that is not finite.
    """

    queries: Mapping[str, str]
    corpus: Mapping[str, str]
    qrels: Qrels

    def __post_init__(self):
        check_types(self)
        _check_collection(self.queries, self.corpus, self.qrels)


@dataclasses.dataclass(frozen=True)
class RetrievalScores:
    """Metrics per query.

    Attributes:
      query_ids: the Q queries that were scored.
      values: `[Q]` by metric: "ndcg@k", "map@k", "mrr@k", "recall@k", "precision@k" and "success@k" for each k.
      unjudged_queries: queries left out as nothing is judged for them.
      missing_queries: judged queries left out as there is no text, or no ranking, of them.
      missing_documents: judged documents that are not in the corpus; they still count as relevant.
    """

    query_ids: tuple[str, ...]
    values: Mapping[str, np.ndarray]
    unjudged_queries: int = 0
    missing_queries: int = 0
    missing_documents: int = 0

    def means(self) -> dict[str, float]:
        """The mean of each metric over the queries."""
        return {name: float(np.mean(values)) for name, values in self.values.items()}

    def summary(self, *, confidence: float = 0.95) -> dict[str, Any]:
        """Means with standard errors and bootstrap intervals, and the counts; ready for JSON."""
        scores: dict[str, dict[str, float | None]] = {}
        for name, values in self.values.items():
            scores[name] = {"mean": float(np.mean(values)), "standard_error": None, "low": None, "high": None}
            if len(values) > 1:
                low, high = metrics.bootstrap_interval(values, confidence=confidence)
                scores[name] |= {"standard_error": metrics.standard_error(values), "low": low, "high": high}
        counts = ("unjudged_queries", "missing_queries", "missing_documents")
        return {
            "queries": len(self.query_ids),
            **{name: getattr(self, name) for name in counts},
            "confidence": confidence,
            "metrics": scores,
        }


@checked()
def retrieval(
    embedder: TextEncoder, queries: Mapping[str, str], corpus: Mapping[str, str], qrels: Qrels, **options: Any
) -> dict[str, float]:
    """The means of `retrieval_per_query`, such as `{"ndcg@10": 0.41, ...}`; same arguments."""
    return retrieval_per_query(embedder, queries, corpus, qrels, **options).means()


@checked()
def retrieval_per_query(
    embedder: TextEncoder,
    queries: Mapping[str, str],
    corpus: Mapping[str, str],
    qrels: Qrels,
    *,
    ks: Sequence[int] = DEFAULT_KS,
    similarity: str | None = None,
    query_prompt_name: str | None = None,
    corpus_prompt_name: str | None = None,
    ignore_identical_ids: bool = False,
    tie_break: TieBreak = "trec",
    map_denominator: metrics.MapDenominator = "relevant",
    strict: bool = False,
) -> RetrievalScores:
    """Encodes queries and corpus, searches exactly, and scores the ranking of every judged query.

    Args:
      embedder: the model.
      queries: texts by query id; those without judgements are not encoded.
      corpus: texts by document id.
      qrels: `qrels[query id][document id]` = relevance level; > 0 is relevant.
      ks: cut-offs.
      similarity: "cosine", "dot" or "euclidean"; None takes the model's own, else cosine.
      query_prompt_name: a prompt of the model; None takes the one called "query" where there is one.
      corpus_prompt_name: None takes "document", "passage" or "corpus" where there is one.
      ignore_identical_ids: leave out a document whose id is the query's, where queries are documents themselves.
      tie_break: order of equal scores: by descending id as trec_eval and MTEB do, or by ascending id.
      map_denominator: see `metrics.average_precision_at_k`.
      strict: raise for documents that are judged but not in the corpus, instead of counting them with a warning.

    Raises:
      ValueError: if no query has both text and judgements, the corpus is empty, a k is < 1, embeddings or levels are
        not finite, or (strict) a judged document is missing.
      TypeError: for ids that are no strings, and levels that are no numbers.
    """
    _check_ks(ks)
    _check_collection(queries, corpus, qrels)
    query_ids = _judged(queries, corpus, qrels)
    missing = {document for query in query_ids for document in qrels[query] if document not in corpus}
    unknown = f"{len(missing)} judged documents are not in the corpus, such as {_some(sorted(missing))}"
    if missing and strict:
        raise ValueError(unknown)
    if missing:
        warnings.warn(f"{unknown}; they count as relevant, and no ranking can find them", RuntimeWarning, stacklevel=3)

    # Equal scores go to the lower row, so the order of the rows is the order of ties.
    document_ids = sorted(corpus, reverse=_is_trec(tie_break))
    row_of = {document: row for row, document in enumerate(document_ids)}
    query_prompt = stored_prompt(embedder, "query", given=query_prompt_name, argument="query_prompt_name")
    usual, given = ("document", "passage", "corpus"), corpus_prompt_name
    corpus_prompt = stored_prompt(embedder, *usual, given=given, argument="corpus_prompt_name")
    query_vectors = encode_finite(embedder, [queries[q] for q in query_ids], query_prompt, "queries")
    corpus_vectors = encode_finite(embedder, [corpus[d] for d in document_ids], corpus_prompt, "corpus")
    same = [row_of.get(query, -1) for query in query_ids] if ignore_identical_ids else None
    _, rows = topk_search(
        query_vectors,
        corpus_vectors,
        max(ks),
        metric=similarity or getattr(embedder, "similarity_fn_name", None) or "cosine",
        exclude_ids=None if same is None else np.array(same)[:, None],
    )
    rankings = [[document_ids[row] for row in found if row >= 0] for found in rows.tolist()]
    return RetrievalScores(
        tuple(query_ids),
        _score(rankings, [qrels[query] for query in query_ids], ks, map_denominator),
        unjudged_queries=len(queries) - len(query_ids),
        missing_queries=sum(query not in queries for query in qrels),
        missing_documents=len(missing),
    )


@checked()
def retrieval_evaluator(data: RetrievalSet, **options: Any) -> Evaluator:
    """`retrieval` on `data`, as a function of the model alone; options as for `retrieval_per_query`.

    Raises:
      ValueError: if `data` is such that `retrieval_per_query` would refuse it, or a k is < 1.
      TypeError: for an option that there is not.
    """
    given = inspect.signature(retrieval_per_query).bind(None, data.queries, data.corpus, data.qrels, **options)
    _check_ks(given.arguments.get("ks", DEFAULT_KS))
    _judged(data.queries, data.corpus, data.qrels)

    def evaluate(embedder: TextEncoder) -> dict[str, float]:
        return retrieval(embedder, data.queries, data.corpus, data.qrels, **options)

    return evaluate


@checked()
def score_run(
    run: Mapping[str, Mapping[str, float]],
    qrels: Qrels,
    *,
    ks: Sequence[int] = DEFAULT_KS,
    tie_break: TieBreak = "trec",
    map_denominator: metrics.MapDenominator = "relevant",
) -> RetrievalScores:
    """Scores `run[query id][document id]` = score, larger is better, as trec_eval does.

    Scores are compared in f32. Queries in only one of run and qrels are left out, and counted.

    Raises:
      ValueError: if run and qrels have no query in common, a score is nan or none of f32, a level is not finite, or a
        k is < 1.
      TypeError: for ids that are no strings, and scores and levels that are no numbers.
    """
    _check_ks(ks)
    _check_numbers("run", run)
    _check_levels(qrels)
    query_ids = [query for query in run if query in qrels]
    if not query_ids:
        raise ValueError(f"run and qrels have no query in common; got {_some(run)} and {_some(qrels)}")
    rankings = [_ranked(query, run[query], _is_trec(tie_break)) for query in query_ids]
    return RetrievalScores(
        tuple(query_ids),
        _score(rankings, [qrels[query] for query in query_ids], ks, map_denominator),
        unjudged_queries=len(run) - len(query_ids),
        missing_queries=len(qrels) - len(query_ids),
    )


@checked()
def read_beir(directory: str | Path, split: str = "test", *, qrels: str | Path | None = None) -> RetrievalSet:
    """A test collection in BEIR's layout; every file may be gzipped (`.gz`).

        corpus.jsonl       {"_id": "d1", "title": "...", "text": "..."}; the title is put in front of the text
        queries.jsonl      {"_id": "q1", "text": "..."}
        qrels/<split>.tsv  header, then query id, document id and level

    Args:
      directory: where these are.
      split: which qrels.
      qrels: the file of the qrels, if it is elsewhere.

    Raises:
      FileNotFoundError: naming a file that is not there, and the splits that are.
      NotADirectoryError: `directory` is a file.
      ValueError: naming file and line of a malformed row, an id that comes twice, or a document with several levels.
    """
    directory = Path(directory)
    _check_layout(directory, qrels is None)
    if qrels is None:
        if not split or Path(split).name != split:
            raise ValueError(f"split must be the name of a file in qrels, such as 'test'; got {split!r}")
        qrels = _file(directory / "qrels" / f"{split}.tsv")
    corpus, queries = (_texts(_file(directory / f"{name}.jsonl")) for name in ("corpus", "queries"))
    judgements: dict[str, dict[str, int]] = {}
    source = read(qrels, columns=("query-id", "corpus-id", "score"), types={"score": int})
    for record in source.__getitems__(range(len(source))):
        query, document, level = record["query-id"], record["corpus-id"], record["score"]
        if judgements.setdefault(query, {}).setdefault(document, level) != level:
            raise ValueError(f"{qrels}: query {query!r} and document {document!r} have several levels")
    return RetrievalSet(queries, corpus, judgements)


_BEIR = (
    "expected a directory of corpus.jsonl, queries.jsonl and qrels/: in the first two lines such as "
    '{"_id": "d1", "text": "..."}, in qrels/test.tsv the header query-id, corpus-id, score and lines as q1, d1, 1, '
    "between tabs; from Python, jaxemb.evaluate.RetrievalSet takes the same as dicts"
)


def _check_layout(directory: Path, with_qrels: bool) -> None:
    """Says what BEIR's layout is where there is nothing of it."""
    if directory.is_file():
        raise NotADirectoryError(f"{directory} is a file; {_BEIR}")
    if not directory.is_dir():
        raise FileNotFoundError(f"there is no directory {directory}; {_BEIR}")
    names = ("corpus.jsonl", "queries.jsonl", *(["qrels"] if with_qrels else []))
    there = sorted(path.name for path in directory.iterdir())
    if not any(name.startswith(names) for name in there):
        raise FileNotFoundError(f"{directory} is no retrieval set, as it has {there[:8]}; {_BEIR}")


def _texts(path: Path) -> dict[str, str]:
    """Texts by id, the title in front."""
    source = read(path)
    texts: dict[str, str] = {}
    for number, record in enumerate(source.__getitems__(range(len(source)))):
        if record.get("_id") is None or record.get("text") is None:
            raise ValueError(f"{path}: record {number} must have '_id' and 'text'; got {sorted(record)}")
        key, title = str(record["_id"]), record.get("title") or ""
        if key in texts:
            raise ValueError(f"{path}: id {key!r} comes twice")
        for name, text in (("title", title), ("text", record["text"])):
            instance(f"{path}: {name!r} of {key!r}", text, str)
            encodable(f"{path}: {name!r} of {key!r}", text)
        texts[key] = f"{title} {record['text']}".strip()
    return texts


def _file(path: Path) -> Path:
    for candidate in (path, path.with_name(path.name + ".gz")):
        if candidate.is_file():
            return candidate
    there = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else "nothing"
    raise FileNotFoundError(f"no {path.name} (or .gz) in {path.parent}; there is {there}")


def _judged(queries: Mapping[str, str], corpus: Mapping[str, str], qrels: Qrels) -> list[str]:
    """The queries that have judgements. Raises a ValueError if there is none, or nothing to search."""
    if not corpus:
        raise ValueError("corpus must not be empty")
    query_ids = [query for query in queries if qrels.get(query)]
    if not query_ids:
        raise ValueError(
            f"no query has judgements; queries: {len(queries)}, such as {_some(queries)}; "
            f"qrels: {len(qrels)}, such as {_some(qrels)}"
        )
    return query_ids


def _check_ks(ks: Sequence[int]) -> None:
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must be cut-offs >= 1; got {tuple(ks)}")


def _check_collection(queries: Mapping[str, str], corpus: Mapping[str, str], qrels: Qrels) -> None:
    """Raises for ids that are no strings, which equal none of a file, and levels that are none."""
    _check_ids("queries", queries)
    _check_ids("corpus", corpus)
    _check_levels(qrels)


def _check_levels(qrels: Qrels) -> None:
    _check_numbers("qrels", qrels)
    for query, judged in qrels.items():
        finite = np.isfinite(_floats(f"qrels[{query!r}]", list(judged.values())))
        if not finite.all():
            document = list(judged)[int(finite.argmin())]
            raise ValueError(f"qrels[{query!r}][{document!r}] must be a finite level; got {judged[document]!r:.60}")


def _check_ids(name: str, by_id: Mapping[str, Any]) -> None:
    """Raises a TypeError unless all keys are strings."""
    for wrong in by_id if {*map(type, by_id)} - {str} else ():
        if not isinstance(wrong, str):
            raise TypeError(f"{name} must be by ids that are strings; got {described(wrong)}")


def _check_numbers(name: str, by_query: Mapping[str, Mapping[str, float]]) -> None:
    """Raises a TypeError unless numbers are given to ids of documents for ids of queries."""
    _check_ids(name, by_query)
    for query, numbers in by_query.items():
        instance(f"{name}[{query!r}]", numbers, Mapping)
        _check_ids(f"{name}[{query!r}]", numbers)
        if {*map(type, numbers.values())} - {int, float, np.float32, np.float64}:
            for document, number in numbers.items():
                instance(f"{name}[{query!r}][{document!r}]", number, float)


def _floats(name: str, numbers: Sequence[float]) -> np.ndarray:
    """Numbers in f64. Raises a ValueError for whole ones beyond it."""
    try:
        return np.array(numbers, np.float64)
    except OverflowError:
        raise ValueError(f"{name} has a whole number that float64 cannot hold") from None


def _is_trec(tie_break: str) -> bool:
    if tie_break not in ("trec", "lower_id"):
        raise ValueError(f"tie_break must be 'trec' or 'lower_id'; got {tie_break!r}")
    return tie_break == "trec"


def _some(ids) -> list[str]:
    return list(ids)[:3]


def _ranked(query: str, scores: Mapping[str, float], is_trec: bool) -> list[str]:
    """Document ids by descending score; a stable sort keeps equal scores in the order of the ids."""
    documents = sorted(scores, reverse=is_trec)
    given = _floats(f"run[{query!r}]", [scores[document] for document in documents])
    with np.errstate(over="ignore"):
        values = given.astype(np.float32)
    bad = np.isnan(values) | (np.isinf(values) & np.isfinite(given))
    if bad.any():
        which = documents[int(bad.argmax())]
        raise ValueError(f"run: query {query!r} has {scores[which]} as score of {which!r}; expected a float32")
    return [documents[i] for i in np.argsort(-values, kind="stable")]


def _score(
    rankings: Sequence[Sequence[str]],
    judgements: Sequence[Mapping[str, int]],
    ks: Sequence[int],
    map_denominator: metrics.MapDenominator,
) -> dict[str, np.ndarray]:
    """Every metric at every k, `[Q]` each."""
    one_of("map_denominator", map_denominator, get_args(metrics.MapDenominator))
    width = min(max(ks), max(map(len, rankings), default=0) or 1)  # nothing comes after the last document
    gains = np.zeros((len(rankings), width))
    judged = np.zeros((len(rankings), max(map(len, judgements), default=0) or 1))
    for row, (ranking, levels) in enumerate(zip(rankings, judgements, strict=True)):
        found = [levels.get(document, 0) for document in ranking[:width]]
        gains[row, : len(found)] = found
        judged[row, : len(levels)] = list(levels.values())
    per_k = {
        "ndcg": lambda k: metrics.ndcg_at_k(gains, judged, k),
        "map": lambda k: metrics.average_precision_at_k(gains, judged, k, denominator=map_denominator),
        "mrr": lambda k: metrics.reciprocal_rank_at_k(gains, k),
        "recall": lambda k: metrics.recall_at_k(gains, judged, k),
        "precision": lambda k: metrics.precision_at_k(gains, k),
        "success": lambda k: metrics.success_at_k(gains, k),
    }
    return {f"{name}@{k}": metric(k) for name, metric in per_k.items() for k in ks}
