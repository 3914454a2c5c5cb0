"""Late interaction against sentence-transformers' multi-vector losses, on given token vectors: value and gradient.

A known bug elsewhere: PyLate, and FlagEmbedding in its multi-vector head, multiply padding by 0 instead of leaving it
out, so that it wins wherever all similarities of a query token with a document are negative.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from libraries import Library, torch

from jaxemb import losses

pytest_plugins = ["losses_oracle"]

reference = Library("sentence_transformers.multi_vector_encoder.losses")
scoring = Library("sentence_transformers.multi_vector_encoder.scoring")

N, K, DIM = 4, 3, 8
RNG = np.random.default_rng(0)


def some_tokens(*shape):
    """Vectors `[..., T, D]`, and a mask with at least one token per text."""
    vectors = RNG.standard_normal((*shape, DIM)).astype(np.float32)
    return vectors, np.arange(shape[-1]) < RNG.integers(1, shape[-1] + 1, shape[:-1])[..., None]


QUERIES, QUERY_MASK = some_tokens(N, 5)
DOCUMENTS, DOCUMENT_MASK = some_tokens(N, K, 6)  # column 0 the positive


def given():
    """A model whose token vectors are its input."""

    class Given(torch.nn.Module):
        def forward(self, features, task=None):
            return {"token_embeddings": features["vectors"], "attention_mask": features["mask"]}

    return Given()


def columns(queries, documents):
    """The features of the query column, then of one column per document slot."""
    yield {"vectors": queries, "mask": torch.tensor(QUERY_MASK)}
    for slot in range(K):
        yield {"vectors": documents[:, slot], "mask": torch.tensor(DOCUMENT_MASK[:, slot])}


@pytest.fixture
def assert_same(agree):
    return lambda ours, theirs: agree(ours, theirs, [QUERIES, DOCUMENTS])


def candidate_scores(queries, documents, **options):
    return losses.maxsim_candidates(queries, QUERY_MASK, documents, DOCUMENT_MASK, **options)


WEIGHTS = RNG.standard_normal((N, N * K)).astype(np.float32)  # what the scores are summed with, to compare gradients
FLAT_MASK = DOCUMENT_MASK.reshape(N * K, -1)


def flat(documents):
    return documents.reshape(N * K, *documents.shape[2:])


@pytest.mark.parametrize("mean", [False, True])
def test_maxsim(assert_same, mean):
    assert_same(
        lambda q, d: jnp.sum(WEIGHTS * losses.maxsim(q, QUERY_MASK, flat(d), FLAT_MASK, mean=mean, tile=5)),
        lambda q, d: (
            torch.tensor(WEIGHTS)
            * (scoring.mean_colbert_scores if mean else scoring.colbert_scores)(
                q, d, torch.tensor(QUERY_MASK), torch.tensor(DOCUMENT_MASK)
            )
        ).sum(),
    )


@pytest.mark.parametrize("mean", [False, True])
def test_maxsim_candidates(assert_same, mean):
    weights = WEIGHTS[:, :K]
    assert_same(
        lambda q, d: jnp.sum(weights * candidate_scores(q, d, mean=mean)),
        lambda q, d: (
            torch.tensor(weights)
            * (scoring.mean_colbert_kd_scores if mean else scoring.colbert_kd_scores)(
                q, d, torch.tensor(QUERY_MASK), torch.tensor(DOCUMENT_MASK)
            )
        ).sum(),
    )


@pytest.mark.parametrize("k", [1, 7, 256])
def test_xtr(assert_same, k):
    assert_same(
        lambda q, d: jnp.sum(WEIGHTS * losses.xtr(q, QUERY_MASK, flat(d), FLAT_MASK, k=k)),
        lambda q, d: (
            torch.tensor(WEIGHTS)
            * scoring.xtr_scores(q, d, torch.tensor(QUERY_MASK), torch.tensor(DOCUMENT_MASK), top_k=k)
        ).sum(),
    )


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_maxsim_info_nce(assert_same, scale):
    theirs = lambda: reference.MultiVectorMultipleNegativesRankingLoss(given(), scale=scale)
    assert_same(
        lambda q, d: losses.maxsim_info_nce(
            q,
            QUERY_MASK,
            d[:, 0],
            DOCUMENT_MASK[:, 0],
            d[:, 1:],
            DOCUMENT_MASK[:, 1:],
            temperature=1 / scale,
        ).mean(),
        lambda q, d: theirs()(columns(q, d)),
    )


def test_distillation(assert_same):
    teacher = WEIGHTS[:, :K]
    theirs = lambda: reference.MultiVectorDistillKLDivLoss(given(), student_temperature=2.0, teacher_temperature=0.5)
    assert_same(
        lambda q, d: losses.distill_kl_scores(
            candidate_scores(q, d), teacher, student_temperature=2.0, teacher_temperature=0.5
        ).mean(),
        lambda q, d: theirs()(columns(q, d), torch.tensor(teacher)),
    )


def test_margins(assert_same):
    teacher = WEIGHTS[:, :K]
    theirs = lambda: reference.MultiVectorMarginMSELoss(given())
    assert_same(
        lambda q, d: losses.margin_mse_scores(candidate_scores(q, d), teacher).mean(),
        lambda q, d: theirs()(columns(q, d), torch.tensor(teacher)),
    )
