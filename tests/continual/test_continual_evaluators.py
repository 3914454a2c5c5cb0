import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from jaxemb.classifiers import logistic_regression, nearest_mean, nearest_neighbours, probes
from jaxemb.continual import (
    Experience,
    accuracy,
    embedding_score,
    embedding_stream,
    index_compatibility,
    joint,
    mean_over,
    probe,
    run_stream,
    split_by_class,
)
from jaxemb.evaluate import RetrievalSet, StsSet, retrieval

IRIS = load_iris()
# As they are, many distances are equal.
FEATURES = (IRIS.data + np.random.default_rng(0).normal(scale=0.01, size=IRIS.data.shape)).astype(np.float32)
LABELS = IRIS.target
TRAIN, TEST = np.arange(150) % 3 != 0, np.arange(150) % 3 == 0


@pytest.mark.parametrize(
    ("scenario", "seen", "expected"),
    [("task", [1, 1, 1], 1.0), ("class", [1, 1, 0], 0.8), ("class", [1, 1, 1], 0.4), ("domain", None, 0.4)],
)
def test_accuracy_is_over_the_classes_that_compete(scenario, seen, expected):
    # The logits are the inputs; task 0 has classes 0 and 1, and its first 4 records look most like class 2 or 0.
    logits = np.array([[1, 2, 3], [1, 2, 3], [2, 1, 0], [0, 1, -1], [2, 1, 3]], np.float32)
    labels = np.array([1, 1, 0, 1, 0])
    if scenario == "class" and seen == [1, 1, 0]:
        labels = np.array([1, 1, 0, 1, 1])
    task = Experience("t", {}, {"input": logits, "label": labels}, classes=np.array([True, True, False]))
    seen = None if seen is None else np.array(seen, bool)
    for batch_size in (2, 3, 1000):
        score = accuracy(lambda state, inputs, number: inputs + number, scenario, batch_size=batch_size)
        assert score(None, task, 3, seen) == pytest.approx(expected)


def test_accuracy_needs_classes_and_a_scenario():
    task = Experience("t", {}, {"input": np.ones((2, 2)), "label": np.zeros(2, int)})
    with pytest.raises(ValueError, match="task 't' has no classes; the scenario 'task' needs them"):
        accuracy(scenario="task")(None, task, 0, None)
    with pytest.raises(ValueError, match=r"scenario must be .* got 'online'"):
        accuracy(scenario="online")


@pytest.mark.parametrize(
    ("fit", "oracle"),
    [
        (logistic_regression(), LogisticRegression(tol=1e-6, max_iter=1000)),
        (logistic_regression(0.05), LogisticRegression(C=0.05, tol=1e-6, max_iter=1000)),
        (nearest_mean(), NearestCentroid()),
        (nearest_neighbours(7, "euclidean"), KNeighborsClassifier(7)),
        (nearest_neighbours(4), KNeighborsClassifier(4, metric="cosine")),
    ],
)
def test_classifiers_equal_those_of_scikit_learn(fit, oracle):
    labels = LABELS + 1  # classes need not begin at 0
    found = fit(FEATURES[TRAIN], labels[TRAIN])(FEATURES)
    np.testing.assert_array_equal(found, oracle.fit(FEATURES[TRAIN], labels[TRAIN]).predict(FEATURES))


def test_logistic_regression_finds_the_minimum_of_scikit_learn():
    x, y = FEATURES, LABELS
    oracle = LogisticRegression(C=0.5, tol=1e-8, max_iter=5000).fit(x, y)
    best = np.concatenate([oracle.coef_.T, oracle.intercept_[None]])
    value = lambda weights: probes._logistic(jnp.asarray(weights, jnp.float32), x, y, 0.5)
    assert float(jnp.abs(value(best)[1]).max()) < 1e-4  # the same function: its gradient is zero there
    fit = logistic_regression(0.5, normalise=True)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_array_equal(fit(x, y)(x), logistic_regression(0.5)(unit, y)(unit))
    np.testing.assert_array_equal(logistic_regression()(x, y * 0 + 2)(x[:3]), [2, 2, 2])


@pytest.mark.parametrize(
    ("fit", "like"),
    [
        *((fit, fit) for fit in (nearest_mean(), nearest_mean("cosine"))),
        *((fit, fit) for fit in (nearest_neighbours(3, "euclidean"), nearest_neighbours(3))),
        (logistic_regression(), logistic_regression(1e30)),  # the penalty is of weights of 1e-200
    ],
)
def test_large_features_are_classified_like_others(fit, like):
    expected = like(FEATURES[TRAIN], LABELS[TRAIN])(FEATURES)
    large = FEATURES.astype(np.float64) * 2.0**665  # 1e200
    np.testing.assert_array_equal(fit(large[TRAIN], LABELS[TRAIN])(large), expected)
    with pytest.raises(ValueError, match=r"features must be \[M, 4\], as those it was fitted to; got \(5, 3\)"):
        fit(FEATURES, LABELS)(np.ones((5, 3)))


