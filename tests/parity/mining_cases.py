"""Vectors, records and options of the comparisons of hard-negative mining, without any library."""

import numpy as np

DIM = 8
TEXTS = [f"document {i}" for i in range(80)]
RANDOM = np.random.default_rng(0)
VECTORS = dict(zip(TEXTS, RANDOM.standard_normal((80, DIM), np.float32), strict=True))
RECORDS = []
for i in range(40):
    # Queries near their positives; one in four has two positives, one in five none but a distant one.
    noise = 3.0 if i % 5 == 0 else 0.7
    VECTORS[f"query {i}"] = VECTORS[TEXTS[i]] + noise * RANDOM.standard_normal(DIM, np.float32)
    RECORDS += [{"query": f"query {i}", "positive": TEXTS[j]} for j in ((i, i + 40) if i % 4 == 0 else (i,))]
RECORDS = RECORDS[::2] + RECORDS[1::2]  # the positives of a query do not follow each other

CONDITIONS = [
    {},
    {"max_score": 0.5},
    {"min_score": 0.3},
    {"absolute_margin": 0.1},
    {"absolute_margin": 0},
    {"relative_margin": 0.05},
    {"relative_margin": 0.5, "max_score": 0.4, "min_score": -0.1},
    {"absolute_margin": 0.05, "relative_margin": 0.1, "max_score": 0.6, "min_score": 0.1},
]
RANKS = [{}, {"num_negatives": 1}, {"range_min": 4}, {"range_min": 2, "range_max": 9, "num_negatives": 5}]
FORMATS = ["triplet", "n-tuple", "n-tuple-scores", "labeled-pair", "labeled-list"]
SOME = {"relative_margin": 0.3, "range_max": 12}  # some queries find three negatives, others fewer, others none

#: Options of the miner; format and whether with scores; whether from a corpus; whether by a cross-encoder.
CASES = [
    *(
        (c | ranks, "labeled-list", True, corpus, False)
        for c in CONDITIONS
        for ranks in RANKS
        for corpus in (True, False)
    ),
    *((SOME, kind, scores, True, False) for kind in FORMATS for scores in (False, True)),
    *(
        (c | {"range_min": 1}, "labeled-list", True, True, True)
        for c in ({"min_score": 0.1}, {"absolute_margin": 0.2}, {"max_score": 0.7})
    ),
    *(
        ({"include_positives": True} | options, "n-tuple", True, True, False)
        for options in ({}, {"num_negatives": 10, "range_max": 20})
    ),
]


def encode(texts) -> np.ndarray:
    return np.stack([VECTORS[text] for text in texts])


def cross_scores(pairs) -> np.ndarray:
    """What stands for a cross-encoder."""
    return np.float32([np.tanh(VECTORS[a] @ VECTORS[b] / 3 + 0.1 * np.cos(VECTORS[b][0] * 50)) for a, b in pairs])
