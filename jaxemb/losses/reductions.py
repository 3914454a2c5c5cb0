"""Reductions over the rows of an `[N, M]` matrix that never exists: its entries are computed some rows at a time.

A contrastive loss needs of its matrix of logits only a few numbers per row, such as the log-sum-exp. They are
computed for a tile of rows at a time and the entries dropped, and computed anew for the gradient, so that memory is
O((N + M) D + tile M) instead of O(N M). Plain JAX, with forward and reverse mode; `jaxemb.losses.rows` chooses between
this and what measures faster.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxemb.trees import PyTree

Block = tuple[jax.Array, ...]
#: `(rows, columns, i, j) -> blocks`: for the rows number i `[r]` and the columns number j `[c]` (None: all), one array
#: `[r, c]` per reduction, in f32. A pytree of the arrays that it closes over, such as a `jax.tree_util.Partial`.
Entries = Callable[[PyTree, PyTree, jax.Array, jax.Array | None], Block]

TILE = 512  # rows whose entries exist at a time: enough for full matrix products


class Reduction(NamedTuple):
    """What is kept of each row.

    Attributes:
      of: `block [r, c] -> result [r, ...]`.
      join: `(result of some columns, result of others) -> result of all`.
      share: `(result of some columns, result of all, gradient of the latter) -> gradient of the former`.
      absent: the value of an entry that does not count.
      differentiable: whether the result has a gradient.
    """

    of: Callable[[jax.Array], jax.Array]
    join: Callable[[jax.Array, jax.Array], jax.Array]
    share: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    absent: float
    differentiable: bool = True


def _log_sum_exp(block):
    largest = jax.lax.stop_gradient(block.max(axis=1))
    reference = jnp.where(largest == -jnp.inf, 0.0, largest)  # so that nothing is inf - inf
    total = jnp.exp(block - reference[:, None]).sum(axis=1)
    return jnp.where(total == 0, -jnp.inf, jnp.log(jnp.where(total == 0, 1.0, total)) + reference)


def _share_of_log_sum_exp(part, whole, gradient):
    return gradient * jnp.exp(jnp.minimum(part - jnp.where(whole == -jnp.inf, 0.0, whole), 0.0))


#: `log sum_j exp(e_ij)`; -inf for a row of nothing but -inf, with gradient 0.
LOG_SUM_EXP = Reduction(
    of=_log_sum_exp,
    join=jnp.logaddexp,
    share=_share_of_log_sum_exp,
    absent=-jnp.inf,
)

#: `sum_j e_ij`.
SUM = Reduction(
    of=lambda block: block.sum(axis=1),
    join=jnp.add,
    share=lambda part, whole, gradient: gradient,
    absent=0.0,
)


@functools.cache
def constant(reduction: Reduction) -> Reduction:
    """The reduction without gradient."""
    return reduction._replace(of=lambda block: reduction.of(jax.lax.stop_gradient(block)), differentiable=False)


@functools.cache
def top(k: int) -> Reduction:
    """The k largest entries of each row, largest first, `[N, k]`; -inf where there are fewer. No gradient."""

    def of(block):
        largest = jax.lax.top_k(jax.lax.stop_gradient(block), min(k, block.shape[1]))[0]
        return jnp.pad(largest, ((0, 0), (0, k - largest.shape[1])), constant_values=-jnp.inf)

    return Reduction(
        of=of,
        join=lambda a, b: jax.lax.top_k(jnp.concatenate([a, b], axis=1), k)[0],
        share=lambda part, whole, gradient: gradient,
        absent=-jnp.inf,
        differentiable=False,
    )


def at(tree: PyTree, numbers: jax.Array | None) -> PyTree:
    """What arrays hold of the rows or columns of these numbers; None stands for all. For padding it is anything."""
    return tree if numbers is None else jax.tree.map(lambda x: jnp.take(x, numbers, axis=0, mode="clip"), tree)


def results(reductions: tuple[Reduction, ...], blocks: Block) -> Block:
    """What each reduction keeps of its block."""
    return tuple(reduction.of(block) for reduction, block in zip(reductions, blocks, strict=True))


def reduced(
    reductions: tuple[Reduction, ...], tile: int, entries: Entries, rows: PyTree, columns: PyTree, first: jax.Array
) -> Block:
    """The reductions of the entries of all rows, which are the numbers `first`, `first + 1`, ...; tile by tile."""

    @jax.checkpoint
    def one_tile(inputs):
        x, i = inputs
        return results(reductions, entries(x, columns, i, None))

    n = length(rows)
    return untiled(jax.lax.map(one_tile, tiles((rows, first + jnp.arange(n)), tile)), n)


def tiles(tree: PyTree, tile: int) -> PyTree:
    """`[n, ...]` to `[tiles, rows, ...]`: as few as `tile` rows allow, of about the same size, padded with zeros."""
    n = length(tree)
    size = math.ceil(n / math.ceil(n / tile))
    return jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), padded(tree, size))


def untiled(tree: PyTree, n: int) -> PyTree:
    """What `tiles` made of arrays of length n, undone."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], tree)


def padded(tree: PyTree, multiple: int) -> PyTree:
    """Zeros at the end of every array, up to a multiple."""
    extra = -length(tree) % multiple
    pad = lambda x: jnp.pad(x, ((0, extra), *((0, 0) for _ in x.shape[1:])))
    return jax.tree.map(pad, tree) if extra else tree


def length(tree: PyTree) -> int:
    """The length of the leading axis of all arrays."""
    return jax.tree.leaves(tree)[0].shape[0]
