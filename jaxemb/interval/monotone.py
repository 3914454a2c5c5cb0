"""Primitives that are monotone in every boxed operand: the ends of the result are those of the ends."""

from jaxemb.interval.box import Box, Call, high, is_nonneg, low, rule

_ALWAYS_NONNEG = {"exp", "exp2", "logistic"}


@rule(
    # elementwise
    *("add", "add_any", "exp", "exp2", "expm1", "log1p", "tanh", "logistic", "erf", "erf_inv", "cbrt", "sinh", "asinh"),
    *("atan", "asin", "atanh", "floor", "ceil", "round", "sign", "max", "min", "clamp", "and", "or"),
    *("convert_element_type", "reduce_precision", "copy", "copy_p", "stop_gradient", "optimization_barrier", "name"),
    *("device_put", "sharding_constraint", "reshard", "mesh_cast", "pvary"),
    # moving elements about
    *("broadcast_in_dim", "reshape", "transpose", "squeeze", "expand_dims", "rev", "concatenate", "pad", "slice"),
    *("split", "stack", "unstack", "tile"),
    # sums and extrema
    *("reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or", "cumsum", "cummax", "cummin"),
    *("cumlogsumexp", "reduce_window_sum", "reduce_window_max", "reduce_window_min", "psum", "pmax", "pmin"),
)
def monotone(call: Call, *values):
    """Non-decreasing in every operand."""
    los, his = call.bind(*map(low, values)), call.bind(*map(high, values))
    signs = list(map(is_nonneg, values))
    if call.name == "max":
        nonneg = any(signs)
    elif call.name == "clamp":  # least, operand, greatest
        nonneg = signs[2] and (signs[0] or signs[1])
    else:
        nonneg = call.name in _ALWAYS_NONNEG or all(signs)
    if call.eqn.primitive.multiple_results:
        return [Box(lo, hi, nonneg) for lo, hi in zip(los, his, strict=True)]
    return Box(los, his, nonneg)


@rule("neg", "not", "erfc", "acos")
def _decreasing(call: Call, x: Box):
    return Box(call.bind(x.hi), call.bind(x.lo), nonneg=call.name == "erfc")


@rule("sub")
def _sub(call: Call, x, y):
    return Box(call.bind(low(x), high(y)), call.bind(high(x), low(y)))
