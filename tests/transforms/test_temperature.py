import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_run import pair_batch, tiny_model
from tiny_stream import jit_once

from jaxemb.losses import info_nce
from jaxemb.objectives import matryoshka_2d, on_columns
from jaxemb.train import apply_transform, begin_task, end_task, init_state, make_train_step, trainable
from jaxemb.transforms import Anchored, Task, chain, ema, find_state, l2, prompts, trained_temperature

EYE = np.eye(3, dtype=np.float32)
BATCH = {"id": np.arange(3), "x": EYE}


def objective(model, batch, key):
    scores = batch["x"] @ model @ batch["x"].T / batch["temperature"]
    return -jnp.diagonal(jax.nn.log_softmax(scores)), {}


def trained(transform, steps, rate, model=EYE, objective=objective, batch=BATCH):
    optimizer = optax.sgd(rate)
    state = init_state(jax.random.key(0), model, optimizer, transform)
    step = jit_once(make_train_step(objective, optimizer, transform))
    for _ in range(steps):
        state, metrics = step(state, batch)
        assert metrics["finite"]
    return state


def temperature(state):
    return float(jnp.exp(-state.method_params))


def test_the_gradient_is_that_of_the_log_scale():
    state = trained(trained_temperature(0.5), 1, rate=0.1)
    # With t = 1 / temperature the loss is log(exp(t) + 2) - t: one pair of cosine 1, two of 0.
    gradient = 2 * (np.exp(2) / (np.exp(2) + 2) - 1)
    assert temperature(state) == pytest.approx(np.exp(-(np.log(2) - 0.1 * gradient)), rel=1e-5)


def test_it_stops_at_the_lowest_and_can_rise_again():
    transform = trained_temperature(0.07, lowest=0.05)
    state = trained(transform, 3, rate=1e8)  # the matching pairs are identical: the colder, the better
    assert temperature(state) == pytest.approx(0.05, rel=1e-6)
    grads = optax.tree.zeros_like(trainable(transform, state))._replace(params=jnp.float32(-0.1))
    updates = transform.updates(grads, None, state.method_params, state.method_state)
    assert float(jnp.exp(-(state.method_params + updates.params))) == pytest.approx(0.05 * np.exp(0.1), rel=1e-5)


def test_the_model_stays_the_plain_one():
    transform = chain(trained_temperature(0.2), ema(0.5))
    state = trained(transform, 1, rate=0.0)
    np.testing.assert_array_equal(apply_transform(transform, state), np.eye(3))
    assert state.method_state[1].average.shape == (3, 3)


PAIRS = on_columns(info_nce, "query", "document", others=["temperature"])


def test_it_is_trained_with_objectives_of_several_sizes_and_soft_prompts():
    """Both were impossible while the temperature came round the model, and prompts had no layers to read."""
    transform = chain(trained_temperature(), prompts(2))
    model = tiny_model(position_table=24, dropout=0.0, attention_dropout=0.0)
    state = trained(transform, 2, 0.1, model, matryoshka_2d(PAIRS, (8,)), pair_batch(range(4)))
    assert float(state.method_params[0]) != pytest.approx(-np.log(0.07), abs=1e-4)
    assert np.any(np.asarray(state.method_params[1]) != model.encoder.embeddings.tokens[:2])


def test_penalties_behind_it_find_the_arrays_by_their_names():
    transform, optimizer = (
        chain(trained_temperature(), l2(1.0, where="^encoder.final|^encoder.embeddings.norm")),
        optax.sgd(0.1),
    )
    model = tiny_model(dropout=0.0, attention_dropout=0.0)
    state = init_state(jax.random.key(0), model, optimizer, transform)
    assert set(find_state(state, Anchored).anchor) == {f"encoder.embeddings.norm.{name}" for name in ("weight", "bias")}


def test_methods_that_look_at_the_task_see_it_too():
    transform = chain(trained_temperature(0.5), ema(0.9))
    spied = []
    spy = transform.parts[1]._replace(
        end_task=lambda task, c, p, s: (spied.extend(batch["temperature"] for batch in task.batches()), (c.trained, s))[
            1
        ]
    )
    transform = chain(transform.parts[0], spy)
    state = trained(transform, 1, rate=0.1)
    task = Task(0, batches=lambda: iter([BATCH, BATCH]))
    end_task(transform, objective, begin_task(transform, objective, state, task), task)
    np.testing.assert_allclose(spied, [jnp.exp(-state.method_params[0])] * 2)


@pytest.mark.parametrize(("initial", "lowest"), [(0.07, 0.0), (0.01, 0.02), (float("nan"), 0.01)])
def test_bad_input(initial, lowest):
    with pytest.raises(ValueError, match=r"lowest must be > 0 and at most initial|initial must be a number; got nan"):
        trained_temperature(initial, lowest=lowest)


def test_a_column_of_that_name_is_not_overwritten():
    transform, optimizer = chain(trained_temperature(), trained_temperature()), optax.sgd(0.1)
    state = init_state(jax.random.key(0), np.eye(3, dtype=np.float32), optimizer, transform)
    with pytest.raises(ValueError, match="adds the column 'temperature', which the batch has already"):
        jax.eval_shape(make_train_step(objective, optimizer, transform), state, BATCH)
