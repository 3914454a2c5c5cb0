import numpy as np
import pytest

from jaxemb.continual import (
    Experience,
    blurry,
    embedding_stream,
    from_domains,
    joint,
    permuted,
    rotated,
    separate_heads,
    split_by_class,
)
from jaxemb.evaluate import StsSet


def columns(classes=6, each=10, shape=(2, 3), seed=0):
    labels = np.tile(np.arange(classes), each).astype(np.int32)
    return {"input": np.random.default_rng(seed).normal(size=(len(labels), *shape)).astype(np.float32), "label": labels}


TRAIN, TEST = columns(), columns(each=2, seed=1)


def classes_of(stream):
    return [np.flatnonzero(task.classes).tolist() for task in stream]


def test_split_by_class_deals_out_every_record_once():
    stream = split_by_class(TRAIN, TEST, 3, valid=TEST)
    assert classes_of(stream) == [[0, 1], [2, 3], [4, 5]]
    assert [task.name for task in stream] == ["0-1", "2-3", "4-5"]
    for split, whole in {"train": TRAIN, "test": TEST, "valid": TEST}.items():
        parts = [getattr(task, split) for task in stream]
        for t, part in enumerate(parts):
            np.testing.assert_array_equal(part["input"], whole["input"][whole["label"] // 2 == t])
            assert set(part["label"]) == {2 * t, 2 * t + 1}
            assert part["label"].dtype == np.int32


@pytest.mark.parametrize(
    ("tasks", "options", "expected"),
    [
        (3, {"order": [5, 0, 3, 1, 4, 2]}, [[0, 5], [1, 3], [2, 4]]),
        (3, {"first": 4}, [[0, 1, 2, 3], [4], [5]]),
        (2, {"first": 1, "order": [5, 0, 3, 1, 4, 2]}, [[5], [0, 1, 2, 3, 4]]),
        ([[1, 4], [2]], {}, [[1, 4], [2]]),
    ],
)
def test_order_and_larger_first_task(tasks, options, expected):
    assert classes_of(split_by_class(TRAIN, TEST, tasks, **options)) == expected


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        (4, {}, "6 classes do not divide evenly into 4 tasks"),
        (3, {"first": 5}, "6 classes less first=5 do not divide evenly into 2 tasks"),
        (1, {}, "at least 2 tasks; got 1"),
        (3, {"order": [0, 1, 2, 3, 4, 4]}, r"permutation of the 6 classes; got \[0, 1, 2, 3, 4, 4\]"),
        ([[0, 1], [1, 2]], {}, r"no class in common; \[1\] are in several"),
    ],
)
def test_bad_splits(tasks, options, message):
    with pytest.raises(ValueError, match=message):
        split_by_class(TRAIN, TEST, tasks, **options)


def test_a_test_class_that_was_never_trained_is_an_error():
    with pytest.raises(ValueError, match=r"classes in train, 0 to 5; got \[6\]"):
        split_by_class(TRAIN, columns(7), 3)
    with pytest.raises(ValueError, match=r"test labels of task 'b' must be among its classes \[0, 1\]; got \[2\]"):
        from_domains({"a": (columns(2), columns(2)), "b": (columns(2), columns(3))}, classes=3)
    with pytest.raises(ValueError, match=r"train labels of task 't' .* \[0\]; got \[-1\]"):
        Experience("t", {"label": np.array([0, -1])}, {}, classes=np.array([True, False]))


def test_blurry_moves_the_given_part_of_every_class():
    stream = blurry(TRAIN, TEST, 3, overlap=0.4, seed=2)
    for t, task in enumerate(stream):
        counts = np.bincount(task.train["label"], minlength=6)
        own = np.arange(6) // 2 == t
        assert (counts[own] == 6).all()
        assert (counts[~own] == 2).all()  # 4 of 10 to 2 other tasks
        assert set(task.test["label"]) == {2 * t, 2 * t + 1}
        assert task.classes.all()
    together = np.concatenate([task.train["input"] for task in stream])
    assert len(np.unique(together, axis=0)) == len(TRAIN["label"])
    np.testing.assert_array_equal(
        stream[1].train["input"], blurry(TRAIN, TEST, 3, overlap=0.4, seed=2)[1].train["input"]
    )
    assert classes_of(blurry(TRAIN, TEST, 3, overlap=0.0)) == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(ValueError, match=r"overlap must be in 0..1; got 1.5"):
        blurry(TRAIN, TEST, 3, overlap=1.5)


