import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_stream import drawn, jit_once

from jaxemb import Classifier
from jaxemb.encoders import LeNet, Mlp
from jaxemb.losses import prototype_logits, prototype_pull, relation_distillation
from jaxemb.objectives import classification, supervised_contrastive
from jaxemb.train import begin_task, end_task, init_state, make_train_step
from jaxemb.transforms import PrdState, Prototypes, Task, chain, ema, find_state, identity, prd, prototype_prediction

C, D = 6, 5  # three tasks of two classes

MODEL = drawn(lambda key: Classifier(Mlp.init(key, [4, D]), Mlp.init(key, [D, C], final_activation=False)))
TEACHER = dataclasses.replace(MODEL, encoder=drawn(lambda key: Mlp.init(key, [4, D]), seed=2))
OTHER = np.random.default_rng(9).normal(size=(C, D)).astype(np.float32)
SUPCON = supervised_contrastive(base_temperature=0.07)


def batch(step, task):
    rng = np.random.default_rng(step)
    views = rng.normal(size=(2, 8, 4)).astype(np.float32)
    return {"input": views[0], "view": views[1], "label": (2 * task + rng.integers(0, 2, 8)).astype(np.int32)}


def outputs_only(model, batch, key):
    losses, outputs = SUPCON(model, batch, key)
    return jnp.zeros_like(losses), outputs


def task_of(number):
    return Task(number, classes=np.arange(C) // 2 == number)


def in_second_task(transform, objective):
    """A state with another teacher than the model, and the step."""
    optimizer = optax.sgd(0.1, momentum=0.9)
    state = init_state(jax.random.key(0), MODEL, optimizer, transform)
    groups = jnp.array([0, 0, 1, 1, -1, -1], jnp.int32)
    method_state = PrdState(TEACHER, state.method_params.vectors + OTHER, groups, jnp.ones((), jnp.int32))
    return dataclasses.replace(state, method_state=method_state), jit_once(
        make_train_step(objective, optimizer, transform)
    )


@pytest.mark.parametrize(
    ("objective", "pull", "distill", "expected"),
    [
        (SUPCON, 0.0, 0.0, {"encoder", "head"}),
        (outputs_only, 1.0, 0.0, {"current"}),
        (outputs_only, 0.0, 1.0, {"encoder", "earlier"}),
    ],
)
def test_which_term_trains_what(objective, pull, distill, expected):
    state, step = in_second_task(prd(C, D, pull=pull, distill=distill, learning_rate=1.0), objective)
    after, _ = step(state, batch(7, 1))
    moved = lambda new, old: any(jax.tree.leaves(jax.tree.map(lambda a, b: bool(np.any(np.not_equal(a, b))), new, old)))
    vectors = np.any(np.not_equal(after.method_params.vectors, state.method_params.vectors), axis=1)
    changed = {
        "encoder": moved(after.model.encoder, state.model.encoder),
        "head": moved(after.model.head, state.model.head),
        "earlier": bool(vectors[:2].any()),
        "current": bool(vectors[2:4].any()),
        "later": bool(vectors[4:].any()),
    }
    assert {name for name, value in changed.items() if value} == expected


@pytest.mark.parametrize("options", [{}, {"relation_axis": "sample", "temperature": 2.0, "normalize": True}])
def test_the_loss_is_the_sum_of_its_parts(options):
    state, step = in_second_task(prd(C, D, pull=3.0, distill=5.0, **options), SUPCON)
    one = batch(7, 1)

    @jax.jit
    def parts(vectors, old_vectors):
        losses, outputs = SUPCON(MODEL, one, None)
        new, old = outputs["features"], SUPCON(TEACHER, one, None)[1]["features"]
        kept = relation_distillation(new, vectors, old, old_vectors, np.array([0, 0, -1, -1, -1, -1]), **options)
        return losses, prototype_pull(new, vectors, outputs["label"]), kept

    losses, pulled, kept = parts(state.method_params.vectors, state.method_state.prototypes)
    assert kept.mean() > 1e-3
    expected = losses.mean() + 3 * pulled.mean() + 5 * kept.mean()
    np.testing.assert_allclose(step(state, one)[1]["loss"], expected, rtol=1e-5)


def in_numpy(theta, one, teacher, old_vectors):
    """The whole loss in float64, from the equations: SupCon of both views, the pull, and the relations of task 0."""
    unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)  # some have no feature
    softmax = lambda x: np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    layer = lambda x, part: x @ part[0] + part[1]
    x, labels = np.concatenate([one["input"], one["view"]]).astype(float), np.tile(one["label"], 2)
    f = np.maximum(layer(x, theta["encoder"]), 0)
    z = unit(layer(f, theta["head"]))
    others = ~np.eye(len(z), dtype=bool)
    scores = np.exp(z @ z.T / 0.1) * others
    same = others & (labels[:, None] == labels)
    of_pairs = -np.log(np.where(same, scores / scores.sum(axis=1, keepdims=True), 1)).sum(axis=1) / same.sum(axis=1)
    supcon = 0.1 / 0.07 * of_pairs.mean()
    still = unit(np.maximum(layer(x, theta["still"]), 0))
    pull = (1 - np.sum(still * unit(theta["vectors"])[labels], axis=1)).mean()
    old_f = np.maximum(layer(x, teacher), 0)
    new, old = softmax(f @ unit(theta["vectors"][:2]).T), softmax(old_f @ unit(old_vectors[:2]).T)
    return supcon + 3 * pull + 5 * np.sum(old * np.log(old / new), axis=1).mean()


