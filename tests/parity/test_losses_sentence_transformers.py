"""Losses against sentence-transformers: value and gradient on the same embeddings."""

import jax.numpy as jnp
import numpy as np
import pytest
from libraries import Library, torch

from jaxemb import losses

pytest_plugins = ["losses_oracle"]

reference = Library("sentence_transformers.sentence_transformer.losses")
util = Library("sentence_transformers.util")

LONG_NAMES = {"q2d": "query_to_doc", "d2q": "doc_to_query", "q2q": "query_to_query", "d2d": "doc_to_doc"}


def embeddings(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@pytest.mark.parametrize("n_hard", [pytest.param(0, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5, "similarity": "dot"},
        {"directions": ("q2d", "d2q")},
        {"directions": ("q2d", "d2q"), "partition": "per_direction"},
        {"directions": ("q2d", "q2q", "d2q", "d2d")},
        {"hardness": "in_batch_negatives", "hardness_strength": 2.0},
        {"hardness": "hard_negatives", "hardness_strength": 2.0},
        {"hardness": "all_negatives", "hardness_strength": 2.0, "directions": ("q2d", "q2q", "d2d")},
    ],
    ids=str,
)
def test_info_nce_is_multiple_negatives_ranking(agree, options, n_hard):
    arrays = list(embeddings(2 + n_hard, 7, 16))
    theirs = lambda: reference.MultipleNegativesRankingLoss(
        None,
        scale=1 / options.get("temperature", 0.05),
        similarity_fct=util.dot_score if options.get("similarity") == "dot" else util.cos_sim,
        directions=[LONG_NAMES[d] for d in options.get("directions", ("q2d",))],
        partition_mode=options.get("partition", "joint"),
        hardness_mode=options.get("hardness"),
        hardness_strength=options.get("hardness_strength", 0.0),
    )

    def ours(queries, documents, *hard):
        return losses.info_nce(queries, documents, jnp.stack(hard, axis=1) if hard else None, **options).mean()

    agree(ours, lambda *tensors: theirs().compute_loss_from_embeddings(list(tensors), None), arrays)


def test_symmetric_info_nce_is_the_symmetric_ranking_loss(agree):
    theirs = lambda: reference.MultipleNegativesSymmetricRankingLoss(None)
    agree(
        lambda *arrays: losses.symmetric_info_nce(*arrays).mean(),
        lambda *tensors: theirs().compute_loss_from_embeddings(list(tensors), None),
        list(embeddings(2, 9, 16)),
    )


@pytest.mark.parametrize("n", [2, 33])
def test_cosent(agree, n):
    scores = np.random.default_rng(1).integers(0, 6, n).astype(np.float32)
    theirs = lambda: reference.CoSENTLoss(None)
    agree(
        lambda *arrays: losses.cosent(*arrays, scores).mean(),
        lambda *tensors: theirs().compute_loss_from_embeddings(list(tensors), torch.tensor(scores)),
        list(embeddings(2, n, 16)),
    )
