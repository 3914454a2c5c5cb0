import dataclasses
import functools
import itertools
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_stream import drawn, jit_once

from jaxemb.classifiers.linear import Classifier
from jaxemb.encoders import Mlp
from jaxemb.nn import Linear
from jaxemb.objectives import classification
from jaxemb.train import apply_transform, begin_task, init_state, make_train_step
from jaxemb.transforms import Task, chain, ema
from jaxemb.transforms.continual.hypernetwork import (
    HypernetworkConfig,
    HypernetworkParams,
    HypernetworkState,
    at_task,
    generate,
    hypernetwork,
    output_regulariser,
    put,
    task_predictor,
)

REFERENCES = Path(__file__).parents[1] / "references" / "hypernetworks.npz"  # see make_hypernetworks.py
CONFIG = HypernetworkConfig(tasks=3, embed_dim=4, hidden=(5,), beta=0.3)


@pytest.fixture(scope="module")
def reference():
    with np.load(REFERENCES) as file:
        return dict(file)


def network(reference, name):
    values = [reference[f"{name}/{i}"] for i in range(6)]
    return Mlp(tuple(Linear(k, b) for k, b in zip(values[::2], values[1::2], strict=True)), False)


@functools.cache
def classifier():
    return drawn(lambda key: Classifier.init(key, Mlp.init(key, (3, 6)), 6, 4))


def batch(seed=0, n=8):
    rng = np.random.default_rng(seed)
    return {"input": rng.normal(size=(n, 3)).astype(np.float32), "label": rng.integers(0, 4, n).astype(np.int32)}


@functools.cache
def train(config, tasks=2, steps=2, optimizer=None, wrap=lambda method: method):
    """The states after every step of some tasks."""
    transform, optimizer = wrap(hypernetwork(config)), optimizer or optax.adamw(0.01, weight_decay=0.1)
    state = init_state(jax.random.key(1, impl="unsafe_rbg"), classifier(), optimizer, transform)  # quick to compile
    step = jit_once(make_train_step(classification(), optimizer, transform))
    history = [state]
    for number in range(tasks):
        state = begin_task(transform, classification(), state, Task(number, steps=steps))
        for i in range(steps):
            state, metrics = step(state, batch(10 * number + i))
            history.append((state, metrics))
    return transform, history


applied = jax.jit(apply_transform, static_argnums=0)
call = jax.jit(lambda model, inputs: model(inputs))


def test_it_is_hypnettorchs_hmlp(reference):
    weights = generate(CONFIG, network(reference, "plain"), None, reference["plain/embeddings"], 23)
    np.testing.assert_allclose(weights, reference["plain/weights"], rtol=1e-5, atol=1e-6)


def test_in_chunks_it_is_hypnettorchs_chunked_hmlp(reference):
    config = dataclasses.replace(CONFIG, chunk=9, chunk_dim=4)
    embeddings, chunks = reference["chunked/embeddings"], reference["chunked/chunks"]
    weights = generate(config, network(reference, "chunked"), chunks, embeddings, 23)
    np.testing.assert_allclose(weights, reference["chunked/weights"], rtol=1e-5, atol=1e-6)


def test_its_regulariser_is_hypnettorchs(reference):
    weights = generate(CONFIG, network(reference, "moved"), None, reference["moved/embeddings"], 23)
    value = output_regulariser(CONFIG, weights, reference["plain/weights"], jnp.asarray(2))
    np.testing.assert_allclose(value, reference["moved/regulariser"], rtol=1e-5)


def test_regulariser_by_hand():
    official = dataclasses.replace(CONFIG, normalisation="official")
    now, before = jnp.array([[0.1, 0.0], [1.0, 1.0], [9.0, 9.0]]), jnp.array([[0.0, 0.2], [1.0, 3.0], [0.0, 0.0]])
    for config, task, expected in [
        (CONFIG, 0, 0),
        (CONFIG, 1, 0.05),
        (official, 1, 0.05),
        (CONFIG, 2, (0.05 + 4) / 2),
        (official, 2, (0.05 + 4) / 4),
        (dataclasses.replace(CONFIG, reduction="mean"), 2, (0.05 + 4) / 4),
    ]:
        np.testing.assert_allclose(output_regulariser(config, now, before, jnp.asarray(task)), expected, rtol=1e-6)


def test_the_model_has_the_weights_of_the_task():
    transform, history = train(CONFIG)
    state = history[-1][0]
    for number in range(2):
        model = applied(transform, at_task(state, number))
        chex.assert_trees_all_equal_shapes_and_dtypes(model, state.model)
        weights = call(state.method_params.network, np.asarray(state.method_params.embeddings)[[number]])[0]
        flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(model)])
        np.testing.assert_allclose(flat, weights, rtol=1e-6)
    chex.assert_trees_all_equal(applied(transform, state), applied(transform, at_task(state, 1)))
    predict, inputs = jax.jit(task_predictor(transform)), batch()["input"]
    np.testing.assert_allclose(predict(state, inputs, 1), call(applied(transform, state), inputs), rtol=1e-5)
    np.testing.assert_array_equal(predict(state, inputs, 2), predict(state, inputs, 1))  # not begun: the newest
    assert np.abs(np.subtract(predict(state, inputs, 0), predict(state, inputs, 1))).max() > 1e-3


