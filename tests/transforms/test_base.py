"""The laws of `chain`, on what transforms do to a training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxemb.train import begin_task, end_task, init_state, make_train_step
from jaxemb.transforms import Context, Task, Trained, Transform, Variables, chain, identity, trained_arrays

MODEL = {"w": np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2), "b": np.array([0.5, -0.5], np.float32)}
BATCH = {"x": np.linspace(0, 1, 12, dtype=np.float32).reshape(4, 3), "id": np.arange(4)}
OPTIMIZER = optax.adamw(0.1, weight_decay=0.1)


def objective(model, batch, key):
    y = jnp.tanh(batch["x"] @ model["w"] + model["b"])
    return jnp.sum(jnp.square(y - jax.random.normal(key, y.shape)), axis=-1), {"y": y}


def scaled(start: float) -> Transform:
    """Changes the weights; has a parameter, and freezes half of it in both gradient hooks."""
    halve = lambda tree, *_: tree._replace(params=tree.params * jnp.array([1.0, 0.0]))
    return Transform(
        init=lambda key, model: Variables(params=jnp.array([start, 1.0])),
        model=lambda model, params, state: model | {"w": jnp.tanh(model["w"] * params[0]) + params[1]},
        gradients=halve,
        updates=halve,
    )


def shifted(start: float) -> Transform:
    """Changes the biases with noise from its init key; does not commute with `scaled`'s hooks by accident."""
    return Transform(
        init=lambda key, model: Variables(params=start + jax.random.normal(key, model["b"].shape)),
        model=lambda model, params, state: {"w": model["w"] + jnp.sum(params), "b": model["b"] * 2 + params},
    )


def penalised(weight: float) -> Transform:
    """Acts on everything that is trained: the model and every transform's parameters."""
    return Transform(
        auxiliary_loss=lambda context, params, state: weight * optax.tree.norm(context.trained, squared=True),
        updates=lambda updates, context, params, state: jax.tree.map(lambda u: 0.9 * u, updates),
    )


def remembering(decay: float) -> Transform:
    """Carries a state that sees the outputs, the gradients, the updates and the new weights."""

    def after_step(context, params, state):
        seen = [context.outputs["y"], context.gradients.model["w"], context.updates.model["b"], context.trained.model]
        return decay * state + sum(jnp.sum(leaf) for leaf in jax.tree.leaves(seen))

    return Transform(
        init=lambda key, model: Variables(state=jnp.sum(model["w"])),
        auxiliary_loss=lambda context, params, state: 1e-3 * state * jnp.mean(context.model["w"]),
        after_step=after_step,
    )


def projecting(strength: float) -> Transform:
    """Evaluates the objective again, as replay does, through the `model` hooks of the whole chain."""

    def gradients(grads, context, params, state):
        replay = jax.grad(lambda t: jnp.mean(objective(context.apply(t), context.batch, context.objective_key)[0]))
        return jax.tree.map(lambda g, r: g + strength * r, grads, replay(context.trained))

    return Transform(gradients=gradients)


transforms = st.builds(
    lambda make, value: make(value),
    st.sampled_from([scaled, shifted, penalised, remembering, projecting]),
    st.sampled_from([0.3, 0.7]),
)


def trained(transform: Transform, steps: int = 3):
    """The final state and the losses."""
    state = init_state(jax.random.key(0), MODEL, OPTIMIZER, transform)
    state = begin_task(transform, objective, state, Task(0))
    step, losses = jax.jit(make_train_step(objective, OPTIMIZER, transform)), []
    for _ in range(steps):
        state, metrics = step(state, BATCH)
        losses.append(metrics["loss"])
    return end_task(transform, objective, state, Task(0)), losses


@given(transforms, transforms, transforms)
def test_chain_is_associative(a, b, c):
    """By construction: nested chains *are* the chain of their parts, and what a chain does follows from its parts."""
    assert chain(a, b, c).parts == chain(chain(a, b), c).parts == chain(a, chain(b, c)).parts == (a, b, c)


@given(transforms)
def test_identity_is_the_unit(a):
    for same in (chain(a), chain(identity(), a), chain(a, identity()), chain(identity(), chain(a), chain())):
        assert same is a
    assert chain() == identity() == Transform(parts=()), "that of no transform, which changes nothing"