def test_small_features_are_classified_like_others_or_warned_about():
    for fit in (nearest_mean(), nearest_mean("cosine"), nearest_neighbours(3, "euclidean"), nearest_neighbours(3)):
        small = FEATURES * 2.0**-30
        np.testing.assert_array_equal(fit(small, LABELS)(small), fit(FEATURES, LABELS)(FEATURES))
    with pytest.warns(UserWarning, match="features are too small for a tolerance of 0.0001"):
        logistic_regression()(small, LABELS)


def test_whole_numbers_are_features():
    x = np.array([[1, 0], [3, 1], [0, 2]], np.int8)
    for fit in (nearest_mean(), nearest_neighbours(1), logistic_regression()):
        np.testing.assert_array_equal(fit(x, np.arange(3))(x), np.arange(3))
        with pytest.raises(TypeError, match="features must be real numbers"):
            fit(x.astype(str), np.arange(3))
    bfloat16 = jnp.asarray(x, jnp.bfloat16)
    np.testing.assert_array_equal(nearest_mean()(bfloat16, np.arange(3))(bfloat16), np.arange(3))


def test_a_probe_scores_features_of_the_task_or_of_all_seen():
    data = {"input": FEATURES, "label": LABELS.astype(np.int32)}
    part = lambda which: {name: column[which] for name, column in data.items()}
    stream = split_by_class(part(TRAIN), part(TEST), 3)
    scores = {
        "task": probe(nearest_mean(), lambda state, x: x * state.model),
        "seen": probe(nearest_mean(), lambda state, x: x * state.model, on="seen"),
    }
    still = lambda model, batch, key: (jnp.sum(0 * batch["input"], axis=1) + 0 * model.sum(), {})
    result = run_stream(stream, jnp.ones(4), still, optax.sgd(0.1), steps=1, batch_size=4, evaluate=scores)
    assert (result.R["task"] == 1).all()  # every task has one class
    for tasks, row in [(3, result.b["seen"]), *enumerate(result.R["seen"], 1)]:
        seen = TRAIN & (tasks > LABELS)
        predicted = NearestCentroid().fit(FEATURES[seen], LABELS[seen]).predict(FEATURES) if tasks > 1 else LABELS * 0
        for j in range(3):
            mine = TEST & (j == LABELS)
            assert row[j] == pytest.approx(np.mean(predicted[mine] == LABELS[mine]))


def test_bad_probes():
    with pytest.raises(ValueError, match="C must be > 0; got 0"):
        logistic_regression(0)
    with pytest.raises(ValueError, match="k must be at least 1; got 0"):
        nearest_neighbours(0)
    with pytest.raises(ValueError, match="metric must be 'euclidean' or 'cosine'; got 'dot'"):
        nearest_mean("dot")
    with pytest.raises(ValueError, match="on must be 'task' or 'seen'; got 'all'"):
        probe(nearest_mean(), on="all")


