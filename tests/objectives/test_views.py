import jax
import numpy as np
import pytest

from jaxemb import Classifier
from jaxemb.encoders import Mlp
from jaxemb.objectives import supervised_contrastive

MODEL = Classifier(Mlp.init(jax.random.key(0), [4, 5]), Mlp.init(jax.random.key(1), [5, 3], final_activation=False))
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 4, 4)).astype(np.float32)
BATCH = {"input": X[0], "view": X[1], "label": np.array([0, 1, 2, 0])}
RAW = Classifier(lambda inputs, key: inputs, lambda features: features)


def test_two_classes_of_two_views_worked_by_hand():
    e = np.eye(2, dtype=np.float32)
    batch = {"input": e, "view": e, "label": np.array([0, 1])}
    losses = jax.jit(lambda batch: supervised_contrastive(base_temperature=0.07)(RAW, batch, None)[0])(batch)
    np.testing.assert_allclose(losses, 1.297082e-4, atol=1e-7)  # f32: a difference of tens


def test_is_the_loss_of_pytorch_metric_learning():
    x = np.sin(np.arange(8 * 5) * 1.7).reshape(8, 5).astype(np.float32)
    batch = {"input": x[:4], "view": x[4:], "label": np.array([0, 1, 2, 0])}
    losses = jax.jit(lambda batch: supervised_contrastive(base_temperature=0.07)(RAW, batch, None)[0])(batch)
    # SupConLoss(temperature=0.1, reducer=MeanReducer()) of version 2.9.0, times 0.1 / 0.07
    np.testing.assert_allclose(losses.mean(), 21.32372492, rtol=1e-5)
    plain = jax.jit(lambda batch: supervised_contrastive()(RAW, batch, None)[0])(batch)
    np.testing.assert_allclose(plain.mean(), 0.7 * 21.32372492, rtol=1e-5)


def test_outputs_are_those_of_the_views_one_after_another():
    losses, outputs = jax.jit(supervised_contrastive(), static_argnums=2)(MODEL, BATCH, None)
    stacked = np.concatenate([BATCH["input"], BATCH["view"]])
    np.testing.assert_allclose(outputs["features"], MODEL.encoder(stacked), rtol=1e-6)
    np.testing.assert_allclose(outputs["embeddings"], MODEL(stacked), rtol=1e-6)
    np.testing.assert_array_equal(outputs["label"], [0, 1, 2, 0] * 2)
    assert losses.shape == (8,)


def test_what_is_wrong_is_named():
    one = {name: column[:1] for name, column in BATCH.items()}
    for call, message in (
        (lambda: supervised_contrastive([]), "views must be one or more columns; got none"),
        (lambda: supervised_contrastive(temperature=0.0), "temperature must be > 0; got 0"),
        (lambda: supervised_contrastive(base_temperature=-1.0), "base_temperature must be > 0; got -1"),
        (lambda: supervised_contrastive()(MODEL, {"input": BATCH["input"]}, None), "the batch has no view, label"),
        (lambda: supervised_contrastive()(MODEL, BATCH | {"label": np.zeros(3, int)}, None), r"8 inputs; .* \(6,\)"),
        (lambda: supervised_contrastive(["input"])(MODEL, one, None), "one view of one record has no positive"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
