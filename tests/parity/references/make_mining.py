"""Writes mining.npz: what sentence-transformers mines of mining_cases.py. Run with `tests/parity` on the path."""

import json

import datasets
import mining_cases as cases
import numpy as np
import torch
from sentence_transformers import util
from storing import store


class Embedder:
    device = "cpu"
    similarity = staticmethod(util.cos_sim)
    similarity_pairwise = staticmethod(util.pairwise_cos_sim)

    def encode_query(self, texts, *, normalize_embeddings, **_):
        assert normalize_embeddings
        vectors = cases.encode(texts)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    encode_document = encode_query


class CrossEncoder:
    def predict(self, pairs, convert_to_tensor=False, **_):
        scores = cases.cross_scores(pairs)
        return torch.tensor(scores) if convert_to_tensor else scores


def mined(options, output_format, output_scores, with_corpus, with_cross_encoder) -> list[dict]:
    return util.mine_hard_negatives(
        datasets.Dataset.from_list(cases.RECORDS),
        Embedder(),
        corpus=cases.TEXTS if with_corpus else None,
        cross_encoder=CrossEncoder() if with_cross_encoder else None,
        output_format=output_format,
        output_scores=output_scores,
        verbose=False,
        **options,
    ).to_list()


def _rounded(value):
    if isinstance(value, float):
        return round(value, 6)
    return [_rounded(one) for one in value] if isinstance(value, list) else value


def values() -> dict[str, np.ndarray]:
    """Of every case the records, as the bytes of JSON."""
    found = [[{k: _rounded(v) for k, v in record.items()} for record in mined(*case)] for case in cases.CASES]
    return {"records": np.frombuffer(json.dumps(found).encode(), np.uint8)}


if __name__ == "__main__":
    store(__file__, values())
