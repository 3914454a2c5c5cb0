import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxemb.losses import progressive_info_nce
from jaxemb.train import init_state, make_train_step
from jaxemb.transforms import WithAlpha, chain, ema, progressive_learning

BATCH = {"id": np.arange(3), "x": np.eye(3, dtype=np.float32)}


def scaled(weights):
    """The model x -> x weights."""
    return jax.tree_util.Partial(lambda weights, x: x @ weights, weights)


def losses(model, batch, alpha):
    return progressive_info_nce(model(batch["x"]), batch["x"], alpha=alpha, temperature=0.5).losses


def start():
    return scaled(jnp.asarray(np.random.default_rng(0).standard_normal((3, 3)), jnp.float32))


def test_the_objective_sees_alpha_of_the_step():
    schedule, optimizer = optax.linear_schedule(-2.0, 2.0, 4), optax.sgd(0.1)
    transform = chain(progressive_learning(schedule), ema(0.9))

    def objective(model, batch, key):
        return losses(model, batch, model.alpha), {}

    by_hand = jax.jit(jax.value_and_grad(lambda model, alpha: losses(model, BATCH, alpha).mean()))
    step = jax.jit(make_train_step(objective, optimizer, transform))
    state = init_state(jax.random.key(0), start(), optimizer, transform)
    expected = start()
    for alpha in (-2.0, -1.0, 0.0, 1.0, 2.0, 2.0):
        loss, gradient = by_hand(expected, alpha)
        state, metrics = step(state, BATCH)
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
        expected = jax.tree.map(lambda w, g: np.asarray(w) - 0.1 * np.asarray(g), expected, gradient)
    np.testing.assert_allclose(state.model.args[0], expected.args[0], rtol=1e-5, atol=1e-6)


def test_the_model_with_its_alpha_is_called_as_the_model():
    model = start()
    np.testing.assert_array_equal(WithAlpha(model, jnp.float32(1.0))(BATCH["x"]), model(BATCH["x"]))


def test_alpha_must_be_a_schedule():
    with pytest.raises(TypeError, match=r"alpha must be a schedule, a function of the step; got 2\.0"):
        progressive_learning(2.0)
