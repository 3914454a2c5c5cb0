"""Reductions over the rows of a matrix that never exists: on which device, and by which way of computing them."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxemb.losses.kernels.fused import fused
from jaxemb.losses.kernels.ring import gathered, ring
from jaxemb.losses.reductions import TILE, Block, Entries, Reduction, length, padded, reduced
from jaxemb.parallel.mesh import batch_axes
from jaxemb.trees import PyTree

_LARGEST_GATHER = 2**28  # bytes of all columns; more than that go round the ring


def reduce_rows(
    entries: Entries, reductions: tuple[Reduction, ...], rows: PyTree, columns: PyTree, *, tile: int = TILE
) -> Block:
    """Row-wise reductions of one or several matrices `[N, M]` whose entries are functions of a row and a column.

    Under `jax.set_mesh` with axes "data" or "fsdp", rows and columns are split over these; otherwise all is local.

    Args:
      entries: `(rows, columns, i, j) -> blocks`, see `Entries`; the arrays that it holds are whole on every device.
      reductions: what to keep of each matrix.
      rows, columns: float arrays with leading axes N and M.
      tile: rows whose entries exist at a time (on each device).

    Returns:
      One array per reduction, `[N, ...]`, with reverse and forward mode in `entries`, `rows` and `columns`.

    Raises:
      ValueError: for a tile < 1 or no rows or columns.
    """
    if tile < 1:
        raise ValueError(f"tile must be at least 1; got {tile}")
    n, m = length(rows), length(columns)
    if not n or not m:
        raise ValueError(f"there must be rows and columns; got {n} and {m}")
    as_float = lambda x: jnp.asarray(x, jnp.result_type(x, jnp.float32))
    entries = jax.tree.map(jnp.asarray, entries)
    rows, columns = jax.tree.map(as_float, (rows, columns))
    one_gradient = sum(reduction.differentiable for reduction in reductions) == 1
    local = fused(reductions, tile) if one_gradient else functools.partial(reduced, reductions, tile)
    axes = batch_axes()
    if not axes:
        return local(entries, rows, columns, jnp.int32(0))

    shards, names = math.prod(axes.values()), tuple(axes)
    around = ring(reductions, tile, names, shards, m) if _bytes(columns) > _LARGEST_GATHER else None

    def on_device(entries, rows, columns):
        first = jax.lax.axis_index(names) * length(rows)
        if around is not None:
            return around(entries, rows, columns, first)
        return local(entries, rows, gathered(columns, names, m), first)

    whole, parts = PartitionSpec(), PartitionSpec(names)
    split = jax.shard_map(on_device, in_specs=(whole, parts, parts), out_specs=parts, check_vma=False)
    return tuple(result[:n] for result in split(entries, padded(rows, shards), padded(columns, shards)))


def _bytes(tree: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
