"""German as the other modality: STS-Benchmark sentences in German and English, and a frozen English tower.

Shared by the experiments that train a German tower of hashed n-grams against MiniLM's vectors of the English originals.
The test split is not among the data, so what is reported is measured on the development split; training sentences that
are in it, in either language, are left out.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from scipy.sparse import csr_array

from experiments.lib import datasets
from jaxemb.encoders import Bags, HashedBag, hashed_ngrams
from jaxemb.evaluate import metrics, read_sts
from jaxemb.retrieval import topk_search
from jaxemb.similarity import unit_rows


@dataclasses.dataclass(frozen=True)
class Sentences:
    """N German sentences: features `[N, buckets]`, and MiniLM's vectors of the English originals `[N, 384]`."""

    german: csr_array
    english: np.ndarray

    def __len__(self) -> int:
        return len(self.english)

    def __getitem__(self, rows: np.ndarray) -> "Sentences":
        return Sentences(self.german[rows], self.english[rows])


@dataclasses.dataclass(frozen=True)
class Test:
    """What a German tower is measured on.

    Attributes:
      sentences: no two are equal in either language.
      pairs: two sentences each that people have compared, int `[P, 2]`.
      scores: their similarity, 0 to 5, `[P]`.
    """

    __test__ = False

    sentences: Sentences
    pairs: np.ndarray
    scores: np.ndarray

    def __call__(self, tower: HashedBag) -> dict[str, float]:
        """In percent: recall@1 of the English original among all, and Spearman's correlation of the cosine with the
        scores, of the two German sentences and of the first in German with the second in English."""
        german, english = unit_rows(embed(tower, self.sentences.german)), self.sentences.english
        first, second = self.pairs.T
        correlation = lambda other: metrics.spearman((german[first] * other[second]).sum(1), self.scores)
        return {
            "recall@1": recall_at_1(tower, self.sentences),
            "spearman_german_english": 100 * correlation(english),
            "spearman_german": 100 * correlation(german),
        }


def embed(tower: HashedBag, german: csr_array) -> np.ndarray:
    """The tower's vectors, `[N, 384]`."""
    return np.array(jax.jit(HashedBag.__call__)(tower, Bags.from_csr(german)))


@functools.cache
def load(limit: int | None = None) -> tuple[Sentences, Test]:
    """Training sentences, no two equal in either language, and the test; of each split `limit` random pairs, or all."""
    (train_pairs, _), (test_pairs, scores) = (_read(split, limit) for split in ("train", "dev"))
    rows = {sentence: i for i, sentence in enumerate(dict.fromkeys(itertools.chain.from_iterable(test_pairs)))}
    seen = {text for sentence in rows for text in sentence}
    train = []
    for sentence in itertools.chain.from_iterable(train_pairs):
        if not seen.intersection(sentence):
            seen.update(sentence)
            train.append(sentence)
    german, english = zip(*train, *rows, strict=True)
    every = Sentences(hashed_ngrams(german), datasets.vectors(english))
    cut = np.arange(len(train)), np.arange(len(train), len(every))
    test = Test(
        every[cut[1]],
        np.array([[rows[first], rows[second]] for first, second in test_pairs]),
        scores,
    )
    return every[cut[0]], test


def _read(split: str, limit: int | None) -> tuple[list[tuple[tuple[str, str], tuple[str, str]]], np.ndarray]:
    """The pairs of a split, each sentence as (German, English), and their scores."""
    names = ("sentence1", "sentence2", "score")
    directory = datasets.data_dir("stsb_multi")
    de, en = (read_sts(directory / f"stsb-{language}-{split}.csv.gz", names=names) for language in ("de", "en"))
    pairs = zip(zip(de.first, en.first, strict=True), zip(de.second, en.second, strict=True), strict=True)
    every, kept = list(pairs), datasets.sample(len(en.scores), limit)
    return [every[i] for i in kept], en.scores[kept]


def batches(sentences: Sentences, rows: Iterable[np.ndarray]) -> Iterator[dict[str, Any]]:
    """Training batches: of the rows of each step the numbers "id", the features "german" and the vectors "english".

    All have room for the same number of features, so that one program serves them all.
    """
    rows = list(rows)
    lengths = np.diff(sentences.german.indptr)
    size = max(int(lengths[step].sum()) for step in rows)
    for step in rows:
        part = sentences[step]
        yield {"id": step.astype(np.int32), "german": Bags.from_csr(part.german, size), "english": part.english}


def recall_at_1(tower: HashedBag, sentences: Sentences) -> float:
    """Share of the sentences, in percent, whose nearest English vector is that of their own original."""
    _, found = topk_search(embed(tower, sentences.german), sentences.english, 1)
    return 100 * float(np.mean(found[:, 0] == np.arange(len(sentences))))
