import jax
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neighbors import NearestCentroid
from tiny_stream import drawn

from jaxemb import Classifier
from jaxemb.classifiers import (
    NMCState,
    nmc_features,
    nmc_init,
    nmc_logits,
    nmc_means,
    nmc_merge,
    nmc_predict,
    nmc_prequential,
    nmc_update,
)
from jaxemb.continual.metrics import average_accuracy, forgetting
from jaxemb.encoders import Mlp
from jaxemb.nn import unit
from jaxemb.objectives import classification
from jaxemb.parallel import make_mesh
from jaxemb.train import begin_task, end_task, init_state, make_train_step
from jaxemb.transforms import Task, find_state, nmc, nmc_head
from jaxemb.transforms.continual.nmc import compensated

HAND = nmc_update(nmc_init(3, 2), np.array([[0, 0], [2, 0], [4, 2]], np.float32), np.array([0, 0, 1], np.int32))
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(64, 4)).astype(np.float32)
LABELS = RNG.integers(0, 5, 64).astype(np.int32)


def test_by_hand():
    np.testing.assert_array_equal(nmc_means(HAND), [[1, 0], [4, 2], [0, 0]])
    assert HAND.counts.tolist() == [2, 1, 0]
    x = np.array([[2, 1]], np.float32)
    np.testing.assert_allclose(nmc_logits(HAND, x), [[1.5, 0, -np.inf]])
    assert nmc_predict(HAND, x).tolist() == [0]
    assert nmc_predict(HAND, x, class_mask=np.array([False, True, True])).tolist() == [1]
    np.testing.assert_allclose(
        nmc_logits(HAND, x, "cosine"), [[2 / np.sqrt(5), 10 / np.sqrt(5 * 20), -np.inf]], rtol=1e-6
    )


def test_parity_with_scikit_learn_on_digits():
    x, y = load_digits(return_X_y=True)
    train, test, y_train, y_test = train_test_split(
        (x / 16).astype(np.float32), y.astype(np.int32), test_size=0.25, random_state=3, stratify=y
    )
    state = nmc_update(nmc_init(10, 64), train, y_train)
    predicted = nmc_predict(state, test)
    np.testing.assert_array_equal(predicted, NearestCentroid().fit(train, y_train).predict(test))
    assert np.mean(np.asarray(predicted) == y_test) == pytest.approx(0.9244, abs=1e-4)
    state = nmc_update(nmc_init(10, 64), nmc_features(train, "cosine"), y_train)
    predicted = nmc_predict(state, test, "cosine")
    assert np.mean(np.asarray(predicted) == y_test) == pytest.approx(0.9289, abs=1e-4)


def test_the_published_rule():
    """As its code does: features of unit length, their means as they are, the nearest by Euclidean distance."""
    x = RNG.normal(size=(64, 4)).astype(np.float32) * RNG.uniform(0.1, 9, (64, 1)).astype(np.float32)
    normed = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)
    means = np.stack([normed(FEATURES)[label == LABELS].mean(axis=0) for label in range(5)])
    expected = np.linalg.norm(normed(x)[:, None] - means, axis=2).argmin(axis=1)
    state = nmc_update(nmc_init(5, 4), nmc_features(FEATURES, "unit"), LABELS)
    np.testing.assert_array_equal(nmc_predict(state, x, "unit"), expected)
    np.testing.assert_array_equal(NearestCentroid().fit(normed(FEATURES), LABELS).predict(normed(x)), expected)
    for metric in ("euclidean", "cosine"):  # which are other rules
        other = nmc_update(nmc_init(5, 4), nmc_features(FEATURES, metric), LABELS)
        assert (np.asarray(nmc_predict(other, x, metric)) != expected).sum() >= 3
    logits = nmc_logits(state, x, "unit")
    distances = np.square(np.linalg.norm(normed(x)[:, None] - means, axis=2))
    np.testing.assert_allclose(logits - logits[:, :1], (distances[:, :1] - distances) / 2, atol=1e-5)


# scikit-learn's digits in five tasks, seeds 0 to 2: accuracy (Euclidean, cosine), mean over tasks, forgetting; as
# measured with a program in NumPy.
DIGITS = {0: (0.9067, 0.9067, 0.9064, 0.0414), 1: (0.9089, 0.9067, 0.9089, 0.0578), 2: (0.8756, 0.8756, 0.8752, 0.0661)}


