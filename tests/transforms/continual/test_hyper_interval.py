import dataclasses
import functools
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax
from tiny_stream import drawn, jit_once

from jaxemb.classifiers.linear import Classifier
from jaxemb.encoders import Mlp
from jaxemb.interval import CentredBox, worst_case_logits
from jaxemb.nn import Linear
from jaxemb.objectives import classification
from jaxemb.train import apply_transform, begin_task, end_task, init_state, make_train_step
from jaxemb.transforms import Task, chain, ema
from jaxemb.transforms.continual.hyper_interval import (
    HyperIntervalConfig,
    HyperIntervalParams,
    HyperIntervalState,
    at_box,
    at_universal,
    boxes_of,
    generated_weights,
    hyper_interval,
    infer_task_by_entropy,
    intersect_boxes,
    interval_cross_entropy,
    make_interval_logits,
    order_relaxed,
    propagate,
    schedules,
    task_boxes,
    universal_box,
    weight_boxes,
)
from jaxemb.transforms.continual.hypernetwork import HypernetworkConfig, at_task, hypernetwork, put, task_predictor

REFERENCES = Path(__file__).parents[1] / "references" / "hypernetworks.npz"  # see make_hypernetworks.py
CONFIG = HyperIntervalConfig(tasks=3, embed_dim=4, hidden=(5,), gamma=0.5, beta=0.3)
NESTED = dataclasses.replace(CONFIG, nesting="cos", gamma=8.0)
CLASSES = np.array([True, True, False, True])


def linear(kernel, bias):
    return Linear(np.array(kernel, np.float32), np.array(bias, np.float32))


@functools.cache
def classifier():
    return drawn(lambda key: Classifier.init(key, Mlp.init(key, (3, 6)), 6, 4))


def batch(seed=0, n=8):
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 3], n).astype(np.int32)
    return {"input": rng.normal(size=(n, 3)).astype(np.float32), "label": labels, "classes": CLASSES}


def train(transform, tasks=2, steps=8, rate=0.01):
    """The states at the beginning and after every task, and the metrics of the last step."""
    optimizer = optax.adamw(rate, weight_decay=0.1)
    state = init_state(jax.random.key(1, impl="unsafe_rbg"), classifier(), optimizer, transform)  # quick to compile
    step = jit_once(make_train_step(classification(), optimizer, transform))
    states, before, metrics = [state], state, {}
    for number in range(tasks):
        task = Task(number, steps=steps)
        state = begin_task(transform, classification(), state, task)
        for i in range(steps):
            before = state
            state, metrics = step(state, batch(10 * number + i))
        state = end_task(transform, classification(), state, task)
        states.append(state)
    return states, before, metrics


applied = jax.jit(apply_transform, static_argnums=0)
outputs = jax.jit(lambda transform, state, inputs: apply_transform(transform, state)(inputs), static_argnums=0)


# The worked numbers.


def test_linear_layer_of_a_box():
    box = jax.jit(propagate)(
        Mlp((linear([[1, 2], [-1, 3]], [0, 1]),), False), np.float32([1, -2]), np.float32([0.5, 0.1])
    )
    np.testing.assert_allclose(box, [[3, -3], [0.6, 1.3]], rtol=1e-6)


def test_relu_of_a_box():
    identity = linear([[1]], [0])
    box = jax.jit(propagate)(Mlp((identity, identity), False), np.float32([0.2]), np.float32([1]))
    np.testing.assert_allclose(box, [[0.6]] * 2, rtol=1e-6)


def test_loss_by_hand():
    lower, middle, upper = np.float32([[[1, 0]], [[2, 1]], [[3, 2]]])
    label = np.array([0], np.int32)
    np.testing.assert_array_equal(jax.jit(worst_case_logits)(lower, upper, label), [[1, 2]])
    np.testing.assert_allclose(interval_cross_entropy(lower, middle, upper, label, 0.5), [0.81326], atol=1e-5)
    np.testing.assert_allclose(interval_cross_entropy(lower, middle, upper, label, 0.0), [1.31326], atol=1e-5)
    assert interval_cross_entropy(lower, middle, upper, label, 0.5, np.array([True, False])).tolist() == [0]


@pytest.mark.parametrize(("step", "kappa", "gamma"), [(0, 1, 0), (999, 0.95005, 1), (1000, 0.5, 1), (2500, 0.5, 1)])
def test_schedules_by_hand(step, kappa, gamma):
    config = dataclasses.replace(CONFIG, gamma=1.0)
    np.testing.assert_allclose(schedules(config, jnp.asarray(step), jnp.asarray(2000)), (kappa, gamma), rtol=1e-6)


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_schedules_of_very_short_tasks_are_finite_and_end_full(steps):
    values = np.array([schedules(CONFIG, jnp.asarray(i), jnp.asarray(steps)) for i in range(steps + 1)])
    assert np.isfinite(values).all()
    np.testing.assert_allclose(values[-1], (0.5, 0.5))


