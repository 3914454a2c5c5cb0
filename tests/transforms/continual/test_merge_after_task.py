import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_stream import jit_once

from jaxemb.merging import merge_average, merge_ties, task_vector
from jaxemb.train import begin_task, end_task, init_state, make_train_step
from jaxemb.transforms import Task, chain, ema, identity, merge_after_task

TARGETS = jnp.array([[1.0, 0.0], [0.0, 2.0], [4.0, 4.0]])


def objective(model, batch, key):
    return jnp.square(model - batch).sum(axis=-1), {}


def run(transform):
    """The model at the end of each task: one step goes half of the way to the task's target."""
    optimizer = optax.sgd(0.25)
    state = init_state(jax.random.key(0), jnp.zeros(2), optimizer, transform)
    step = jit_once(make_train_step(objective, optimizer, transform))
    models = []
    for number, target in enumerate(TARGETS):
        task = Task(number, steps=1)
        state = begin_task(transform, objective, state, task)
        state, _ = step(state, target[None])
        state = end_task(transform, objective, state, task)
        models.append(np.asarray(state.model))
    return models


def by_hand(merge):
    initial = model = np.zeros(2)
    models = []
    for number, target in enumerate(np.asarray(TARGETS)):
        previous, model = model, (model + target) / 2
        if number:
            model = merge(initial, previous, model, number)
        models.append(model)
    return models


def test_running_average():
    transform = merge_after_task(lambda m: merge_average([m.current, m.previous], [1, m.number]))
    expected = by_hand(lambda initial, previous, current, t: (current + t * previous) / (t + 1))
    np.testing.assert_allclose(run(transform), expected, rtol=1e-6)
    np.testing.assert_allclose(run(chain(ema(), transform)), expected, rtol=1e-6)


def test_task_vectors_are_from_the_initial_model():
    vectors = lambda m: [task_vector(x, m.initial) for x in (m.previous, m.current)]
    transform = merge_after_task(lambda m: merge_ties(m.initial, vectors(m), density=1))
    # All entries are positive: the mean over those that are not 0.
    expected = by_hand(lambda i, p, c, t: (p + c) / np.maximum((p != 0) + 1.0 * (c != 0), 1))
    np.testing.assert_allclose(run(transform), expected, rtol=1e-6)


def test_the_first_task_is_plain_training_unless_asked():
    merge = lambda m: merge_average([m.previous, m.current])
    np.testing.assert_array_equal(run(merge_after_task(merge))[0], run(identity())[0])
    np.testing.assert_allclose(run(merge_after_task(merge, first=True))[0], run(identity())[0] / 2)


def test_a_merge_must_give_a_model_of_the_same_kind():
    with pytest.raises(ValueError, match="merge must give a model with the structure, shapes and dtypes"):
        run(merge_after_task(lambda m: m.current.astype(jnp.bfloat16)))
