"""Semantic textual similarity: how well similarities of embeddings order pairs of texts as people do."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxemb.checks import checked
from jaxemb.data.records import read
from jaxemb.evaluate import metrics
from jaxemb.similarity import PAIRED
from jaxemb.text_encoder import Evaluator, TextEncoder, encode_finite

_ROUNDING = 8 * float(np.finfo(np.float32).eps)  # of the length of a vector: nearer ones are the same


@dataclasses.dataclass(frozen=True)
class StsSet:
    """Pairs of texts and how similar people find them (any unit; larger is more alike), N of each."""

    first: Sequence[str]
    second: Sequence[str]
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.first)


@checked()
def sts(
    embedder: TextEncoder,
    first: Sequence[str],
    second: Sequence[str],
    scores: Sequence[float] | np.ndarray,
    *,
    similarities: Sequence[str] = ("cosine",),
    prompt_name: str | None = None,
) -> dict[str, float]:
    """Spearman's and Pearson's correlation of the scores with the similarities of the pairs' embeddings.

    Args:
      embedder: the model.
      first, second: the two texts of each pair, N each.
      scores: how similar people find them, `[N]`.
      similarities: of "cosine", "dot", "euclidean" and "manhattan" (negative distances; those within the rounding of
        the vectors, 1e-6 of their length, are 0).
      prompt_name: the model's prompt for all texts.

    Returns:
      "cosine_spearman", "cosine_pearson" and so on, in -1..1; NaN, with a warning, where all similarities are the same.

    Raises:
      ValueError: for lengths that differ, fewer than two pairs, scores or embeddings that are not finite, scores that
        are all the same, an unknown similarity.
    """
    scores = _checked_scores(first, second, scores, similarities)
    embeddings = encode_finite(embedder, [*first, *second], prompt_name, "sentences").astype(np.float64)
    a, b = embeddings[: len(first)], embeddings[len(first) :]
    result = {}
    for name in similarities:
        predicted = PAIRED[name](a, b)
        if name in ("euclidean", "manhattan"):  # whose order between texts that are the same is that of their rounding
            predicted = np.where(np.abs(predicted) <= _ROUNDING * np.abs(PAIRED[name](a, 0 * a)), 0.0, predicted)
        result[f"{name}_spearman"] = metrics.spearman(predicted, scores)
        result[f"{name}_pearson"] = metrics.pearson(predicted, scores)
    return result


@checked()
def sts_evaluator(
    data: StsSet, *, similarities: Sequence[str] = ("cosine",), prompt_name: str | None = None
) -> Evaluator:
    """`sts` on `data`, as a function of the model alone.

    Raises:
      ValueError: if `data` or `similarities` are such that `sts` would refuse them.
    """
    _checked_scores(data.first, data.second, data.scores, similarities)

    def evaluate(embedder: TextEncoder) -> dict[str, float]:
        return sts(embedder, data.first, data.second, data.scores, similarities=similarities, prompt_name=prompt_name)

    return evaluate


@checked()
def read_sts(
    path: str | Path,
    columns: Sequence[str] = ("sentence1", "sentence2", "score"),
    *,
    names: Sequence[str] | None = None,
    format: str | None = None,
) -> StsSet:
    """The pairs of a file that `jaxemb.data.read` reads.

        read_sts("stsb-en-dev.csv.gz", names=("sentence1", "sentence2", "score"))
        read_sts("2012.MSRpar.test.tsv.gz", names=("score", "sentence1", "sentence2"))
        read_sts("SICK_trial.txt.gz", ("sentence_A", "sentence_B", "relatedness_score"), format="tsv")

    Args:
      path: the file.
      columns: the fields of the first text, the second text and the score.
      names: the fields of a csv or tsv file without a header line.
      format: see `jaxemb.data.read`.

    Raises:
      ValueError: naming file and line of a malformed row, as a score that is no finite number.
    """
    if len(columns) != 3:
        raise ValueError(f"columns must be three, of the texts and the score; got {list(columns)}")
    first, second, score = columns
    mapping = {"first": first, "second": second, "score": score}
    source = read(path, format=format, columns=mapping, names=names, types={"score": _finite})
    records = source.__getitems__(range(len(source)))
    return StsSet(
        [record["first"] for record in records],
        [record["second"] for record in records],
        np.array([record["score"] for record in records], np.float64),
    )


def _checked_scores(
    first: Sequence[str], second: Sequence[str], scores: Sequence[float] | np.ndarray, similarities: Sequence[str]
) -> np.ndarray:
    """The scores as float64, if a correlation with them is defined."""
    scores = np.asarray(scores, np.float64)
    if not len(first) == len(second) == len(scores) or scores.ndim != 1:
        raise ValueError(
            f"first, second and scores must have one entry per pair; got {len(first)}, {len(second)} and {scores.shape}"
        )
    if unknown := set(similarities) - set(PAIRED):
        raise ValueError(f"similarities must be among {list(PAIRED)}; got {sorted(unknown)}")
    if len(scores) < 2:
        raise ValueError(f"scores must be of at least two pairs for a correlation; got {len(scores)}")
    if not np.isfinite(scores).all():
        raise ValueError(f"scores must be finite; that of pair {np.flatnonzero(~np.isfinite(scores))[0]} is not")
    if (scores == scores[0]).all():
        raise ValueError(f"scores must differ for a correlation; all {len(scores)} are {scores[0]}")
    return scores


def _finite(text: str) -> float:
    value = float(text)
    if not np.isfinite(value):
        raise ValueError(f"not a finite number: {text!r}")
    return value
