from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import softmax
from tiny_run import assert_bitwise_equal
from tiny_stream import MODEL, C, X, fine_tuned, learn, linear, task

from jaxemb.losses import embed_distill
from jaxemb.transforms import Context, LwfState, Trained, lwf

STUDENT = jax.tree.map(lambda x: x + jnp.asarray(np.random.default_rng(5).normal(size=x.shape), jnp.float32), MODEL)


def term(transform, batch, *, teacher=MODEL, student=STUDENT, objective=linear, heads=((True,) * C,), tasks=1):
    state = LwfState(teacher, jnp.int32(tasks), jnp.asarray(heads))

    @jax.jit
    def loss(student, state):
        outputs = objective(student, batch, None)[1]
        context = Context(0, None, objective, None, Trained(student), batch=batch, model=student, outputs=outputs)
        return transform.auxiliary_loss(context, (), state)

    return float(loss(student, state))


def divergence(teacher, student):
    p, q = softmax(teacher, axis=1), softmax(student, axis=1)
    return (p * (np.log(p) - np.log(q))).sum(axis=1).mean()


def logits(model):
    return X[0] @ np.asarray(model["w"]) + np.asarray(model["b"])


BATCH = next(task(0, size=8).batches())


def test_three_tasks_as_in_avalanche():
    with np.load(Path(__file__).parents[1] / "references" / "avalanche.npz") as arrays:
        x, y, expected = arrays["x"], arrays["y"].astype(np.int32), arrays["lwf"]
        model = {"w": jnp.asarray(arrays["w"]), "b": jnp.asarray(arrays["b"])}
    states = learn(lwf(1.5, classes=C), x=x, y=y, tasks=3, model=model)
    flat = [np.concatenate([s.model["w"], s.model["b"][None]]) for s in states]
    np.testing.assert_allclose(flat, expected, atol=2e-6)


def test_worked_numbers():
    model = lambda z: {"w": jnp.zeros((3, 2)), "b": jnp.array(z)}
    two = {"heads": [[True, True]], "teacher": model([2.0, 0.0])}
    assert term(lwf(classes=2), BATCH, student=model([0.0, 2.0]), **two) == pytest.approx(0.462117, abs=1e-6)
    assert term(lwf(classes=2), BATCH, student=model([2.0, 0.0]), **two) == pytest.approx(0, abs=1e-7)


def test_only_old_classes_count_together_or_head_by_head():
    a, b = logits(MODEL) / 3, logits(STUDENT) / 3
    first = [True, True, True, False]
    together = term(lwf(2.0, classes=C, temperature=3.0), BATCH, heads=[first])
    assert together == pytest.approx(2 * divergence(a[:, :3], b[:, :3]), rel=1e-5)
    apart = term(lwf(classes=C, heads=3, temperature=3.0), BATCH, heads=[[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]])
    assert apart == pytest.approx(divergence(a[:, :2], b[:, :2]) + divergence(a[:, 2:], b[:, 2:]), rel=1e-5)


def test_the_heads_are_those_of_the_tasks():
    states = learn(lwf(classes=C))
    np.testing.assert_array_equal([s.method_state.heads[0] for s in states], [[True, True, False, False], [True] * 4])
    apart = learn(lwf(classes=C, heads=2))
    np.testing.assert_array_equal(apart[1].method_state.heads, [[True, True, False, False], [False, False, True, True]])
    assert_bitwise_equal(states[1].method_state.teacher, states[1].model)


def test_features():
    expected = embed_distill(X[0] @ np.asarray(STUDENT["w"]), X[0] @ np.asarray(MODEL["w"])).mean()
    assert term(lwf(target="features"), BATCH, heads=[[True]]) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("names", [None, ("a", "b")])
def test_similarities(names):
    objective = linear
    if names:
        objective = lambda m, batch, key: (None, {"a": batch["input"] @ m["w"], "b": jnp.tanh(batch["input"] @ m["w"])})
    rows = {}
    for who, model in (("teacher", MODEL), ("student", STUDENT)):
        first = X[0] @ np.asarray(model["w"])
        last = np.tanh(first) if names else first
        unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
        rows[who] = unit(first) @ unit(last).T / 0.1
    value = term(lwf(target="similarities", temperature=0.1, outputs=names), BATCH, objective=objective, heads=[[True]])
    assert value == pytest.approx(divergence(rows["teacher"], rows["student"]), rel=1e-4)


@pytest.mark.parametrize("options", [{"classes": C}, {"target": "similarities"}])
def test_the_first_task_is_that_of_fine_tuning(options):
    states, free = learn(lwf(5.0, **options)), fine_tuned()
    assert_bitwise_equal(states[0].model, free[0].model)
    assert float(optax.tree.norm(jax.tree.map(jnp.subtract, states[1].model, free[1].model))) > 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "classes must be the number of all classes, at least 2, for logits; got None"),
        ({"weight": -1.0, "classes": C}, "weight must be >= 0; got -1"),
        ({"temperature": 0.0, "classes": C}, "temperature must be > 0; got 0"),
        ({"target": "rows"}, "target must be 'logits', 'features' or 'similarities'; got 'rows'"),
        ({"heads": 0, "classes": C}, "heads must be at least 1; got 0"),
        ({"target": "features", "outputs": ("a", "b")}, "outputs must be one name"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        lwf(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"target": "features", "outputs": "query"},
            "needs the objective's output 'query'; it returns features, logits",
        ),
        ({"classes": 7}, "classes must be that of output 'logits', 4; got 7"),
    ],
)
def test_bad_outputs(options, message):
    with pytest.raises(ValueError, match=message):
        learn(lwf(**options))
