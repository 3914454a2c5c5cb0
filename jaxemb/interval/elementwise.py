"""Elementwise primitives that are not monotone, and those whose domain has an end."""

import functools
import math

import jax.numpy as jnp

from jaxemb.interval.bilinear import elementwise_product, ends
from jaxemb.interval.box import Box, Call, high, hull, is_nonneg, low, rule, scalar


@rule("mul")
def _mul(call: Call, x, y):
    if x is y:
        return square(x)
    if isinstance(x, Box) and isinstance(y, Box):
        return elementwise_product(x, y, _times)
    factor, box = (x, y) if isinstance(y, Box) else (y, x)
    if (known := scalar(factor)) is None:
        return elementwise_product(factor, box, _times)
    if known == 1:
        return box
    a, b = call.bind(factor, box.lo), call.bind(factor, box.hi)
    return Box(a, b, box.nonneg) if known >= 0 else Box(b, a)


def _times(a, b):
    """`a b`, where 0 times infinity is 0: an end that is not reached times one that is 0."""
    empty = ((a == 0) & jnp.isinf(b)) | ((b == 0) & jnp.isinf(a))
    return jnp.where(empty, 0, a * b)


@rule("square")
def _square(call: Call, x: Box):
    return square(x)


def square(x: Box) -> Box:
    """`x x`, of which 0 is the least if the box holds it."""
    magnitude = absolute(x)
    return Box(jnp.square(magnitude.lo), jnp.square(magnitude.hi), nonneg=True)


def absolute(x: Box) -> Box:
    """`|x|`: the least is 0 if the box straddles it."""
    if x.nonneg:
        return x
    return Box(jnp.maximum(jnp.maximum(x.lo, -x.hi), 0), jnp.maximum(-x.lo, x.hi), nonneg=True)


@rule("abs", "cosh")
def _even(call: Call, x: Box):
    magnitude = absolute(x)
    return magnitude if call.name == "abs" else Box(call.bind(magnitude.lo), call.bind(magnitude.hi), nonneg=True)


@rule("integer_pow")
def _integer_pow(call: Call, x: Box):
    return integer_power(x, call.params["y"])


def integer_power(x: Box, power: int) -> Box:
    """`x ** power`, through `|x|` for an even power, and through the reciprocal for a negative one."""
    base = absolute(x) if power % 2 == 0 else x
    y = Box(base.lo ** abs(power), base.hi ** abs(power), base.nonneg)
    return y if power >= 0 else reciprocal(y)


@rule("pow")
def _pow(call: Call, x, power):
    """For `x >= 0` monotone in either operand, so that the extrema are at corners; `x < 0` has `±|x|^power` or none."""
    if (known := scalar(power)) is not None and known.is_integer():
        return integer_power(x, int(known))
    magnitude = absolute(x) if isinstance(x, Box) else jnp.abs(x)
    corners = [call.bind(a, b) for a in ends(magnitude) for b in ends(power)]
    lo, hi = functools.reduce(jnp.minimum, corners), functools.reduce(jnp.maximum, corners)
    return Box(jnp.where(low(x) < 0, -hi, lo), hi, is_nonneg(x))


@rule("div")
def _div(call: Call, x, y):
    if x is y:
        return jnp.ones_like(y.lo)
    if isinstance(y, Box):
        return elementwise_product(x, reciprocal(y), _times)
    if scalar(y) == 1:
        return x
    a, b = call.bind(x.lo, y), call.bind(x.hi, y)
    return Box(a, b, x.nonneg) if is_nonneg(y) else Box(jnp.minimum(a, b), jnp.maximum(a, b))


def reciprocal(y: Box) -> Box:
    """`1 / y`; unbounded on the side where y comes to 0."""
    straddles = (y.lo < 0) & (y.hi > 0)
    inverse = lambda end, unbounded, limit: jnp.where(unbounded, limit, 1 / jnp.where(unbounded, 1, end))
    return Box(
        inverse(y.hi, straddles | (y.hi == 0), -jnp.inf), inverse(y.lo, straddles | (y.lo == 0), jnp.inf), y.nonneg
    )


