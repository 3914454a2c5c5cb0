"""Steps in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from budget import Programs

from jaxemb.train import NonFiniteError, Runner, init_state, make_train_step, train
from jaxemb.transforms import Transform, identity

W = jnp.arange(4.0)


def objective(model, batch, key):
    return jnp.square(batch["x"] @ model["w"] - batch["y"]), {}


def batches(n, spoiled=None):
    rng = np.random.default_rng(0)
    for i in range(n):
        x = rng.normal(size=(8, 4)).astype(np.float32)
        yield {"x": x, "y": np.full(8, np.nan if i == spoiled else 1, np.float32), "id": np.arange(8) + 8 * i}


def test_training_in_memory_is_gradient_descent():
    state = train({"w": W}, objective, optax.sgd(0.1), batches(5))
    w = np.asarray(W)
    for batch in batches(5):
        w = w - 0.1 * 2 * np.mean((batch["x"] @ w - batch["y"])[:, None] * batch["x"], axis=0)
    np.testing.assert_allclose(state.model["w"], w, rtol=1e-5)
    assert int(state.step) == 5


def test_it_is_one_task_whose_data_a_collection_gives_again():
    told = []

    def hook(task, context, params, state):
        told.append((task.number, task.steps, None if task.batches is None else len(list(task.batches()))))
        return context.trained, state

    transform = Transform(begin_task=hook, end_task=hook)
    train({"w": W}, objective, optax.sgd(0.1), list(batches(3)), transform=transform)
    train({"w": W}, objective, optax.sgd(0.1), batches(3), transform=transform)
    assert told == [(0, 3, 3)] * 2 + [(0, 0, None)] * 2


def test_what_is_not_finite_is_named():
    with pytest.raises(NonFiniteError, match=r"step 3: loss nan.*ids of the batch: 16, 17.*none yet") as caught:
        train({"w": W}, objective, optax.sgd(0.1), batches(5, spoiled=2))
    before = train({"w": W}, objective, optax.sgd(0.1), batches(2))
    np.testing.assert_array_equal(caught.value.state.model["w"], before.model["w"])


def test_the_host_is_one_step_ahead_and_one_program_serves_all():
    state, done, programs = init_state(jax.random.key(0), {"w": W}, optax.sgd(0.1), identity()), [], Programs()
    runner = Runner(make_train_step(objective, optax.sgd(0.1)), state, done=done.append)
    given = list(batches(4))
    for number, batch in enumerate(given):
        runner.start(batch, batch["id"])
        assert done == list(range(1, number + 1))
    assert len(runner.read()) == 3 and runner.read() == []
    runner.wait()
    assert done == [1, 2, 3, 4] and len(runner.read()) == 1
    assert runner.records == 24 and runner.seconds > 0  # all but those of the first step, which was compiled
    runner.state = init_state(jax.random.key(1), {"w": 2 * W}, optax.sgd(0.1), identity())
    before = programs.count
    runner.start(given[0])
    runner.wait()
    assert programs.count == before
