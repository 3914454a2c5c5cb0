"""Cached gradients (GradCache): encode a large batch chunk by chunk, with the memory of one chunk."""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxemb.checks import checked
from jaxemb.parallel.mesh import batch_axes
from jaxemb.trees import PyTree

Encode = Callable[[PyTree, PyTree, jax.Array | None], PyTree]
_in_one_piece = contextvars.ContextVar("_in_one_piece", default=False)


@checked()
def in_chunks(encode: Encode, size: int) -> Encode:
    """`encode`, run on `size` rows of its inputs at a time, in the forward pass and again in the backward pass.

    Of a forward pass nothing is kept but its outputs. The gradient runs it once more, chunk by chunk, and adds up the
    chunks' gradients: exactly the gradient of the outputs, whatever the loss makes of them, at the cost of one more
    forward pass. The second pass has the keys of the first, so dropout is the same. Memory for activations is that of
    one chunk, however many rows there are.

    Chunk i takes the rows i, i + n, i + 2 n, ... of the n chunks, so that every device of a mesh works on each.

    Args:
      encode: `(model, inputs, key or None) -> outputs`; all arrays of the inputs have the same number R of rows as
        leading axis, those of the outputs R or a multiple of it, row by row. Outputs of a row must depend on no other.
      size: rows per chunk on all devices together. The last chunk is filled up with rows of zeros.

    Returns:
      A function like `encode`. Each chunk has a key of its own.

    Raises:
      ValueError: if size is below 1, or, when called, does not divide among the devices of the mesh in force.

    References:
      Gao et al. 2021, arXiv 2101.06983; here by `jax.checkpoint` and the transposition of `jax.lax.scan`.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 row; got {size}")

    def encode_in_chunks(model: PyTree, inputs: PyTree, key: jax.Array | None) -> PyTree:
        axes = batch_axes()
        if size % math.prod(axes.values()):
            raise ValueError(f"chunks of {size} rows do not divide among the devices of the mesh axes {axes}")
        if _in_one_piece.get():
            return encode(model, inputs, key)
        rows = jax.tree.leaves(inputs)[0].shape[0]
        n = math.ceil(rows / size)
        if n == 1:
            return jax.checkpoint(encode)(model, inputs, key)
        keys = None if key is None else jax.random.split(key, n)

        def cut(x):
            x = jnp.pad(x, ((0, n * size - rows), *((0, 0) for _ in x.shape[1:])))
            x = jnp.moveaxis(x.reshape(size, n, *x.shape[1:]), 1, 0)
            return jax.lax.with_sharding_constraint(x, PartitionSpec(None, tuple(axes))) if axes else x

        def joined(x):
            x = jnp.moveaxis(x.reshape(n, size, -1, *x.shape[2:]), 0, 1)  # [size, n, outputs of a row, ...]
            return x.reshape(-1, *x.shape[3:])[: rows * x.shape[2]]

        @jax.checkpoint
        def one(chunk, chunk_key):
            return encode(model, chunk, chunk_key)

        outputs = jax.lax.scan(lambda _, inputs: (None, one(*inputs)), None, (jax.tree.map(cut, inputs), keys))[1]
        return jax.tree.map(joined, outputs)

    return encode_in_chunks


@contextlib.contextmanager
def in_one_piece() -> Iterator[None]:
    """No chunks are cut while this is in force: to look inside the model, as nothing gets out of `jax.checkpoint`."""
    token = _in_one_piece.set(True)
    try:
        yield
    finally:
        _in_one_piece.reset(token)
