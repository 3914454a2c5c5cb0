import dataclasses
import functools

import chex
import jax
import numpy as np
import optax
import pytest
from scipy.special import log_softmax
from tiny_stream import drawn, jit_once

from jaxemb.classifiers.linear import Classifier
from jaxemb.encoders import Mlp
from jaxemb.interval import bound
from jaxemb.objectives import classification
from jaxemb.train import apply_transform, begin_task, end_task, init_state, make_train_step
from jaxemb.transforms import Task
from jaxemb.transforms.continual.intercontinet import InterContiNetConfig, InterContiNetParams, intercontinet

CONFIG = InterContiNetConfig(max_radius=0.5, contraction_steps=4, window=3, threshold=1.0)
STEPS = 8


@functools.cache
def classifier():
    return drawn(lambda key: Classifier.init(key, Mlp.init(key, (3, 6)), 6, 4))


def batch(seed):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(16, 3)).astype(np.float32)
    return {"input": inputs, "label": np.abs(inputs).argmax(axis=1).astype(np.int32), "classes": np.arange(4) < 3}


@pytest.fixture(scope="module")
def runs():
    """The transform, and for two tasks the states before every step, after the last, and after the end; the losses."""
    transform, optimizer = intercontinet(CONFIG), optax.adam(0.05)
    state = init_state(jax.random.key(1), classifier(), optimizer, transform)
    step = jit_once(make_train_step(classification(), optimizer, transform))
    tasks = []
    for number in range(2):
        task = Task(number, steps=STEPS)
        state = begin_task(transform, classification(), state, task)
        states, losses = [state], []
        for i in range(STEPS):
            state, metrics = step(state, batch(10 * number + i))
            states.append(state)
            losses.append(float(metrics["loss"]))
        state = end_task(transform, classification(), state, task)
        tasks.append(([*states, state], losses))
    return transform, tasks


applied = jax.jit(apply_transform, static_argnums=0)
call = jax.jit(lambda model, inputs: model(inputs))


def ends(state):
    """The intervals that a task leaves."""
    radius = state.method_state.radius
    return jax.tree.map(np.subtract, state.model, radius), jax.tree.map(np.add, state.model, radius)


def test_its_first_model_is_the_given_one(runs):
    transform, tasks = runs
    chex.assert_trees_all_close(applied(transform, tasks[0][0][0]), classifier())


def test_shifts_are_trained_and_then_scales(runs):
    for states, _ in runs[1]:
        for i in range(STEPS):
            moved = [
                max(np.abs(np.subtract(a, b)).max() for a, b in zip(*map(jax.tree.leaves, pair), strict=True))
                for pair in zip(states[i].method_params, states[i + 1].method_params, strict=True)
            ]
            assert [m > 0 for m in moved] == ([True, False] if i < STEPS - CONFIG.contraction_steps else [False, True])
            chex.assert_trees_all_equal(states[i].model, states[i + 1].model)


def test_losses_are_of_the_middle_and_then_of_the_worst_case(runs):
    transform, tasks = runs
    states, losses = tasks[1]
    sigmoid = lambda c: 1 / (1 + np.exp(-c))
    for i in (1, 6):
        state, sent = states[i], batch(10 + i)
        middle = applied(transform, state)
        held = jax.device_get(state.method_state.radius)
        share = jax.tree.map(
            lambda s, r: np.tanh(s / np.maximum(r, 1e-8)), jax.device_get(state.method_params.shift), held
        )
        scale = jax.device_get(state.method_params.scale)
        radius = jax.tree.map(lambda a, c, r: sigmoid(c) * (1 - np.abs(a)) * r, share, scale, held)
        logits = np.asarray(call(middle, sent["input"]))
        if i == 6:
            lower, upper = jax.tree.map(np.subtract, middle, radius), jax.tree.map(np.add, middle, radius)
            lower, upper = jax.jit(bound(lambda model, x=sent["input"]: model(x)))((lower,), (upper,))
            logits = np.where(np.arange(4) == sent["label"][:, None], lower, upper)
        expected = -log_softmax(logits[:, :3], axis=1)[np.arange(16), sent["label"]].mean()
        np.testing.assert_allclose(losses[i], expected, rtol=1e-4)


def test_every_interval_lies_in_the_one_before(runs):
    transform, tasks = runs
    outer = ends(tasks[0][0][0])
    for states, _ in tasks:
        inner = ends(states[-1])
        for wide_low, low, high, wide_high in zip(*map(jax.tree.leaves, (outer[0], *inner, outer[1])), strict=True):
            assert (wide_low <= low + 1e-6).all()
            assert (high <= wide_high + 1e-6).all()
            assert (low <= high).all()
        chex.assert_trees_all_close(applied(transform, states[-1]), applied(transform, states[-2]), rtol=1e-5)
        assert not np.any(states[-1].method_params.shift.head.kernel)
        outer = inner


def test_it_stops_shrinking_once_the_worst_case_is_good_enough():
    transform, optimizer = intercontinet(dataclasses.replace(CONFIG, threshold=0.0)), optax.adam(0.05)
    state = init_state(jax.random.key(1), classifier(), optimizer, transform)
    step = jit_once(make_train_step(classification(), optimizer, transform))
    state = begin_task(transform, classification(), state, Task(0, steps=5))
    scales = [state.method_params.scale.head.kernel]
    for i in range(5):
        state, _ = step(state, batch(i))
        scales.append(state.method_params.scale.head.kernel)
    moved = [bool(np.any(np.not_equal(a, b))) for a, b in zip(scales[1:], scales[:-1], strict=True)]
    assert moved == [False, True, False, False, False]  # the first step of the second phase knows no accuracy yet
    assert np.isfinite(state.method_state.plain).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_radius": 0.0}, "max_radius must be > 0; got 0.0"),
        ({"threshold": 1.1}, r"threshold must be in \[0, 1\]; got 1.1"),
        ({"contraction_steps": -1}, "contraction_steps must be >= 0; got -1"),
        ({"window": 0}, "window must be at least 1; got 0"),
    ],
)
def test_bad_configurations(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_a_task_must_be_longer_than_its_second_phase():
    transform = intercontinet(CONFIG)
    state = init_state(jax.random.key(0), classifier(), optax.sgd(0.1), transform)
    assert isinstance(state.method_params, InterContiNetParams)
    with pytest.raises(ValueError, match="more than contraction_steps = 4 steps; got 4"):
        begin_task(transform, classification(), state, Task(0, steps=4))