class Turned:
    """Texts are angles in degrees, turned by what was learnt: documents by all of it, queries by all of it."""

    def __init__(self, angle):
        self.angle = float(angle)

    def encode(self, texts, *, prompt_name=None):
        angles = np.deg2rad([float(text) + self.angle for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)


CORPUS = {f"d{i}": str(30 * i) for i in range(12)}
QUERIES = RetrievalSet({"q0": "2", "q1": "62", "unjudged": "5"}, CORPUS, {"q0": {"d0": 2, "d1": 1}, "q1": {"d2": 1}})
EMBED = lambda state: Turned(state.model)
OBJECTIVE = lambda model, batch, key: (-batch["query"] * model, {})  # the angle grows by the learning rate per step


def retrieval_run(evaluate, **options):
    stream = embedding_stream({name: ({"query": np.ones(4)}, QUERIES) for name in "abc"})
    model = jnp.zeros(())
    return run_stream(stream, model, OBJECTIVE, optax.sgd(60.0), steps=1, batch_size=2, evaluate=evaluate, **options)


def test_new_queries_meet_the_index_of_the_old_model(tmp_path):
    evaluate = lambda: {
        "now": embedding_score(EMBED),
        "old": index_compatibility(EMBED),
        "kept": index_compatibility(EMBED, directory=tmp_path / "indices"),
    }
    result = retrieval_run(evaluate())
    # Queries and documents turn together ...
    best = retrieval(Turned(0), QUERIES.queries, CORPUS, QUERIES.qrels, ks=(10,))["ndcg@10"]
    np.testing.assert_allclose(result.R["now"], best)
    # ... but after i tasks queries are ahead of the index of task j by 60 (i - j) degrees.
    ahead = [
        retrieval(Turned(0), {q: str(float(t) + 60 * i) for q, t in QUERIES.queries.items()}, CORPUS, QUERIES.qrels)
        for i in range(3)
    ]
    scores = [score["ndcg@10"] for score in ahead]
    assert scores[0] > scores[1] > scores[2]
    nan = float("nan")
    expected = [[scores[0], nan, nan], [scores[1], scores[0], nan], [scores[2], scores[1], scores[0]]]
    np.testing.assert_allclose(result.R["old"], expected)
    np.testing.assert_allclose(result.R["kept"], expected)
    assert np.isnan(result.b["old"]).all()

    resumed = index_compatibility(EMBED, directory=tmp_path / "indices")
    state = types.SimpleNamespace(model=180.0)
    stream = embedding_stream({name: ({}, QUERIES) for name in "abc"})
    resumed.remember(state, stream, 2)
    assert resumed(state, stream[0], 0, None) == pytest.approx(scores[2])
    forgetful = index_compatibility(EMBED)
    forgetful.remember(state, stream, 2)
    with pytest.raises(ValueError, match="no index of task 0; a resumed run needs the `directory`"):
        forgetful(state, stream[0], 0, None)


def test_the_joint_run_is_scored_on_every_task():
    stream = embedding_stream({"a": ({"query": np.ones(4)}, QUERIES), "b": ({"query": np.zeros(2)}, QUERIES)})
    together = joint(stream)
    assert together.train["query"].tolist() == [1, 1, 1, 1, 0, 0] and not together.test
    asked = []
    score = mean_over(stream, lambda state, experience, number, seen: asked.append((experience, number)) or number)
    result = run_stream(
        [together], jnp.zeros(()), OBJECTIVE, optax.sgd(1.0), steps=1, batch_size=2, evaluate={"s": score}, future=False
    )
    assert asked == [(stream[0], 0), (stream[1], 1)] and result.R["s"] == [[0.5]]


def test_the_mean_over_tasks_tells_its_score_what_to_remember():
    probe_of_all = probe(nearest_mean(), lambda state, inputs: inputs, on="seen")
    stream = split_by_class(*({"input": FEATURES[w], "label": LABELS[w].astype(np.int32)} for w in (TRAIN, TEST)), 3)
    score = mean_over(stream, probe_of_all)
    score.remember(None, [joint(stream)], 0)
    expected = NearestCentroid().fit(FEATURES[TRAIN], LABELS[TRAIN])
    found = [expected.score(task.test["input"], task.test["label"]) for task in stream]
    assert score(None, joint(stream), 0, None) == pytest.approx(np.mean(found))


def test_similarity_collections_and_bad_ones():
    state = types.SimpleNamespace(model=0.0)
    pairs = StsSet(["0", "0", "0"], ["10", "20", "30"], np.array([3.0, 2.0, 1.0]))
    assert embedding_score(EMBED)(state, Experience("t", {}, {"collection": pairs}), 0, None) == pytest.approx(1)
    with pytest.raises(ValueError, match="must be a RetrievalSet or StsSet; got NoneType"):
        embedding_score(EMBED)(state, Experience("t", {}, {}), 0, None)
    with pytest.raises(ValueError, match="must be a RetrievalSet; got StsSet"):
        index_compatibility(EMBED).remember(state, [Experience("t", {}, {"collection": pairs})], 0)
    with pytest.raises(ValueError, match="name@k, such as 'ndcg@10'; got 'ndcg'"):
        index_compatibility(EMBED, metric="ndcg")


def test_accuracy_is_traced_once_for_all_tasks():
    traces = []

    def predict(state, inputs, number):
        traces.append(number)
        return jax.nn.one_hot(number + jnp.zeros(len(inputs), int), 3)

    score = accuracy(predict, "class")
    for number, size in enumerate((5, 7, 8)):
        columns = {"input": np.ones((size, 2), np.float32), "label": np.full(size, number)}
        task = Experience("t", {}, columns, classes=np.ones(3, bool))
        assert score(None, task, number, np.ones(3, bool)) == 1
    assert len(traces) == 1
