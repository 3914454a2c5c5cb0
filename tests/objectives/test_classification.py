import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import log_loss

from jaxemb import Classifier
from jaxemb.encoders import Mlp
from jaxemb.objectives import classification

MODEL = Classifier.init(jax.random.key(0), Mlp.init(jax.random.key(1), [4, 8]), 8, 3)
BATCH = {"input": np.random.default_rng(0).normal(size=(6, 2, 2)).astype(np.float32), "label": np.array([0, 1] * 3)}


def test_is_the_cross_entropy_over_all_classes():
    losses, outputs = classification()(MODEL, BATCH, None)
    np.testing.assert_allclose(outputs["logits"], MODEL(BATCH["input"]))
    probabilities = softmax(np.asarray(outputs["logits"], np.float64), axis=-1)
    np.testing.assert_allclose(losses.mean(), log_loss(BATCH["label"], probabilities, labels=[0, 1, 2]), rtol=1e-6)


@pytest.mark.parametrize("compete", [np.array([True, True, False]), np.array([[True, True, False]] * 6)])
def test_only_the_classes_that_compete_are_in_the_softmax(compete):
    mean = lambda model: jnp.mean(classification()(model, BATCH | {"classes": compete}, None)[0])
    loss, gradient = jax.value_and_grad(mean)(MODEL)
    probabilities = softmax(np.asarray(MODEL(BATCH["input"])[:, :2], np.float64), axis=-1)
    np.testing.assert_allclose(loss, log_loss(BATCH["label"], probabilities), rtol=1e-6)
    assert not np.any(gradient.head.kernel[:, 2]) and np.all(np.isfinite(gradient.encoder.layers[0].kernel))


def test_bad_batches_are_named():
    with pytest.raises(ValueError, match="the batch has no label; it has input"):
        classification()(MODEL, {"input": BATCH["input"]}, None)
    with pytest.raises(ValueError, match=r"one for each of 6 inputs; got shape \(5,\)"):
        classification()(MODEL, BATCH | {"label": np.zeros(5, int)}, None)
    with pytest.raises(ValueError, match=r"classes must be \[C\] or \[N, C\]"):
        classification()(MODEL, BATCH | {"classes": np.ones(4, bool)}, None)


def test_a_classifier_has_two_classes_at_least():
    with pytest.raises(ValueError, match="classes must be at least 2; got 1"):
        Classifier.init(jax.random.key(0), MODEL.encoder, 8, 1)