def test_radii_are_a_softmax_and_start_equal():
    key = jax.random.key(0, impl="unsafe_rbg")
    params, _ = jax.jit(hyper_interval(CONFIG).init)(key, classifier())
    box = task_boxes(CONFIG, params, 0.5)
    np.testing.assert_array_equal(box.centre, params.embeddings)
    np.testing.assert_allclose(box.radius, np.full((3, 4), 0.5 / 4), rtol=1e-6)
    logits = jnp.array([[0.0, np.log(2), 0, 0]])
    np.testing.assert_allclose(
        task_boxes(CONFIG, params._replace(radius_logits=logits), 0.5).radius, [[0.1, 0.2, 0.1, 0.1]], rtol=1e-6
    )


def test_nested_boxes_by_hand():
    embeddings = jnp.array([[0.0] * 4, [np.pi] * 4])
    box = task_boxes(NESTED, HyperIntervalParams(Mlp(()), embeddings, None, embeddings), 8.0)
    np.testing.assert_allclose(box.centre - box.radius, [[-1] * 4, [-3] * 4], atol=1e-6)
    np.testing.assert_allclose(box.centre + box.radius, [[3] * 4, [1] * 4], atol=1e-6)
    np.testing.assert_allclose(intersect_boxes(*box), [[-1] * 4, [1] * 4], atol=1e-6)
    embeddings = jnp.asarray(np.random.default_rng(0).normal(scale=9, size=(50, 4)), jnp.float32)
    lower, upper = intersect_boxes(*task_boxes(NESTED, HyperIntervalParams(Mlp(()), embeddings, None, embeddings), 8.0))
    assert (lower <= -1).all()
    assert (upper >= 1).all()


def test_boxes_apart_meet_in_the_middle_of_the_gap():
    lower, upper = intersect_boxes(jnp.array([[0.0, 0.0], [4.0, 1.0]]), jnp.ones((2, 2)))
    np.testing.assert_array_equal([lower, upper], [[2, 0], [2, 1]])


def test_relaxed_ordering():
    values = [jnp.array([x]) for x in (2.0, 3.0, 1.0)]
    np.testing.assert_array_equal(jnp.concatenate(order_relaxed(*values, "exact")), [1, 3, 3])
    np.testing.assert_array_equal(jnp.concatenate(order_relaxed(*values, "official")), [2, 1, 3])


# Parity and soundness.


