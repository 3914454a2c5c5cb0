import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxemb.merging import SelfPositioning, apply_task_vectors, self_position, tensor_groups

BASE = {"x": jnp.zeros(2)}
VECTORS = {"one": {"x": jnp.array([1.0, 0.0])}, "two": {"x": jnp.array([0.0, 1.0])}}


def toward(model, batch, key):
    """0.5 ||theta - target||^2, one value for each row of targets."""
    return 0.5 * jnp.sum(jnp.square(model["x"] - batch), axis=-1), {}


def search(param="slerp_scale", *, vectors=VECTORS, target=(0.6, 0.2), base=BASE, steps=400, **options):
    batches = {name: itertools.repeat(np.array([target], np.float32)) for name in vectors}
    given = {k: options.pop(k) for k in ("groups", "weights") if k in options}
    config = SelfPositioning(param, steps=steps, learning_rate=options.pop("learning_rate", 0.1), **options)
    return self_position(dict.fromkeys(vectors, toward), base, vectors, batches, config, **given)


@pytest.mark.parametrize(
    ("param", "coefficients", "scale", "loss"),
    [
        ("slerp_scale", np.sin(np.pi / 2 * np.array([0.795167, 0.204833])), 0.632456, 0),
        ("free", (0.6, 0.2), 1, 0),
        ("simplex_scale", (0.75, 0.25), 0.8, 0),
        ("simplex", (0.7, 0.3), 1, 0.01),
    ],
)
def test_the_quadratic(param, coefficients, scale, loss):
    found = search(param)
    np.testing.assert_allclose(found.coefficients, coefficients, atol=1e-3)
    np.testing.assert_allclose(found.scale, scale, atol=1e-3)
    np.testing.assert_allclose(found.params["x"], np.multiply(coefficients, scale), atol=1e-3)
    np.testing.assert_allclose(found.history.loss[-1], loss, atol=1e-5)
    start = [0.5**0.5] * 2 if param == "slerp_scale" else [0.5] * 2
    np.testing.assert_allclose(found.history.coefficients[0] * found.history.scale[0], start, rtol=1e-6)
    expected = 0.5 * np.sum(np.square(np.subtract(start, (0.6, 0.2))))
    np.testing.assert_allclose(found.history.loss[0], expected, rtol=1e-5)


def test_the_gradient_is_an_inner_product_with_the_task_vector():
    def derivatives(base, vectors, w, lam):
        loss = lambda model: jnp.sum(jnp.tanh(model["a"] @ model["b"]) ** 2) + jnp.sum(jnp.sin(model["a"]))
        at = lambda w: loss(apply_task_vectors(base, vectors, w, lam))
        outer = jax.grad(loss)(apply_task_vectors(base, vectors, w, lam))
        inner = [lam * sum(jnp.vdot(outer[name], vector[name]) for name in outer) for vector in vectors]
        steps = 1e-5 * jnp.eye(3)
        return jax.grad(at)(w), jnp.stack(inner), jax.vmap(lambda e: (at(w + e) - at(w - e)) / 2e-5)(steps)

    rng = np.random.default_rng(0)
    base, *vectors = ({"a": rng.normal(size=(3, 2)), "b": rng.normal(size=2)} for _ in range(4))
    with jax.enable_x64(True):
        gradient, inner, differences = jax.jit(derivatives)(base, vectors, np.array([0.2, 0.5, 0.3]), 0.7)
    np.testing.assert_allclose(gradient, inner, rtol=1e-5)
    np.testing.assert_allclose(gradient, differences, rtol=1e-6, atol=1e-8)


def test_one_task_on_the_simplex_is_its_model():
    found = search("simplex", vectors={"one": VECTORS["one"]}, steps=3)
    np.testing.assert_array_equal(found.params["x"], [1, 0])


def test_equal_vectors_give_one_model_for_all_coefficients():
    same = {"one": VECTORS["one"], "two": VECTORS["one"]}
    found = search("simplex", vectors=same, steps=20)
    np.testing.assert_allclose(found.params["x"], [1, 0], rtol=1e-6)
    np.testing.assert_allclose(found.history.loss, found.history.loss[0], rtol=1e-5)


def test_permuting_the_tasks_permutes_the_coefficients():
    one, other = (search("simplex_scale", steps=30, vectors=dict(v)) for v in (VECTORS, reversed(VECTORS.items())))
    assert other.tasks == one.tasks[::-1]
    np.testing.assert_allclose(other.coefficients, one.coefficients[::-1], rtol=1e-5)
    np.testing.assert_allclose(other.params["x"], one.params["x"], rtol=1e-5)


def test_groups_are_searched_separately():
    base = {"x": jnp.zeros(2), "y": jnp.zeros(2)}
    vectors = {name: {"x": v["x"], "y": v["x"]} for name, v in VECTORS.items()}

    def both(model, batch, key):
        return toward(model, batch, key)[0] + 0.5 * jnp.sum(jnp.square(model["y"] - batch[:, ::-1]), axis=-1), {}

    batches = {name: itertools.repeat(np.array([[0.6, 0.2]], np.float32)) for name in vectors}
    config = SelfPositioning("free", learning_rate=0.1)
    found = self_position(dict.fromkeys(vectors, both), base, vectors, batches, config, groups=tensor_groups(base))
    np.testing.assert_allclose(found.coefficients, [[0.6, 0.2], [0.2, 0.6]], atol=1e-3)