@pytest.mark.parametrize(
    "order", [(0, 1, 2, 3), pytest.param((2, 3, 1, 0), marks=pytest.mark.slow)], ids=["one order", "another"]
)
def test_a_chain_is_a_transform_like_any_other(order):
    """A chain that is not flattened, as inside a method that wraps another, does what the flat one does."""
    members = [scaled(0.5), penalised(0.1), projecting(0.3), remembering(0.9)]
    a, b, c, d = (members[i] for i in order)
    opaque = chain(b, c)._replace(parts=None)
    state, losses = trained(chain(a, opaque, d))
    expected_state, expected_losses = trained(chain(a, b, c, d))
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    for x, y in zip(jax.tree.leaves(state.model), jax.tree.leaves(expected_state.model), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_a_chain_of_two_does_what_one_hand_written_transform_does():
    a, b = scaled(0.5), penalised(0.1)

    def both_loss(context, params, state):
        return 0.1 * optax.tree.norm(context.trained, squared=True)

    by_hand = a._replace(
        auxiliary_loss=both_loss,
        updates=lambda updates, *rest: jax.tree.map(lambda u: 0.9 * u, a.updates(updates, *rest)),
    )
    (state, losses), (expected, expected_losses) = trained(chain(a, b)), trained(by_hand)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-6)
    np.testing.assert_allclose(state.method_params[0], expected.method_params, rtol=1e-6)
    assert state.method_params[1] == ()
    assert float(state.method_params[0][1]) == 1.0, "the frozen half moved"


def of_another_shape(gradients, context, params, state):
    return jax.tree.map(lambda leaf: leaf[:1], gradients)


WRONG = {
    "gradients": (of_another_shape, r"a Trained like the one it is given; got an array \[1\] in place of \[2\]"),
    "updates": (lambda updates, *_: updates.model, r"a Trained like the one it is given; got dict "),
    "batch": (lambda *_: None, r"a batch, dict .*; got NoneType None"),
    "after_step": (lambda *_: {"count": 0}, r"a state like the one before; got dict "),
    "begin_task": (
        lambda task, context, *_: context.trained,
        "a pair, the next Trained and the next state; got Tr",
    ),
    "end_task": (lambda *_: None, "a pair, the next Trained and the next state; got NoneType None"),
    "init": (lambda *_: {"params": 1}, r"Variables\(params, state\); got dict"),
    "trains": (
        lambda model: {"w": True},
        r"a tree of bools like the model; it lacks \[.*b.*\] and has \[\] besides",
    ),
    "model": (lambda *_: None, "a model; got None"),
}


@pytest.mark.parametrize("others", [(), (scaled(0.5),)], ids=["alone", "in a chain"])
@pytest.mark.parametrize("hook", WRONG)
def test_what_a_hook_must_not_give_names_the_hook_and_who_made_it(hook, others):
    wrong, message = WRONG[hook]
    transform = chain(Transform(**{hook: wrong}), *others)
    maker = "of_another_shape" if hook == "gradients" else "<lambda>"
    with pytest.raises(ValueError, match=rf"^Transform\.{hook} of test_base\.{maker} must give {message}"):
        state = jax.eval_shape(lambda: init_state(jax.random.key(0), MODEL, OPTIMIZER, transform))
        state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state) if "task" in hook else state
        for task_hook in (begin_task, end_task) if "task" in hook else ():
            task_hook(transform, objective, state, Task(0))
        jax.eval_shape(make_train_step(objective, OPTIMIZER, transform), state, BATCH)


def test_model_hooks_run_left_to_right():
    add, double = (
        Transform(model=lambda model, params, state: model + 1),
        Transform(model=lambda model, params, state: model * 2),
    )
    assert chain(add, double).model(3, ((), ()), ((), ())) == 8
    assert chain(double, add).model(3, ((), ()), ((), ())) == 7


def test_init_sees_what_the_transforms_before_make_of_the_model():
    seen = []
    spy = Transform(init=lambda key, model: (seen.append(model), Variables())[1])
    double = Transform(model=lambda model, params, state: model * 2)
    chain(double, spy, double, spy).init(jax.random.key(0), 3)
    assert seen == [6, 12]


def test_init_keys_are_independent():
    draw = Transform(init=lambda key, model: Variables(params=jax.random.normal(key)))
    first, second = chain(draw, draw).init(jax.random.key(0), None).params
    assert first != second


@pytest.mark.parametrize("hook", ["gradients", "updates"])
def test_each_transform_sees_its_own_params_and_the_others_as_rest(hook):
    seen = {}

    def spy(name):
        def look(tree, context, params, state):
            seen[name] = (tree, context.trained, params, state)
            return tree._replace(params=tree.params + 100)

        return Transform(**{hook: look})

    tree, now = Trained("m", (1, 2, 3)), Trained("n", (4, 5, 6))
    context = Context(0, None, None, None, trained=now)
    chained = chain(spy("a"), spy("b"), spy("c"))
    assert getattr(chained, hook)(tree, context, (4, 5, 6), ("s", "t", "u")) == Trained("m", (101, 102, 103))
    assert seen["b"] == (Trained("m", 2, (101, 3)), Trained("n", 5, (4, 6)), 5, "t")


def test_task_hooks_may_change_model_params_and_state():
    def end_task(task, context, params, state):
        return Trained(context.trained.model + params, params * 0, context.trained.rest), (*state, task)

    fold = Transform(end_task=end_task)
    context = Context(0, None, None, lambda trained: trained.model, trained=Trained(1, (10, 100)))
    result = chain(fold, fold).end_task("first", context, (10, 100), ((), ()))
    assert result == (Trained(111, (0, 0)), (("first",), ("first",)))


