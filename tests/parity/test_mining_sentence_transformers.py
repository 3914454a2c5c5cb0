"""Hard-negative mining against sentence-transformers, with fixed embeddings in place of a model."""

import numpy as np
import pytest

from jaxemb.retrieval import mine_hard_negatives

torch = pytest.importorskip("torch")
datasets = pytest.importorskip("datasets")
util = pytest.importorskip("sentence_transformers.util")

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


class Embedder:
    """As both libraries see a model."""

    device = "cpu"
    similarity = staticmethod(util.cos_sim)
    similarity_pairwise = staticmethod(util.pairwise_cos_sim)

    def encode(self, texts, *, prompt=None, prompt_name=None):
        return np.stack([VECTORS[(prompt or "") + text] for text in texts])

    def encode_query(self, texts, *, normalize_embeddings, **_):
        assert normalize_embeddings
        vectors = self.encode(texts)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    encode_document = encode_query


class CrossEncoder:
    def predict(self, pairs, convert_to_tensor=False, **_):
        scores = np.float32([np.tanh(VECTORS[a] @ VECTORS[b] / 3 + 0.1 * np.cos(VECTORS[b][0] * 50)) for a, b in pairs])
        return torch.tensor(scores) if convert_to_tensor else scores


def assert_same(options, output_format="n-tuple", output_scores=True, corpus=TEXTS, cross_encoder=None):
    theirs = util.mine_hard_negatives(
        datasets.Dataset.from_list(RECORDS),
        Embedder(),
        corpus=corpus,
        cross_encoder=cross_encoder,
        output_format=output_format,
        output_scores=output_scores,
        verbose=False,
        **options,
    ).to_list()
    predict = None if cross_encoder is None else cross_encoder.predict
    mined = mine_hard_negatives(Embedder(), RECORDS, corpus, cross_encoder=predict, **options)
    ours = mined.records(output_format, output_scores=output_scores)
    assert len(ours) == len(theirs)
    for our, their in zip(ours, theirs, strict=True):
        assert list(our) == list(their)
        for name, value in our.items():
            assert value == (pytest.approx(their[name], abs=1e-6) if "score" in name else their[name])
    return ours


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


@pytest.mark.parametrize("conditions", CONDITIONS, ids=str)
@pytest.mark.parametrize("corpus", [TEXTS, None], ids=["corpus", "positives"])
@pytest.mark.parametrize(
    "ranks", [{}, {"num_negatives": 1}, {"range_min": 4}, {"range_min": 2, "range_max": 9, "num_negatives": 5}], ids=str
)
def test_the_same_negatives(conditions, corpus, ranks):
    assert assert_same(conditions | ranks, output_format="labeled-list", corpus=corpus)


@pytest.mark.parametrize("output_format", ["triplet", "n-tuple", "n-tuple-scores", "labeled-pair", "labeled-list"])
@pytest.mark.parametrize("output_scores", [False, True])
def test_the_same_records(output_format, output_scores):
    options = {"relative_margin": 0.3, "range_max": 12}  # some queries find three negatives, others fewer, others none
    records = assert_same(options, output_format, output_scores)
    assert len(records) > 20


@pytest.mark.parametrize("conditions", [{"min_score": 0.1}, {"absolute_margin": 0.2}, {"max_score": 0.7}], ids=str)
def test_the_same_negatives_by_a_cross_encoder(conditions):
    assert assert_same(conditions | {"range_min": 1}, "labeled-list", cross_encoder=CrossEncoder())


@pytest.mark.parametrize("options", [{}, {"num_negatives": 10, "range_max": 20}], ids=str)
def test_the_same_ranking_with_positives(options):
    records = assert_same({"include_positives": True} | options)
    assert any(record["positive"] == record["negative_1"] for record in records)
