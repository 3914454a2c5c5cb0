"""Elementwise primitives that are not monotone."""

import jax.numpy as jnp

from jaxemb.interval.bilinear import elementwise_product, product
from jaxemb.interval.box import Box, Call, rule, scalar


@rule("mul")
def _mul(call: Call, x, y):
    if x is y:
        return square(x)
    if isinstance(x, Box) and isinstance(y, Box):
        return elementwise_product(x, y)
    factor, box = (x, y) if isinstance(y, Box) else (y, x)
    if (known := scalar(factor)) is not None and known > 0:
        return box if known == 1 else Box(call.bind(factor, box.lo), call.bind(factor, box.hi), box.nonneg)
    return product(call.bind, x, y, None)


def square(x: Box) -> Box:
    lo, hi = jnp.square(x.lo), jnp.square(x.hi)
    straddles = (x.lo < 0) & (x.hi > 0)
    return Box(jnp.where(straddles, 0, jnp.minimum(lo, hi)), jnp.maximum(lo, hi), nonneg=True)


@rule("square")
def _square(call: Call, x: Box):
    return square(x)


@rule("abs")
def _abs(call: Call, x: Box):
    if x.nonneg:
        return x
    return Box(jnp.maximum(jnp.maximum(x.lo, -x.hi), 0), jnp.maximum(-x.lo, x.hi), nonneg=True)


@rule("div")
def _div(call: Call, x, y):
    if not isinstance(y, Box):
        a, b = call.bind(x.lo, y), call.bind(x.hi, y)
        if (known := scalar(y)) is not None and known > 0:
            return x if known == 1 else Box(a, b, x.nonneg)
        return Box(jnp.minimum(a, b), jnp.maximum(a, b))
    if x is y:
        return Box(jnp.ones_like(y.lo), jnp.ones_like(y.hi), nonneg=True)
    return _mul(call, x, reciprocal(y))


def reciprocal(y: Box) -> Box:
    """`1 / y`; unbounded on a side where y comes to 0."""
    straddles = (y.lo < 0) & (y.hi > 0)
    least = jnp.where(straddles | (y.hi == 0), -jnp.inf, 1 / jnp.where(straddles | (y.hi == 0), 1, y.hi))
    most = jnp.where(straddles | (y.lo == 0), jnp.inf, 1 / jnp.where(straddles | (y.lo == 0), 1, y.lo))
    return Box(least, most, y.nonneg)
