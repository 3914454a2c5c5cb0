"""Functions of one variable whose shape is known: GELU, SiLU and their like, which fall and then rise, and softplus."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from jaxemb.interval.box import Box, Call, high, low, pattern, scalar
from jaxemb.interval.normalised import made_by, plain

# Where each is least: falling before it, rising after it.
_VALLEYS: tuple[tuple[Callable[[Any], Any], float], ...] = (
    (functools.partial(jax.nn.gelu, approximate=False), -0.7517915877),
    (functools.partial(jax.nn.gelu, approximate=True), -0.7524614220),
    (jax.nn.silu, -1.2784645428),
    (jax.nn.mish, -1.1924304360),
    (jax.nn.hard_swish, -1.5),
)
_RISING: tuple[Callable[..., Any], ...] = (jnp.logaddexp,)


@pattern("mul")
def _valley(call: Call, *inputs):
    for function, bottom in _VALLEYS:
        found = _match(_expression(function, 1, jnp.dtype(call.eqn.outvars[0].aval.dtype)), call, inputs)
        if found is not None and isinstance(x := found[0], Box):
            a, b = function(x.lo), function(x.hi)
            least = function(jnp.asarray(bottom, x.dtype))
            holds = (x.lo < bottom) & (bottom < x.hi)
            return Box(jnp.where(holds, least, jnp.minimum(a, b)), jnp.maximum(a, b))
    return None


@pattern("select_n")
def _rising(call: Call, *inputs):
    for function in _RISING:
        found = _match(_expression(function, 2, jnp.dtype(call.eqn.outvars[0].aval.dtype)), call, inputs)
        if found is not None:
            values = [found[n] for n in sorted(found)]
            return Box(function(*map(low, values)), function(*map(high, values)))
    return None


@functools.cache
def _expression(function: Callable[..., Any], operands: int, dtype: Any) -> Any:
    """The expression that a function computes: `(primitive, *expressions)`, a number, or the place of an operand."""
    with jax.ensure_compile_time_eval():
        traced = jax.make_jaxpr(function)(*[jax.ShapeDtypeStruct((), dtype)] * operands)
    return _tree(traced.jaxpr, [("operand", n) for n in range(operands)])


def _tree(jaxpr: Any, operands: list[Any]) -> Any:
    known: dict[Any, Any] = dict(zip(jaxpr.invars, operands, strict=True))
    read = lambda atom: float(atom.val) if isinstance(atom, Literal) else known[atom]
    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if inner is not None:
            result = _tree(inner.jaxpr, inputs)
        elif equation.primitive.name in ("copy", "convert_element_type"):
            result = inputs[0]
        else:
            result = (equation.primitive.name, *inputs)
        known[equation.outvars[0]] = result
    return read(jaxpr.outvars[0])


def _match(expression: Any, call: Call, inputs: tuple[Any, ...]) -> dict[int, Any] | None:
    """The operands with which the expression is that primitive of those inputs, or None."""
    operands: dict[int, Any] = {}
    if expression[0] != call.name or len(expression) != len(inputs) + 1:
        return None
    return operands if all(map(functools.partial(_fits, operands), expression[1:], inputs)) else None


def _fits(operands: dict[int, Any], expression: Any, value: Any) -> bool:
    value = plain(value)
    if isinstance(expression, float):
        return scalar(value) == expression
    if expression[0] == "operand":
        known = operands.setdefault(expression[1], value)
        return known is value or (scalar(known) is not None and scalar(known) == scalar(value))
    source = made_by(value, expression[0])
    if source is None or len(expression) != len(source.inputs) + 1:
        return False
    return all(map(functools.partial(_fits, operands), expression[1:], source.inputs))
