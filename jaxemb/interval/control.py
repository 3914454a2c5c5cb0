"""Calls, branches and loops."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxemb.interval.bound import evaluate
from jaxemb.interval.box import Box, Call, high, hull, low, rule

_BODY = ("jaxpr", "call_jaxpr", "fun_jaxpr")


@rule("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
def _inline(call: Call, *values) -> list[Any]:
    """A call is replaced by its body, of which the boxes are differentiated, whatever gradient the call defines."""
    body = next(call.params[name] for name in _BODY if name in call.params)
    return evaluate(body.jaxpr, body.consts, values, call.products)


@rule("remat2", "remat", "checkpoint")
def _checkpoint(call: Call, *values) -> list[Any]:
    body = functools.partial(evaluate, call.params["jaxpr"], (), products=call.products)
    again = jax.checkpoint(body, prevent_cse=call.params["prevent_cse"], policy=call.params["policy"])
    return again(list(values))


@rule("cond")
def _cond(call: Call, which, *values) -> list[Any]:
    """The branch taken, of which the boxes are those of all; where that depends on a box, the hull of them."""
    run = [functools.partial(evaluate, b.jaxpr, b.consts, products=call.products) for b in call.params["branches"]]
    if isinstance(which, Box):
        return [hull(outputs) for outputs in zip(*(branch(values) for branch in run), strict=True)]
    kinds = [jax.eval_shape(branch, list(values)) for branch in run]
    kinds = functools.reduce(lambda a, b: list(map(_join, a, b)), kinds)
    branches = [lambda operands, branch=branch: list(map(_as, kinds, branch(operands))) for branch in run]
    if (platforms := call.params.get("branches_platforms")) is None:
        return lax.switch(which, branches, list(values))
    by_platform = dict(zip(platforms, branches, strict=True))
    default = by_platform.pop(None, None)
    named = {name: branch for names, branch in by_platform.items() for name in names}
    return lax.platform_dependent(list(values), default=default, **named)


@rule("scan")
def _scan(call: Call, *values) -> list[Any]:
    p, body = call.params, call.params["jaxpr"]
    if "ft_in" in p:  # jax 0.12 has the operands' structure in place of their numbers
        n_consts, n_carry = (len(part.vals) for part in p["ft_in"].unpack()[:2])
    else:
        n_consts, n_carry = p["num_consts"], p["num_carry"]
    consts, carried, xs = _split(values, n_consts, n_carry)

    def step(carry, x):
        outputs = evaluate(body.jaxpr, body.consts, [*consts, *carry, *x], call.products)
        return outputs[: len(carry)], outputs[len(carry) :]

    first = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), xs)
    carried = _settle(carried, lambda carry: jax.eval_shape(step, carry, first)[0])

    def settled(carry, x):
        following, ys = step(carry, x)
        return list(map(_as, carry, following)), ys

    last, ys = lax.scan(settled, carried, xs, p["length"], p["reverse"], p["unroll"])
    return [*last, *ys]


@rule("while")
def _while(call: Call, *values) -> list[Any]:
    p = call.params
    test_consts, consts, carried = _split(values, p["cond_nconsts"], p["body_nconsts"])

    def step(carry):
        return evaluate(p["body_jaxpr"].jaxpr, p["body_jaxpr"].consts, [*consts, *carry], call.products)

    def goes_on(carry):
        test = p["cond_jaxpr"]
        (result,) = evaluate(test.jaxpr, test.consts, [*test_consts, *carry], call.products)
        if isinstance(result, Box):
            raise call.unsupported("how long the loop runs depends on a box")
        return result

    carried = _settle(carried, lambda carry: jax.eval_shape(step, carry))
    return lax.while_loop(goes_on, lambda carry: list(map(_as, carry, step(carry))), carried)


def _split(values: Sequence[Any], first: int, second: int) -> tuple[list[Any], list[Any], list[Any]]:
    return list(values[:first]), list(values[first : first + second]), list(values[first + second :])


def _settle(carried: list[Any], step: Callable[[list[Any]], list[Any]]) -> list[Any]:
    """What is carried, as boxes where a step makes boxes of it."""
    while True:
        kinds = list(map(_join, carried, step(carried)))
        following = list(map(_as, kinds, carried))
        structures: list[Any] = [jax.tree.structure(tree) for tree in (carried, following)]
        if structures[0] == structures[1]:
            return following
        carried = following


def _join(a: Any, b: Any) -> Any:
    """A value that is a box if either is, and surely non-negative only if both are."""
    if not isinstance(a, Box) and not isinstance(b, Box):
        return a
    return Box(low(a), high(a), nonneg=_certain(a) and _certain(b))


def _certain(value: Any) -> bool:
    return isinstance(value, Box) and value.nonneg


def _as(kind: Any, value: Any) -> Any:
    """The value, as a box with what `kind` knows if that is a box."""
    return Box(jnp.asarray(low(value)), jnp.asarray(high(value)), kind.nonneg) if isinstance(kind, Box) else value
