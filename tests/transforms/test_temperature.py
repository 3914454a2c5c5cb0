import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxemb.train import apply_transform, init_state, make_train_step
from jaxemb.transforms import WithTemperature, chain, ema, trained_temperature

BATCH = {"id": np.arange(3), "x": np.eye(3, dtype=np.float32)}


def objective(model, batch, key):
    scores = model(batch["x"]) @ batch["x"].T / model.temperature
    return -jnp.diagonal(jax.nn.log_softmax(scores)), {"temperature": model.temperature}


def scaled(weights):
    """The model x -> x weights."""
    return jax.tree_util.Partial(lambda weights, x: x @ weights, weights)


def trained(transform, steps, rate):
    optimizer = optax.sgd(rate)
    state = init_state(jax.random.key(0), scaled(jnp.eye(3)), optimizer, transform)
    step = jax.jit(make_train_step(objective, optimizer, transform))
    for _ in range(steps):
        state, metrics = step(state, BATCH)
        assert metrics["finite"]
    return state


def test_the_gradient_is_that_of_the_log_scale():
    transform = trained_temperature(0.5)
    state = trained(transform, 1, rate=0.1)
    # With t = 1 / temperature the loss is log(exp(t) + 2) - t: one pair of cosine 1, two of 0.
    gradient = 2 * (np.exp(2) / (np.exp(2) + 2) - 1)
    expected = np.exp(-(np.log(2) - 0.1 * gradient))
    assert float(apply_transform(transform, state).temperature) == pytest.approx(expected, rel=1e-5)


def test_it_stops_at_the_lowest_and_can_rise_again():
    transform = trained_temperature(0.07, lowest=0.05)
    state = trained(transform, 3, rate=1e8)  # the matching pairs are identical: the colder, the better
    assert float(apply_transform(transform, state).temperature) == pytest.approx(0.05, rel=1e-6)
    grads = optax.tree.zeros_like(state.trained)._replace(params=jnp.float32(-0.1))
    updates = transform.updates(grads, None, state.method_params, state.method_state)
    assert float(jnp.exp(-(state.method_params + updates.params))) == pytest.approx(0.05 * np.exp(0.1), rel=1e-5)


def test_it_calls_the_model_and_chains():
    transform = chain(trained_temperature(0.2), ema(0.5))
    state = trained(transform, 1, rate=0.0)
    model = apply_transform(transform, state)
    assert isinstance(model, WithTemperature)
    assert float(model.temperature) == pytest.approx(0.2)
    np.testing.assert_array_equal(model(BATCH["x"]), np.eye(3))
    assert state.method_state[1].average.model.args[0].shape == (3, 3)


@pytest.mark.parametrize(("initial", "lowest"), [(0.07, 0.0), (0.01, 0.02), (float("nan"), 0.01)])
def test_bad_input(initial, lowest):
    with pytest.raises(ValueError, match="lowest must be > 0 and at most initial"):
        trained_temperature(initial, lowest=lowest)
