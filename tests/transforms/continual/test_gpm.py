import jax
import numpy as np
import optax
import pytest
from tiny_stream import drawn, jit_once

from jaxemb import Classifier
from jaxemb.encoders import Mlp
from jaxemb.objectives import classification
from jaxemb.train import begin_task, end_task, init_state, make_train_step
from jaxemb.transforms import Task, gpm, identity
from jaxemb.transforms.continual.gpm import extended_basis, linear_layers

OBJECTIVE = classification()
MODEL = drawn(lambda key: Classifier.init(key, Mlp.init(key, [6, 8]), 8, 3))


call = jax.jit(lambda model, inputs: model(inputs))


def batch(seed, *, rank):
    """Ten inputs in a subspace of the given dimension."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(10, rank)) @ rng.normal(size=(rank, 6))
    return {"input": x.astype(np.float32), "label": rng.integers(0, 3, 10).astype(np.int32)}


def test_bases_against_numpy():
    rng = np.random.default_rng(0)
    scale = np.array([3, 2, 1, 0.3, 0.1])
    first, second = rng.normal(size=(7, 5)) * scale, rng.normal(size=(7, 5)) * scale[::-1]
    zero = np.zeros((5, 5), np.float32)

    u, s, _ = np.linalg.svd(first.T)
    share = np.cumsum(s**2) / (s**2).sum()
    rank = 1 + int(np.flatnonzero(share >= 0.9)[0])
    basis = extended_basis(zero, first, 0.9)
    assert not basis[:, rank:].any()
    np.testing.assert_allclose(basis @ basis.T, u[:, :rank] @ u[:, :rank].T, atol=1e-6)

    p = u[:, :rank] @ u[:, :rank].T
    u2, s2, _ = np.linalg.svd(second.T - p @ second.T)
    share = (np.square(p @ second.T).sum() + np.concatenate([[0], np.cumsum(s2**2)])) / np.square(second).sum()
    more = int(np.flatnonzero(share >= 0.97)[0])
    assert more > 0
    both = extended_basis(basis, second, 0.97)
    np.testing.assert_allclose(both @ both.T, p + u2[:, :more] @ u2[:, :more].T, atol=1e-5)
    np.testing.assert_array_equal(extended_basis(both, second, 0.9), both)  # enough already
    whole = extended_basis(both, rng.normal(size=(50, 5)), 1.0)
    np.testing.assert_allclose(whole @ whole.T, np.eye(5), atol=1e-5)


@pytest.mark.parametrize("on", ["gradients", "updates"])
def test_later_tasks_leave_the_outputs_of_earlier_ones_alone(on):
    transform = gpm(1.0, on=on)
    optimizer = optax.sgd(0.3) if on == "gradients" else optax.adam(0.03)
    old, new = batch(0, rank=2), batch(1, rank=6)
    step = jit_once(make_train_step(OBJECTIVE, optimizer, transform))
    plain = jit_once(make_train_step(OBJECTIVE, optimizer))
    state = init_state(jax.random.key(0), MODEL, optimizer, transform)
    state = begin_task(transform, OBJECTIVE, state, Task(0))
    expected, _ = plain(init_state(jax.random.key(0), MODEL, optimizer, identity()), old)
    state, _ = step(state, old)
    same = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7)  # Adam is compiled in another way
    jax.tree.map(same, state.model, expected.model)  # the first task is plain training
    state = end_task(transform, OBJECTIVE, state, Task(0, lambda: [old]))
    assert np.linalg.matrix_rank(state.method_state.bases["encoder.layers.0"]) == 3  # the two directions and the bias

    outputs, others = (call(state.model, one["input"]) for one in (old, new))
    for _ in range(5):
        state, _ = step(state, new)
    np.testing.assert_allclose(call(state.model, old["input"]), outputs, atol=2e-5)
    assert np.abs(np.subtract(call(state.model, new["input"]), others)).max() > 0.05


def test_layers_by_path():
    assert list(linear_layers(MODEL)) == ["encoder.layers.0", "head"]
    transform = gpm(where=lambda path: path.startswith("encoder"))
    assert list(transform.init(jax.random.key(0), MODEL).state.bases) == ["encoder.layers.0"]
    with pytest.raises(ValueError, match="the model has none that `where` selects"):
        gpm(where=lambda path: False).init(jax.random.key(0), MODEL)


def test_bad_gpm_arguments():
    with pytest.raises(ValueError, match=r"threshold must be in \(0, 1\]; got 0"):
        gpm(0)
    with pytest.raises(ValueError, match="samples must be at least 1; got 0"):
        gpm(samples=0)
    with pytest.raises(ValueError, match="on must be 'gradients' or 'updates'; got 'both'"):
        gpm(on="both")