def test_compiles_once():
    traces = []

    def counted(model, batch, key):
        traces.append(1)
        return objective(model, batch, key)

    transform = chain(scaled(0.5), shifted(0.1), penalised(0.1), remembering(0.5))
    state = init_state(jax.random.key(0), MODEL, OPTIMIZER, transform)
    step = jax.jit(make_train_step(counted, OPTIMIZER, transform), donate_argnums=0)
    for _ in range(3):
        state, _ = step(state, BATCH)
    assert len(traces) == 1


def replacing(value: float) -> Transform:
    """Puts other losses, of another number, in the place of those it is given."""
    return Transform(loss=lambda losses, context, params, state: value * context.outputs["y"][:2, 0] + losses[:2])


def test_losses_are_mapped_and_terms_added_whatever_the_order():
    weighted = Transform(loss=lambda losses, context, params, state: losses * jnp.arange(4.0))
    penalty = Transform(auxiliary_loss=lambda context, params, state: 100 * jnp.sum(jnp.square(context.model["b"])) / 2)
    for parts in ((weighted, replacing(0.5), penalty), (penalty, weighted, replacing(0.5))):
        transform = chain(*parts)
        state = init_state(jax.random.key(0), MODEL, OPTIMIZER, transform)
        losses, outputs = objective(MODEL, BATCH, jax.random.fold_in(state.key, 0))
        mapped = 0.5 * outputs["y"][:2, 0] + (losses * np.arange(4))[:2]
        _, metrics = jax.jit(make_train_step(objective, OPTIMIZER, transform))(state, BATCH)
        np.testing.assert_allclose(metrics["loss"], mapped.mean() + 100 * 0.25, rtol=1e-5)


def test_the_batch_passes_all_hooks_and_stays_as_it_was_for_who_keeps_it():
    def scale(by):
        def after_step(context, params, state):
            again = context.prepare({"x": jnp.ones(())}, context.trained, None)
            return {"raw": context.raw_batch["x"], "batch": context.batch["x"], "again": again["x"]}

        batch = lambda batch, context, params, state: {**batch, "x": batch["x"] * by + (context.key is None)}
        nothing = {name: jnp.zeros((4, 3)) for name in ("raw", "batch")} | {"again": jnp.zeros(())}
        return Transform(init=lambda key, model: Variables(state=nothing), batch=batch, after_step=after_step)

    transform = chain(scale(2.0), scale(3.0))
    state = init_state(jax.random.key(0), MODEL, OPTIMIZER, transform)
    state, _ = jax.jit(make_train_step(objective, OPTIMIZER, transform))(state, BATCH)
    for kept in state.method_state:
        np.testing.assert_array_equal(kept["raw"], BATCH["x"])
        np.testing.assert_array_equal(kept["batch"], 6 * BATCH["x"])
        assert float(kept["again"]) == 3 * (2 * 1 + 1) + 1


def test_every_part_has_a_key_of_its_own_and_so_has_the_objective():
    bits = lambda context: jnp.stack([jax.random.key_data(k) for k in (context.key, context.objective_key)])
    spy = Transform(
        init=lambda key, model: Variables(state=jnp.zeros((2, 2), jnp.uint32)),
        after_step=lambda context, params, state: bits(context),
    )
    transform = chain(spy, spy, spy)
    state = init_state(jax.random.key(0), MODEL, OPTIMIZER, transform)
    step = jax.jit(make_train_step(objective, OPTIMIZER, transform))
    first, _ = step(state, BATCH)
    second, _ = step(first, BATCH)
    keys = np.array([first.method_state, second.method_state])  # of two steps and three parts: own, objective's
    assert len(np.unique(keys[:, :, 0].reshape(6, 2), axis=0)) == 6
    assert len(np.unique(keys.reshape(12, 2), axis=0)) == 8


def test_a_chain_trains_what_all_its_parts_train():
    only = lambda name: Transform(trains=lambda model: {key: key == name for key in model})
    assert trained_arrays(chain(only("w"), identity()), MODEL) == {"w": True, "b": False}
    assert trained_arrays(chain(only("w"), only("b")), MODEL) == {"w": False, "b": False}
    assert trained_arrays(identity(), {**MODEL, "codes": np.arange(3)}) == {"w": True, "b": True, "codes": False}
    with pytest.raises(ValueError, match="must give a tree of bools like the model"):
        trained_arrays(Transform(trains=lambda model: {"w": True}), MODEL)


@pytest.mark.parametrize("part", [[identity()], identity, None])
def test_a_chain_takes_transforms(part):
    with pytest.raises(TypeError, match=r"transforms\[1\] must be a Transform; got"):
        chain(identity(), part)