def test_permuted_uses_one_permutation_per_task():
    stream = permuted(TRAIN, TEST, 3, seed=4)
    np.testing.assert_array_equal(stream[0].train["input"], TRAIN["input"])
    orders = []
    for task in stream:
        marks = permuted({**TRAIN, "input": np.tile(np.arange(6.0).reshape(1, 2, 3), (60, 1, 1))}, TEST, 3, seed=4)
        order = marks[stream.index(task)].train["input"][0].ravel().astype(int)
        orders.append(tuple(order))
        for new, old in ((task.train, TRAIN), (task.test, TEST)):
            np.testing.assert_array_equal(new["input"].reshape(-1, 6), old["input"].reshape(-1, 6)[:, order])
            assert new["input"].shape == old["input"].shape
            np.testing.assert_array_equal(new["label"], old["label"])
    assert len(set(orders)) == 3
    assert classes_of(stream) == [list(range(6))] * 3
    assert not np.array_equal(permuted(TRAIN, TEST, 2, include_identity=False)[0].train["input"], TRAIN["input"])


@pytest.mark.parametrize("shape", [(5, 5), (5, 5, 2)])
def test_rotated_turns_anticlockwise(shape):
    train = columns(2, 3, shape)
    stream = rotated(train, train, 3, angles=[0, 90, 180])
    for quarter, task in enumerate(stream):
        expected = np.rot90(train["input"], quarter, axes=(1, 2))
        np.testing.assert_allclose(task.train["input"], expected, atol=1e-6)
    assert stream[1].name == "90°"
    drawn = [rotated(train, train, 3, between=(10, 20), seed=seed)[0] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(drawn[0].train["input"], drawn[1].train["input"])
    assert not np.array_equal(drawn[0].train["input"], drawn[2].train["input"])
    with pytest.raises(ValueError, match="angles must be 3, one per task; got 2"):
        rotated(train, train, 3, angles=[0, 1])
    with pytest.raises(ValueError, match=r"input must be .*; got \(6, 4\)"):
        rotated(columns(2, 3, (4,)), train, 2)


def test_domains_and_embedding_streams():
    a, b = columns(3), columns(5)
    stream = from_domains({"a": (a, a), "b": (b, b)})
    assert classes_of(stream) == [[0, 1, 2], [0, 1, 2, 3, 4]]
    assert [len(task.classes) for task in stream] == [5, 5]
    pairs = {"query": np.zeros((4, 2)), "document": np.zeros((4, 2))}
    collection = StsSet(["a"], ["b"], np.ones(1))
    assert from_domains({"a": (pairs, pairs), "b": (pairs, pairs)})[0].classes is None
    task = embedding_stream({"x": (pairs, collection), "y": (pairs, collection)})[1]
    assert (task.name, task.train, task.test, task.classes) == ("y", pairs, {"collection": collection}, None)
    with pytest.raises(ValueError, match="at least 2 tasks; got 1"):
        embedding_stream({"x": (pairs, collection)})


def test_separate_heads_and_joint():
    stream = separate_heads(permuted(TRAIN, TEST, 2))
    assert classes_of(stream) == [list(range(6)), list(range(6, 12))]
    np.testing.assert_array_equal(stream[1].test["label"], TEST["label"] + 6)
    together = joint(stream)
    assert together.classes.all()
    np.testing.assert_array_equal(together.train["label"], np.concatenate([TRAIN["label"], TRAIN["label"] + 6]))
    assert len(together.test["input"]) == 24
    with pytest.raises(ValueError, match="task 'a' has no classes"):
        separate_heads([Experience("a", {}, {})])
    with pytest.raises(ValueError, match="tasks must have the same columns"):
        joint([Experience("a", {"x": 1}, {}), Experience("b", {"y": 1}, {})])


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"valid": np.ones(3, bool)}, TypeError, "valid must be a mapping or None; got ndarray bool"),
        ({"train": [1]}, TypeError, "train must be a mapping; got list"),
        ({"classes": [True]}, TypeError, "classes must be an array of real numbers or None; got list"),
        ({"classes": np.arange(2)}, ValueError, r"classes of task 't' must be bool \[C\]; got ndarray int64 \(2,\)"),
    ],
)
def test_an_experience_of_something_else(given, error, message):
    columns = {"label": np.zeros(2, np.int32)}
    with pytest.raises(error, match=message):
        Experience(**{"name": "t", "train": columns, "test": columns} | given)
