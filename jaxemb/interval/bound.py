"""`bound`: the transformation of a function of arrays into one of boxes."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from jaxemb.checks import checked
from jaxemb.interval.box import PATTERNS, RULES, Box, Call, Products, Source
from jaxemb.trees import PyTree, path_name


@checked()
def bound(
    f: Callable[..., PyTree], *, products: Products = "exact"
) -> Callable[[Sequence[PyTree], Sequence[PyTree]], tuple[PyTree, PyTree]]:
    """The interval extension of `f`: `bound(f)(lo, hi)` encloses `f(*x)` for every `lo <= x <= hi`.

    `f` is traced and boxes are propagated primitive by primitive, so it may be any function of arrays: a layer, a model
    called with its weights boxed, a loss. The result can be jitted, differentiated, vmapped and bounded again.

        lo, hi = bound(lambda model, x: model(x))((model_lo, x), (model_hi, x))  # boxed weights, inputs known exactly

    Leaves that are one object in `lo` and `hi`, and leaves that are no floats, are points; whatever depends on points
    alone is computed as in `f`, once. Within a jitted function pass the same traced array in both.

    Tightness: one primitive is exact for boxes of independent coordinates. So are, recognised as a whole, `x * x`,
    GELU, SiLU, Mish, softplus, softmax, log-softmax, log-sum-exp, `x - mean(x)` and `x / |x|` (RMSNorm; LayerNorm up
    to its centring); otherwise an expression in which a value occurs twice may be wider than its range (`x - x`).

    Cost: elementwise work doubles. A product of a box with a point or of two non-negative boxes is two matrix products
    (`4 M K N` FLOPs for `[M, K] [K, N]`), that of a non-negative box (after a ReLU, softmax, square) with any box four,
    all exact. For two boxes of both signs `products` decides.

    Args:
      f: a function of arrays or of pytrees of them, positional arguments only.
      products: of two boxes that may both hold numbers of both signs. "exact": sums of the least and of the greatest
        products of the ends, some `12 M K N` elementwise operations, which no matrix unit helps with, in tiles of
        bounded memory. "midpoint": four matrix products of centres and radii, up to 1.5 times wider (Rump, 1999, "Fast
        and parallel interval arithmetic").

    Returns:
      A function of two tuples `lo`, `hi`, shaped like the positional arguments of `f`, that returns the pair of the
      lower and upper ends of its outputs, each shaped like the outputs.
      Ends are rounded to nearest, not outwards, so that they are sound up to the rounding of `f` itself: in float32,
      about 1e-6 of the magnitudes that are added up.

    Raises:
      ValueError: for another `products`, or if `lo` and `hi` differ in structure, shape or type, or (outside of jit) if
        `lo > hi` anywhere or values that are no floats differ.
      UnsupportedPrimitiveError: if a box reaches a primitive without a rule, with its name and where it is called.
    """
    if products not in get_args(Products):
        raise ValueError(f"products must be one of {get_args(Products)}; got {products!r}")

    def bounded(lo: Sequence[PyTree], hi: Sequence[PyTree]) -> tuple[PyTree, PyTree]:
        boxes = _boxes(lo, hi)
        traced, shape = jax.make_jaxpr(f, return_shape=True)(*lo)
        outputs = evaluate(traced.jaxpr, traced.consts, boxes, products)
        ends = [(b.lo, b.hi) if isinstance(b, Box) else (b, b) for b in outputs]
        structure: Any = jax.tree.structure(shape)
        return structure.unflatten([e[0] for e in ends]), structure.unflatten([e[1] for e in ends])

    return bounded


def _boxes(lo: Sequence[PyTree], hi: Sequence[PyTree]) -> list[Any]:
    """Checks the arguments of a bounded function and pairs their leaves."""
    for name, value in (("lo", lo), ("hi", hi)):
        if not isinstance(value, tuple | list):
            raise TypeError(f"{name} must be the tuple of f's positional arguments; got {type(value).__name__}")
    lower, structure = jax.tree_util.tree_flatten_with_path(tuple(lo))
    upper, other = jax.tree_util.tree_flatten(tuple(hi))
    if structure != other:  # type: ignore[operator]
        raise ValueError(f"lo and hi must have one structure; got {structure} and {other}")
    return [_box(path_name(path), a, b) for (path, a), b in zip(lower, upper, strict=True)]


def _box(name: str, lo: Any, hi: Any) -> Any:
    if lo is hi:
        return lo
    a, b = jax.typeof(lo), jax.typeof(hi)
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        raise ValueError(f"lo and hi must have one shape and dtype; at argument {name} got {a} and {b}")
    concrete = not any(isinstance(end, jax.core.Tracer) for end in (lo, hi))
    if jnp.issubdtype(a.dtype, jnp.floating):
        if concrete and np.any(wrong := np.asarray(lo) > np.asarray(hi)):
            raise ValueError(
                f"lo must not exceed hi; at argument {name} it does in {np.sum(wrong)} of {wrong.size} places"
            )
        return Box(jnp.asarray(lo), jnp.asarray(hi))
    if concrete and not jnp.issubdtype(a.dtype, jax.dtypes.prng_key) and not np.array_equal(lo, hi):
        raise ValueError(f"values that are no floats must be equal in lo and hi; they differ at argument {name}, {a}")
    return lo


def evaluate(jaxpr: Any, consts: Sequence[Any], values: Sequence[Any], products: Products) -> list[Any]:
    """The outputs of a traced function, each a point or a Box. Equations of points alone are run as they are."""
    environment: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *values), strict=True))
    read = lambda atom: atom.val if isinstance(atom, Literal) else environment[atom]
    for equation in _needed(jaxpr):
        call, inputs = Call(equation, products), [read(atom) for atom in equation.invars]
        outputs = call.bind(*inputs) if not any(isinstance(value, Box) for value in inputs) else _apply(call, inputs)
        outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
        environment.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(call: Call, inputs: list[Any]) -> Any:
    for tighter in PATTERNS.get(call.name, ()):
        output = tighter(call, *inputs)
        if output is not None and output.shape == call.eqn.outvars[0].aval.shape:  # operands may broadcast one another
            break
    else:
        if call.name not in RULES:
            raise call.unsupported("its operand is a box")
        output = RULES[call.name](call, *inputs)
    if isinstance(output, Box) and output.source is None:
        return dataclasses.replace(output, source=Source(call.name, tuple(inputs), call))
    return output


def _needed(jaxpr: Any) -> list[Any]:
    """The equations that the outputs depend on, and those with effects."""
    used = {atom for atom in jaxpr.outvars if not isinstance(atom, Literal)}
    kept = []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or any(variable in used for variable in equation.outvars):
            used.update(atom for atom in equation.invars if not isinstance(atom, Literal))
            kept.append(equation)
    return kept[::-1]