def test_only_the_tasks_embedding_moves_and_nothing_of_the_model():
    _, history = train(CONFIG)
    states = [history[0], history[2][0], history[4][0]]  # at the beginning, after either task
    for number, (before, after) in enumerate(itertools.pairwise(states)):
        moved = np.abs(np.subtract(after.method_params.embeddings, before.method_params.embeddings)).max(axis=1) > 0
        assert moved.tolist() == [row == number for row in range(3)]
        chex.assert_trees_all_equal(after.model, before.model)


def test_the_loss_of_the_second_task_has_the_regulariser():
    transform, history = train(CONFIG)
    (first, _), (second, _), (_, metrics) = history[2:5]
    losses, _ = jax.jit(lambda state: classification()(apply_transform(transform, state), batch(11), None))(second)
    difference = np.subtract(
        *(call(state.method_params.network, first.method_params.embeddings) for state in (second, first))
    )
    assert np.square(difference[0]).sum() > 1e-4
    np.testing.assert_allclose(metrics["loss"], losses.mean() + 0.3 * np.square(difference[0]).sum(), rtol=1e-4)


@pytest.mark.parametrize(
    "change", [{"targets": "recompute"}, pytest.param({"chunk": 10, "targets": "recompute"}, marks=pytest.mark.slow)]
)
def test_recomputed_targets_are_the_stored_ones(change):
    _, recomputed = train(dataclasses.replace(CONFIG, **change))
    _, stored = train(dataclasses.replace(CONFIG, **change | {"targets": "store"}))
    chex.assert_trees_all_close(recomputed[-1][0].method_params, stored[-1][0].method_params, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_look_ahead_evaluates_the_regulariser_after_the_tasks_step():
    transform, history = train(dataclasses.replace(CONFIG, lookahead=optax.sgd(0.5)), optimizer=optax.sgd(0.01))
    (first, _), (second, _), (_, metrics) = history[2:5]

    def task_loss(params):
        state = dataclasses.replace(second, method_params=params)
        return classification()(apply_transform(transform, state), batch(11), None)[0].mean()

    step = jax.grad(task_loss)(second.method_params)
    moved = jax.tree.map(lambda p, g: p - 0.5 * g, second.method_params.network, step.network)
    difference = moved(first.method_params.embeddings[:1]) - first.method_params.network(
        first.method_params.embeddings[:1]
    )
    expected = task_loss(second.method_params) + 0.3 * np.square(difference).sum()
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)


def test_a_subset_of_the_weights_may_be_added_to_the_stored_ones():
    config = dataclasses.replace(CONFIG, where=r"head\.kernel", residual=True, scale=0.1)
    transform, history = train(config, wrap=lambda method: chain(ema(), method))
    state, start = history[-1][0], classifier()
    model = applied(transform, state)
    chex.assert_trees_all_equal(model.encoder, start.encoder)
    params = state.method_params[1]
    weights = 0.1 * np.asarray(call(params.network, np.asarray(params.embeddings)[1:2]))
    np.testing.assert_allclose(model.head.kernel, start.head.kernel + weights.reshape(6, 4), rtol=1e-5)
    assert np.abs(np.subtract(model.head.kernel, applied(transform, at_task(state, 0)).head.kernel)).max() > 1e-4


def test_put_is_one_to_one():
    model = classifier()
    flat = np.arange(52, dtype=np.float32)
    placed = jax.jit(lambda model, flat: put(CONFIG, model, flat))(model, flat)
    np.testing.assert_array_equal(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(placed)]), flat)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": 0}, "tasks must be at least 1; got 0"),
        ({"hidden": (3, 0)}, r"hidden must be sizes of at least 1; got \(3, 0\)"),
        ({"beta": -1.0}, "beta must be >= 0; got -1.0"),
        ({"chunk": 0}, "chunk must be at least 1; got 0"),
        ({"targets": "keep"}, "targets must be one of .'store', 'recompute'.; got 'keep'"),
    ],
)
def test_bad_configurations(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_bad_calls():
    transform = hypernetwork(CONFIG)
    state = init_state(jax.random.key(0), classifier(), optax.sgd(0.1), transform)
    with pytest.raises(ValueError, match=r"number must be in \[0, 3\).*got 3"):
        begin_task(transform, classification(), state, Task(3))
    with pytest.raises(ValueError, match="number must be that of a task that has begun, of 0; got 0"):
        at_task(state, 0)
    with pytest.raises(ValueError, match="'tail' chooses none of"):
        hypernetwork(dataclasses.replace(CONFIG, where="tail")).init(jax.random.key(0), classifier())
    assert isinstance(state.method_params, HypernetworkParams)
    assert isinstance(state.method_state, HypernetworkState)