def test_the_penalty_the_weights_and_the_units_of_the_losses():
    # argmin of 0.5 |w - t|^2 + mu |w|^2 is t / (1 + 2 mu); with mu |w| it is shorter by mu, in the same direction.
    np.testing.assert_allclose(search("free", mu=0.5, penalty="square").coefficients, [0.3, 0.1], atol=1e-3)
    found = search(mu=0.05)
    np.testing.assert_allclose(found.coefficients, np.array([0.6, 0.2]) / np.hypot(0.6, 0.2), atol=2e-3)
    np.testing.assert_allclose(found.scale, 0.582456, atol=1e-3)
    targets = {"one": np.array([[1.0, 0.0]] * 2), "two": np.array([[0.0, 1.0]])}
    batches = {name: itertools.repeat(target) for name, target in targets.items()}
    objectives = dict.fromkeys(targets, toward)
    config = SelfPositioning("free", learning_rate=0.1)
    with pytest.raises(ValueError, match=r"one number of examples, or weights be given; got \{'one': \(2,\)"):
        self_position(objectives, BASE, VECTORS, batches, config)
    found = self_position(objectives, BASE, VECTORS, batches, config, weights={"one": 3, "two": 1})
    np.testing.assert_allclose(found.coefficients, [0.75, 0.25], atol=1e-3)
    # Task one's loss is ten times as large, but not at the average, where both are one unit.
    larger = {"one": lambda m, b, k: (10 * toward(m, b, k)[0], {}), "two": toward}
    even = {name: itertools.repeat(target[:1]) for name, target in targets.items()}
    found = self_position(larger, BASE, VECTORS, even, SelfPositioning("free", learning_rate=0.02, normalize="initial"))
    np.testing.assert_allclose(found.coefficients, [0.5, 0.5], atol=1e-3)
    np.testing.assert_allclose(found.history.losses[0], [2.5, 0.25], rtol=1e-5)


def test_the_iterate_with_the_lowest_running_loss_is_kept():
    # The loss rises from step 30 on: every batch asks for something further away.
    targets = np.concatenate([np.full((30, 1, 2), 0.5), np.linspace(1, 40, 30)[:, None, None] * np.ones((1, 1, 2))])
    batches = {name: targets.astype(np.float32) for name in VECTORS}
    found = self_position(dict.fromkeys(VECTORS, toward), BASE, VECTORS, batches, SelfPositioning("free", steps=60))
    assert 9 <= found.step < 31
    assert found.step == 9 + np.argmin(found.history.running[9:])
    np.testing.assert_array_equal(found.coefficients, found.history.coefficients[found.step])
    running = found.history.loss[0]
    for loss, expected in zip(found.history.loss[1:], found.history.running[1:], strict=True):
        running = 0.9 * running + 0.1 * loss
        np.testing.assert_allclose(expected, running, rtol=1e-5)


def test_bad_arguments():
    batches = {name: [np.ones((1, 2), np.float32)] for name in VECTORS}
    objectives = dict.fromkeys(VECTORS, toward)
    run = lambda o=objectives, v=VECTORS, p=batches, **options: self_position(o, BASE, v, p, **options)
    with pytest.raises(ValueError, match="tasks must be at least one; got 0"):
        run({}, v={}, p={})
    with pytest.raises(ValueError, match=r"vectors must be of the tasks \['one', 'two'\]; got \['one'\]"):
        run(v={"one": VECTORS["one"]})
    with pytest.raises(ValueError, match=r"probes must be of the tasks .* got \['one'\]"):
        run(p={"one": batches["one"]})
    with pytest.raises(ValueError, match="weights must be of the tasks"):
        run(weights={"one": 1.0})
    with pytest.raises(ValueError, match="weights must be >= 0 with a positive sum"):
        run(weights={"one": 0.0, "two": 0.0})
    with pytest.raises(ValueError, match=r"vectors\[1\] must have the tensors of vectors\[0\]"):
        run(v={"one": VECTORS["one"], "two": {"y": jnp.zeros(2)}})
    with pytest.raises(ValueError, match=r"probes must have a batch for every step; those of 'one' end after 1"):
        run()
    with pytest.raises(ValueError, match="groups must be None with param 'slerp_scale'"):
        self_position(objectives, BASE, VECTORS, batches, groups=tensor_groups(BASE))
    nan = {"one": toward, "two": lambda m, b, k: (toward(m, b, k)[0] * jnp.nan, {})}
    with pytest.raises(ArithmeticError, match="the probe loss of task 'two' is nan at step 0"):
        run(nan)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"param": "ball"}, "param must be one of slerp_scale, simplex_scale, simplex, free; got 'ball'"),
        ({"penalty": "cube"}, "penalty must be 'scale' or 'square'; got 'cube'"),
        ({"learning_rate": 0}, "learning_rate must be > 0; got 0"),
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"mu": -1}, "mu must be >= 0; got -1"),
        ({"momentum": 1}, r"momentum must be in \[0, 1\); got 1"),
        ({"decay": -0.1}, r"decay must be in \[0, 1\); got -0.1"),
        ({"normalize": "mean"}, "normalize must be"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        SelfPositioning(**options)
