import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_run import assert_bitwise_equal

from jaxemb.train import init_state, make_train_step
from jaxemb.transforms import Context, Trained, Transform, Variables, chain, ema, ema_model

SEQUENCE = [3.0, -1.0, 4.0, 1.0, -5.0]


def averaged(transform: Transform, initial: float, models: list[float]) -> float:
    """The average after the model has taken the values of `models`."""
    state = transform.init(None, jnp.asarray(initial)).state
    for model in models:
        context = Context(0, None, None, lambda trained: trained.model, trained=Trained(jnp.asarray(model)))
        state = transform.after_step(context, (), state)
    return float(ema_model(state))


def test_constant_decay_is_the_recursion():
    expected = 2.0
    for model in SEQUENCE:
        expected = 0.9 * expected + 0.1 * model
    assert averaged(ema(0.9, start="constant"), 2.0, SEQUENCE) == pytest.approx(expected, rel=1e-6)


def test_debiased_is_the_average_from_zero_over_the_sum_of_its_weights():
    weights = 0.9 ** np.arange(len(SEQUENCE))[::-1]
    expected = np.average(SEQUENCE, weights=weights)
    assert averaged(ema(0.9, start="debias"), 10.0, SEQUENCE) == pytest.approx(expected, rel=1e-4)


def test_warm_up_forgets_fast_at_first_and_ends_at_the_decay():
    expected = 2.0
    for t, model in enumerate(SEQUENCE, start=1):
        decay = min(0.2, t / (9 + t))
        expected = decay * expected + (1 - decay) * model
    assert averaged(ema(0.2), 2.0, SEQUENCE) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("start", ["warmup", "debias", "constant"])
def test_decay_zero_is_the_model_itself(start):
    assert averaged(ema(0.0, start=start), 2.0, SEQUENCE) == SEQUENCE[-1]


def test_arrays_that_are_not_floating_point_are_kept_as_they_are_now():
    state = ema(0.9).init(None, {"codes": jnp.array([1, 2])}).state
    context = Context(0, None, None, lambda t: t.model, trained=Trained({"codes": jnp.array([5, 7])}))
    np.testing.assert_array_equal(ema_model(ema(0.9).after_step(context, (), state))["codes"], [5, 7])


def test_leaves_the_training_as_it_is():
    model, optimizer = {"w": jnp.array([1.0, 2.0])}, optax.adam(0.1)
    states = {}
    for name, transform in (("plain", Transform()), ("ema", ema(0.5, start="constant"))):
        objective = lambda model, batch, key: (batch * jnp.sum(jnp.square(model["w"])), {})
        state = init_state(jax.random.key(0), model, optimizer, transform)
        step = jax.jit(make_train_step(objective, optimizer, transform), donate_argnums=0)
        states[name], _ = step(state, jnp.ones(3))
    assert_bitwise_equal(states["ema"].model, states["plain"].model)
    halfway = (model["w"] + states["plain"].model["w"]) / 2
    np.testing.assert_allclose(ema_model(states["ema"])["w"], halfway, rtol=1e-6)


def test_in_a_chain_averages_the_model_that_the_forward_pass_uses():
    double = Transform(
        init=lambda key, model: Variables(params=jnp.asarray(2.0)), model=lambda model, params, state: model * params
    )
    transform = chain(double, ema(0.0))
    objective = lambda model, batch, key: (jnp.full(2, jnp.square(model)), {})
    state = init_state(jax.random.key(0), jnp.asarray(3.0), optax.sgd(0.01), transform)
    assert float(ema_model(state)) == 6.0
    state, _ = jax.jit(make_train_step(objective, optax.sgd(0.01), transform))(state, {})
    assert float(ema_model(state)) == pytest.approx(float(state.model * state.method_params[0]), rel=1e-6)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2])
def test_refuses_a_decay_out_of_range(decay):
    with pytest.raises(ValueError, match=rf"decay must be in \[0, 1\); got {decay}"):
        ema(decay)


def test_refuses_an_unknown_start():
    with pytest.raises(ValueError, match=r"start must be one of \['constant', 'debias', 'warmup'\]; got 'slow'"):
        ema(0.9, start="slow")


@pytest.mark.parametrize("number", [0, 2])
def test_ema_model_wants_exactly_one(number):
    state = chain(*[ema(0.9)] * number, Transform()).init(jax.random.key(0), jnp.ones(2)).state
    with pytest.raises(ValueError, match=f"exactly one EmaState; found {number}"):
        ema_model(state)
