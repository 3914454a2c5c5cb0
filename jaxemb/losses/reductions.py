"""Reductions over the rows of an `[N, M]` matrix that never exists: its entries are computed some rows at a time.

A contrastive loss needs of its matrix of logits only a few numbers per row, such as the log-sum-exp. They are
computed for `tile` rows at a time and the entries dropped, so that memory is O((N + M) D + tile M) instead of O(N M).
The gradient needs the entries again. In training it is nearly always that of the mean over the rows, up to a factor:
this one is computed along with the value, from the same entries, and costs what a matrix that is kept costs (three
products `[N, D] x [D, M]`). Any other gradient computes the entries anew (four products; Inf-CL, Cheng et al. 2024).

Over a mesh, every device reduces its own rows. The columns come to it in one of two ways: gathered, or, where that
would take too much memory, moving round the ring of devices one shard at a time, their gradients with them.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxemb.parallel.mesh import batch_axes
from jaxemb.trees import PyTree

Block = tuple[jax.Array, ...]
Entries = Callable[[PyTree, PyTree, PyTree, PyTree, PyTree], Block]

TILE = 512  # rows whose entries exist at a time: enough for full matrix products
_LARGEST_GATHER = 2**28  # bytes of all columns; more than that go round the ring


class Reduction(NamedTuple):
    """What is kept of each row.

    Attributes:
      start: what is kept of no entries, by the number of rows.
      add: `(kept, block [r, c]) -> kept`.
      finish: `kept -> result [r, ...]`.
      cotangent: `(block, result, gradient of the result) -> gradient of the block`.
      absent: the value of an entry that does not count.
      differentiable: whether the result has a gradient.
    """

    start: Callable[[int], PyTree]
    add: Callable[[PyTree, jax.Array], PyTree]
    finish: Callable[[PyTree], jax.Array]
    cotangent: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    absent: float
    differentiable: bool = True


def _add_exponentials(kept, block):
    largest, total = kept
    new = jnp.maximum(largest, block.max(axis=1))
    reference = jnp.where(new == -jnp.inf, 0.0, new)  # so that nothing is inf - inf
    scale = jnp.exp(jnp.where(largest == -jnp.inf, -jnp.inf, largest - reference))
    return new, total * scale + jnp.exp(block - reference[:, None]).sum(axis=1)


def _log_total(kept):
    largest, total = kept
    empty = largest == -jnp.inf
    return jnp.where(empty, -jnp.inf, jnp.log(jnp.where(empty, 1.0, total)) + jnp.where(empty, 0.0, largest))


def _softmax(block, result, gradient):
    reference = jnp.where(result == -jnp.inf, 0.0, result)
    return jnp.exp(block - reference[:, None]) * gradient[:, None]


#: `log sum_j exp(e_ij)`; -inf for a row of nothing but -inf, with gradient 0.
LOG_SUM_EXP = Reduction(
    start=lambda n: (jnp.full(n, -jnp.inf, jnp.float32), jnp.zeros(n, jnp.float32)),
    add=_add_exponentials,
    finish=_log_total,
    cotangent=_softmax,
    absent=-jnp.inf,
)

#: `sum_j e_ij`.
SUM = Reduction(
    start=lambda n: jnp.zeros(n, jnp.float32),
    add=lambda kept, block: kept + block.sum(axis=1),
    finish=lambda kept: kept,
    cotangent=lambda block, result, gradient: jnp.broadcast_to(gradient[:, None], block.shape),
    absent=0.0,
)


def constant(reduction: Reduction) -> Reduction:
    """The reduction without gradient."""
    return reduction._replace(cotangent=_no_gradient, differentiable=False)


def _no_gradient(block, result, gradient):
    return jnp.zeros_like(block)


@functools.cache
def top(k: int) -> Reduction:
    """The k largest entries of each row, largest first, `[N, k]`; -inf where there are fewer. No gradient."""

    def add(kept, block):
        block = jax.lax.top_k(block, min(k, block.shape[1]))[0]
        return jax.lax.top_k(jnp.concatenate([kept, block], axis=1), k)[0]

    return Reduction(
        start=lambda n: jnp.full((n, k), -jnp.inf, jnp.float32),
        add=add,
        finish=lambda kept: kept,
        cotangent=_no_gradient,
        absent=-jnp.inf,
        differentiable=False,
    )


def reduce_rows(
    entries: Entries,
    reductions: tuple[Reduction, ...],
    shared: PyTree,
    rows: PyTree,
    columns: PyTree,
    row_facts: PyTree = (),
    column_facts: PyTree = (),
    *,
    tile: int = TILE,
) -> Block:
    """Row-wise reductions of one or several matrices `[N, M]` whose entries are functions of a row and a column.

    Under `jax.set_mesh` with axes "data" or "fsdp", rows and columns are split over these; otherwise all is local.

    Args:
      entries: `(shared, rows, columns, row facts, column facts) -> blocks`, for any subset of r rows and c columns:
        one array `[r, c]` per reduction, in f32. A hashable function of its arguments alone.
      reductions: what to keep of each matrix.
      shared: float arrays that all entries depend on, such as a temperature.
      rows, columns: float arrays with leading axes N and M.
      row_facts, column_facts: arrays of any type with leading axes N and M, without gradient: labels, weights, masks.
      tile: rows whose entries exist at a time (on each device).

    Returns:
      One array per reduction, `[N, ...]`, differentiable in `shared`, `rows` and `columns`.

    Raises:
      ValueError: for a tile < 1 or no rows or columns.
    """
    if tile < 1:
        raise ValueError(f"tile must be at least 1; got {tile}")
    n, m = _length(rows), _length(columns)
    if not n or not m:
        raise ValueError(f"there must be rows and columns; got {n} and {m}")
    as_float = lambda x: jnp.asarray(x, jnp.result_type(x, jnp.float32))
    shared, rows, columns = jax.tree.map(as_float, (shared, rows, columns))
    row_facts, column_facts = jax.tree.map(jax.lax.stop_gradient, (row_facts, column_facts))
    axes = batch_axes()
    shards = math.prod(axes.values())
    ring = bool(axes) and _bytes(columns) > _LARGEST_GATHER
    plan = _Plan(entries, reductions, tile, tuple(axes), shards, ring)
    present = (jnp.ones(m, bool), column_facts)
    rows, row_facts = _padded((rows, row_facts), shards)
    columns, present = _padded((columns, present), shards)
    results = _reduced(plan, shared, rows, columns, row_facts, present)
    return tuple(result[:n] for result in results)


class _Plan(NamedTuple):
    """What is static about a reduction."""

    entries: Entries
    reductions: tuple[Reduction, ...]
    tile: int
    axes: tuple[str, ...]
    shards: int
    ring: bool

    @property
    def foresees(self) -> bool:
        """Whether the gradient of the mean is computed along with the value."""
        return not self.ring and sum(reduction.differentiable for reduction in self.reductions) == 1


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _reduced(plan: _Plan, shared, rows, columns, row_facts, facts):
    return _over_mesh(plan, _forward, 0, shared, (rows, columns, row_facts, facts))


def _reduced_forward(plan, shared, rows, columns, row_facts, facts):
    split = (rows, columns, row_facts, facts)
    if plan.foresees:
        d_shared, results, *d_split = _over_mesh(plan, _forward_and_backward, 1, shared, split)
        return results, (shared, *split, results, (d_shared, *d_split))
    results = _reduced(plan, shared, *split)
    return results, (shared, *split, results, None)


def _reduced_backward(plan, saved, gradients):
    shared, *split, results, foreseen = saved
    recompute = lambda: tuple(_over_mesh(plan, _backward, 1, shared, (*split, results, gradients)))
    if foreseen is None:
        return *recompute(), None, None
    (gradient,) = (g for reduction, g in zip(plan.reductions, gradients, strict=True) if reduction.differentiable)
    scaled = lambda: jax.tree.map(lambda d: d * gradient[0], foreseen)
    return *jax.lax.cond(jnp.all(gradient == gradient[0]), scaled, recompute), None, None


_reduced.defvjp(_reduced_forward, _reduced_backward)


def _over_mesh(plan: _Plan, function, n_whole: int, shared: PyTree, split: tuple):
    """`function(plan, shared, *split)`, each device with its part of `split`; `n_whole` results are the same on all."""
    function = functools.partial(function, plan)
    if not plan.axes:
        return function(shared, *split)
    whole, parts = PartitionSpec(), PartitionSpec(plan.axes)
    n_parts = {_forward: 0, _backward: 2, _forward_and_backward: 3}[function.func]
    out = (*[whole] * n_whole, *[parts] * n_parts) if n_parts else parts
    specs = (whole, *[parts] * len(split))
    return jax.shard_map(function, in_specs=specs, out_specs=out, check_vma=False)(shared, *split)


def _forward(plan: _Plan, shared, rows, columns, row_facts, facts):
    """The results of these rows."""
    tiles = _tiles((rows, row_facts), plan.tile)
    start = tuple(reduction.start(_length(jax.tree.map(lambda x: x[0], tiles))) for reduction in plan.reductions)
    kept = jax.tree.map(lambda x: jnp.broadcast_to(x, (_length(tiles), *x.shape)), start)

    def visit(kept, columns, facts):
        def row_tile(inputs):
            (x, x_facts), kept = inputs
            return _added(plan, kept, _blocks(plan, shared, x, columns, x_facts, facts))

        return jax.lax.map(row_tile, (tiles, kept))

    if plan.ring:
        turn = lambda _, carry: (visit(*carry), *_next_shard(plan, carry[1:]))
        kept = jax.lax.fori_loop(0, plan.shards, turn, (kept, columns, facts))[0]
    else:
        kept = visit(kept, *_gathered(plan, (columns, facts)))
    finish = lambda reduction, kept: jax.vmap(reduction.finish)(kept)
    return _untiled(tuple(map(finish, plan.reductions, kept)), _length(rows))


def _backward(plan: _Plan, shared, rows, columns, row_facts, facts, results, gradients):
    """The gradients in what is shared, in these rows and in these columns."""
    tiles = _tiles((rows, row_facts, results, gradients), plan.tile)

    def visit(d_shared, d_rows, d_columns, columns, facts):
        def row_tile(carry, inputs):
            (x, x_facts, results, gradients), d_x = inputs
            entries = lambda s, x, y: _blocks(plan, s, x, y, x_facts, facts)
            blocks, pull = jax.vjp(entries, shared, x, columns)
            d_s, more_d_x, d_y = pull(_cotangents(plan, blocks, results, gradients))
            return jax.tree.map(jnp.add, carry, (d_s, d_y)), jax.tree.map(jnp.add, d_x, more_d_x)

        (d_shared, d_columns), d_rows = jax.lax.scan(row_tile, (d_shared, d_columns), (tiles, d_rows))
        return d_shared, d_rows, d_columns

    d_shared, d_rows = _zeros((shared, tiles[0]))
    if plan.ring:

        def turn(_, carry):
            d_shared, d_rows, d_columns, columns, facts = carry
            d_shared, d_rows, d_columns = visit(d_shared, d_rows, d_columns, columns, facts)
            return d_shared, d_rows, *_next_shard(plan, (d_columns, columns, facts))

        carry = (d_shared, d_rows, _zeros(columns), columns, facts)
        d_shared, d_rows, d_columns, *_ = jax.lax.fori_loop(0, plan.shards, turn, carry)
        return jax.lax.psum(d_shared, plan.axes), _untiled(d_rows, _length(rows)), d_columns
    columns, facts = _gathered(plan, (columns, facts))
    d_shared, d_rows, d_columns = visit(d_shared, d_rows, _zeros(columns), columns, facts)
    return (*_summed(plan, d_shared, _untiled(d_rows, _length(rows)), d_columns),)


def _forward_and_backward(plan: _Plan, shared, rows, columns, row_facts, facts):
    """The results of these rows, and the gradients of their sum; in the order shared, results, rows, columns."""
    columns, facts = _gathered(plan, (columns, facts))
    real_rows = jnp.ones(_length(rows), jnp.float32)

    def row_tile(carry, inputs):
        x, x_facts, real = inputs
        entries = lambda s, x, y: _blocks(plan, s, x, y, x_facts, facts)
        blocks, pull = jax.vjp(entries, shared, x, columns)
        kept = _added(plan, tuple(reduction.start(_length(x)) for reduction in plan.reductions), blocks)
        results = tuple(reduction.finish(k) for reduction, k in zip(plan.reductions, kept, strict=True))
        ones = tuple(jnp.expand_dims(real, range(1, r.ndim)) * jnp.ones_like(r) for r in results)
        d_s, d_x, d_y = pull(_cotangents(plan, blocks, results, ones))
        return jax.tree.map(jnp.add, carry, (d_s, d_y)), (results, d_x)

    tiles = _tiles((rows, row_facts, real_rows), plan.tile)
    (d_shared, d_columns), by_row = jax.lax.scan(row_tile, _zeros((shared, columns)), tiles)
    results, d_rows = _untiled(by_row, _length(rows))
    d_shared, d_rows, d_columns = _summed(plan, d_shared, d_rows, d_columns)
    return d_shared, results, d_rows, d_columns


def _blocks(plan: _Plan, shared, rows, columns, row_facts, facts) -> Block:
    """The entries, those of padding columns without effect."""
    present, column_facts = facts
    blocks = plan.entries(shared, rows, columns, row_facts, column_facts)
    if plan.shards == 1:  # no padding
        return blocks
    return tuple(jnp.where(present, b, r.absent) for r, b in zip(plan.reductions, blocks, strict=True))


def _added(plan: _Plan, kept, blocks):
    return tuple(reduction.add(k, b) for reduction, k, b in zip(plan.reductions, kept, blocks, strict=True))


def _cotangents(plan: _Plan, blocks, results, gradients):
    return tuple(r.cotangent(*inputs) for r, *inputs in zip(plan.reductions, blocks, results, gradients, strict=True))


def _summed(plan: _Plan, d_shared, d_rows, d_columns):
    """Adds up what the devices' rows contribute; every device gets the part of the columns that it holds."""
    if not plan.axes:
        return d_shared, d_rows, d_columns
    scatter = lambda x: jax.lax.psum_scatter(x, plan.axes, tiled=True)
    return jax.lax.psum(d_shared, plan.axes), d_rows, jax.tree.map(scatter, d_columns)


