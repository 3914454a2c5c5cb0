"""`bound`: the transformation of a function of arrays into one of boxes."""

from collections.abc import Callable, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from jaxemb.interval.box import RULES, Box, Call, Products

PyTree = Any


def bound(
    f: Callable[..., PyTree], *, products: Products = "exact"
) -> Callable[[Sequence[PyTree], Sequence[PyTree]], tuple[PyTree, PyTree]]:
    """The interval extension of `f`: `bound(f)(lo, hi)` encloses `f(*x)` for every `lo <= x <= hi`."""
    if products not in get_args(Products):
        raise ValueError(f"products must be one of {get_args(Products)}; got {products!r}")

    def bounded(lo: Sequence[PyTree], hi: Sequence[PyTree]) -> tuple[PyTree, PyTree]:
        boxes = _boxes(lo, hi)
        traced, shape = jax.make_jaxpr(f, return_shape=True)(*lo)
        outputs = evaluate(traced.jaxpr, traced.consts, boxes, products)
        ends = [(b.lo, b.hi) if isinstance(b, Box) else (b, b) for b in outputs]
        structure = jax.tree.structure(shape)
        return structure.unflatten([e[0] for e in ends]), structure.unflatten([e[1] for e in ends])

    return bounded


def _boxes(lo: Sequence[PyTree], hi: Sequence[PyTree]) -> list[Any]:
    """Checks the arguments of a bounded function and pairs their leaves."""
    for name, value in (("lo", lo), ("hi", hi)):
        if not isinstance(value, tuple | list):
            raise TypeError(f"{name} must be the tuple of f's positional arguments; got {type(value).__name__}")
    lower, upper = jax.tree_util.tree_flatten_with_path(tuple(lo)), jax.tree.flatten(tuple(hi))
    if lower[1] != upper[1]:
        raise ValueError(f"lo and hi must have one structure; got {lower[1]} and {upper[1]}")
    return [_box(jax.tree_util.keystr(path), a, b) for (path, a), b in zip(lower[0], upper[0], strict=True)]


def _box(name: str, lo: Any, hi: Any) -> Any:
    if lo is hi:
        return lo
    if (a := jax.typeof(lo)).str_short() != (b := jax.typeof(hi)).str_short():
        raise ValueError(f"lo and hi must have one shape and dtype; at argument {name} got {a} and {b}")
    concrete = not any(isinstance(end, jax.core.Tracer) for end in (lo, hi))
    if jnp.issubdtype(a.dtype, jnp.floating):
        if concrete and np.any(wrong := np.asarray(lo) > np.asarray(hi)):
            raise ValueError(
                f"lo must not exceed hi; at argument {name} it does in {np.sum(wrong)} of {wrong.size} places"
            )
        return Box(lo, hi)
    if concrete and not jnp.issubdtype(a.dtype, jax.dtypes.prng_key) and not np.array_equal(lo, hi):
        raise ValueError(f"values that are no floats must be equal in lo and hi; they differ at argument {name}, {a}")
    return lo


def evaluate(jaxpr: Any, consts: Sequence[Any], values: Sequence[Any], products: Products) -> list[Any]:
    """The outputs of a traced function, each a point or a Box. Equations of points alone are run as they are."""
    environment: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *values), strict=True))
    read = lambda atom: atom.val if isinstance(atom, Literal) else environment[atom]
    for equation in _needed(jaxpr):
        call, inputs = Call(equation, products), [read(atom) for atom in equation.invars]
        if not any(isinstance(value, Box) for value in inputs):
            outputs = call.bind(*inputs)
        elif call.name in RULES:
            outputs = RULES[call.name](call, *inputs)
        else:
            raise call.unsupported("its operand is a box")
        outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
        environment.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _needed(jaxpr: Any) -> list[Any]:
    """The equations that the outputs depend on, and those with effects."""
    used = {atom for atom in jaxpr.outvars if not isinstance(atom, Literal)}
    kept = []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or any(variable in used for variable in equation.outvars):
            used.update(atom for atom in equation.invars if not isinstance(atom, Literal))
            kept.append(equation)
    return kept[::-1]
