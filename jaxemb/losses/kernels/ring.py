"""Columns that never lie together on one device: shards of them move round the ring of devices, gradients with them.

For columns whose gathered copy would take too much memory; the entries are computed once more in the backward pass.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxemb.losses.reductions import Reduction, length, reduced, results, tiles, untiled
from jaxemb.nn.rules import Rules, gradient_of, no_gradient, split_floats
from jaxemb.trees import PyTree


@functools.cache
def ring(reductions: tuple[Reduction, ...], tile: int, axes: tuple[str, ...], shards: int, count: int) -> Rules:
    """`reduced` of a device's rows and all `count` columns, given its shard of these; inside of `jax.shard_map`."""
    plan = _Plan(reductions, tile, axes, shards, count)
    return Rules(*(functools.partial(function, plan) for function in (_value, _forward, _backward, _definition)))


def gathered(columns: PyTree, axes: tuple[str, ...], count: int) -> PyTree:
    """All `count` columns, from the shards of all devices."""
    return jax.tree.map(lambda x: jax.lax.all_gather(x, axes, tiled=True)[:count], columns)


class _Plan(NamedTuple):
    reductions: tuple[Reduction, ...]
    tile: int
    axes: tuple[str, ...]
    shards: int
    total: int


def _definition(plan: _Plan, entries, rows, columns, first):
    return reduced(plan.reductions, plan.tile, entries, rows, gathered(columns, plan.axes, plan.total), first)


def _value(plan: _Plan, entries, rows, columns, first):
    inputs = tiles((rows, first + jnp.arange(length(rows))), plan.tile)
    visit = lambda turn, columns: jax.lax.map(lambda xi: _part(plan, turn, entries, xi[0], xi[1], columns), inputs)
    joined = lambda a, b: tuple(jax.vmap(r.join)(*ab) for r, *ab in zip(plan.reductions, a, b, strict=True))

    def one_turn(turn, carry):
        found, columns = carry
        columns = _of_neighbour(plan, columns)
        return joined(found, visit(turn, columns)), columns

    found, _ = jax.lax.fori_loop(1, plan.shards, one_turn, (visit(0, columns), columns))
    return untiled(found, length(rows))


def _forward(plan: _Plan, entries, rows, columns, first):
    found = _value(plan, entries, rows, columns, first)
    return found, found


def _backward(plan: _Plan, args, found, gradients):
    entries, rows, columns, first = args
    floats, rebuild = split_floats(entries)
    inputs = tiles((rows, first + jnp.arange(length(rows)), found, gradients), plan.tile)

    def one_turn(turn, carry):
        d_floats, d_rows, d_columns, columns = carry

        def one_tile(carry, inputs):
            (x, i, whole, gradients), d_x = inputs
            value = lambda floats, x, columns: _part(plan, turn, rebuild(floats), x, i, columns)
            parts, pull = jax.vjp(value, floats, x, columns)
            shares = zip(plan.reductions, parts, whole, gradients, strict=True)
            d_f, more_d_x, d_c = pull(tuple(reduction.share(*share) for reduction, *share in shares))
            return jax.tree.map(jnp.add, carry, (d_f, d_c)), jax.tree.map(jnp.add, d_x, more_d_x)

        (d_floats, d_columns), d_rows = jax.lax.scan(one_tile, (d_floats, d_columns), (inputs, d_rows))
        return d_floats, d_rows, *_of_neighbour(plan, (d_columns, columns))

    start = *jax.tree.map(jnp.zeros_like, (floats, inputs[0], columns)), columns
    d_floats, d_rows, d_columns, _ = jax.lax.fori_loop(0, plan.shards, one_turn, start)
    return gradient_of(entries, d_floats), untiled(d_rows, length(rows)), d_columns, no_gradient(first)


def _part(plan: _Plan, turn, entries, rows, i, columns):
    """The results of some rows and of the shard of columns that is here in this turn."""
    size = length(columns)
    j = (jax.lax.axis_index(plan.axes) - turn) % plan.shards * size + jnp.arange(size)
    blocks = zip(plan.reductions, entries(rows, columns, i, j), strict=True)
    return results(plan.reductions, tuple(jnp.where(j < plan.total, block, r.absent) for r, block in blocks))


def _of_neighbour(plan: _Plan, tree: PyTree) -> PyTree:
    to_the_next = [(i, (i + 1) % plan.shards) for i in range(plan.shards)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, plan.axes, to_the_next), tree)
