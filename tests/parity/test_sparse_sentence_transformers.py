"""Sparse losses and SPLADE's pooling against sentence-transformers: value and gradient."""

import jax.numpy as jnp
import numpy as np
import pytest
from libraries import Library, torch

from jaxemb import losses, pooling
from jaxemb.types import Tokens

pytest_plugins = ["losses_oracle"]

reference = Library("sentence_transformers.sparse_encoder.losses")
csr = Library("sentence_transformers.sparse_encoder.losses.csr")
modules = Library("sentence_transformers.sparse_encoder.modules")
callbacks = Library("sentence_transformers.sparse_encoder.callbacks.splade_callbacks")


def arrays_of(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@pytest.mark.parametrize("threshold", [None, 0, 4, 7])
def test_flops(agree, threshold):
    activations = np.maximum(arrays_of(6, 9), 0)
    theirs = lambda: reference.FlopsLoss(None, threshold=threshold)
    agree(
        lambda a: losses.flops(a, threshold=threshold).mean(),
        lambda a: theirs().compute_loss_from_embeddings(a),
        [activations],
    )


def test_splade_loss(agree):
    """The composition that `losses.sparse` describes."""
    columns = list(np.maximum(arrays_of(3, 5, 12), 0))

    def theirs(*tensors):
        class Given(torch.nn.Module):
            def forward(self, features):
                return {"sentence_embedding": features["embedding"]}

        model = Given()
        loss = reference.SpladeLoss(model, reference.SparseMultipleNegativesRankingLoss(model), 0.3, 0.5)
        return sum(loss([{"embedding": t} for t in tensors]).values())

    def ours(queries, documents, negatives):
        ranking = losses.info_nce(queries, documents, negatives, temperature=1.0, similarity="dot")
        both = jnp.stack([documents, negatives], axis=1)
        return (ranking + 0.3 * losses.flops(both) + 0.5 * losses.flops(queries)).mean()

    agree(ours, theirs, columns)


@pytest.mark.slow
def test_flops_ramp():
    callback = object.__new__(callbacks.SpladeRegularizerWeightSchedulerCallback)
    callback.scheduler_type, callback.warmup_steps = callbacks.SchedulerType.QUADRATIC, int(100 / 3)
    ramp = losses.flops_ramp(0.02, 100)
    for step in (0, 1, 20, 32, 33, 34, 99):
        np.testing.assert_allclose(ramp(step), callback._calculate_weight_value(step, 0.02), rtol=1e-6)


@pytest.mark.parametrize("with_dead", [True, False])
def test_csr_reconstruction(agree, with_dead):
    arrays = list(arrays_of(4 if with_dead else 3, 6, 8))
    theirs = lambda: csr.CSRReconstructionLoss(None, beta=0.1)

    def expected(*tensors):
        # The decoder has no bias here; theirs adds one to both sides of the auxiliary term, where it cancels.
        names = ("sentence_embedding_backbone", "decoded_embedding_k", "decoded_embedding_4k", "decoded_embedding_aux")
        features = dict(zip(names, [*tensors, None], strict=False)) | {"decoded_embedding_k_pre_bias": tensors[1]}
        return sum(theirs().compute_loss_from_embeddings([features]).values())

    agree(lambda *arrays: losses.csr_reconstruction(*arrays).mean(), expected, arrays)


@pytest.mark.parametrize("same", [False, True], ids=["distinct", "all the same"])
def test_normalized_mse(agree, same):
    reconstructions, targets = arrays_of(2, 5, 7)
    targets = np.broadcast_to(targets[:1], targets.shape).copy() if same else targets
    agree(
        lambda *arrays: losses.normalized_mse(*arrays).mean(),
        lambda *tensors: csr.normalized_mean_squared_error(*tensors),
        [reconstructions, targets],
    )


def test_k_sparse_is_the_code_of_the_sparse_autoencoder(agree):
    autoencoder = lambda: modules.SparseAutoEncoder(4, 9, k=3, k_aux=0)
    agree(
        lambda x: jnp.sum(jnp.sin(losses.k_sparse(x, 3))),
        lambda x: autoencoder().top_k(x, 3)[0].sin().sum(),
        [arrays_of(5, 9)],
    )


@pytest.mark.parametrize("reduce", ["max", "sum"])
@pytest.mark.parametrize("saturations", [1, 2])
def test_splade_pooling(agree, reduce, saturations):
    mask = np.array([[1] * 7, [1] * 3 + [0] * 4])
    tokens = Tokens.from_mask(np.zeros_like(mask), mask)
    theirs = lambda: modules.SpladePooling(reduce, ["relu", "log1p_relu"][saturations - 1])

    def ours(x):
        weights = pooling.splade(x, tokens, reduce=reduce, saturations=saturations, chunk=3)
        return jnp.sum(jnp.sin(weights))

    def expected(x):
        features = {"token_embeddings": x, "attention_mask": torch.tensor(mask)}
        return theirs()(features)["sentence_embedding"].sin().sum()

    agree(ours, expected, [arrays_of(2, 7, 11)])
