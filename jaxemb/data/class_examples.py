"""Data with labels and scores as queries, positives and negatives, as general embedding models are trained on them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxemb.checks import at_least, checked


@checked(negatives=at_least(0))
def class_examples(
    texts: Sequence[str], labels: Sequence[Any], *, negatives: int = 7, seed: int = 0, by_label: bool = False
) -> list[dict[str, Any]]:
    """Records of classes: a text, another one of its class, and texts of other classes.

    NV-Embed's example-based labels: a text is drawn for each, in place of the name of the class, which helps
    clustering. A text whose class has no other gets no record. Turn in-batch negatives off:
    `losses.masks.other_records`.

    Args:
      texts: N texts.
      labels: the class of each.
      negatives: how many of each record, drawn without replacement from all texts of other classes; fewer where there
        are no more.
      seed: of what is drawn.
      by_label: positives and negatives are the names of classes, as of data with two or few of them.

    Returns:
      Records with "query", "positive" and the list "negatives".

    Raises:
      ValueError: for another number of labels than texts, or less than two classes.

    References:
      Lee et al. 2024 (NV-Embed), arXiv 2405.17428, section 4.2.
    """
    if len(labels) != len(texts):
        raise ValueError(f"labels must be one for each of the {len(texts)} texts; got {len(labels)}")
    names, of = np.unique([str(label) for label in labels], return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"labels must be of at least two classes; got {names.tolist()}")
    rng, records = np.random.default_rng(seed), []
    members = [np.flatnonzero(of == label) for label in range(len(names))]
    for row, label in enumerate(of):
        if by_label:
            others = [str(name) for name in names if name != names[label]]
            drawn = rng.permutation(len(others))[:negatives]
            records.append(_record(texts[row], str(names[label]), [others[i] for i in drawn]))
            continue
        same = members[label][members[label] != row]
        if not len(same):
            continue
        other = np.flatnonzero(of != label)
        drawn = rng.choice(other, min(negatives, len(other)), replace=False)
        records.append(_record(texts[row], texts[rng.choice(same)], [texts[i] for i in drawn]))
    return records


def _record(query: str, positive: str, negatives: list[str]) -> dict[str, Any]:
    return {"query": query, "positive": positive, "negatives": negatives}


@checked()
def similar_pairs(
    first: Sequence[str], second: Sequence[str], scores: Sequence[float], *, threshold: float = 4.0
) -> list[dict[str, str]]:
    """Records "query", "positive" of the pairs with a score of `threshold` or more, each of them both ways.

    Their negatives are mined: `retrieval.mine_hard_negatives(..., relative_margin=0.05)`.

    Raises:
      ValueError: for lengths that differ.
    """
    if not len(first) == len(second) == len(scores):
        raise ValueError(
            f"first, second and scores must be of the same pairs; got {len(first)}, {len(second)} and {len(scores)}"
        )
    same = [(a, b) for a, b, score in zip(first, second, scores, strict=True) if score >= threshold]
    return [{"query": a, "positive": b} for pair in same for a, b in (pair, pair[::-1])]
