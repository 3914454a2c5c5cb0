"""`interval.bound`: worked numbers, rules, soundness, and what the bounded program looks like."""

import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from tiny_run import text_batch, tiny_model

from jaxemb import interval
from jaxemb.encoders import Mlp
from jaxemb.interval import bilinear
from jaxemb.nn import ACTIVATIONS, Norm
from jaxemb.nn.dense_attention import _average
from jaxemb.nn.similarity import unit

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 4)).astype(np.float32)
TOLERANCE = 1e-4  # how far rounding may carry a float32 value out of its box


def box(centre, radius=0.7):
    centre, radius = np.asarray(centre, np.float32), np.asarray(radius, np.float32)
    return centre - radius, centre + radius


def compiled(f, *args):
    """`f(*args)` as one program, in NumPy."""
    return jax.tree.map(np.asarray, jax.jit(f)(*args))


def bounds(f, lo, hi, **options):
    return compiled(interval.bound(f, **options), lo, hi)


def samples(lo, hi, count):
    """Random points of a box, many of them at its ends, `[count, ...]`."""
    place = np.clip(RNG.uniform(-0.7, 1.7, size=(count, *np.shape(lo))), 0, 1).astype(np.float32)
    return lo + (hi - lo) * place


@functools.cache
def all_ends(table, radius):
    """The ends of every function of a table, compiled together, for the box around X."""
    every = lambda lo, hi: {name: interval.bound(f)((lo,), (hi,)) for name, f in globals()[table].items()}
    return compiled(every, *box(X, radius))


@functools.cache
def all_outputs(table, radius):
    drawn = samples(*box(X, radius), 200)
    return compiled(lambda x: {name: jax.vmap(f)(x) for name, f in globals()[table].items()}, drawn)


def assert_sound(f, lo, hi, count=200, **options):
    """No random point of the box escapes."""
    drawn = jax.tree.map(lambda a, b: samples(a, b, count), lo, hi)
    assert_enclosed(compiled(jax.vmap(f), *drawn), bounds(f, lo, hi, **options))


def assert_enclosed(outputs, ends):
    assert np.all(np.isfinite(outputs))
    slack = TOLERANCE * np.maximum(1, np.abs(outputs))
    assert np.all(outputs >= ends[0] - slack)
    assert np.all(outputs <= ends[1] + slack)


# Worked numbers


@pytest.mark.parametrize("f", [jnp.dot, lambda x, w: jax.nn.relu(x) @ w], ids=["exact", "non-negative"])
def test_worked_product_with_a_box_of_one_sign(f):
    lo, hi = np.array([[1, 0], [-1, 0]], np.float32), np.array([[2, 3], [1, 0.5]], np.float32)
    ends = bounds(f, tuple(lo), tuple(hi))
    np.testing.assert_allclose(ends, [-2.0, 3.5])


def test_worked_product_of_boxes_of_both_signs():
    """The rule for non-negative inputs gives 2 for the upper end, which is wrong."""
    x, w = np.array([[-1], [-3]], np.float32)
    np.testing.assert_allclose(bounds(jnp.dot, (x, w), (x + 3, w + 4)), [-6.0, 3.0])


def test_worked_layers():
    """A linear layer with known weights, a ReLU, and a scale and shift that are boxes too."""
    lo, hi = box([1.0, -2.0], [0.5, 0.1])
    weight, bias = np.array([[1, -1], [2, 3]], np.float32), np.array([0, 1], np.float32)
    ends = bounds(lambda x: weight @ x + bias, (lo,), (hi,))
    np.testing.assert_allclose(ends, [[3 - 0.6, -3 - 1.3], [3 + 0.6, -3 + 1.3]], rtol=1e-6)
    np.testing.assert_allclose(bounds(jax.nn.relu, *[(np.float32(v),) for v in (-0.8, 1.2)]), [0, 1.2])
    lo, hi = np.array([[-1, -0.5, 0], [2, 1, 0.1]], np.float32)
    np.testing.assert_allclose(bounds(lambda x, w, b: x * w + b, tuple(lo), tuple(hi)), [-1.0, 2.1], rtol=1e-6)


