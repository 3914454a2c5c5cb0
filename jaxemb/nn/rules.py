"""A function with a backward pass of its own, and forward mode as well."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxemb.trees import PyTree


@dataclasses.dataclass(frozen=True)
class Rules:
    """How a function is computed and differentiated; a hashable value, whose functions close over no traced arrays.

    Attributes:
      value: `(*args) -> result`.
      forward: `(*args) -> (result, saved)`.
      backward: `(args, saved, gradient of the result) -> gradients of the args`.
      definition: the same as `value` in plain JAX: differentiated in forward mode.
    """

    value: Callable[..., Any]
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    definition: Callable[..., Any]

    def __call__(self, *args):
        """The value. `jax.custom_vjp` is the same, but refuses forward mode."""
        return _ruled(self, *args)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _ruled(rules: Rules, *args):
    return rules.value(*args)


@_ruled.defjvp
def _ruled_jvp(rules: Rules, args, tangents):
    flat, of_args = jax.tree.flatten(args)
    structure = jax.tree.structure(jax.eval_shape(rules.forward, *args))
    found, saved = jax.tree.unflatten(structure, _forward.bind(*flat, rules=rules, of_args=of_args))
    constants, of_constants = jax.tree.flatten((args, saved))
    changes = jax.tree.leaves(tangents)
    which = tuple(change.dtype != jax.dtypes.float0 for change in changes)
    moving = [change for change, moves in zip(changes, which, strict=True) if moves]
    change = _derivative.bind(*constants, *moving, rules=rules, of_constants=of_constants, which=which)
    return found, jax.tree.unflatten(jax.tree.structure(found), change)


def _value_and_saved(*flat, rules: Rules, of_args):
    return jax.tree.leaves(rules.forward(*of_args.unflatten(flat)))


def _change(*operands, rules: Rules, of_constants, which):
    args, _ = of_constants.unflatten(operands[: of_constants.num_leaves])
    moving, (flat, of_args) = iter(operands[of_constants.num_leaves :]), jax.tree.flatten(args)
    changes = [next(moving) if moves else no_gradient(x) for x, moves in zip(flat, which, strict=True)]
    return jax.tree.leaves(jax.jvp(rules.definition, args, jax.tree.unflatten(of_args, changes))[1])


def _gradients(gradients, *operands, rules: Rules, of_constants, which):
    args, saved = of_constants.unflatten(operands[: of_constants.num_leaves])
    results = jax.tree.structure(jax.eval_shape(rules.definition, *args))
    found = rules.backward(args, saved, jax.tree.unflatten(results, map(ad.instantiate_zeros, gradients)))
    moving = [gradient for gradient, moves in zip(jax.tree.leaves(found), which, strict=True) if moves]
    return [None] * of_constants.num_leaves + moving


def _operation(function: Callable[..., list]) -> Primitive:
    """One operation of what a function of flat arrays does: JAX looks inside only to differentiate or map it."""
    operation = Primitive(function.__name__.strip("_"))
    operation.multiple_results = True
    of = lambda params: functools.partial(function, **params)
    shapes = lambda *operands, **params: [
        jax.core.ShapedArray(x.shape, x.dtype) for x in jax.eval_shape(of(params), *operands)
    ]
    tangents = lambda x, dx: no_gradient(x) if not _is_float(x) else ad.instantiate_zeros(dx)

    def mapped(operands, axes, **params):
        found = jax.vmap(of(params), in_axes=tuple(axes))(*operands)
        return found, [0] * len(found)

    operation.def_impl(function)
    operation.def_abstract_eval(shapes)
    ad.primitive_jvps[operation] = lambda operands, changes, **params: jax.jvp(
        of(params), tuple(operands), tuple(map(tangents, operands, changes))
    )
    batching.primitive_batchers[operation] = mapped
    mlir.register_lowering(operation, mlir.lower_fun(function, multiple_results=True))
    return operation


# The derivative is linear in the changes of the arguments. What it does to them is what the definition does, and what
# its transpose does to gradients is the backward pass.
_derivative = _operation(_change)
ad.primitive_transposes[_derivative] = _gradients
_forward = _operation(_value_and_saved)


def rules_of_kernels(value, forward, backward, definition) -> Rules:
    """`Rules` of functions that JAX cannot differentiate, such as kernels: a gradient is differentiated as the
    definition's is. What is saved must depend on the arguments alone.
    """

    @jax.custom_jvp
    def forward_as_defined(*args):
        return forward(*args)

    @forward_as_defined.defjvp
    def _(args, changes):
        found, saved = forward_as_defined(*args)
        # `backward` has no use for changes of what is saved: it knows those of the arguments.
        return (found, saved), (jax.jvp(definition, args, changes)[1], jax.tree.map(_no_change, saved))

    @jax.custom_jvp
    def backward_as_defined(args, saved, gradient):
        return backward(args, saved, gradient)

    @backward_as_defined.defjvp
    def _(primals, tangents):
        args, _, gradient = primals
        of_args, _, of_gradient = tangents
        pull = lambda args, gradient: jax.vjp(definition, *args)[1](gradient)
        return backward_as_defined(*primals), jax.jvp(pull, (args, gradient), (of_args, of_gradient))[1]

    return Rules(value, forward_as_defined, backward_as_defined, definition)


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


def _no_change(x: jax.Array) -> jax.Array | np.ndarray:
    return jnp.zeros_like(x) if _is_float(x) else no_gradient(x)


def _is_float(x) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)
