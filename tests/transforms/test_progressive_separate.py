"""Every stage starts with the original weights and the entries that the stage before gives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny_run import assert_bitwise_equal
from tiny_stream import jit_once

from jaxemb.embedder import Dense
from jaxemb.nn import Linear, Module
from jaxemb.pretraining import entry_cross_entropy
from jaxemb.train import begin_task, init_state, make_train_step, trainable
from jaxemb.transforms import EntryState, Task, find_state, progressive_separate_training

INPUTS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


@nnx.dataclass
class Predictor(Module):
    pooler: Dense = nnx.data()


MODEL = Predictor(Dense(linear=Linear(jnp.eye(4), jnp.zeros(4)), activation="tanh"))
OPTIMIZER = optax.adam(0.1)


def objective(model, batch, key):
    return entry_cross_entropy(model.pooler(batch["x"]), batch["entry"], batch["entries"]), {}


def entries_of(stage, model):
    return (stage + 1) * np.asarray(model.pooler(INPUTS))


def test_stages():
    transform = progressive_separate_training(entries_of, (6, 4))
    state = init_state(jax.random.key(0), MODEL, OPTIMIZER, transform)
    step = jit_once(make_train_step(objective, OPTIMIZER, transform))
    batch = {"x": INPUTS, "entry": np.arange(6)}
    expected, ends = entries_of(0, MODEL), []
    for stage in range(3):
        state = begin_task(transform, objective, state, Task(stage))
        state = dataclasses.replace(state, opt_state=OPTIMIZER.init(trainable(transform, state)))
        assert_bitwise_equal(state.model, MODEL)
        np.testing.assert_array_equal(find_state(state, EntryState).entries, expected)
        losses = []
        for _ in range(5):
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
        assert losses[-1] < losses[0]
        expected = entries_of(stage + 1, state.model)
        ends.append(np.asarray(state.model.pooler.linear.kernel))
    assert not np.array_equal(ends[0], ends[1])
    assert_bitwise_equal(find_state(state, EntryState).original, MODEL)


@pytest.mark.parametrize("wrong", [np.zeros((5, 4)), np.full((6, 4), np.nan)])
def test_entries_that_do_not_fit_are_named(wrong):
    transform = progressive_separate_training(lambda stage, model: wrong, (6, 4))
    state = init_state(jax.random.key(0), MODEL, OPTIMIZER, transform)
    with pytest.raises(ValueError, match=r"finite entries of shape \(6, 4\)"):
        begin_task(transform, objective, state, Task(0))