def test_a_whole_step_is_that_of_a_derivation_in_numpy():
    """Gradients are central differences in float64; the prototypes are trained by plain SGD, at a rate of their own."""
    state, step = in_second_task(prd(C, D, pull=3.0, distill=5.0, learning_rate=0.7), SUPCON)
    one, wide = batch(7, 1), lambda linear: [np.asarray(linear.kernel, float), np.asarray(linear.bias, float)]
    encoder, head = wide(MODEL.encoder.layers[0]), wide(MODEL.head.layers[0])
    vectors = np.asarray(state.method_params.vectors, float)
    trained = {"encoder": encoder, "head": head, "vectors": vectors}
    fixed = wide(TEACHER.encoder.layers[0]), np.asarray(state.method_state.prototypes, float)
    loss = lambda theta: in_numpy({"still": encoder, **theta}, one, *fixed)

    def slopes(array):
        found = np.zeros_like(array)
        for place in np.ndindex(array.shape):
            at, values = array[place], []
            for shift in (1e-6, -1e-6):
                array[place] = at + shift
                values.append(loss(trained))
            array[place] = at
            found[place] = (values[0] - values[1]) / 2e-6
        return found

    frozen = [a.copy() for a in encoder]  # in the pull the features are constants
    encoder, trained["encoder"] = frozen, encoder
    gradients = {name: [slopes(a) for a in (x if isinstance(x, list) else [x])] for name, x in trained.items()}
    after, metrics = step(state, one)
    np.testing.assert_allclose(metrics["loss"], loss(trained), rtol=1e-5)
    made = {
        "encoder": wide(after.model.encoder.layers[0]),
        "head": wide(after.model.head.layers[0]),
        "vectors": [after.method_params.vectors],
    }
    for name, rate in (("encoder", 0.1), ("head", 0.1), ("vectors", 0.7)):
        before = trained[name] if isinstance(trained[name], list) else [trained[name]]
        for new, old, gradient in zip(made[name], before, gradients[name], strict=True):
            np.testing.assert_allclose(new, old - rate * gradient, rtol=1e-4, atol=2e-6, err_msg=name)
            assert np.abs(gradient).max() > 1e-3


def run(transform, objective, tasks):
    """The state in the last of the tasks, two steps each, and its predecessor at the end of the task before."""
    optimizer = optax.sgd(0.1, momentum=0.9)
    state = init_state(jax.random.key(0), MODEL, optimizer, transform)
    step, ended = jit_once(make_train_step(objective, optimizer, transform)), state
    for number in range(tasks):
        state = begin_task(transform, objective, state, task_of(number))
        for i in range(2):
            state, metrics = step(state, batch(10 * number + i, number))
            assert metrics["finite"]
        if number < tasks - 1:
            state = ended = end_task(transform, objective, state, task_of(number))
    return ended, state


