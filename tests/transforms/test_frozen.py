import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_run import PAIRWISE, assert_bitwise_equal, pair_batch, tiny_model
from tiny_stream import MODEL, linear, task

from jaxemb.train import init_state, make_train_step, trainable
from jaxemb.transforms import chain, ema, frozen, identity, si

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


def test_they_have_no_moments_and_may_be_of_any_type():
    """And what other methods of the chain do with the model, they do with the whole of it."""
    model = {"w": MODEL["w"].astype(jnp.bfloat16), "b": MODEL["b"]}
    transform, optimizer = chain(frozen("w"), ema(0.5), si(1.0)), optax.adamw(0.1)
    state = init_state(jax.random.key(0), model, optimizer, transform)
    assert [leaf.shape for leaf in jax.tree.leaves(trainable(transform, state))] == [(4,)]
    assert sorted(leaf.shape for leaf in jax.tree.leaves(state.opt_state)) == [(), (4,), (4,)]
    after, _ = jax.jit(make_train_step(linear, optimizer, transform))(state, next(task(2).batches()))
    assert_bitwise_equal(after.model["w"], model["w"])
    average, held = after.method_state[1].average, after.method_state[2]
    assert_bitwise_equal(average["w"], model["w"])
    assert np.all(average["b"] != model["b"])
    assert not np.any(held.path_integral["w"]) and np.all(held.path_integral["b"])


def test_integers_are_never_trained():
    model = {**MODEL, "codes": jnp.arange(3)}
    state = init_state(jax.random.key(0), model, optax.adam(0.1), identity())
    state, _ = jax.jit(make_train_step(linear, optax.adam(0.1)))(state, next(task(2).batches()))
    assert state.model["codes"].tolist() == [0, 1, 2] and state.finite


@pytest.mark.slow
def test_no_gradient_of_frozen_weights_is_computed():
    """By XLA's account: without the gradients of kernels the backward pass is half, without any it is nothing."""
    model, optimizer = tiny_model(dropout=0.0, attention_dropout=0.0, unroll=2), optax.adamw(0.1)
    batch = pair_batch(range(8))

    def cost(transform):
        state = init_state(jax.random.key(0), model, optimizer, transform)
        program = jax.jit(make_train_step(PAIRWISE, optimizer, transform)).lower(state, batch).compile()
        return program.cost_analysis()["flops"]

    whole, last, nothing = map(cost, (identity(), frozen(r"^(?!.*mlp_norm)"), frozen("")))
    assert nothing < 0.45 * whole
    assert nothing < last < 0.8 * whole


def test_it_must_choose_something():
    with pytest.raises(ValueError, match="where must choose at least one array; 'head' chooses none of b, w"):
        after(frozen("head"), optax.sgd(0.1), steps=0)