@pytest.mark.parametrize("name", ["box", "nested"])
def test_boxes_of_weights_are_the_official_codes(name):
    with np.load(REFERENCES) as file:
        reference = {key.removeprefix(f"{name}/"): file[key] for key in file if key.startswith(f"{name}/")}
    layers = tuple(linear(reference[f"{i}"], reference[f"{i + 1}"]) for i in (0, 2, 4))
    params = HyperIntervalParams(Mlp(layers, False), reference["embeddings"], None, reference["radius_logits"])
    config = dataclasses.replace(NESTED if name == "nested" else CONFIG, embed_dim=5)
    box = weight_boxes(config, params, task_boxes(config, params, 2.0), jnp.zeros(23))
    ends = np.stack([box.centre - box.radius, box.centre, box.centre + box.radius], axis=1)
    np.testing.assert_allclose(ends, reference["weights"], rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module", params=["plain", "nested", pytest.param("chunked", marks=pytest.mark.slow)])
def trained(request):
    config = {"plain": CONFIG, "nested": NESTED, "chunked": dataclasses.replace(CONFIG, chunk=10)}[request.param]
    transform = hyper_interval(config)
    return config, transform, *train(transform)


def weights_of(config, state, tasks=None):
    return jax.tree.map(np.asarray, generated_weights(config, state, tasks))


def inside(x, lower, upper, tolerance=1e-4):
    x = np.asarray(x)
    return bool(((x >= lower - tolerance) & (x <= upper + tolerance)).all())


def corners_and_points(rng, lower, upper, number):
    """Random points of a box, half of them corners."""
    share = rng.uniform(size=(number, len(lower)))
    share[: number // 2] = rng.integers(0, 2, (number // 2, len(lower)))
    return (lower + share * (upper - lower)).astype(np.float32)


def test_what_a_box_of_embeddings_makes_is_in_the_box_of_weights(trained):
    config, _, (*_, state), *_ = trained
    rng, embeddings, weights = np.random.default_rng(0), boxes_of(config, state), weights_of(config, state)
    for number in range(2):
        centre, radius = (np.asarray(x[number]) for x in embeddings)
        points = corners_and_points(rng, centre - radius, centre + radius, 1000)
        made = weight_boxes(config, state.method_params, CentredBox(points, np.zeros_like(points)), state.model)
        np.testing.assert_array_equal(made.radius, 0)
        lower, upper = (weights.centre[number] + sign * weights.radius[number] for sign in (-1, 1))
        assert inside(made.centre, lower, upper)
        assert float(weights.radius[number].mean()) > 1e-3


def test_what_a_box_of_weights_computes_is_between_the_logits(trained):
    config, transform, (*_, state), *_ = trained
    rng, inputs, weights = np.random.default_rng(0), batch(77)["input"], weights_of(config, state)
    assert (inputs < 0).any()
    interval_logits = make_interval_logits(config, transform)
    several = jax.jit(jax.vmap(lambda theta, model: put(config, model, theta)(inputs), (0, None)))
    for number in range(2):
        lower, middle, upper = interval_logits(at_task(state, number), inputs)
        ends = (weights.centre[number] + sign * weights.radius[number] for sign in (-1, 1))
        logits = several(corners_and_points(rng, *ends, 1000), state.model)
        assert inside(logits, lower, upper)
        np.testing.assert_allclose(middle, outputs(transform, at_task(state, number), inputs), rtol=1e-6, atol=1e-7)
        assert (np.asarray(lower) < middle).all()


def test_an_embedding_of_the_intersection_makes_weights_of_every_tasks_box(trained):
    config, transform, (*_, state), *_ = trained
    if config.nesting == "none":
        pytest.skip("only nested boxes intersect for certain")
    lower, upper = intersect_boxes(*boxes_of(config, state))
    assert (np.asarray(upper) - np.asarray(lower) >= config.gamma / config.embed_dim - 1e-6).all()
    weights = weights_of(config, state)
    for radius in ("point", "intersection"):
        flat = np.concatenate(
            [np.ravel(x) for x in jax.tree.leaves(applied(transform, at_universal(config, state, radius=radius)))]
        )
        for number in range(2):
            assert inside(
                flat, weights.centre[number] - weights.radius[number], weights.centre[number] + weights.radius[number]
            )
    np.testing.assert_allclose(universal_box(config, state).radius, 2)
    narrow, wide = (universal_box(config, state, radius=name).radius for name in ("intersection", "official"))
    assert (narrow <= wide).all()
    only = applied(transform, at_box(state, CentredBox(*(np.asarray(x)[0] for x in boxes_of(config, state)))))
    chex.assert_trees_all_close(only, applied(transform, at_task(state, 0)), rtol=1e-5)


# The method.


def test_its_loss(trained):
    config, transform, states, before, metrics = trained
    sent = batch(17)
    lower, middle, upper = make_interval_logits(config, transform)(before, sent["input"])
    worst = np.where(np.arange(4) == sent["label"][:, None], lower, upper)[:, CLASSES]
    places = np.array([0, 1, 9, 2])[sent["label"], None]
    loss = lambda logits: -np.take_along_axis(log_softmax(logits, axis=1), places, axis=1).mean()
    old, now = (weights_of(config, state, [0]) for state in (states[1], before))
    squares = [
        float(np.square(a - b).sum())
        for a, b in [(now.centre + s * now.radius, old.centre + s * old.radius) for s in (-1, 0, 1)]
    ]
    expected = squares[1] if config.nesting == "none" else np.mean(squares)
    assert expected > 1e-4
    expected = 0.3 * expected + 0.5 * loss(np.asarray(middle)[:, CLASSES]) + 0.5 * loss(worst)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)


@pytest.mark.slow
def test_with_gamma_0_it_is_the_hypernetwork():
    ours, _, metrics = train(hyper_interval(dataclasses.replace(CONFIG, gamma=0.0)))
    plain, _, same = train(hypernetwork(HypernetworkConfig(tasks=3, embed_dim=4, hidden=(5,), beta=0.3)))
    np.testing.assert_allclose(metrics["loss"], same["loss"], rtol=1e-5)
    chex.assert_trees_all_close(ours[-1].method_params[:3], tuple(plain[-1].method_params), rtol=1e-4, atol=1e-6)


def test_only_the_tasks_box_moves_and_nothing_of_the_model(trained):
    config, _, states, *_ = trained
    for name in ("embeddings", "radius_logits"):
        for number in range(2):
            before, after = (np.asarray(getattr(s.method_params, name)) for s in states[number : number + 2])
            moved = (np.abs(after - before).max(axis=1) > 0).tolist()
            learns = config.nesting == "none" or name == "embeddings"
            assert moved == [learns and row == number for row in range(3)]
    chex.assert_trees_all_equal(states[-1].model, states[0].model)


def test_the_residual_is_how_far_old_weights_moved(trained):
    config, _, (_, first, second), *_ = trained
    old, now = (weights_of(config, state, [0]) for state in (first, second))
    moves = [np.abs(now.centre + s * now.radius - old.centre - s * old.radius).max() for s in (-1, 0, 1)]
    residual = second.method_state.residual
    np.testing.assert_allclose(residual, [max(moves), 0, 0], rtol=1e-3)
    assert residual[0] > 1e-4


@pytest.mark.slow
def test_recomputed_targets_are_the_stored_ones(trained):
    config, _, states, *_ = trained
    recomputed = train(hyper_interval(dataclasses.replace(config, targets="recompute")))[0][-1]
    chex.assert_trees_all_close(recomputed.method_params, states[-1].method_params, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(recomputed.method_state.residual, states[-1].method_state.residual, rtol=1e-3)


def test_warm_start():
    transform = hyper_interval(dataclasses.replace(CONFIG, warm_start=True))
    state = train(transform, tasks=1, steps=0)[0][-1]
    begun = begin_task(transform, classification(), state, Task(1, steps=2))
    for name in ("embeddings", "radius_logits"):
        rows = getattr(begun.method_params, name)
        np.testing.assert_array_equal(rows[1], rows[0])
        np.testing.assert_array_equal(rows[2], getattr(state.method_params, name)[2])


def test_relaxed_logits_are_those_of_the_corners():
    config = dataclasses.replace(CONFIG, target="relaxed")
    transform = chain(ema(), hyper_interval(config))
    state, inputs = train(transform, tasks=1, steps=0)[0][-1], batch(77)["input"]
    logits = make_interval_logits(config, transform)(state, inputs)
    centre, radius = weights_of(config, state)
    at = jax.jit(lambda theta: put(config, state.model, theta)(inputs))
    three = [at((centre + s * radius)[0]) for s in (-1, 0, 1)]
    np.testing.assert_allclose(logits, [np.min(three, axis=0), three[1], np.max(three, axis=0)], rtol=1e-4, atol=1e-6)


def test_infer_task_by_entropy():
    sure, unsure = [9.0, 0.0, 0.0], [0.2, 0.0, 0.1]
    middle = np.array([[sure, unsure], [unsure, sure[::-1]]], np.float32)
    logits = np.stack([middle - 0.5, middle, middle + 0.5], axis=2)
    tasks, classes = infer_task_by_entropy(logits)
    assert (tasks.tolist(), classes.tolist()) == ([0, 1], [0, 2])
    tasks, classes = infer_task_by_entropy(logits, classes=np.array([[True, True, False], [False, True, True]]))
    assert (tasks.tolist(), classes.tolist()) == ([0, 1], [0, 2])
    wide = np.stack([middle, middle, middle + np.float32([[[0]], [[100]]])], axis=2)  # of task 1: 1e5 times less
    assert infer_task_by_entropy(wide, weighted=True)[0].tolist() == [1, 1]


def test_predictions_of_every_task(trained):
    _, transform, (*_, state), *_ = trained
    predict, inputs = jax.jit(task_predictor(transform)), batch(77)["input"]
    for number in (0, 1):
        expected = outputs(transform, at_task(state, number), inputs)
        np.testing.assert_allclose(predict(state, inputs, number), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": -1.0}, "gamma must be >= 0; got -1.0"),
        ({"beta": -1.0}, "beta must be >= 0; got -1.0"),
        ({"kappa": 1.5}, r"kappa must be in \[0, 1\]; got 1.5"),
        ({"nesting": "cos", "learnable_radii": True}, "nested boxes have fixed radii.*learnable_radii"),
        ({"nesting": "cos", "gamma": 0.0}, "got gamma = 0"),
        ({"target": "exact"}, "target must be one of"),
        ({"regulariser": "some"}, "regulariser must be one of"),
    ],
)
def test_bad_configurations(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_bad_calls():
    transform = hyper_interval(CONFIG)
    state = init_state(jax.random.key(0), classifier(), optax.sgd(0.1), transform)
    assert isinstance(state.method_state, HyperIntervalState)
    with pytest.raises(ValueError, match=r"number must be in \[0, 3\).*got 3"):
        begin_task(transform, classification(), state, Task(3))
    with pytest.raises(ValueError, match="no task has begun"):
        universal_box(CONFIG, state)
    state = begin_task(transform, classification(), state, Task(0))
    for call in (lambda: at_task(state, 1), lambda: boxes_of(CONFIG, state, [1])):
        with pytest.raises(ValueError, match="number must be that of a task that has begun, of 1; got 1"):
            call()
    with pytest.raises(ValueError, match=r"radius must be one of.*got 'half'"):
        universal_box(CONFIG, state, radius="half")
