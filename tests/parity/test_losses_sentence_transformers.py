"""Losses against sentence-transformers: value and gradient on the same embeddings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxemb import losses

torch = pytest.importorskip("torch")
reference = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
util = pytest.importorskip("sentence_transformers.util")

LONG_NAMES = {"q2d": "query_to_doc", "d2q": "doc_to_query", "q2q": "query_to_query", "d2d": "doc_to_doc"}


def embeddings(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def assert_same(ours, theirs, arrays):
    """`ours(arrays)` and `theirs(tensors)` agree to 1e-5, and so do their gradients."""
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    expected = theirs(tensors)
    expected.backward()
    value, gradients = jax.value_and_grad(ours)(arrays)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5, atol=1e-5)
    for gradient, tensor in zip(gradients, tensors, strict=True):
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), atol=1e-5)


@pytest.mark.parametrize("n_hard", [0, 2])
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
def test_info_nce_is_multiple_negatives_ranking(options, n_hard):
    arrays = list(embeddings(2 + n_hard, 7, 16))
    similarity = {"cosine": util.cos_sim, "dot": util.dot_score}[options.get("similarity", "cosine")]
    theirs = reference.MultipleNegativesRankingLoss(
        None,
        scale=1 / options.get("temperature", 0.05),
        similarity_fct=similarity,
        directions=[LONG_NAMES[d] for d in options.get("directions", ("q2d",))],
        partition_mode=options.get("partition", "joint"),
        hardness_mode=options.get("hardness"),
        hardness_strength=options.get("hardness_strength", 0.0),
    )

    def ours(arrays):
        queries, documents, *hard = arrays
        return losses.info_nce(queries, documents, jnp.stack(hard, axis=1) if hard else None, **options).mean()

    assert_same(ours, lambda tensors: theirs.compute_loss_from_embeddings(tensors, None), arrays)


def test_symmetric_info_nce_is_the_symmetric_ranking_loss():
    theirs = reference.MultipleNegativesSymmetricRankingLoss(None)
    assert_same(
        lambda arrays: losses.symmetric_info_nce(*arrays).mean(),
        lambda tensors: theirs.compute_loss_from_embeddings(tensors, None),
        list(embeddings(2, 9, 16)),
    )


@pytest.mark.parametrize("n", [2, 33])
def test_cosent(n):
    scores = np.random.default_rng(1).integers(0, 6, n).astype(np.float32)
    theirs = reference.CoSENTLoss(None)
    assert_same(
        lambda arrays: losses.cosent(*arrays, scores).mean(),
        lambda tensors: theirs.compute_loss_from_embeddings(tensors, torch.tensor(scores)),
        list(embeddings(2, n, 16)),
    )
