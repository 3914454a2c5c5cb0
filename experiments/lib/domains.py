"""Pairs of a query and its document in five domains, for training and for tests."""

import functools
import gzip
import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from experiments.lib import datasets
from experiments.lib.corpora import wordnet
from jaxemb.evaluate import read_beir
from jaxemb.recipes import quickstart

Pair = tuple[str, str]
"""A query and its document."""


def german() -> tuple[list[Pair], list[Pair]]:
    """Captions of Multi30k in German, and the English ones that they translate."""
    return _divided(list(zip(datasets.multi30k("de"), datasets.multi30k("en"), strict=True)))


def dictionary() -> tuple[list[Pair], list[Pair]]:
    """Definitions of the Open English WordNet, the first of each word, and the words."""
    entries = wordnet()
    first: dict[int, str] = {}
    for text, entry in zip(entries.texts, entries.entry.tolist(), strict=True):
        first.setdefault(entry, text)
    return _divided([(text, entries.entries[entry]) for entry, text in first.items()])


def python() -> tuple[list[Pair], list[Pair]]:
    """Docstrings of Python's standard library, and the bodies of their functions; tests are other modules."""
    train, test = ([(p["query"], p["body"]) for p in quickstart.pairs(split)] for split in ("train", "test"))
    return _apart(train, test)


def medicine() -> tuple[list[Pair], list[Pair]]:
    """Questions of MedQuAD and their answers."""

    def read(split: str) -> list[Pair]:
        data = read_beir(datasets.data_dir() / "ir_medquad", split)
        return [(data.queries[query], data.corpus[next(iter(judged))]) for query, judged in data.qrels.items()]

    return _apart(read("train"), read("test"))


def captions() -> tuple[list[Pair], list[Pair]]:
    """The first two captions of every photograph of COCO's validation set."""
    with gzip.open(datasets.data_dir() / "coco_captions" / "captions_val2017.jsonl.gz", "rt", encoding="utf-8") as file:
        return _divided([tuple(json.loads(line)["captions"][:2]) for line in file])


DOMAINS: Mapping[str, Callable[[], tuple[list[Pair], list[Pair]]]] = {
    "German": german,
    "dictionary": dictionary,
    "Python": python,
    "medicine": medicine,
    "captions": captions,
}


@functools.cache
def pairs_of(domain: str) -> tuple[list[Pair], list[Pair]]:
    """Those for training and those for tests, which no seed changes."""
    return DOMAINS[domain]()


def _divided(pairs: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    """For training, and a fifth of them, at most 1,000, for tests."""
    mixed = shuffled(_unique(pairs))
    tests = min(1000, len(mixed) // 5)
    return mixed[tests:], mixed[:tests]


def _apart(train: list[Pair], test: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Without the training pairs whose query or document is one of the tests'."""
    test = shuffled(_unique(test))
    queries, documents = ({pair[side] for pair in test} for side in (0, 1))
    return [pair for pair in _unique(train) if pair[0] not in queries and pair[1] not in documents], test


def _unique(pairs: Sequence[Pair]) -> list[Pair]:
    """Those whose query and document have not come before."""
    seen: tuple[set[str], set[str]] = (set(), set())
    kept = []
    for query, document in pairs:
        if query not in seen[0] and document not in seen[1]:
            kept.append((query, document))
        seen[0].add(query)
        seen[1].add(document)
    return kept


def shuffled(pairs: Sequence[Pair], seed: int = 0) -> list[Pair]:
    """In a random order."""
    return [pairs[i] for i in np.random.default_rng(seed).permutation(len(pairs))]
