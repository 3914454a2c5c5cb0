import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxemb.classifiers.linear import Classifier
from jaxemb.encoders import Mlp
from jaxemb.encoders.transformer import Transformer, TransformerConfig
from jaxemb.merging import collect_fisher, collect_grams, gradient_conflict, interference_report, sampled_labels
from jaxemb.nn import Linear
from jaxemb.types import Tokens

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 3)).astype(np.float32)
W = RNG.normal(size=(3, 4)).astype(np.float32)


def cross_entropy(model, batch, key):
    logits = batch["input"] @ model
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, batch["label"]), {"logits": logits}


def test_fisher_is_the_mean_of_squared_gradients_of_examples():
    labels = np.array([0, 1, 2, 3, 0, 1])
    batches = [{"input": X[i : i + 2], "label": labels[i : i + 2]} for i in (0, 2, 4)]
    fisher = collect_fisher(cross_entropy, jnp.asarray(W), batches)
    p = np.exp(X @ W) / np.exp(X @ W).sum(axis=1, keepdims=True)
    gradients = X[:, :, None] * (p - np.eye(4)[labels])[:, None, :]
    np.testing.assert_allclose(fisher, (gradients**2).mean(axis=0), rtol=1e-4)


@pytest.mark.slow
def test_fisher_of_sampled_labels_is_the_true_one():
    batch = {"input": X[:2], "classes": np.array([True, True, True, False])}
    draws = [batch] * 1000
    fisher = collect_fisher(sampled_labels(lambda m, b, k: (None, {"logits": b["input"] @ m})), jnp.asarray(W), draws,
                            jax.random.key(0))  # fmt: skip
    p = np.exp(X[:2] @ W) * batch["classes"]
    p /= p.sum(axis=1, keepdims=True)
    of_label = X[:2, None, :, None] * (p[:, None] - np.eye(4)[None])[:, :, None, :]  # [N, label, in, out]
    expected = np.einsum("nl,nlio->io", p, of_label**2) / 2
    np.testing.assert_allclose(fisher, expected, rtol=0.15, atol=1e-8)
    with pytest.raises(ValueError, match="needs a key"):
        sampled_labels(cross_entropy)(W, batch, None)


def test_fisher_of_losses_that_depend_on_the_whole_batch():
    def objective(model, batch, key):
        logits = batch["q"] @ model @ (batch["d"] @ model).T
        return jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits), {}

    batch = {"q": X, "d": X + 0.3}
    fisher = collect_fisher(objective, jnp.asarray(W), [batch])
    rows = jax.jit(jax.jacrev(lambda model: objective(model, batch, None)[0]))(jnp.asarray(W))
    np.testing.assert_allclose(fisher, np.square(rows).mean(axis=0), rtol=1e-3)
    with pytest.raises(ValueError, match="batches must be at least one"):
        collect_fisher(objective, jnp.asarray(W), [])


def test_grams_of_the_inputs_of_linear_layers():
    sizes = [3, 5, 4, 2]
    *layers, head = (Linear(jnp.asarray(RNG.normal(size=s), jnp.float32)) for s in itertools.pairwise(sizes))
    model = Classifier(Mlp(tuple(layers)), head)
    grams = collect_grams(lambda model, batch: model(batch), model, [X[:4], X[4:]])
    hidden = [X]
    for layer in model.encoder.layers:
        hidden.append(np.maximum(hidden[-1] @ layer.kernel, 0))
    paths = ["encoder.layers.0.kernel", "encoder.layers.1.kernel", "head.kernel"]
    assert sorted(grams) == paths
    for path, x in zip(paths, hidden, strict=True):
        np.testing.assert_allclose(grams[path], x.T @ x, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_grams_inside_a_scan():
    config = TransformerConfig(vocab_size=7, dim=4, layers=2, heads=2, mlp_dim=6, remat="full")
    model = Transformer.init(jax.random.key(0), config)
    tokens = Tokens.from_mask(np.arange(6).reshape(2, 3), np.ones((2, 3)))
    grams = collect_grams(lambda model, batch: model(batch), model, [tokens])
    states = np.asarray(model(tokens, all_states=True)).reshape(3, -1, 4)
    for name in ("query", "key", "value"):
        for layer in range(2):
            expected = states[layer].T @ states[layer]
            np.testing.assert_allclose(grams[f"layers.attention.{name}.kernel"][layer], expected, rtol=1e-4, atol=1e-5)
    assert grams["layers.mlp.down.kernel"].shape == (2, 6, 6)


def test_grams_of_nothing():
    with pytest.raises(ValueError, match="model must have a Linear layer"):
        collect_grams(lambda model, batch: batch, {"w": W}, [X])
    with pytest.raises(ValueError, match="batches must be at least one"):
        collect_grams(lambda model, batch: model(batch), Mlp.init(jax.random.key(0), [3, 2]), [])


def test_interference_by_hand():
    report = interference_report([{"a": np.array([3.0, 0.0, 4.0])}, {"a": np.array([0.0, 1.0, -1.0])}])
    cosine = -4 / (5 * np.sqrt(2))
    np.testing.assert_allclose(report.cosine, [[1, cosine], [cosine, 1]], rtol=1e-6)
    np.testing.assert_allclose(report.sign_conflict, [[0, 1], [1, 0]])  # of the one entry at which both are not 0
    ratio = 5 / np.sqrt(2)
    np.testing.assert_allclose(report.norm_ratio, [[1, ratio], [1 / ratio, 1]], rtol=1e-6)
    with pytest.raises(ValueError, match="vectors must be at least one"):
        interference_report([])


def test_gradient_conflict_by_hand():
    toward = lambda model, batch, key: (0.5 * jnp.square(model["x"] - batch).sum(axis=1), {})
    batches = {"one": np.array([[1.0, 0.0]]), "two": np.array([[1.0, 1.0]]), "three": np.array([[-2.0, 0.0]])}
    cosines = gradient_conflict(dict.fromkeys(batches, toward), {"x": jnp.zeros(2)}, batches)
    r = np.sqrt(0.5)
    np.testing.assert_allclose(cosines, [[1, r, -1], [r, 1, -r], [-1, -r, 1]], atol=1e-6)
    with pytest.raises(ValueError, match="batches must be one for each task"):
        gradient_conflict({"one": toward}, {"x": jnp.zeros(2)}, {})
