"""Several rankings of the same documents as one."""

from collections.abc import Mapping

from jaxemb.checks import checked

Run = Mapping[str, Mapping[str, float]]
"""By query and document, scores."""


@checked()
def min_max_fusion(first: Run, second: Run, *, weight: float = 0.5) -> dict[str, dict[str, float]]:
    """`weight a + (1 - weight) b` with the scores a and b of each query scaled to 0..1, by their least and largest.

    Where all scores of a query are the same, they become 1. A document that is missing in one run has 0 there; a query
    that is missing in one run, or has no document there, takes the other's scores for both.

    >>> min_max_fusion({"q": {"a": 3.0, "b": 1.0}}, {"q": {"b": 10.0, "c": 0.0}})
    {'q': {'a': 0.5, 'b': 0.5, 'c': 0.0}}

    Args:
      first, second: such as what dense and what sparse vectors find.
      weight: of the first, in [0, 1].

    Raises:
      ValueError: for a weight outside of [0, 1].

    References:
      Zhuang et al. 2024 (PromptReps), arXiv 2404.18424, whose runs are 1,000 documents deep.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must be in [0, 1]; got {weight}")
    fused = {}
    for query in {**first, **second}:
        runs = [_scaled(run.get(query) or other.get(query) or {}) for run, other in ((first, second), (second, first))]
        documents = {**runs[0], **runs[1]}
        fused[query] = {d: weight * runs[0].get(d, 0.0) + (1 - weight) * runs[1].get(d, 0.0) for d in documents}
    return fused


def _scaled(scores: Mapping[str, float]) -> dict[str, float]:
    if not scores:
        return {}
    low, high = min(scores.values()), max(scores.values())
    return {document: (s - low) / (high - low) if high > low else 1.0 for document, s in scores.items()}
