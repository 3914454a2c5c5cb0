"""Sparse losses and SPLADE's pooling against sentence-transformers: value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxemb import losses, pooling
from jaxemb.types import Tokens

torch = pytest.importorskip("torch")
reference = pytest.importorskip("sentence_transformers.sparse_encoder.losses")
csr = pytest.importorskip("sentence_transformers.sparse_encoder.losses.csr")
modules = pytest.importorskip("sentence_transformers.sparse_encoder.modules")
callbacks = pytest.importorskip("sentence_transformers.sparse_encoder.callbacks.splade_callbacks")


def arrays_of(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def assert_same(ours, theirs, arrays):
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    expected = theirs(tensors)
    expected.backward()
    value, gradients = jax.jit(jax.value_and_grad(ours))(arrays)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5, atol=1e-5)
    for gradient, tensor in zip(gradients, tensors, strict=True):
        np.testing.assert_allclose(gradient, np.zeros_like(gradient) if tensor.grad is None else tensor.grad, atol=1e-5)


@pytest.mark.parametrize("threshold", [None, 0, 4, 7])
def test_flops(threshold):
    activations = np.maximum(arrays_of(6, 9), 0)
    theirs = reference.FlopsLoss(None, threshold=threshold)
    assert_same(
        lambda arrays: losses.flops(arrays[0], threshold=threshold).mean(),
        lambda tensors: theirs.compute_loss_from_embeddings(tensors[0]),
        [activations],
    )


def test_splade_loss():
    """The composition that `losses.sparse` describes."""
    columns = list(np.maximum(arrays_of(3, 5, 12), 0))

    class Given(torch.nn.Module):
        def forward(self, features):
            return {"sentence_embedding": features["embedding"]}

    model = Given()
    theirs = reference.SpladeLoss(model, reference.SparseMultipleNegativesRankingLoss(model), 0.3, 0.5)

    def ours(columns):
        queries, documents, negatives = columns
        ranking = losses.info_nce(queries, documents, negatives, temperature=1.0, similarity="dot")
        both = jnp.stack([documents, negatives], axis=1)
        return (ranking + 0.3 * losses.flops(both) + 0.5 * losses.flops(queries)).mean()

    assert_same(ours, lambda tensors: sum(theirs([{"embedding": t} for t in tensors]).values()), columns)


def test_flops_ramp():
    callback = object.__new__(callbacks.SpladeRegularizerWeightSchedulerCallback)
    callback.scheduler_type, callback.warmup_steps = callbacks.SchedulerType.QUADRATIC, int(100 / 3)
    ramp = losses.flops_ramp(0.02, 100)
    for step in (0, 1, 20, 32, 33, 34, 99):
        np.testing.assert_allclose(ramp(step), callback._calculate_weight_value(step, 0.02), rtol=1e-6)


@pytest.mark.parametrize("with_dead", [True, False])
def test_csr_reconstruction(with_dead):
    arrays = list(arrays_of(4 if with_dead else 3, 6, 8))
    theirs = csr.CSRReconstructionLoss(None, beta=0.1)

    def expected(tensors):
        # The decoder has no bias here; theirs adds one to both sides of the auxiliary term, where it cancels.
        names = ("sentence_embedding_backbone", "decoded_embedding_k", "decoded_embedding_4k", "decoded_embedding_aux")
        features = dict(zip(names, [*tensors, None], strict=False)) | {"decoded_embedding_k_pre_bias": tensors[1]}
        return sum(theirs.compute_loss_from_embeddings([features]).values())

    assert_same(lambda arrays: losses.csr_reconstruction(*arrays).mean(), expected, arrays)


@pytest.mark.parametrize("same", [False, True], ids=["distinct", "all the same"])
def test_normalized_mse(same):
    reconstructions, targets = arrays_of(2, 5, 7)
    targets = np.broadcast_to(targets[:1], targets.shape).copy() if same else targets
    assert_same(
        lambda arrays: losses.normalized_mse(*arrays).mean(),
        lambda tensors: csr.normalized_mean_squared_error(*tensors),
        [reconstructions, targets],
    )


def test_k_sparse_is_the_code_of_the_sparse_autoencoder():
    autoencoder = modules.SparseAutoEncoder(4, 9, k=3, k_aux=0)
    assert_same(
        lambda arrays: jnp.sum(jnp.sin(losses.k_sparse(arrays[0], 3))),
        lambda tensors: autoencoder.top_k(tensors[0], 3)[0].sin().sum(),
        [arrays_of(5, 9)],
    )


@pytest.mark.parametrize("reduce", ["max", "sum"])
@pytest.mark.parametrize("saturations", [1, 2])
def test_splade_pooling(reduce, saturations):
    mask = np.array([[1] * 7, [1] * 3 + [0] * 4])
    tokens = Tokens.from_mask(np.zeros_like(mask), mask)
    theirs = modules.SpladePooling(reduce, ["relu", "log1p_relu"][saturations - 1])

    def ours(arrays):
        weights = pooling.splade(arrays[0], tokens, reduce=reduce, saturations=saturations, chunk=3)
        return jnp.sum(jnp.sin(weights[:, 0]))

    def expected(tensors):
        features = {"token_embeddings": tensors[0], "attention_mask": torch.tensor(mask)}
        return theirs(features)["sentence_embedding"].sin().sum()

    assert_same(ours, expected, [arrays_of(2, 7, 11)])