def test_worked_softmax_and_worst_case():
    lo, hi = bounds(jax.nn.softmax, (np.zeros(2, np.float32),), (np.ones(2, np.float32),))
    np.testing.assert_allclose([lo[0], hi[0]], [0.26894, 0.73106], atol=1e-5)
    worst = compiled(interval.worst_case_logits, np.array([[1.0, 0]]), np.array([[3.0, 2]]), np.array([0]))
    np.testing.assert_array_equal(worst, [[1, 2]])
    np.testing.assert_allclose(np.log(np.exp(worst).sum()) - worst[0, 0], 1.31326, atol=1e-5)


# Rules

ELEMENTWISE = {  # exact
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": jax.nn.gelu,
    "encoder_gelu": ACTIVATIONS["gelu"],
    "silu": jax.nn.silu,
    "mish": jax.nn.mish,
    "softplus": jax.nn.softplus,
    "elu": jax.nn.elu,
    "leaky_relu": jax.nn.leaky_relu,
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "sin": lambda x: jnp.sin(3 * x),
    "cos": jnp.cos,
    "square": lambda x: x * x,
    "cube": lambda x: x**3,
    "abs_power": lambda x: jnp.abs(x) ** 1.5,
    "power_two": lambda x: x**2.0,
    "reciprocal": lambda x: 2 / (jnp.exp(x) + 1),
    "inverse_square": lambda x: (jnp.abs(x) + 2) ** -2,
    "division": lambda x: 1 / (x + 9),
    "root": lambda x: jnp.sqrt(jnp.abs(x) + 0.1),
    "inverse_root": lambda x: lax.rsqrt(9 + x),
    "logs": lambda x: jnp.log(9 - x) + jnp.log1p(-x / 9) - jnp.expm1(x),
    "errors": lambda x: lax.erf(x) - lax.erfc(x),
    "signs": lambda x: jnp.sign(x) + jnp.floor(x),
    "clip": lambda x: jnp.clip(-x, -0.3, 0.4),
    "compare": lambda x: (x >= 0.2).astype(jnp.float32) - ((x < 0.1) & ~(x > 5)),
    "select": lambda x: jnp.where(x > 0.25, x, 0.25),
}


@functools.cache
def on_grid():
    x = np.linspace(*box(X), 2001)
    return compiled(lambda x: {name: f(x) for name, f in ELEMENTWISE.items()}, x)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_functions_of_one_variable_are_exact(name):
    """Against the extrema on a fine grid."""
    ends, grid = all_ends("ELEMENTWISE", 0.7)[name], on_grid()[name]
    np.testing.assert_allclose(ends, [grid.min(0), grid.max(0)], atol=2e-3)
    assert np.all(ends[0] <= grid.min(0) + 1e-5)
    assert np.all(ends[1] >= grid.max(0) - 1e-5)


AT_CORNERS = {
    "softmax": jax.nn.softmax,
    "softmax_first_axis": lambda x: jax.nn.softmax(x.T, axis=0),
    "softmax_by_hand": lambda x: jnp.exp(x) / jnp.sum(jnp.exp(x), axis=-1, keepdims=True),
    "log_softmax": jax.nn.log_softmax,
    "logsumexp": lambda x: jax.nn.logsumexp(x, axis=-1),
    "logsumexp_kept": lambda x: jax.nn.logsumexp(x, axis=-1, keepdims=True),
    "centred": lambda x: x - x.mean(-1, keepdims=True),
    "rms_norm": lambda x: Norm(jnp.ones(4), None, "rms", 1e-3)(x + 4),
    "unit": lambda x: (y := x + 4) / jnp.linalg.norm(y, axis=-1, keepdims=True),
    "unit_of_nn": lambda x: unit(x + 4),
    "prod": lambda x: jnp.prod(x, axis=-1),
    "cumprod": lambda x: jnp.cumprod(x, axis=-1),
    "reductions": lambda x: jnp.stack([x.sum(-1), x.max(-1), x.min(-1)]),
    "cumulative": lambda x: jnp.stack([jnp.cumsum(x, -1), lax.cummax(x, 1)]),
}


@functools.cache
def at_corners():
    lo, hi = box(X, 0.9)
    corners = np.array([np.where(side, hi, lo) for side in itertools.product([False, True], repeat=4)])
    return compiled(lambda x: {name: jax.vmap(f)(x) for name, f in AT_CORNERS.items()}, corners)


