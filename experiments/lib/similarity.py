"""Pairs of sentences with scores: the STS-Benchmark, SICK and STS 2012-2015, and what a model makes of them.

The STS-Benchmark was drawn from the very STS sets: `unseen` leaves out pairs of which a sentence was trained on.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import spearmanr

from experiments.lib import datasets
from jaxemb.evaluate import StsSet, read_sts
from jaxemb.text_encoder import TextEncoder

SICK = ("sentence_A", "sentence_B", "relatedness_score")


def stsb(split: str) -> StsSet:
    """The English STS-Benchmark, "train" or "dev"; its test split is not among the data."""
    path = datasets.data_dir("stsb_multi", f"stsb-en-{split}.csv.gz")
    return read_sts(path, names=("sentence1", "sentence2", "score"))


def sick(part: str) -> StsSet:
    """SICK's relatedness: "train", "trial" or "test_annotated"."""
    return read_sts(datasets.data_dir("sick", f"SICK_{part}.txt.gz"), SICK, format="tsv")


@functools.cache
def tests() -> Mapping[str, StsSet]:
    """STS-B dev, SICK's test set, and of each year of STS 2012-2015 the test sets together, without MSRvid and SMT."""
    parts: dict[str, list[StsSet]] = {"STS-B dev": [stsb("dev")], "SICK test": [sick("test_annotated")]}
    for path in sorted(datasets.data_dir("sts12_15").glob("*.test.tsv.gz")):
        pairs = read_sts(path, names=("score", "sentence1", "sentence2"))
        if len(pairs):
            parts.setdefault(f"STS{path.name[2:4]}", []).append(pairs)
    return {name: joined(some) for name, some in parts.items()}


def joined(parts: Sequence[StsSet]) -> StsSet:
    """Several sets as one."""
    first, second = ([text for part in parts for text in getattr(part, side)] for side in ("first", "second"))
    return StsSet(first, second, np.concatenate([part.scores for part in parts]))


def select(pairs: StsSet, rows: Iterable[int]) -> StsSet:
    """Some of the pairs."""
    rows = [int(row) for row in rows]
    return StsSet([pairs.first[i] for i in rows], [pairs.second[i] for i in rows], pairs.scores[rows])


def sampled(sets: Mapping[str, StsSet], size: int | None) -> dict[str, StsSet]:
    """Of each set a random sample, the same for all seeds; None for the whole sets."""
    return {name: select(pairs, datasets.sample(len(pairs), size)) for name, pairs in sets.items()}


def unseen(pairs: StsSet, training: StsSet) -> StsSet:
    """The pairs of which neither sentence is one of the training pairs', whatever its case and white space."""
    seen = {normalized(text) for text in (*training.first, *training.second)}
    both = zip(pairs.first, pairs.second, strict=True)
    return select(pairs, (i for i, texts in enumerate(both) if not seen & set(map(normalized, texts))))


def held_out(training: StsSet, share: float = 0.1, seed: int = 0) -> np.ndarray:
    """Which pairs are held out, bool `[N]`: about a `share`, without a sentence that another pair has.

    Pairs are linked by the sentences that they have in common; whole connected components are held out.
    """
    number: dict[str, int] = {}
    edges = [[number.setdefault(normalized(t), len(number)) for t in s] for s in (training.first, training.second)]
    graph = coo_array((np.ones(len(training)), edges), shape=(len(number), len(number)))
    component = connected_components(graph, directed=False)[1][edges[0]]
    sizes = np.bincount(component)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(sizes))
    return np.isin(component, order[np.cumsum(sizes[order]) <= share * len(training)])


def normalized(text: str) -> str:
    """Without differences of case and white space."""
    return " ".join(text.split()).casefold()


def texts_of(sets: Mapping[str, StsSet]) -> list[str]:
    """Every sentence once."""
    return list(dict.fromkeys(text for pairs in sets.values() for text in (*pairs.first, *pairs.second)))


def correlations(sets: Mapping[str, StsSet], texts: Sequence[str], vectors: np.ndarray) -> dict[str, float]:
    """Spearman's correlation x 100 of the cosines of each set with its scores, from vectors of `texts_of`, `[N, D]`."""
    row = {text: i for i, text in enumerate(texts)}
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    of = lambda some: unit[[row[text] for text in some]]
    cosines = {name: (of(pairs.first) * of(pairs.second)).sum(axis=1) for name, pairs in sets.items()}
    return {name: 100 * float(spearmanr(cosines[name], pairs.scores).statistic) for name, pairs in sets.items()}


def measured(encoder: TextEncoder, sets: Mapping[str, StsSet]) -> dict[str, float]:
    """`correlations` of a model, which encodes every sentence once."""
    texts = texts_of(sets)
    return correlations(sets, texts, np.asarray(encoder.encode(texts), np.float32))


def described(sets: Mapping[str, StsSet]) -> str:
    """How many pairs there are."""
    return ", ".join(f"{len(pairs):,} pairs of {name}" for name, pairs in sets.items())


def records(pairs: StsSet) -> list[dict[str, Any]]:
    """The pairs as records of sentence1, sentence2 and scores."""
    rows = zip(pairs.first, pairs.second, pairs.scores.tolist(), strict=True)
    return [{"sentence1": a, "sentence2": b, "scores": score} for a, b, score in rows]
