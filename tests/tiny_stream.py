"""A linear classifier and a stream of small tasks; shared by the tests of continual learning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxemb.objectives import competing
from jaxemb.train import begin_task, end_task, init_state, make_train_step
from jaxemb.transforms import Task, identity

RNG = np.random.default_rng(0)
RECORDS, C = 8, 4
X = RNG.normal(size=(3, RECORDS, 3)).astype(np.float32)
Y = np.stack([np.arange(RECORDS) % 2, 2 + np.arange(RECORDS) % 2, np.arange(RECORDS) % C]).astype(np.int32)
MODEL = {name: jnp.asarray(RNG.normal(size=s).astype(np.float32)) for name, s in (("w", (3, C)), ("b", C))}


def drawn(init, seed=0):
    """The model that `init(key)` makes, but its weights from NumPy, uniform in `±1 / sqrt(inputs)`: none to compile."""
    rng = np.random.default_rng(seed)
    draw = lambda like: jnp.asarray((rng.uniform(-1, 1, like.shape) / np.sqrt(like.shape[0])).astype(like.dtype))
    return jax.tree.map(draw, jax.eval_shape(lambda: init(jax.random.key(0))))


def jit_once(function):
    """`jax.jit(function)` that may be compiled once: for later arguments the same program must do."""
    traces = []

    @jax.jit
    def jitted(*args):
        traces.append(1)
        assert len(traces) == 1, "compiled more than once"
        return function(*args)

    return jitted


def linear(model, batch, key):
    """Cross-entropy of `x w + b`."""
    logits = batch["input"] @ model["w"] + model["b"]
    compete = competing(logits, batch.get("classes"))
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(compete, batch["label"])
    return losses, {"features": batch["input"] @ model["w"], "logits": logits}


def batches(x, y, size):
    """The records in order; the classes of the task compete only where a test says so."""
    return [
        {"input": x[i : i + size], "label": y[i : i + size], "id": np.arange(i, i + size, dtype=np.int32)}
        for i in range(0, len(x), size)
    ]


def task(number, x=X, y=Y, size=4):
    classes = np.isin(np.arange(C), y[number])
    return Task(number, lambda: iter(batches(x[number], y[number], size)), 2 * len(x[number]) // size, classes)


def learn(transform, *, x=X, y=Y, size=4, tasks=2, epochs=2, optimizer=None, model=MODEL, objective=linear):
    """The states after each task; the step must compile once for all of them."""
    optimizer = optax.sgd(0.05) if optimizer is None else optimizer
    state = init_state(jax.random.key(0), model, optimizer, transform)
    step, states = jit_once(make_train_step(objective, optimizer, transform)), []
    for number in range(tasks):
        now = task(number, x, y, size)
        state = begin_task(transform, objective, state, now)
        for batch in [batch for _ in range(epochs) for batch in now.batches()]:
            state, _ = step(state, batch)
        state = end_task(transform, objective, state, now)
        states.append(state)
    assert state.finite
    return states


@functools.cache
def fine_tuned():
    """The states after each task of plain training."""
    return learn(identity())
