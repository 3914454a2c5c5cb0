"""EWC, SI, MAS and L2: penalties on the distance from the weights of earlier tasks."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_run import assert_bitwise_equal
from tiny_stream import MODEL, X, Y, batches, fine_tuned, learn, linear

from jaxemb.train import end_task, init_state
from jaxemb.transforms import (
    Anchored,
    Context,
    SynapticState,
    Task,
    Trained,
    chain,
    ewc,
    find_state,
    frozen,
    identity,
    l2,
    mas,
    si,
)

REFERENCE = Path(__file__).parents[1] / "references" / "avalanche.npz"


@pytest.fixture(scope="module")
def avalanche():
    with np.load(REFERENCE) as arrays:
        return dict(arrays)


def flat(state):
    return np.concatenate([state.model["w"], state.model["b"][None]])


def after_task(transform, model=MODEL, *, x=X[0], y=Y[0], size=4, objective=linear, **batch_columns):
    """The state of the transform after a task of no step."""
    state = init_state(jax.random.key(0), model, optax.sgd(0.1), transform)
    data = [batch | batch_columns for batch in batches(x, y, size)]
    return end_task(transform, objective, state, Task(0, lambda: iter(data))).method_state


@pytest.mark.parametrize(
    ("name", "transform", "size"),
    [
        ("ewc_separate", ewc(2.0, half=False), 1),
        ("ewc_online", ewc(2.0, half=False, mode="online", gamma=0.5), 1),
        ("si", si(1e3, xi=300.0, half=True, limit=1e-3), 4),
    ],
)
def test_three_tasks_as_in_avalanche(avalanche, name, transform, size):
    if name == "si":  # Avalanche integrates the gradient of the penalised loss
        own = transform.after_step
        transform = transform._replace(
            after_step=lambda c, p, s: own(c, p, s._replace(held=no_penalty(s.held)))._replace(held=s.held)
        )
    model = {"w": jnp.asarray(avalanche["w"]), "b": jnp.asarray(avalanche["b"])}
    states = learn(transform, x=avalanche["x"], y=avalanche["y"].astype(np.int32), size=size, tasks=3, model=model)
    np.testing.assert_allclose([flat(s) for s in states], avalanche[name], atol=2e-6)
    free = learn(identity(), x=avalanche["x"], y=avalanche["y"].astype(np.int32), size=size, tasks=2, model=model)
    assert np.abs(flat(states[1]) - flat(free[1])).max() > 1e-3, "the penalty does nothing"


def no_penalty(held):
    return held._replace(importance=jax.tree.map(jnp.zeros_like, held.importance))


def penalty(transform, state, model):
    context = Context(jnp.int32(0), None, linear, lambda t: t.model, Trained(model), model=model)
    return float(jax.jit(lambda state: transform.auxiliary_loss(context, (), state))(state))


@pytest.mark.parametrize(("half", "expected"), [(True, 0.75), (False, 1.5)])
def test_ewc_of_one_parameter(half, expected):
    state = Anchored({"w": jnp.array([2.0])}, {"w": jnp.array([1.0])}, jnp.zeros(()))
    transform = ewc(3.0, half=half)
    assert penalty(transform, state, {"w": jnp.array([1.5])}) == pytest.approx(expected)
    np.testing.assert_allclose(
        penalty(l2(3.0), state._replace(importance={"w": jnp.ones(1)}), {"w": jnp.array([1.5])}), 0.75
    )


def test_separate_penalties_are_their_sum_in_the_memory_of_one():
    rng = np.random.default_rng(3)
    f, anchors, theta = (rng.normal(size=(3, 5)).astype(np.float32) for _ in range(3))
    f = np.maximum(f, 0)  # some weights matter to no task
    state, plus = Anchored.init({"w": jnp.zeros(5)}), jax.jit(Anchored.plus)
    for importance, anchor in zip(f, anchors, strict=True):
        state = plus(state, {"w": importance}, {"w": anchor})
    for x in theta:
        np.testing.assert_allclose(
            jax.jit(Anchored.penalty)(state, {"w": x}), (f * np.square(x - anchors)).sum(), rtol=1e-5
        )


def logistic(fisher):
    """The Fisher information of logistic regression at MODEL, on X[0], by the closed form `mean_n (p - y)^2 x x^T`."""
    logits = X[0] @ np.asarray(MODEL["w"]) + np.asarray(MODEL["b"])
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    onehot = np.eye(4)
    errors = {
        "empirical": np.square(p - onehot[Y[0]]),
        "exact": np.einsum("nk,nkc->nc", p, np.square(p[:, None] - onehot[None])),
    }[fisher]
    return np.einsum("nd,nc->dc", np.square(X[0]), errors) / len(p), errors.mean(axis=0)


@pytest.mark.parametrize("independent", [True, False])
@pytest.mark.parametrize("fisher", ["empirical", "exact"])
def test_fisher_information_of_logistic_regression(fisher, independent):
    state = after_task(ewc(1.0, fisher=fisher, independent=independent))
    w, b = logistic(fisher)
    np.testing.assert_allclose(state.importance["w"], w, rtol=1e-4)
    np.testing.assert_allclose(state.importance["b"], b, rtol=1e-4)


def test_sampled_fisher_information_tends_to_the_exact_one():
    state = after_task(ewc(1.0, fisher="sampled"), x=np.tile(X[0], (500, 1)), y=np.tile(Y[0], 500), size=4000)
    np.testing.assert_allclose(state.importance["w"], logistic("exact")[0], rtol=0.1)


def test_opposite_gradients_do_not_cancel():
    model = {"w": np.zeros((3, 2), np.float32), "b": np.zeros(2, np.float32)}
    x, y = np.ones((2, 3), np.float32), np.array([0, 1], np.int32)
    mean_gradient = jax.jit(jax.grad(lambda m: linear(m, batches(x, y, 2)[0], None)[0].mean()))(model)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(mean_gradient))
    np.testing.assert_allclose(after_task(ewc(1.0), model, x=x, y=y, size=2).importance["w"], 0.25)


def test_only_classes_that_compete_have_information():
    state = after_task(ewc(1.0, fisher="exact"), classes=np.array([True, True, False, False]))
    np.testing.assert_array_equal(state.importance["b"][2:], 0)
    assert np.all(np.asarray(state.importance["b"][:2]) > 0)


def contrastive(model, batch, key):
    z = batch["input"] @ model["w"]
    return -jnp.diagonal(jax.nn.log_softmax(z @ z.T)), {"features": z}


def test_records_that_are_compared_need_batches():
    with pytest.raises(ValueError, match="independent must be False"):
        after_task(ewc(1.0, where="w"), objective=contrastive)
    state = after_task(ewc(1.0, where="w", independent=False), objective=contrastive)
    jacobian = jax.jit(jax.jacobian(lambda model, batch: contrastive(model, batch, None)[0]))
    jacobians = [jacobian(MODEL, batch)["w"] for batch in batches(X[0], Y[0], 4)]
    np.testing.assert_allclose(state.importance["w"], np.square(jacobians).mean(axis=(0, 1)), rtol=1e-4)


def test_importance_of_mas():
    state = after_task(mas(1.0))
    logits = X[0] @ np.asarray(MODEL["w"]) + np.asarray(MODEL["b"])
    np.testing.assert_allclose(state.importance["b"], np.abs(2 * logits).mean(axis=0), rtol=1e-4)
    expected = np.abs(2 * logits[:, None] * X[0][..., None]).mean(axis=0)
    np.testing.assert_allclose(state.importance["w"], expected, rtol=1e-4)
    state = after_task(mas(1.0), classes=np.array([True, False, True, True]))
    np.testing.assert_array_equal(state.importance["b"] > 0, [True, False, True, True])


CURVATURE = 3.0


def quadratic(model, batch, key):
    return jnp.full(len(batch["id"]), 0.5 * CURVATURE * model["w"][0] ** 2), {}


def test_path_integral_on_a_quadratic_is_the_fall_of_the_loss():
    """Small steps tend to the gradient flow from a to b: `h (a^2 - b^2) / 2`. One step of rate r gives `r g^2`."""
    model, seen = {"w": jnp.array([2.0])}, []
    spy = si(1.0, xi=0.1)
    spy = spy._replace(end_task=lambda task, c, p, s: (seen.append((c.trained.model, s)), (c.trained, s))[1])
    learn(spy, model=model, objective=quadratic, optimizer=optax.sgd(1e-4), epochs=200, tasks=1)
    state, b = seen[0][1], float(seen[0][0]["w"][0])
    np.testing.assert_allclose(state.path_integral["w"], 0.5 * CURVATURE * (4 - b**2), rtol=1e-3)
    learn(spy, model=model, objective=quadratic, optimizer=optax.sgd(0.1), size=8, epochs=1, tasks=1)
    np.testing.assert_allclose(seen[1][1].path_integral["w"], 0.1 * (CURVATURE * 2.0) ** 2, rtol=1e-6)
    states = learn(
        si(1.0, xi=0.1), model=model, objective=quadratic, optimizer=optax.sgd(0.1), size=8, epochs=1, tasks=1
    )
    np.testing.assert_allclose(states[0].method_state.held.importance["w"], 3.6 / (0.6**2 + 0.1), rtol=1e-5)


def test_si_takes_the_gradient_of_the_loss_without_its_penalty():
    held = Anchored({"w": jnp.array([5.0])}, {"w": jnp.array([1.5])}, jnp.zeros(()))
    transform = si(2.0)
    base, at = CURVATURE * 2.0, Trained({"w": jnp.array([2.0])})
    total = base + 2 * 2.0 * 5.0 * (2.0 - 1.5)
    context = Context(jnp.int32(0), None, quadratic, lambda t: t.model, Trained({"w": jnp.array([1.9])}))
    context = context._replace(gradients=Trained({"w": jnp.array([total])}), updates=Trained({"w": jnp.array([-0.1])}))
    state = transform.after_step(context, (), SynapticState(held, {"w": jnp.zeros(1)}))
    np.testing.assert_allclose(state.path_integral["w"], 0.1 * base, rtol=1e-5)
    gradient = jax.grad(lambda m: transform.auxiliary_loss(context._replace(trained=Trained(m)), (), state))(at.model)
    np.testing.assert_allclose(gradient["w"] + base, total)


@pytest.mark.parametrize("make", [l2, ewc, mas, si])
def test_the_first_task_is_that_of_fine_tuning_and_later_ones_are_held(make):
    free, held = fine_tuned(), learn(make(5.0))
    assert_bitwise_equal(held[0].model, free[0].model)
    moved = lambda states: np.linalg.norm(flat(states[1]) - flat(states[0]))
    assert moved(held) < 0.99 * moved(free)


def test_chosen_arrays_alone_are_held_and_the_penalty_follows_the_chain():
    states = learn(chain(frozen("b"), ewc(1.0, where="w")))
    assert set(find_state(states[0], Anchored).importance) == {"w"}
    assert_bitwise_equal(states[1].model["b"], MODEL["b"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ewc(-1.0), "weight must be >= 0; got -1"),
        (lambda: ewc(1.0, mode="both"), "mode must be 'separate' or 'online'; got 'both'"),
        (lambda: ewc(1.0, gamma=2.0), r"gamma must be in \[0, 1\]; got 2"),
        (lambda: ewc(1.0, fisher="true"), "fisher must be 'empirical', 'sampled' or 'exact'; got 'true'"),
        (lambda: si(1.0, xi=0.0), "xi must be > 0; got 0"),
        (lambda: si(1.0, limit=0.0), "limit must be > 0; got 0"),
        (lambda: mas(1.0, gamma=-1.0), r"gamma must be in \[0, 1\]; got -1"),
        (lambda: after_task(ewc(1.0, where="kernel")), "'kernel' chooses none of b, w"),
        (lambda: after_task(mas(1.0, output="z")), "output must be one of the objective's, features, logits; got 'z'"),
        (lambda: after_task(ewc(1.0, fisher="exact", label="y")), "needs the column 'y'"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_importance_needs_data():
    state = init_state(jax.random.key(0), MODEL, optax.sgd(0.1), ewc(1.0))
    with pytest.raises(ValueError, match=r"task\.batches must give the task's data"):
        end_task(ewc(1.0), linear, state, Task(0))