def _above_zero(function, end, at_zero: float):
    """`function(end)`, and its limit where `end <= 0`, where its derivative is taken to be 0."""
    inside = end > 0
    return jnp.where(inside, function(jnp.where(inside, end, 1)), at_zero)


@rule("sqrt")
def _sqrt(call: Call, x: Box):
    return Box(_above_zero(call.bind, x.lo, 0), _above_zero(call.bind, x.hi, 0), nonneg=True)


@rule("log")
def _log(call: Call, x: Box):
    return Box(_above_zero(call.bind, x.lo, -jnp.inf), _above_zero(call.bind, x.hi, -jnp.inf))


@rule("rsqrt")
def _rsqrt(call: Call, x: Box):
    return Box(_above_zero(call.bind, x.hi, jnp.inf), _above_zero(call.bind, x.lo, jnp.inf), nonneg=True)


@rule("sin", "cos")
def _periodic(call: Call, x: Box):
    """The ends, and 1 or -1 if a crest or a trough lies between them."""
    a, b = call.bind(x.lo), call.bind(x.hi)
    crest = math.pi / 2 if call.name == "sin" else 0.0
    holds = lambda phase: jnp.floor((x.hi - phase) / (2 * math.pi)) >= jnp.ceil((x.lo - phase) / (2 * math.pi))
    return Box(
        jnp.where(holds(crest + math.pi), -1, jnp.minimum(a, b)).astype(x.dtype),
        jnp.where(holds(crest), 1, jnp.maximum(a, b)).astype(x.dtype),
    )


@rule("is_finite")
def _is_finite(call: Call, x: Box):
    """Surely so if both ends are."""
    sure = call.bind(x.lo) & call.bind(x.hi)
    return Box(sure, jnp.ones_like(sure))


@rule("gt", "ge", "lt", "le")
def _compare(call: Call, x, y):
    if x is y:
        return call.bind(x.lo, x.lo)
    a, b = (x, y) if call.name in ("gt", "ge") else (y, x)
    above = jnp.greater if call.name in ("gt", "lt") else jnp.greater_equal
    return Box(above(low(a), high(b)), above(high(a), low(b)))


@rule("eq", "ne")
def _equal(call: Call, x, y):
    if x is y:
        return Box(same := call.bind(x.lo, x.lo), same)
    sure = (low(x) == high(x)) & (low(y) == high(y)) & (low(x) == low(y))
    possible = (low(x) <= high(y)) & (low(y) <= high(x))
    return Box(sure, possible) if call.name == "eq" else Box(~possible, ~sure)


@rule("select_n")
def _select(call: Call, which, *cases):
    """The chosen case where the choice is certain, elsewhere the hull of both."""
    nonneg = all(map(is_nonneg, cases))
    if not isinstance(which, Box):
        return Box(call.bind(which, *map(low, cases)), call.bind(which, *map(high, cases)), nonneg)
    if which.dtype != bool:
        raise call.unsupported("the case to select depends on a box that is not boolean")
    either = hull([_given(which, case, truth) for case, truth in zip(cases, (False, True), strict=True)])
    pick = lambda end, undecided: jnp.where(which.lo, end(cases[1]), jnp.where(which.hi, undecided, end(cases[0])))
    return Box(pick(low, either.lo), pick(high, either.hi), nonneg)


def _given(condition: Box, value, truth: bool):
    """What is left of a box `x` where the condition `x > c`, or the like, is known to be true, or to be false."""
    if condition.source is None or condition.source.name not in ("gt", "ge", "lt", "le"):
        return value
    x, y = condition.source.inputs
    above = condition.source.name in ("gt", "ge")
    if value is x and not isinstance(y, Box):
        limit = y
    elif value is y and not isinstance(x, Box):
        limit, above = x, not above
    else:
        return value
    if above == truth:
        return Box(jnp.maximum(value.lo, limit), jnp.maximum(value.hi, limit), is_nonneg(limit))
    return Box(jnp.minimum(value.lo, limit), jnp.minimum(value.hi, limit))
