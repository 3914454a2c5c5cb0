"""A function with a backward pass of its own, and forward mode as well."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.hijax import VJPHiPrimitive, Zero, instantiate_zeros

from jaxemb.trees import PyTree


@dataclasses.dataclass(frozen=True)
class Rules:
    """How a function is computed and differentiated; a hashable value, whose functions close over no traced arrays.

    Attributes:
      value: `(*args) -> result`.
      forward: `(*args) -> (result, saved)`.
      backward: `(saved, gradient of the result) -> gradients of the args`.
      definition: the same as `value` in plain JAX: differentiated in forward mode.
    """

    value: Callable[..., Any]
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    definition: Callable[..., Any]

    def __call__(self, *args):
        """The value. `jax.custom_vjp` is the same, but refuses forward mode, and so Hessian-vector products."""
        return _Ruled(self, args)(*args)


class _Ruled(VJPHiPrimitive):
    rules: Rules

    def __init__(self, rules: Rules, args):
        self.in_avals = jax.tree.map(jax.typeof, args)
        jaxpr, shapes = jax.make_jaxpr(rules.value, return_shape=True)(*args)
        self.out_aval = jax.tree.unflatten(jax.tree.structure(shapes), jaxpr.out_avals)
        self.params = {"rules": rules}
        super().__init__()

    def expand(self, *args):
        return self.rules.value(*args)

    def vjp_fwd(self, has_tangent, /, *args):
        return self.rules.forward(*args)

    def vjp_bwd_retval(self, saved, gradient, /):
        return self.rules.backward(saved, _instantiated(gradient))

    def jvp(self, args, tangents):
        return jax.jvp(self.rules.definition, args, _instantiated(tangents))

    def lin(self, has_tangent, /, *args):
        return self.expand(*args), args

    def linearized(self, args, /, *tangents):
        return jax.jvp(self.rules.definition, args, _instantiated(tangents))[1]

    def batch(self, axis_data, args, dims):
        mapped = jax.vmap(self.rules.definition, in_axes=dims, axis_size=axis_data.size)(*args)
        return mapped, jax.tree.map(lambda _: 0, self.out_aval)


def _instantiated(tree):
    is_zero = lambda x: isinstance(x, Zero)
    return jax.tree.map(lambda x: instantiate_zeros(x) if is_zero(x) else x, tree, is_leaf=is_zero)


def split_floats(tree: PyTree) -> tuple[list[jax.Array], Callable[[list[jax.Array]], PyTree]]:
    """The float leaves of a tree, which may have gradients, and a function that puts others in their places."""
    leaves, structure = jax.tree.flatten(tree)

    def rebuild(floats):
        found = iter(floats)
        return jax.tree.unflatten(structure, [next(found) if _is_float(leaf) else leaf for leaf in leaves])

    return [leaf for leaf in leaves if _is_float(leaf)], rebuild


def gradient_of(tree: PyTree, d_floats: list[jax.Array]) -> PyTree:
    """The gradient of a tree from that of its float leaves."""
    found = iter(d_floats)
    return jax.tree.map(lambda leaf: next(found) if _is_float(leaf) else no_gradient(leaf), tree)


def no_gradient(x: jax.Array) -> np.ndarray:
    """The gradient of what is no float."""
    return np.zeros(x.shape, jax.dtypes.float0)


def _is_float(x) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)
