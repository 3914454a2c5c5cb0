"""Hard-negative mining against what sentence-transformers mined with the same vectors, kept by make_mining.py."""

import json

import pytest
from mining_cases import CASES, RECORDS, TEXTS, cross_scores, encode

from jaxemb.retrieval import mine_hard_negatives


class Embedder:
    def encode(self, texts, *, prompt=None, prompt_name=None):
        return encode(texts)


@pytest.fixture(scope="module")
def expected(frozen) -> list:
    return json.loads(frozen("mining")[0]["records"].tobytes())


@pytest.mark.parametrize("number", range(len(CASES)))
def test_the_same_records(expected, number):
    options, output_format, output_scores, with_corpus, with_cross_encoder = CASES[number]
    mined = mine_hard_negatives(
        Embedder(),
        RECORDS,
        TEXTS if with_corpus else None,
        cross_encoder=cross_scores if with_cross_encoder else None,
        **options,
    )
    ours, theirs = mined.records(output_format, output_scores=output_scores), expected[number]
    assert len(ours) == len(theirs) > 0
    for our, their in zip(ours, theirs, strict=True):
        assert list(our) == list(their)
        for name, value in our.items():
            assert value == (pytest.approx(their[name], abs=2e-6) if "score" in name else their[name])


def test_the_cases_differ(expected):
    assert any(record["positive"] == record.get("negative_1") for record in expected[-2])  # positives are ranked, too
    assert len({json.dumps(records) for records in expected}) > len(CASES) // 2
