"""Expressions in which a box meets a reduction of itself: softmax, log-softmax, log-sum-exp, centring, unit length.

Propagated primitive by primitive these are wide, as numerator and denominator are taken to vary on their own. Each has
a closed form instead, exact for a box whose coordinates are independent. They are recognised by what is computed, not
by names, so that hand-written ones, batched ones and those of `jax.nn` are the same.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxemb.interval.bilinear import product
from jaxemb.interval.box import Box, Call, Source, low, pattern, scalar
from jaxemb.interval.elementwise import square

Dims = tuple[int | None, ...]


def origin(value: Any, layout: Dims | None = None) -> tuple[Any, Dims]:
    """What a value is a copy of, and for each axis of the value the axis of that which it follows (None: constant)."""
    dims = tuple(range(value.ndim if not isinstance(value, Box) else len(value.shape))) if layout is None else layout
    while isinstance(value, Box) and value.source is not None:
        name, inputs, call = value.source
        before = inputs[0]
        if name == "max" and scalar(before) == -math.inf:  # numpy and jax.nn guard empty maxima so
            before = inputs[1]
        elif name == "broadcast_in_dim":
            to = {d: k for k, d in enumerate(call.params["broadcast_dimensions"]) if before.shape[k] == value.shape[d]}
            dims = tuple(None if d is None else to.get(d) for d in dims)
        elif name in ("reshape", "squeeze", "expand_dims"):
            of = [[d for d, size in enumerate(box.shape) if size != 1] for box in (value, before)]
            if [value.shape[d] for d in of[0]] != [before.shape[d] for d in of[1]]:
                break
            to = dict(zip(*of, strict=True))
            dims = tuple(None if d is None else to.get(d) for d in dims)
        elif name not in ("copy", "copy_p", "stop_gradient", "convert_element_type", "name") or (
            before.dtype != value.dtype
        ):
            break
        if not isinstance(before, Box):
            break
        value = before
    return value, dims


def plain(value: Any) -> Any:
    """What a value is a copy of, element by element."""
    source, dims = origin(value)
    return (
        source if isinstance(value, Box) and source.shape == value.shape and dims == tuple(range(len(dims))) else value
    )


def made_by(value: Any, *names: str) -> Source | None:
    """The source of a box that one of these primitives made, else None."""
    found = isinstance(value, Box) and value.source is not None and value.source.name in names
    return value.source if found else None


def same(a: Any, b: Any) -> bool:
    """Whether two boxes are one, or computed alike from one: `exp(x)` written twice."""
    if a is b:
        return True
    one, other = (made_by(plain(box), "exp", "square", "sub", "add", "mul") for box in (a, b))
    if one is None or other is None or one.name != other.name:
        return scalar(a) is not None and scalar(a) == scalar(b)
    return all(map(same, one.inputs, other.inputs))


def _reduction(value: Any, dims: Dims, whole: Box) -> tuple[Any, tuple[int, ...]] | None:
    """If a value, laid out over the axes of `whole`, sums something over some of these: the something, and the axes."""
    value, dims = origin(value, dims)
    if (total := made_by(value, "reduce_sum")) is None:
        return None
    axes = total.call.params["axes"]
    rest = [d for d in range(len(whole.shape)) if d not in axes]
    if total.inputs[0].shape != whole.shape or len(dims) != len(whole.shape):
        return None
    aligned = all(
        whole.shape[d] == 1 or dims[d] == (None if d in axes else rest.index(d)) for d in range(len(whole.shape))
    )
    return (plain(total.inputs[0]), tuple(axes)) if aligned else None


def _unshifted(z: Any, axes: tuple[int, ...]) -> Any:
    """`x` if z is `x - m` with m constant along the axes, which changes no softmax along them; else z."""
    if (difference := made_by(plain(z), "sub")) is None:
        return z
    x, m = difference.inputs
    if not isinstance(x, Box) or not isinstance(m, Box) or x.shape != z.shape:
        return z
    dims = origin(m)[1]
    return x if all(dims[axis] is None or m.shape[axis] == 1 for axis in axes) else z


def others(x: jax.Array, axis: int) -> jax.Array:
    """`sum_{j != i} x_j` along an axis, without subtracting."""
    before, after = lax.cumsum(x, axis), lax.cumsum(x, axis, reverse=True)
    start, stop = ([(0, 0, 0)] * x.ndim for _ in range(2))
    start[axis], stop[axis] = (1, -1, 0), (-1, 1, 0)
    zero = jnp.zeros((), x.dtype)
    return lax.pad(before, zero, start) + lax.pad(after, zero, stop)


def _margins(x: Box, axis: int) -> Box:
    """The box of `x_i - log sum_{j != i} exp(x_j)`, the logit of the i-th probability."""

    def rest(end):
        top = lax.stop_gradient(jnp.max(end, axis, keepdims=True))
        tiny = jnp.finfo(end.dtype).tiny * end.shape[axis]  # what may have been rounded to zero
        return others(jnp.exp(end - top), axis), top, tiny

    total, top, tiny = rest(x.hi)
    lo = x.lo - top - jnp.log(total + tiny)
    total, top, tiny = rest(x.lo)
    some = total > 0
    return Box(lo, jnp.where(some, x.hi - top - jnp.log(jnp.where(some, total, 1)), jnp.inf))


@pattern("div")
def _softmax(call: Call, x, y):
    """`p_i` in `[e^l_i / (e^l_i + sum_{j != i} e^u_j), e^u_i / (e^u_i + sum_{j != i} e^l_j)]`."""
    numerator = plain(x)
    if not isinstance(numerator, Box) or not isinstance(y, Box):
        return None
    found = _reduction(y, tuple(range(len(y.shape))), numerator)
    if found is None or not same(found[0], numerator) or len(found[1]) != 1 or not numerator.nonneg:
        return None
    axes = found[1]
    if exponential := made_by(numerator, "exp"):
        logits = _unshifted(exponential.inputs[0], axes)
        return _probabilities(logits, axes[0], call)
    ends = lambda own, rest: own / jnp.where(own + rest > 0, own + rest, 1)
    lo = ends(numerator.lo, others(numerator.hi, axes[0]))
    rest = others(numerator.lo, axes[0])
    return Box(lo, jnp.where(rest > 0, ends(numerator.hi, rest), 1), nonneg=True)


def _probabilities(logits: Box, axis: int, call: Call) -> Box:
    margins = _margins(logits, axis)
    source = Source("softmax", (logits, axis), call)
    return Box(jax.nn.sigmoid(margins.lo), jax.nn.sigmoid(margins.hi), nonneg=True, source=source)


@pattern("sub")
def _log_softmax(call: Call, x, y):
    """`log softmax(x)`, as `-softplus` of the negated logit of the probability."""
    z = plain(x)
    inner, dims = origin(y)
    if not isinstance(z, Box) or (logarithm := made_by(inner, "log")) is None:
        return None
    found = _reduction(logarithm.inputs[0], dims, z)
    if found is None or len(found[1]) != 1 or (exponential := made_by(found[0], "exp")) is None:
        return None
    if not same(exponential.inputs[0], z):
        return None
    margins = _margins(_unshifted(z, found[1]), found[1][0])
    return Box(-jax.nn.softplus(-margins.lo), -jax.nn.softplus(-margins.hi))


@pattern("add")
def _logsumexp(call: Call, a, b):
    """`m + log sum exp(x - m)`, monotone in x."""
    for logarithm, shift in ((a, b), (b, a)):
        source = made_by(logarithm, "log")
        if source is None or not isinstance(shift, Box) or shift.shape != logarithm.shape:
            continue
        total = origin(source.inputs[0])[0]
        if (sums := made_by(total, "reduce_sum")) is None or total.lo.size != logarithm.lo.size:
            continue
        if (exponential := made_by(plain(sums.inputs[0]), "exp")) is None:
            continue
        if (difference := made_by(plain(exponential.inputs[0]), "sub")) is None:
            continue
        x, m = difference.inputs
        axes = sums.call.params["axes"]
        if not isinstance(x, Box) or _unshifted(exponential.inputs[0], axes) is not x:
            continue
        (ours, dims), (theirs, other) = origin(shift), origin(m)
        if ours is theirs and [d for d in dims if d is not None] == [d for d in other if d is not None]:
            sum_exp = lambda end, x=x, axes=axes: jax.nn.logsumexp(end, axes).reshape(a.shape)
            return Box(sum_exp(x.lo), sum_exp(x.hi))
    return None


@pattern("sub")
def _centred(call: Call, x, y):
    """`x_i - mean_j x_j = (1 - 1/n) x_i - sum_{j != i} x_j / n`: monotone in every coordinate."""
    if not isinstance(x, Box) or not isinstance(y, Box):
        return None
    mean, dims = origin(y)
    if (scaled := made_by(mean, "div", "mul")) is None:
        return None
    count = [scalar(value) for value in scaled.inputs]
    if scaled.name == "div" or count[0] is None:
        total, factor = scaled.inputs[0], count[1]
    else:
        total, factor = scaled.inputs[1], count[0]
    if not isinstance(total, Box) or not factor:
        return None
    found = _reduction(total, dims, x)
    if found is None or not same(found[0], x):
        return None
    axes = found[1]
    n = math.prod(x.shape[axis] for axis in axes)
    if not math.isclose(factor if scaled.name == "div" else 1 / factor, n, rel_tol=1e-6):
        return None
    own = (x.hi - x.lo) / n
    mean_of = lambda end: jnp.mean(end, axes, keepdims=True)
    return Box(x.lo - mean_of(x.hi) + own, x.hi - mean_of(x.lo) - own)


@pattern("mul", "div")
def _unit(call: Call, a, b):
    """`x_i / g(sum_j x_j^2)` with `g(s) = sqrt(s / n + eps)` and the like: LayerNorm, RMSNorm, vectors of length 1.

    It does not decrease in `x_i`, and its magnitude decreases in the other squares, so that the least is at `l_i` with
    the largest other squares if `l_i > 0`, with the smallest if `l_i < 0`.
    """
    for x, scale in ((a, b), (b, a))[: 1 if call.name == "div" else 2]:
        steps = _of_square_sum(scale, "sqrt" if call.name == "div" else "rsqrt", x)
        if steps is None:
            continue
        apply, axis, instead = steps
        squares = square(x)
        least, most = others(squares.lo, axis), others(squares.hi, axis)
        at = functools.partial(_normalised, call, apply)
        lo, hi = at(x.lo, jnp.where(x.lo > 0, most, least)), at(x.hi, jnp.where(x.hi > 0, least, most))
        if instead is not None:  # where the scale may be a constant, as for vectors of length 0
            maybe, constant = instead
            corners = call.bind(x.lo, constant), call.bind(x.hi, constant)
            lo = jnp.where(maybe, functools.reduce(jnp.minimum, corners, lo), lo)
            hi = jnp.where(maybe, functools.reduce(jnp.maximum, corners, hi), hi)
        return Box(lo, hi, x.nonneg)
    return None


def _normalised(call: Call, apply: Callable[[jax.Array], jax.Array], own: jax.Array, rest: jax.Array) -> jax.Array:
    total = jnp.square(own) + rest
    return call.bind(own, apply(jnp.where(total > 0, total, 1)))


def _of_square_sum(scale: Any, root: str, x: Any) -> tuple[Any, int, tuple[jax.Array, jax.Array] | None] | None:
    """If `scale` is the root of the sum of the squares of x along an axis, up to constants: that function, the axis.

    Also, where the sum may have been replaced by a constant: where that is, and the scale that comes of it.
    """
    if not isinstance(x, Box) or not isinstance(scale, Box):
        return None
    value, dims = origin(scale)
    steps: list[tuple[Call, Any, int]] = []
    rooted, instead = False, None
    while (source := made_by(value, "add", "max", "mul", "div", "sqrt", "rsqrt", "select_n")) is not None:
        if source.name == "select_n":
            which, *cases = source.inputs
            place = 0 if isinstance(cases[0], Box) else 1
            known = instead is None and isinstance(which, Box) and not isinstance(cases[1 - place], Box)
            if not known or len(cases) != 2 or len(value.shape) != len(x.shape):
                return None
            maybe = which.hi if place == 0 else ~which.lo
            instead = maybe, _applied(steps, cases[1 - place])
            value, dims = origin(cases[place], dims)
            continue
        if source.name in ("sqrt", "rsqrt"):
            if rooted or source.name != root:
                return None
            rooted = True
            steps.append((source.call, None, 0))
            value, dims = origin(source.inputs[0], dims)
            continue
        place = 0 if isinstance(source.inputs[0], Box) else 1  # of the box among the two operands
        constant = scalar(source.inputs[1 - place])
        allowed = ("mul", "div") if root == "rsqrt" and not rooted else ("add", "max", "mul", "div")
        if constant is None or constant < 0 or source.name not in allowed or (source.name == "div" and place == 1):
            return None
        if source.name in ("mul", "div") and constant == 0:
            return None
        steps.append((source.call, source.inputs[1 - place], place))
        value, dims = origin(source.inputs[place], dims)
    found = _reduction(value, dims, x) if rooted else None
    if found is None or len(found[1]) != 1:
        return None
    squared = made_by(found[0], "square", "integer_pow", "mul")
    if squared is None or not same(squared.inputs[0], x):
        return None
    if squared.name == "integer_pow" and squared.call.params["y"] != 2:
        return None
    if squared.name == "mul" and squared.inputs[0] is not squared.inputs[1]:
        return None

    return functools.partial(_applied, steps), found[1][0], instead


def _applied(steps: list[tuple[Call, Any, int]], total: jax.Array) -> jax.Array:
    for step, constant, place in reversed(steps):
        total = step.bind(*((total,) if constant is None else (total, constant) if place == 0 else (constant, total)))
    return total


@pattern("div")
def _average(call: Call, x, y):
    """`(e . v) / sum e` with `e = exp(logits)`: the product of a softmax, divided last."""
    if (dot := made_by(plain(x), "dot_general")) is None or not isinstance(y, Box):
        return None
    e = plain(dot.inputs[0])
    (contracted, _), (batch, _) = dot.call.params["dimension_numbers"]
    if (exponential := made_by(e, "exp")) is None or len(contracted) != 1:
        return None
    rest = [d for d in range(len(e.shape)) if d not in contracted]
    total, dims = origin(y)
    if (sums := made_by(total, "reduce_sum")) is None or not same(sums.inputs[0], e):
        return None
    if tuple(sums.call.params["axes"]) != tuple(contracted) or list(batch) != rest[: len(batch)]:
        return None
    expected = (*range(len(rest)), *[None] * (len(dims) - len(rest)))
    if any(size != 1 and d != at for size, d, at in zip(y.shape, dims, expected, strict=True)):
        return None
    axis = contracted[0]
    weights = _probabilities(_unshifted(exponential.inputs[0], (axis,)), axis, call)
    return _mixture(dot.call, weights, dot.inputs[1])


@pattern("dot_general")
def _softmax_product(call: Call, x, y):
    """Weights first, then values, both perhaps boxed."""
    (axes, _), _ = call.params["dimension_numbers"]
    softmax = made_by(plain(x), "softmax")
    return _mixture(call, x, y) if softmax is not None and tuple(axes) == (softmax.inputs[1],) else None


def _mixture(call: Call, weights: Box, values: Any) -> Box:
    """`sum_k p_k v_k` of probabilities p: the bound of the product, and none leaves the range of the values."""
    (of_weights, of_values), (_, batch) = call.params["dimension_numbers"]
    box = product(call.bind, weights, values, None)
    free = [
        d for d in range(values.lo.ndim if isinstance(values, Box) else values.ndim) if d not in (*of_values, *batch)
    ]
    missing = len(weights.shape) - len(of_weights) - len(batch)

    def over(end, extreme):
        reduced = extreme(end, of_values, keepdims=True).transpose(*batch, *free, *of_values)
        sizes = reduced.shape
        return reduced.reshape(*sizes[: len(batch)], *[1] * missing, *sizes[len(batch) : len(batch) + len(free)])

    return Box(
        jnp.maximum(box.lo, over(low(values), jnp.min)),
        jnp.minimum(box.hi, over(values.hi if isinstance(values, Box) else values, jnp.max)),
        box.nonneg,
    )
