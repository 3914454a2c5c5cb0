import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from jaxemb import Classifier
from jaxemb.encoders import Mlp
from jaxemb.objectives import classification

MODEL = jax.jit(lambda a, b: Classifier.init(a, Mlp.init(b, [4, 8]), 8, 3))(jax.random.key(0), jax.random.key(1))
BATCH = {"input": np.random.default_rng(0).normal(size=(6, 2, 2)).astype(np.float32), "label": np.array([0, 1] * 3)}


@jax.jit
def run(model, batch):
    return classification()(model, batch, None), model(batch["input"])


def cross_entropies(logits):
    """By definition, in f64."""
    return -log_softmax(np.asarray(logits, np.float64), axis=-1)[np.arange(6), BATCH["label"]]


def test_is_the_cross_entropy_over_all_classes():
    (losses, outputs), logits = run(MODEL, BATCH)
    np.testing.assert_allclose(outputs["logits"], logits, rtol=1e-6)
    np.testing.assert_allclose(losses, cross_entropies(logits), rtol=1e-5)


@pytest.mark.parametrize("compete", [np.array([True, True, False]), np.array([[True, True, False]] * 6)])
def test_only_the_classes_that_compete_are_in_the_softmax(compete):
    mean = lambda model: jnp.mean(classification()(model, BATCH | {"classes": compete}, None)[0])
    loss, gradient = jax.jit(jax.value_and_grad(mean))(MODEL)
    _, logits = run(MODEL, BATCH)
    np.testing.assert_allclose(loss, cross_entropies(logits[:, :2]).mean(), rtol=1e-5)
    gradient = jax.device_get(gradient)
    assert not np.any(gradient.head.kernel[:, 2]) and np.all(np.isfinite(gradient.encoder.layers[0].kernel))


def test_bad_batches_are_named():
    with pytest.raises(ValueError, match="the batch has no label; it has input"):
        classification()(MODEL, {"input": BATCH["input"]}, None)
    with pytest.raises(ValueError, match=r"one for each of 6 inputs; got shape \(5,\)"):
        classification()(MODEL, BATCH | {"label": np.zeros(5, int)}, None)
    with pytest.raises(ValueError, match=r"classes must be \[C\] or \[N, C\]"):
        classification()(MODEL, BATCH | {"classes": np.ones(4, bool)}, None)


def test_a_classifier_has_two_classes_at_least():
    with pytest.raises(ValueError, match=r"classes must be in 2\.\.2147483647; got 1"):
        Classifier.init(jax.random.key(0), MODEL.encoder, 8, 1)
