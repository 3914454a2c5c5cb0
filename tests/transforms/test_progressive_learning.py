import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxemb.losses import progressive_info_nce
from jaxemb.train import init_state, make_train_step
from jaxemb.transforms import chain, ema, progressive_learning

BATCH = {"id": np.arange(3), "x": np.eye(3, dtype=np.float32)}


def losses(model, batch, alpha):
    return progressive_info_nce(batch["x"] @ model, batch["x"], alpha=alpha, temperature=0.5).losses


def start():
    return jnp.asarray(np.random.default_rng(0).standard_normal((3, 3)), jnp.float32)


def test_the_objective_sees_alpha_of_the_step():
    schedule, optimizer = optax.linear_schedule(-2.0, 2.0, 4), optax.sgd(0.1)
    transform = chain(progressive_learning(schedule), ema(0.9))

    def objective(model, batch, key):
        return losses(model, batch, batch["alpha"]), {}

    by_hand = jax.jit(jax.value_and_grad(lambda model, alpha: losses(model, BATCH, alpha).mean()))
    step = jax.jit(make_train_step(objective, optimizer, transform))
    state = init_state(jax.random.key(0), start(), optimizer, transform)
    expected = start()
    for alpha in (-2.0, -1.0, 0.0, 1.0, 2.0, 2.0):
        loss, gradient = by_hand(expected, alpha)
        state, metrics = step(state, BATCH)
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
        expected = np.asarray(expected) - 0.1 * np.asarray(gradient)
    np.testing.assert_allclose(state.model, expected, rtol=1e-5, atol=1e-6)


def test_alpha_must_be_a_schedule():
    with pytest.raises(TypeError, match=r"alpha must be a function; got float 2\.0"):
        progressive_learning(2.0)
