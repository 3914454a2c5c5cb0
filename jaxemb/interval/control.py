"""Calls, branches and loops."""

from typing import Any

from jaxemb.interval.bound import evaluate
from jaxemb.interval.box import Call, rule

_BODY = ("jaxpr", "call_jaxpr", "fun_jaxpr")


@rule("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
def _inline(call: Call, *values) -> list[Any]:
    """A call is replaced by its body, of which the boxes are differentiated, whatever gradient the call defines."""
    body = next(call.params[name] for name in _BODY if name in call.params)
    return evaluate(body.jaxpr, body.consts, values, call.products)