def _next_shard(plan: _Plan, tree: PyTree) -> PyTree:
    """The tree of the neighbour on the ring."""
    ring = [(i, (i + 1) % plan.shards) for i in range(plan.shards)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, plan.axes, ring), tree)


def _gathered(plan: _Plan, tree: PyTree) -> PyTree:
    if not plan.axes:
        return tree
    return jax.tree.map(lambda x: jax.lax.all_gather(x, plan.axes, tiled=True), tree)


def _length(tree: PyTree) -> int:
    return jax.tree.leaves(tree)[0].shape[0]


def _bytes(tree: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _zeros(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.zeros_like, tree)


def _padded(tree: PyTree, multiple: int) -> PyTree:
    """Zeros at the end of every array, up to a multiple."""
    extra = -_length(tree) % multiple
    pad = lambda x: jnp.pad(x, ((0, extra), *((0, 0) for _ in x.shape[1:])))
    return jax.tree.map(pad, tree) if extra else tree


def _tiles(tree: PyTree, tile: int) -> PyTree:
    """`[n, ...]` to `[tiles, rows, ...]`: as few as `tile` rows allow, of about the same size, padded with zeros."""
    n = _length(tree)
    size = math.ceil(n / math.ceil(n / tile))
    return jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), _padded(tree, size))


def _untiled(tree: PyTree, n: int) -> PyTree:
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], tree)
