"""A label that is no class is an error, or NaN where it cannot be one; never another class."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxemb.classifiers import (
    logistic_regression,
    nearest_mean,
    nearest_neighbours,
    nmc_init,
    nmc_predict,
    nmc_update,
    slda_init,
    slda_logits,
)
from jaxemb.losses import contrastive, contrastive_tension, prototype_pull, ranking, softmax_nli
from jaxemb.nn.classes import class_cross_entropy, one_hot, rows_of
from jaxemb.objectives import classification

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
KERNEL = np.random.default_rng(1).normal(size=(12, 4)).astype(np.float32)
OF_CLASSES = {
    "softmax_nli": lambda labels: softmax_nli(X, X, labels, kernel=KERNEL),
    "cross_entropy": lambda labels: ranking.cross_entropy(X, labels),
    "prototype_pull": lambda labels: prototype_pull(X, np.eye(4, dtype=np.float32), labels),
    "class_cross_entropy": lambda labels: class_cross_entropy(X, labels),
    "one_hot": lambda labels: one_hot(labels, 4).sum(axis=1),
    "rows_of": lambda labels: rows_of(np.eye(4), labels).sum(axis=1),
}


@pytest.mark.parametrize("name", OF_CLASSES)
def test_labels_out_of_range_raise_or_are_nan(name):
    function = OF_CLASSES[name]
    assert np.isfinite(function(np.array([0, 3, 1]))).all()
    for bad in (-1, 4, 2**31 - 1):
        with pytest.raises(ValueError, match=rf"labels must be in 0..3(, as kernel says)?; got {bad}"):
            function(np.array([0, bad, 1]))
    traced = jax.jit(function)(np.array([-1, 2, 4]))
    np.testing.assert_array_equal(np.isnan(traced), [True, False, True])


def test_labels_in_range_give_what_optax_gives():
    labels = np.array([0, 3, 1])
    expected = optax.losses.softmax_cross_entropy_with_integer_labels(X, labels)
    np.testing.assert_allclose(class_cross_entropy(X, labels), expected)
    np.testing.assert_allclose(ranking.cross_entropy(X, labels), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="labels must be integers, the numbers of classes; got float64"):
        class_cross_entropy(X, labels + 0.5)


def test_the_loss_of_a_classifier_is_nan_for_a_label_that_is_no_class():
    class Identity:
        features = staticmethod(lambda inputs, *, key: inputs)
        head = staticmethod(lambda x: x)

    loss = jax.jit(lambda labels: classification()(Identity, {"input": X, "label": labels}, None)[0])
    np.testing.assert_array_equal(np.isnan(loss(np.array([0, -1, 9]))), [False, True, True])


@pytest.mark.parametrize("bad", [-1, 2, np.nan])
def test_labels_of_alike_and_not_are_shares(bad):
    labels = np.array([0, 1, bad], np.float32)
    for loss in (
        lambda: contrastive(X, X, labels),
        lambda: contrastive_tension(X, X, labels),
        lambda: ranking.bce(X, np.tile(labels[:, None], 4)),
    ):
        with pytest.raises(ValueError, match=r"labels must be in 0\.\.1; got"):
            loss()


def test_labels_of_documents_that_are_absent_may_be_anything():
    scores, mask = np.zeros((1, 3), np.float32), np.array([[True, True, False]])
    expected = ranking.bce(scores, np.array([[1.0, 0, 0]]), mask)
    np.testing.assert_array_equal(ranking.bce(scores, np.array([[1.0, 0, -1]]), mask), expected)
    with pytest.raises(ValueError, match=r"labels must be in 0..1; got -1"):
        ranking.bce(scores, np.array([[1.0, -1, 0]]), mask)


def test_losses_of_classes_take_lists_as_others_do():
    assert ranking.cross_entropy([[1.0, 1.0]], [0]) == pytest.approx(math.log(2))
    assert softmax_nli([[1.0]], [[2.0]], [1], kernel=np.zeros((3, 2)), bias=None) == pytest.approx(math.log(2))


def test_classifiers_take_what_is_finite_and_of_one_length():
    x, labels = np.concatenate([np.eye(4), 2 * np.eye(4)]), np.array([-1, 5, 7, -1] * 2)
    for fit in (logistic_regression(), nearest_mean(), nearest_neighbours(1)):
        np.testing.assert_array_equal(fit(x, labels)(x), labels)  # any numbers name classes here, also -1
        with pytest.raises(ValueError, match=r"labels must be one for each of N > 0 features"):
            fit(x, labels[1:])
        with pytest.raises(ValueError, match="features must be finite"):
            fit(np.where(x == 2, np.nan, x), labels)
    for fit in (logistic_regression(), nearest_mean()):
        with pytest.raises(ValueError, match="features must be finite"):
            fit(x, labels)(np.where(x == 2, np.inf, x))
    with pytest.raises(ValueError, match="the mean of class 3 is zero: it has no cosine"):
        nearest_mean("cosine")(np.array([[1.0, 0], [0, 0]]), np.array([1, 3]))


def test_means_are_not_asked_about_what_is_not_finite():
    with pytest.raises(ValueError, match="no class was seen yet"):
        slda_logits(slda_init(2, 4), X)
    state = nmc_update(nmc_init(2, 4), X, np.array([0, 1, 1]))
    with pytest.raises(ValueError, match="features must be finite"):
        nmc_predict(state, jnp.asarray(X).at[1, 2].set(jnp.nan))
