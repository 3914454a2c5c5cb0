import functools

import jax
import numpy as np
import optax
import pytest
from tiny_run import assert_bitwise_equal
from tiny_stream import MODEL, linear, task

from jaxemb.train import init_state, make_train_step
from jaxemb.transforms import frozen, identity

MOMENTUM = optax.chain(optax.trace(0.9), optax.add_decayed_weights(0.1), optax.scale(-0.1))


@functools.cache
def after(transform, optimizer, steps=3):
    state = init_state(jax.random.key(0), MODEL, optimizer, transform)
    step = jax.jit(make_train_step(linear, optimizer, transform))
    metrics = {}
    for _ in range(steps):
        state, metrics = step(state, next(task(2).batches()))
    return state, metrics


@pytest.mark.parametrize("where", ["^w$", lambda path: path == "w"])
def test_frozen_arrays_keep_their_bits_under_momentum_and_weight_decay(where):
    state, metrics = after(frozen(where), MOMENTUM)
    free, free_metrics = after(identity(), MOMENTUM)
    assert_bitwise_equal(state.model["w"], MODEL["w"])
    assert not np.array_equal(state.model["b"], MODEL["b"])
    assert not np.array_equal(free.model["w"], MODEL["w"])
    assert metrics["grad_norm"] < free_metrics["grad_norm"], "frozen arrays count in the norm of the gradient"


def test_it_must_choose_something():
    with pytest.raises(ValueError, match="where must choose at least one array; 'head' chooses none of b, w"):
        after(frozen("head"), optax.sgd(0.1), steps=0)
