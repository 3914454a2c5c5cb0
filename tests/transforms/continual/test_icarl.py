import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_stream import drawn, jit_once

from jaxemb import Classifier
from jaxemb.classifiers import NMCState
from jaxemb.encoders import Mlp
from jaxemb.objectives import classification
from jaxemb.train import begin_task, end_task, init_state, make_train_step
from jaxemb.transforms import Task, find_state, herding, icarl
from jaxemb.transforms.continual.icarl import icarl_loss

OBJECTIVE = classification()
MASK = np.array([[1, 1, 0, 0], [0, 0, 1, 1]], bool)


def test_herding_by_hand():
    assert herding(np.array([[1, 0], [0, 1], [0.7071, 0.7071]]), 3).tolist()[0] == 2
    # Of 12 features, against the rule step by step.
    x = np.random.default_rng(0).normal(size=(12, 3))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    chosen = herding(x * 5, 12)
    assert sorted(chosen.tolist()) == list(range(12))
    w = unit.mean(axis=0)
    for k in range(12):
        rest = [i for i in range(12) if i not in chosen[:k]]
        assert chosen[k] == max(rest, key=lambda i: w @ unit[i])
        w = w + unit.mean(axis=0) - unit[chosen[k]]
    np.testing.assert_array_equal(herding(x, 5), chosen[:5])
    with pytest.raises(ValueError, match=r"count must be in 0..12; got 13"):
        herding(x, 13)


def test_the_loss_by_hand():
    rng = np.random.default_rng(1)
    z, t = rng.normal(size=(2, 3, 4))
    labels, old, current = np.array([2, 0, 1]), np.array([1, 1, 0, 0], bool), np.array([0, 0, 1, 0], bool)
    s = lambda x: 1 / (1 + np.exp(-x))
    target = np.eye(4)[labels]
    target[:, :2] = s(t[:, :2])
    bce = -(target * np.log(s(z)) + (1 - target) * np.log(1 - s(z)))
    expected = bce[:, :3].mean(axis=1)
    np.testing.assert_allclose(icarl_loss(jnp.asarray(z), jnp.asarray(t), labels, old, current), expected, rtol=1e-5)


def task(number, size=12):
    rng = np.random.default_rng(number)
    labels = np.resize(np.flatnonzero(MASK[number]), size).astype(np.int32)
    data = {"input": rng.normal(size=(size, 5)).astype(np.float32), "label": labels}
    batches = [{name: x[i : i + 4] for name, x in data.items()} | {"classes": np.ones(4, bool)} for i in (0, 4, 8)]
    return data, Task(number, lambda: batches, classes=MASK[number])


@pytest.mark.slow
def test_two_tasks():
    (first, task_0), (second, task_1) = task(0), task(1)
    batch = task_0.batches()[0]
    transform, optimizer = icarl(10, 10, batch, 4, 3), optax.sgd(0.5)
    model = drawn(lambda key: Classifier.init(key, Mlp.init(key, [5, 3]), 3, 4))
    state = init_state(jax.random.key(0), model, optimizer, transform)
    step = jit_once(make_train_step(OBJECTIVE, optimizer, transform))

    state = begin_task(transform, OBJECTIVE, state, task_0)
    logits, nothing = state.model(batch["input"]), np.zeros(4, bool)
    state, metrics = step(state, batch)
    expected = icarl_loss(logits, logits, batch["label"], nothing, MASK[0]).mean()
    assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-5)

    state = end_task(transform, OBJECTIVE, state, task_0)
    chosen = {}
    for c in (0, 1):
        own = np.flatnonzero(first["label"] == c)
        chosen[c] = first["input"][own[herding(state.model.features(first["input"][own]), 5)]]
    np.testing.assert_array_equal(state.method_state.records["input"], np.concatenate([chosen[0], chosen[1]]))
    assert state.method_state.owner.tolist() == [0] * 5 + [1] * 5
    teacher, records = state.model, state.method_state.records

    state = begin_task(transform, OBJECTIVE, state, task_1)
    batch = task_1.batches()[0]
    both = {name: np.concatenate([batch[name], records[name]]) for name in records}
    _, metrics = step(state, batch)
    taught = teacher(both["input"])  # the model is still its teacher; all exemplars are in the minibatch
    expected = icarl_loss(taught, taught, both["label"], MASK[0], MASK[1]).mean()
    assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-5)
    state, _ = step(state, batch)

    state = end_task(transform, OBJECTIVE, state, task_1)
    assert state.method_state.owner.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, -1, -1]
    np.testing.assert_array_equal(
        state.method_state.records["input"][:4], np.concatenate([chosen[0][:2], chosen[1][:2]])
    )
    assert set(map(bytes, np.array(state.method_state.records["input"][4:8]))) <= set(map(bytes, second["input"]))
    means, features = find_state(state, NMCState), np.array(state.model.features(chosen[1][:2]))
    expected = (features / np.linalg.norm(features, axis=1, keepdims=True)).sum(axis=0)
    np.testing.assert_allclose(means.sums[1], expected, rtol=1e-5)
    assert means.counts.tolist() == [2, 2, 2, 2]


def test_bad_arguments():
    batch = task(0)[1].batches()[0]
    with pytest.raises(ValueError, match="columns must have 'label'; got input"):
        icarl(4, 2, batch, 4, 3, columns=["input"])
    with pytest.raises(ValueError, match="minibatch must be at most the capacity, 4; got 5"):
        icarl(4, 5, batch, 4, 3)
    transform, optimizer = icarl(1, 1, batch, 4, 3), optax.sgd(0.5)
    model = drawn(lambda key: Classifier.init(key, Mlp.init(key, [5, 3]), 3, 4))
    state = init_state(jax.random.key(0), model, optimizer, transform)
    with pytest.raises(ValueError, match="needs the classes of a task"):
        begin_task(transform, OBJECTIVE, state, Task(0))
    begun = begin_task(transform, OBJECTIVE, state, task(0)[1])
    with pytest.raises(ValueError, match="a memory of 1 has no place for an exemplar of each of 2 classes"):
        end_task(transform, OBJECTIVE, begun, task(0)[1])
