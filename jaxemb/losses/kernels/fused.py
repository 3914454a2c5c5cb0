"""The gradient computed along with the value, from the same entries.

In training the gradient of the results is nearly always that of their mean, up to a factor. But for the factor it is
known beforehand: each tile's part is computed when its entries are at hand, and the backward pass multiplies. This
takes three products `[N, D] x [D, M]`, as keeping all entries does, where the definition takes four; a gradient that
differs from row to row falls back on that.
"""

import functools

import jax
import jax.numpy as jnp

from jaxemb.losses.reductions import Reduction, length, reduced, results, tiles, untiled
from jaxemb.nn.rules import Rules, gradient_of, no_gradient, split_floats


@functools.cache
def fused(reductions: tuple[Reduction, ...], tile: int) -> Rules:
    """`reduced(reductions, tile, ...)` for reductions of which one has a gradient."""
    definition = functools.partial(reduced, reductions, tile)
    forward = functools.partial(_forward, reductions, tile)
    return Rules(definition, forward, functools.partial(_backward, reductions, definition), definition)


def _forward(reductions, tile, entries, rows, columns, first):
    """The results, and the gradients of the sum of the one that has some."""
    floats, rebuild = split_floats(entries)

    def one_tile(carry, inputs):
        x, i, real = inputs
        value = lambda floats, x, y: results(reductions, rebuild(floats)(x, y, i, None))
        found, pull = jax.vjp(value, floats, x, columns)
        ones = lambda result: jnp.broadcast_to(jnp.expand_dims(real, range(1, result.ndim)), result.shape)
        d_floats, d_x, d_columns = pull(jax.tree.map(ones, found))
        return jax.tree.map(jnp.add, carry, (d_floats, d_columns)), (found, d_x)

    n = length(rows)
    inputs = tiles((rows, first + jnp.arange(n), jnp.ones(n, jnp.float32)), tile)
    (d_floats, d_columns), by_row = jax.lax.scan(one_tile, jax.tree.map(jnp.zeros_like, (floats, columns)), inputs)
    found, d_rows = untiled(by_row, n)
    return found, (d_floats, d_rows, d_columns)


def _backward(reductions, definition, args, foreseen, gradients):
    entries, _, _, first = args
    d_floats, d_rows, d_columns = _pulled(reductions, definition, args, foreseen, gradients)
    return gradient_of(entries, d_floats), d_rows, d_columns, no_gradient(first)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _pulled(reductions, definition, args, foreseen, gradients):
    (gradient,) = (g for reduction, g in zip(reductions, gradients, strict=True) if reduction.differentiable)
    scaled = lambda: jax.tree.map(lambda d: d * gradient[0], foreseen)
    return jax.lax.cond(jnp.all(gradient == gradient[0]), scaled, lambda: _anew(definition, args, gradients))


@_pulled.defjvp
def _pulled_jvp(reductions, definition, primals, tangents):
    # Equal gradients may change differently: what the short cut returns has another derivative than what it is.
    (args, _, gradients), (d_args, _, d_gradients) = primals, tangents
    found = _pulled(reductions, definition, *primals)
    return found, jax.jvp(functools.partial(_anew, definition), (args, gradients), (d_args, d_gradients))[1]


def _anew(definition, args, gradients):
    entries, rows, columns, first = args
    floats, rebuild = split_floats(entries)
    value = lambda floats, rows, columns: definition(rebuild(floats), rows, columns, first)
    return jax.vjp(value, floats, rows, columns)[1](gradients)