def test_over_tasks_teacher_and_prototypes_are_those_of_the_end_of_the_task_before():
    transform = chain(ema(), prd(C, D, learning_rate=lambda step: 0.1 / (1 + step)))
    ended, state = run(transform, SUPCON, 3)
    held, prototypes = find_state(state.method_state, PrdState), find_state(state.method_params, Prototypes)
    np.testing.assert_array_equal(held.groups, [0, 0, 1, 1, 2, 2])
    jax.tree.map(
        np.testing.assert_array_equal,
        (held.model, held.prototypes),
        (ended.model, ended.method_params[1].vectors),
    )
    assert np.all(
        np.any(np.not_equal(prototypes.vectors, held.prototypes), axis=1)
    )  # those of earlier tasks evolve too
    inputs = batch(0, 0)["input"]
    logits = jax.jit(prototype_prediction(transform))(state, inputs, 0)
    by_hand = jax.jit(lambda model, vectors: prototype_logits(model.features(inputs), vectors))
    np.testing.assert_allclose(logits, by_hand(state.model, prototypes.vectors), rtol=1e-6, atol=1e-6)


def test_it_regularises_any_objective_and_leaves_the_first_task_as_it_is():
    (plain, free), (distilled, held) = (run(t, classification(), 2) for t in (identity(), prd(C, D)))
    jax.tree.map(np.testing.assert_array_equal, distilled.model, plain.model)
    assert np.any(np.not_equal(*(state.model.encoder.layers[0].kernel for state in (free, held))))


@pytest.mark.slow
def test_the_teacher_normalises_by_the_new_batch_or_by_what_it_has_seen():
    encoder = LeNet.init(jax.random.key(0), (16, 16, 1), widths=(2, 2, D), norm="batch")
    model = Classifier(encoder, Mlp.init(jax.random.key(1), [D, 3], final_activation=False))
    rng, loss = np.random.default_rng(0), {}
    one = {name: rng.normal(size=(4, 16, 16, 1)).astype(np.float32) for name in ("input", "view")}
    one["label"] = np.array([2, 3, 2, 3], np.int32)
    for norm in ("batch", "running"):
        transform = prd(C, D, teacher_norm=norm, pull=0.0)
        state = init_state(jax.random.key(0), model, optax.sgd(0.1), transform)
        for number in range(2):
            state = begin_task(transform, SUPCON, state, task_of(number))
        loss[norm] = jit_once(make_train_step(SUPCON, optax.sgd(0.1), transform))(state, one)[1]["loss"]
    alone = SUPCON(model, one, jax.random.key(0))[0].mean()
    np.testing.assert_allclose(loss["batch"], alone, rtol=1e-5)  # the teacher is the model itself, and nothing differs
    assert loss["running"] > alone + 1e-3


def test_what_is_wrong_is_named():
    for options, message in (
        ({"classes": 0}, "classes must be at least 1; got 0"),
        ({"pull": -1.0}, "pull must be >= 0; got -1"),
        ({"temperature": 0.0}, "temperature must be > 0; got 0"),
        ({"relation_axis": "task"}, "relation_axis must be 'class' or 'sample'; got 'task'"),
        ({"teacher_norm": "none"}, "teacher_norm must be 'batch' or 'running'; got 'none'"),
    ):
        with pytest.raises(ValueError, match=message):
            prd(**{"classes": C, "dim": D} | options)
    for task, message in (
        (Task(0), r"classes of task 0, bool \[6\]; got none"),
        (Task(1, classes=np.ones(4, bool)), r"bool \[6\]; got shape \(4,\)"),
    ):
        state = init_state(jax.random.key(0), MODEL, optax.sgd(0.1), prd(C, D))
        with pytest.raises(ValueError, match=message):
            begin_task(prd(C, D), SUPCON, state, task)
    nothing = lambda model, batch, key: (SUPCON(model, batch, key)[0], {})
    for dim, objective, message in (
        (4, SUPCON, r"output 'features' must be \[N, 4\]; got \(16, 5\)"),
        (D, nothing, "needs the objective's output 'features'"),
    ):
        transform = prd(C, dim)
        state = init_state(jax.random.key(0), MODEL, optax.sgd(0.1), transform)
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(make_train_step(objective, optax.sgd(0.1), transform), state, batch(0, 0))
