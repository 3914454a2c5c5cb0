"""Primitives that pick or place elements, where only the elements may be boxed."""

from jax import lax

from jaxemb.interval.bilinear import elementwise_product
from jaxemb.interval.box import Box, Call, high, is_nonneg, low, rule

_ELEMENTS = {"gather": (0,), "dynamic_slice": (0,), "dynamic_update_slice": (0, 1)}


@rule("gather", "dynamic_slice", "dynamic_update_slice", "scatter", "scatter-add", "scatter_max", "scatter_min")
def _indexed(call: Call, *values):
    elements = _ELEMENTS.get(call.name, (0, 2))  # a scatter's are its operand and its updates
    if any(isinstance(value, Box) for n, value in enumerate(values) if n not in elements):
        raise call.unsupported("an index depends on a box")
    nonneg = all(is_nonneg(values[n]) for n in elements)
    return Box(call.bind(*map(low, values)), call.bind(*map(high, values)), nonneg)


@rule("sort")
def _sort(call: Call, *values):
    if len(values) > 1:
        raise call.unsupported("the order of several arrays depends on a box")
    (x,) = values
    return [Box(call.bind(x.lo)[0], call.bind(x.hi)[0], x.nonneg)]


@rule("cumprod", "reduce_prod")
def _prod(call: Call, x: Box):
    if x.nonneg:
        return Box(call.bind(x.lo), call.bind(x.hi), nonneg=True)
    if call.name == "cumprod":
        return lax.associative_scan(elementwise_product, x, call.params["reverse"], call.params["axis"])
    for axis in sorted(call.params["axes"], reverse=True):
        every = lax.associative_scan(elementwise_product, x, axis=axis)
        last = lambda end, axis=axis: lax.index_in_dim(end, end.shape[axis] - 1, axis, keepdims=False)
        x = Box(last(every.lo), last(every.hi))
    return x