@pytest.mark.parametrize("name", AT_CORNERS)
def test_functions_with_extrema_at_corners_are_exact(name):
    """Against all corners of the box of each row."""
    ends, values = all_ends("AT_CORNERS", 0.9)[name], at_corners()[name]
    np.testing.assert_allclose(ends, [values.min(0), values.max(0)], atol=2e-6, rtol=2e-6)


def test_softmax_of_hidden_and_of_far_logits():
    """Hidden by a bias of -1e30, and 300 below the largest: no rounding to zero makes a bound unsound, nor a NaN."""
    logits = np.array([[0.0, -300.0, -1e30, -301.0]], np.float32)
    lo, hi = bounds(jax.nn.softmax, (logits - 1,), (logits + 1,))
    np.testing.assert_allclose(lo, [[1, 0, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(hi, [[1, 0, 0, 0]], atol=1e-6)
    seen = logits[:, [0, 1, 3]]
    lo, hi = bounds(jax.nn.log_softmax, (seen - 1,), (seen + 1,))
    np.testing.assert_allclose(lo, [[0, -302, -303]], atol=1e-4)
    assert np.all(hi[0, 1:] >= np.array([-298.0, -299.0]))


MOVES = {
    "shapes": lambda x: jnp.pad(x.T.reshape(2, 6)[::-1, None, 1:], ((0, 0), (1, 0), (0, 1))),
    "indices": lambda x: x[jnp.array([2, 0])].at[0, 1].add(x[1, 1]).at[1].set(2 * x[0]),
    "slices": lambda x: lax.dynamic_update_slice(lax.dynamic_slice(x, (1, 1), (2, 3)), x[:1, :2], (1, 1)),
    "sort": lambda x: jnp.concatenate([jnp.sort(x, axis=1), x], axis=1),
    "pools": lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (1, 1), "SAME"),
    "sums": lambda x: lax.reduce_window(x, 0.0, lax.add, (2, 2), (1, 1), "VALID"),
    "minimum": lambda x: jnp.minimum(x[0], x[1]),
}


@functools.cache
def of_both_ends():
    return compiled(lambda *ends: {name: [f(a) for a in ends] for name, f in MOVES.items()}, *box(X))


@pytest.mark.parametrize("name", MOVES)
def test_moves_and_pools_apply_to_the_ends(name):
    np.testing.assert_array_equal(all_ends("MOVES", 0.7)[name], of_both_ends()[name])


@pytest.mark.parametrize("average", ["divided last", "softmax"])
def test_an_average_stays_among_the_values(average):
    """Even where any probability is possible."""
    values = np.array([[1, 2], [3, 4], [2, 1]], np.float32)
    attend = {
        "divided last": lambda a, v: _average(a[None, None], v[None, None], None, 0.0)[0, 0],
        "softmax": lambda a, v: jax.nn.softmax(a) @ v,
    }[average]
    logits = np.zeros((1, 3), np.float32)
    lo, hi = bounds(attend, (logits - 50, values - 0.5), (logits + 50, values + 0.5))
    np.testing.assert_allclose(lo, [[0.5, 0.5]], atol=1e-5)
    np.testing.assert_allclose(hi, [[3.5, 4.5]], atol=1e-5)
    assert_sound(attend, (logits - 0.5, values - 0.1), (logits + 0.5, values + 0.1))


# Products


def four_products(x, w):
    """`sum_k` of the least and greatest products, of `[M, K]` and `[K, N]` boxes, in NumPy."""
    ends = [np.asarray(a)[:, :, None] * np.asarray(b)[None] for a in x for b in w]
    return np.min(ends, axis=0).sum(1), np.max(ends, axis=0).sum(1)


@pytest.mark.parametrize("signs", ["any", "left", "right", "both"])
def test_matrix_products_are_exact(signs, monkeypatch):
    monkeypatch.setattr(bilinear, "TILE", 16)  # several tiles
    x, w = box(X, 0.5), box(RNG.normal(size=(4, 2)).astype(np.float32), 0.5)
    left, right = (jax.nn.relu if signs in (side, "both") else lambda a: a for side in ("left", "right"))
    ends = bounds(lambda x, w: left(x) @ right(w), (x[0], w[0]), (x[1], w[1]))
    known = [np.maximum(pair, 0) if signs in (side, "both") else pair for side, pair in (("left", x), ("right", w))]
    np.testing.assert_allclose(ends, four_products(*known), atol=1e-5)


def test_products_by_midpoints_are_wider_by_half_at_most():
    x, w = box(X, 0.5), box(RNG.normal(size=(4, 2)), 0.5)
    loose = bounds(lambda x, w: x @ w, (x[0], w[0]), (x[1], w[1]), products="midpoint")
    exact = four_products(x, w)
    assert np.all(loose[0] <= exact[0] + 1e-5)
    assert np.all(loose[1] - loose[0] <= 1.5 * (exact[1] - exact[0]))


def test_what_may_be_infinite_is_unbounded_and_not_undefined():
    lo, hi = np.array([[[-1, 2]], [[3, 4]]], np.float32)
    f = lambda x: (1 / x) @ np.array([[1, 0], [1, 1]], np.float32)
    np.testing.assert_allclose(bounds(f, (lo,), (hi,)), [[[-np.inf, -np.inf]], [[np.inf, np.inf]]])
    np.testing.assert_allclose(bounds(lambda x: 1 / x, (lo,), (hi,)), [[[-np.inf, 0.25]], [[np.inf, 0.5]]])


def test_batched_products_contract_as_einsum_does():
    a, b = box(RNG.normal(size=(2, 3, 4)).astype(np.float32)), box(RNG.normal(size=(4, 5, 2)).astype(np.float32))
    f = functools.partial(jnp.einsum, "bik,kjb->bij")
    lo, hi = bounds(f, (a[0], b[0]), (a[1], b[1]))
    for n in range(2):
        expected = four_products([e[n] for e in a], [e[:, :, n] for e in b])
        np.testing.assert_allclose([lo[n], hi[n]], expected, atol=1e-5)


def test_convolutions_are_exact():
    """Boxed images and kernels, with strides, padding, dilation and groups, against NumPy."""
    f = functools.partial(
        lax.conv_general_dilated,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        window_strides=(2, 1),
        padding=((1, 0), (1, 1)),
        rhs_dilation=(1, 2),
        feature_group_count=2,
    )
    x, w = (box(RNG.normal(size=shape).astype(np.float32), 0.5) for shape in ((1, 5, 6, 4), (2, 2, 2, 6)))
    ends = bounds(f, (x[0], w[0]), (x[1], w[1]))
    expected = np.zeros((2, 1, 3, 6, 6))
    padded = [np.pad(a, ((0, 0), (1, 0), (1, 1), (0, 0))) for a in x]
    for row, column, channel in np.ndindex(3, 6, 6):
        window = np.s_[0, 2 * row : 2 * row + 2, column : column + 3 : 2, 2 * (channel // 3) : 2 * (channel // 3) + 2]
        products = [a[window] * np.asarray(b)[..., channel] for a in padded for b in w]
        expected[:, 0, row, column, channel] = np.min(products, axis=0).sum(), np.max(products, axis=0).sum()
    np.testing.assert_allclose(ends, expected, atol=1e-4)
    loose = bounds(f, (x[0], w[0]), (x[1], w[1]), products="midpoint")
    assert np.all(loose[0] <= ends[0] + 1e-5)
    assert np.all(loose[1] >= ends[1] - 1e-5)


def arrays(jaxpr):
    """The sizes of all arrays of a program and the names of its primitives, those of inner programs too."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name, max(variable.aval.size for variable in equation.outvars)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
            yield from arrays(getattr(inner, "jaxpr", inner)) if hasattr(inner, "eqns") else ()


def network(model, x):
    kernel, perceptron = model
    x = jax.nn.relu(lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))
    return perceptron(lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"))


def test_boxed_weights_cost_a_few_products_a_layer():
    """Two for inputs known exactly, four behind a ReLU; nothing of the size inputs x outputs x batch."""
    mlp = jax.eval_shape(lambda: Mlp.init(jax.random.key(0), (64, 50, 40, 10), final_activation=False))
    model, x = (jax.ShapeDtypeStruct((3, 3, 1, 4), jnp.float32), mlp), np.zeros((32, 8, 8, 1), np.float32)

    def loss(lo, hi):
        low, high = interval.bound(network)((lo, x), (hi, x))
        return jnp.sum(high - low)

    used = list(arrays(jax.make_jaxpr(lambda lo, hi: interval.bound(network)((lo, x), (hi, x)))(model, model).jaxpr))
    names = [name for name, _ in used]
    assert names.count("conv_general_dilated") == 2
    assert names.count("dot_general") == 3 * 4
    assert "scan" not in names
    largest = max(size for _, size in arrays(jax.make_jaxpr(jax.grad(loss, (0, 1)))(model, model).jaxpr))
    assert largest <= 32 * 8 * 8 * 4 < 32 * 50 * 40


def test_equals_jax_verify():
    """Interval bound propagation of jax-verify 1.0 (jax 0.4.20): boxed inputs, weights known exactly."""
    with np.load(Path(__file__).with_name("jax_verify_ibp.npz")) as file:
        reference = dict(file)

    def mlp(x):
        for n in range(3):
            x = (jax.nn.relu(x) if n else x) @ reference[f"mlp_w{n}"] + reference[f"mlp_b{n}"]
        return x

    def cnn(x):
        for kernel, stride in ((reference["cnn_k0"], 1), (reference["cnn_k1"], 2)):
            numbers = ("NHWC", "HWIO", "NHWC")
            x = jax.nn.relu(lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=numbers))
        return x.reshape(x.shape[0], -1) @ reference["cnn_d"]

    for name, f in (("mlp", mlp), ("cnn", cnn)):
        ends = bounds(f, (reference[f"{name}_lo"],), (reference[f"{name}_hi"],))
        expected = [reference[f"{name}_out_lo"], reference[f"{name}_out_hi"]]
        np.testing.assert_allclose(ends, expected, rtol=1e-5, atol=1e-5)


# The transformation


def test_a_box_without_width_is_the_plain_function():
    model = (RNG.normal(size=(3, 3, 1, 4)), jax.jit(lambda: Mlp.init(jax.random.key(0), (64, 9, 5)))())
    x = RNG.normal(size=(2, 8, 8, 1)).astype(np.float32)
    model, copy = (jax.tree.map(lambda a: np.array(a, np.float32), model) for _ in range(2))
    ends = compiled(lambda lo, hi: interval.bound(network)((lo, x), (hi, x)), model, copy)
    np.testing.assert_allclose(ends, [compiled(network, model, x)] * 2, atol=1e-6)


def test_points_are_computed_as_they_are():
    """Keys, integers and whatever is one object in both ends."""
    key = jax.random.key(0)
    f = lambda x, n, key: {"noisy": x[n] + jax.random.normal(key), "label": jnp.argmax(jnp.arange(3) == n), "n": n}
    lo, hi = compiled(lambda lo, hi, key: interval.bound(f)((lo, 2, key), (hi, 2, key)), X - 1, X + 1, key)
    np.testing.assert_allclose(hi["noisy"] - lo["noisy"], 2, rtol=1e-6)
    assert (lo["label"], hi["label"], lo["n"]) == (2, 2, 2)


def test_jit_vmap_and_itself():
    f = lambda x: jax.nn.softmax(jnp.tanh(x) @ X.T, axis=-1)
    lo, hi = box(RNG.normal(size=(5, 2, 4)))
    together = bounds(jax.vmap(f), (lo,), (hi,))
    one_by_one = compiled(jax.vmap(lambda a, b: interval.bound(f)((a,), (b,))), lo, hi)
    np.testing.assert_allclose(together, one_by_one, atol=1e-6)
    widest = bounds(lambda a, b: interval.bound(jnp.exp)((a,), (b,))[1], (lo, hi), (hi, hi + 1))
    np.testing.assert_allclose(widest, [np.exp(hi), np.exp(hi + 1)], rtol=1e-6)


def test_gradient_of_the_bounds():
    """Against finite differences, through every kind of product."""
    f = lambda w, v, x: jax.nn.log_softmax(jax.nn.relu(ACTIVATIONS["gelu"](x @ w) @ w) @ v)
    x, w, v, radius, direction = RNG.normal(size=(5, 4, 4)).astype(np.float32)

    @jax.jit
    @jax.value_and_grad
    def width(radius):
        lo, hi = interval.bound(f)((w - radius, v - radius, x), (w + radius, v + radius, x + radius))
        return jnp.sum(jnp.sin(lo)) + jnp.sum(hi)

    radius, step = 0.02 + 0.02 * np.abs(radius), 1e-3
    slope = (width(radius + step * direction)[0] - width(radius - step * direction)[0]) / (2 * step)
    np.testing.assert_allclose(np.vdot(width(radius)[1], direction), slope, rtol=1e-2)


@jax.custom_vjp
def _own_gradient(x):
    return jnp.sin(x)


_own_gradient.defvjp(lambda x: (jnp.sin(x), None), lambda _, g: (g,))

CONTROL = {
    "scan": lambda x: lax.scan(lambda c, row: (jnp.tanh(c + row), c[0] * row), jnp.zeros(4), x)[1],
    "scan_reverse": lambda x: lax.scan(lambda c, n: (c * x[n], n), x[0], jnp.arange(3), reverse=True)[0],
    "while": lambda x: lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.sin(c[1]) * 2), (0, x))[1],
    "branch": lambda x: lax.cond(jnp.arange(3).sum() > 2, jnp.sin, jnp.exp, x),
    "either": lambda x: lax.cond(x[0, 0] > X[0, 0], lambda a: 2 * a, lambda a: -a, x),
    "platform": lambda x: lax.platform_dependent(x, cpu=jnp.sin, default=jnp.exp),
    "checkpoint": jax.checkpoint(lambda x: jnp.sin(x) @ x.T),
    "custom_vjp": lambda x: _own_gradient(lax.stop_gradient(x)),
    "jit": jax.jit(lambda x: jnp.where(x > 0, x, 0.1 * x)),
}


@pytest.mark.parametrize("name", CONTROL)
def test_calls_branches_and_loops(name):
    ends, outputs = all_ends("CONTROL", 0.3)[name], all_outputs("CONTROL", 0.3)[name]
    assert_enclosed(outputs, ends)
    spread = (outputs.max(0) - outputs.min(0)).mean() / (ends[1] - ends[0]).mean()
    assert spread > 0.4  # of the box is reached, too


LAYERS = {
    "layer_norm": Norm(np.linspace(-1, 2, 4, dtype=np.float32), np.ones(4, np.float32)),
    "standardise": lambda x: jax.nn.standardize(x, epsilon=0.1),
    "attention": lambda x: jax.nn.dot_product_attention(*[x[None, :, None]] * 3)[0, :, 0],
    "variance": lambda x: jnp.var(x, axis=-1),
    "power": lambda x: jnp.abs(x[0]) ** x[1],
    "batch_norm": lambda x: (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-3),
    "gated": lambda x: jax.nn.silu(x[:, :2]) * x[:, 2:],
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_sound(name):
    assert_enclosed(all_outputs("LAYERS", 0.3)[name], all_ends("LAYERS", 0.3)[name])


def test_a_normalised_box_does_not_explode():
    """However wide the box, LayerNorm of n values stays within sqrt(n) of its shift."""
    lo, hi = bounds(Norm(jnp.ones(4), jnp.zeros(4)), (X - 100,), (X + 100,))
    assert np.max(np.abs([lo, hi])) <= 2 + 1e-5


WEIGHTS = jnp.asarray(RNG.normal(size=(4, 4)), jnp.float32)
STEPS = {
    "multiply": lambda x: x @ WEIGHTS,
    "outer": lambda x: x @ x.T @ x,
    "broadcast": lambda x: x * jax.nn.sigmoid(x[:1]),
    "gelu": jax.nn.gelu,
    "softmax": jax.nn.softmax,
    "norm": Norm(jnp.ones(4), jnp.zeros(4), eps=1e-2),
    "sine": lambda x: jnp.sin(2 * x),
    "quotient": lambda x: x / (1 + jnp.square(x)),
    "negate": lambda x: jnp.maximum(-x, x[::-1] - 1),
    "residual": lambda x: x + jnp.tanh(x[:, ::-1]),
    "where": lambda x: jnp.where(x > 0, jnp.sqrt(jnp.abs(x)), x * x),
}


@pytest.mark.slow
@settings(max_examples=60)
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=2, max_size=4), st.floats(0, 0.3), st.integers(0, 99))
def test_random_compositions_are_sound(names, radius, seed):
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(3, 4)).astype(np.float32)
    f = lambda x: functools.reduce(lambda y, name: STEPS[name](y), names, x)
    lo, hi = box(centre, np.float32(radius))
    ends = interval.bound(f)((lo,), (hi,))
    for place in (0, 1, 0.5, *rng.integers(0, 2, (5, 3, 4))):
        assert_enclosed(f(lo + (hi - lo) * np.float32(place)), ends)


@pytest.mark.slow
@pytest.mark.parametrize("products", ["exact", "midpoint"])
def test_an_encoder_is_sound(products):
    """The BERT-type encoder, all weights boxed, its embeddings too."""
    model, tokens = tiny_model(), text_batch(range(3))
    for radius in (1e-3, 1e-2):
        lo, hi = (jax.tree.map(lambda a, r=r: a + r, model) for r in (-radius, radius))
        f = lambda model: model(tokens)
        ends = bounds(f, (lo,), (hi,), products=products)
        run = jax.jit(f)
        for _ in range(100):
            output = np.asarray(run(jax.tree.map(lambda a, b: samples(a, b, 1)[0], lo, hi)))
            assert_enclosed(output, ends)
        assert np.all(np.isfinite(ends))


# Errors


def test_unsupported_primitives_say_which_and_where():
    def decide(x):
        return jnp.argmax(x)

    with pytest.raises(interval.UnsupportedPrimitiveError, match=r"'argmax'.*test_interval.py:\d+.*decide"):
        interval.bound(decide)((X - 1,), (X + 1,))
    with pytest.raises(interval.UnsupportedPrimitiveError, match=r"'gather'.*an index depends on a box"):
        jax.eval_shape(interval.bound(lambda x: jnp.asarray(X)[x.astype(int)]), (X[0],), (X[0] + 1,))
    with pytest.raises(interval.UnsupportedPrimitiveError, match=r"'while'.*how long the loop runs"):
        interval.bound(lambda x: lax.while_loop(lambda c: c < 9, lambda c: c + 1, x))((0.0,), (1.0,))
    assert interval.bound(lambda x: (jnp.argmax(x), x)[1])((X,), (X + 1,))[0].shape == X.shape  # not needed


def test_arguments_are_checked():
    bounded = interval.bound(lambda x, n=0: x + n)
    with pytest.raises(ValueError, match="products must be one of"):
        interval.bound(jnp.sin, products="fast")
    with pytest.raises(TypeError, match="lo must be the tuple of f's positional arguments; got ArrayImpl"):
        bounded(jnp.zeros(2), jnp.ones(2))
    with pytest.raises(ValueError, match="lo and hi must have one structure"):
        bounded((X,), (X, 1))
    with pytest.raises(ValueError, match=r"one shape and dtype; at argument 0 got float32\[3,4\] and float32\[2,4\]"):
        bounded((X,), (X[:2],))
    with pytest.raises(ValueError, match=r"lo must not exceed hi; at argument .* in 12 of 12 places"):
        bounded((X + 1,), (X,))
    with pytest.raises(ValueError, match="values that are no floats must be equal in lo and hi"):
        bounded((X, np.int32(1)), (X, np.int32(2)))


def test_unit_length_of_boxes_around_zero_is_sound():
    """A vector of length 0 stays as it is, and lies in a box of unit vectors all the same."""
    lo, hi = (
        np.array([[-1, 0, 0.5], [0, 0, 0], [0, 0, 0], [0, 0, 5e-13]], np.float32),
        np.array([[1, 2, 0.5], [1, 1, 1], [0, 0, 1e-13], [0, 0, 5e-12]], np.float32),
    )
    ends = bounds(unit, (lo,), (hi,))
    for share in np.random.default_rng(0).uniform(size=(200, 4, 3)).round(1):
        vectors = np.asarray(unit((lo + share * (hi - lo)).astype(np.float32)))
        assert np.all(ends[0] <= vectors + 1e-6) and np.all(vectors <= ends[1] + 1e-6)
    assert np.isfinite(ends).all() and np.abs(ends).max() <= 1 + 1e-6