@pytest.mark.parametrize("seed", DIGITS)
def test_a_stream_of_digits(seed):
    x, y = load_digits(return_X_y=True)
    train, test, y_train, y_test = train_test_split(
        (x / 16).astype(np.float32), y.astype(np.int32), test_size=0.25, random_state=seed, stratify=y
    )
    R, states = np.full((5, 5), np.nan), {metric: nmc_init(10, 64) for metric in ("euclidean", "cosine")}
    right = lambda metric: np.asarray(nmc_predict(states[metric], test, metric)) == y_test
    for task in range(5):
        new = y_train // 2 == task
        for metric, state in states.items():
            states[metric] = nmc_update(state, nmc_features(train[new], metric), y_train[new])
        R[task, : task + 1] = [right("euclidean")[y_test // 2 == earlier].mean() for earlier in range(task + 1)]
    found = (right("euclidean").mean(), right("cosine").mean(), average_accuracy(R), forgetting(R))
    np.testing.assert_allclose(found, DIGITS[seed], atol=1e-4)


def test_the_order_and_the_batches_of_the_stream_change_nothing():
    whole = nmc_update(nmc_init(5, 4), FEATURES, LABELS)
    mixed = RNG.permutation(64)
    halves = [nmc_update(nmc_init(5, 4), FEATURES[rows], LABELS[rows]) for rows in np.split(mixed, [20])]
    merged = nmc_merge(*halves)
    one = lambda s, xy: (nmc_update(s, xy[0][None], xy[1][None]), None)
    one_by_one, _ = jax.jit(lambda start: jax.lax.scan(one, start, (FEATURES, LABELS)))(nmc_init(5, 4))
    for other in (merged, one_by_one):
        np.testing.assert_array_equal(other.counts, np.bincount(LABELS, minlength=5))
        np.testing.assert_allclose(nmc_means(other), nmc_means(whole), atol=1e-6)
    padded = nmc_update(
        nmc_init(5, 4),
        np.concatenate([FEATURES, np.full((3, 4), np.nan, np.float32)]),
        np.concatenate([LABELS, [-1, 7, 0]]).astype(np.int32),
        np.arange(67) < 64,
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), padded, whole)


def test_sharded_is_single():
    sharding = NamedSharding(make_mesh(devices=jax.devices()), PartitionSpec("data"))
    place = lambda x: jax.device_put(x, sharding)
    sharded = jax.jit(nmc_update)(nmc_init(5, 4), place(FEATURES), place(LABELS))
    single = nmc_update(nmc_init(5, 4), FEATURES, LABELS)
    np.testing.assert_array_equal(sharded.counts, single.counts)
    np.testing.assert_allclose(sharded.sums, single.sums, atol=1e-5)


def test_what_leaves_predictions_alone():
    x = RNG.normal(size=(200, 4)).astype(np.float32)
    fit = lambda features: nmc_update(nmc_init(5, 4), features, LABELS)
    plain = nmc_predict(fit(FEATURES), x)
    np.testing.assert_array_equal(nmc_predict(fit(FEATURES + 3), x + 3), plain)
    np.testing.assert_array_equal(nmc_predict(fit(FEATURES * 5), x * 5), plain)
    one_class = np.where((LABELS == 2)[:, None], 9, 1).astype(np.float32) * FEATURES
    assert np.mean(np.asarray(nmc_predict(fit(one_class), x)) != plain) > 0.1
    cosine = lambda features: nmc_predict(fit(jax.jit(unit)(features)), x, "cosine")
    np.testing.assert_array_equal(cosine(one_class), cosine(FEATURES))


def test_it_is_the_bayes_classifier_of_isotropic_gaussians():
    n, d = 10_000, 10
    labels = np.repeat(np.arange(2, dtype=np.int32), n)
    draw = lambda: (RNG.normal(size=(2 * n, d)) + np.eye(d)[0] * 2 * labels[:, None]).astype(np.float32)
    predicted = nmc_predict(nmc_update(nmc_init(2, d), draw(), labels), draw())
    assert np.mean(np.asarray(predicted) != labels) == pytest.approx(0.1587, abs=0.01)


def test_prequential_predicts_before_it_learns():
    features = np.array([[[0.0, 0], [1, 0]], [[0.1, 0], [0, 9]], [[0, 8], [0, 7]]], np.float32)
    labels = np.array([[0, 0], [0, 1], [1, 0]], np.int32)
    state, accuracy = jax.jit(nmc_prequential)(nmc_init(2, 2), features, labels)
    assert accuracy.tolist() == [0, 0.5, 0.5]
    assert state.counts.tolist() == [4, 2]


def records(seed, classes):
    labels = np.resize(np.array(classes, np.int32), 8)
    return {"input": np.random.default_rng(seed).normal(size=(8, 5)).astype(np.float32), "label": labels}


features_of = jax.jit(lambda model, inputs: model.features(inputs))


def started(transform, optimizer):
    model = drawn(lambda key: Classifier.init(key, Mlp.init(key, [5, 4]), 4, 5))
    return init_state(jax.random.key(0), model, optimizer, transform)


@pytest.mark.parametrize("metric", ["euclidean", "unit"])
def test_of_a_frozen_encoder(metric):
    transform, optimizer = nmc(5, 4, metric=metric), optax.adamw(0.1)
    state = start = started(transform, optimizer)
    step = jax.jit(make_train_step(classification(), optimizer, transform))
    data = [records(0, [0, 1]), records(1, [2, 4])]
    for one in data:
        state, _ = step(state, one)
    jax.tree.map(np.testing.assert_array_equal, state.model, start.model)
    features = features_of(state.model, np.concatenate([one["input"] for one in data]))
    expected = nmc_update(
        nmc_init(5, 4), nmc_features(features, metric), np.concatenate([one["label"] for one in data])
    )
    means = find_state(state, NMCState)
    assert means.counts.tolist() == [4, 4, 4, 0, 4]
    np.testing.assert_allclose(means.sums, expected.sums, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("policy", ["stale", "drift"])
def test_of_a_trained_encoder(policy):
    transform, optimizer, objective = nmc_head(5, 4, policy=policy, sigma=0.5), optax.sgd(0.5), classification()
    state = started(transform, optimizer)
    step = jax.jit(make_train_step(objective, optimizer, transform))
    data, models = [records(0, [0, 1]), records(1, [2, 4])], []
    for number, one in enumerate(data):
        models.append(state.model)
        task = Task(number, lambda one=one: [one])
        state = begin_task(transform, objective, state, task)
        state, _ = step(state, one)
        state = end_task(transform, objective, state, task)
    models.append(state.model)
    means = np.array(nmc_means(find_state(state, NMCState)))
    of = lambda model, one, c: np.array(features_of(model, one["input"]))[one["label"] == c].mean(axis=0)
    for c in (2, 4):
        np.testing.assert_allclose(means[c], of(models[2], data[1], c), rtol=1e-5)
    before, after = (np.array(features_of(model, data[1]["input"])) for model in models[1:])
    for c in (0, 1):
        expected = of(models[1], data[0], c)
        if policy == "drift":
            weights = np.exp(-((before - expected) ** 2).sum(axis=1) / (2 * 0.5**2))
            expected = expected + weights @ (after - before) / weights.sum()
        np.testing.assert_allclose(means[c], expected, rtol=1e-4, atol=1e-6)


def test_drift_moves_every_mean_with_a_translation():
    moved = compensated(HAND, FEATURES[:, :2], np.tile(np.float32([1, -2]), (64, 1)), 0.3)
    np.testing.assert_allclose(
        np.array(nmc_means(moved))[:2], np.array(nmc_means(HAND))[:2] + np.array([1, -2]), atol=1e-5
    )


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: nmc_update(HAND, np.ones((1, 2)), np.array([3])), r"labels must be in 0..2; got 3"),
        (lambda: nmc_update(HAND, np.ones((1, 2)), np.array([-1])), r"labels must be in 0..2; got -1"),
        (lambda: nmc_update(HAND, np.ones((1, 5)), np.array([0])), r"features must be \[B, 2\]; got \(1, 5\)"),
        (lambda: nmc_update(HAND, np.full((1, 2), np.inf), np.array([0])), "features must be finite"),
        (lambda: nmc_update(HAND, np.ones((1, 2)), np.array([0, 1])), "one for each of 1 features"),
        (lambda: nmc_update(HAND, np.ones((1, 2)), np.array([0]), np.array([0.5])), "as they are counted; got float"),
        (lambda: nmc_logits(HAND, np.ones((1, 3))), r"features must be \[B, 2\]; got \(1, 3\)"),
        (lambda: nmc_logits(HAND, np.full((1, 2), 3e38)), "features must have finite logits in float32"),
        (lambda: nmc_logits(nmc_update(HAND, np.full((1, 2), 1e30), np.array([0])), np.ones((1, 2))), "finite logits"),
        (lambda: nmc_predict(nmc_init(3, 2), np.ones((1, 2))), "no class was seen yet"),
        (lambda: nmc_logits(HAND, np.ones((1, 2)), "manhattan"), "metric must be 'euclidean', 'unit' or 'cosine'"),
        (
            lambda: nmc_logits(nmc_update(HAND, np.array([[-4.0, -2]]), np.array([1])), np.ones((1, 2)), "cosine"),
            "the mean of class 1 is zero",
        ),
        (lambda: nmc_head(3, 2, policy="recompute"), "policy must be 'stale' or 'drift'; got 'recompute'"),
        (lambda: nmc_head(3, 2, sigma=0), "sigma must be > 0; got 0"),
        (lambda: nmc_init(0, 2), "classes must be in 1\\.\\.2147483647; got 0"),
    ],
)
def test_bad_arguments(act, message):
    with pytest.raises(ValueError, match=message):
        act()
