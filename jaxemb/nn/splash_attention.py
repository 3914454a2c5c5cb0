"""Splash attention: a flash kernel for TPUs that leaves out the blocks of keys that none of their queries sees."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from jaxemb.nn.dense_attention import blockwise, guarded
from jaxemb.nn.rules import Rules, no_gradient, rules_of_kernels
from jaxemb.parallel.mesh import batch_axes

_BLOCKS = (512, 256, 128)  # tokens; the kernel takes no fewer than the last


def splash(q, k, v, segments, *, causal: bool, window: int | None, scale: float, soft_cap: float | None, interpret):
    """As `attention`. Each device of the mesh in force takes its own rows and heads.

    `interpret` runs it as plain JAX, on any platform. Derivatives other than the reverse mode's first are those of
    blockwise attention.
    """
    return _rules(causal, window, scale, soft_cap, interpret)(q, k, v, segments)


@functools.cache
def _rules(causal, window, scale, soft_cap, interpret) -> Rules:
    options = {"causal": causal, "scale": scale, "soft_cap": soft_cap}
    kernel = functools.partial(_kernel, window=window, interpret=interpret, **options)

    def value(q, k, v, segments):
        return _on_mesh(kernel, q, k)(q, k, v, segments)

    def forward(q, k, v, segments):
        return jax.vjp(lambda q, k, v: value(q, k, v, segments), q, k, v)

    def backward(args, pull, gradient):
        return *pull(gradient), no_gradient(args[-1])

    def definition(q, k, v, segments):
        q, k, v = map(guarded, (q, k, v))
        return blockwise(q, k, v, segments, window, None, dropout=0.0, key=None, **options)

    return rules_of_kernels(value, forward, backward, definition)


def _kernel(q, k, v, segments, *, causal, window, scale, soft_cap, interpret):
    """What one device computes; rows are padded to a multiple of the smallest block."""
    from jax.experimental.pallas.ops.tpu import splash_attention as kernels  # takes a second, and few need it

    length, heads = q.shape[1:3]
    padded = -(-length // _BLOCKS[-1]) * _BLOCKS[-1]
    size = next(size for size in _BLOCKS if padded % size == 0)
    mask: kernels.CausalMask | kernels.LocalMask | kernels.FullMask
    if window is not None:
        mask = kernels.LocalMask((padded, padded), (window, 0 if causal else window), 0)
    else:
        mask = (kernels.CausalMask if causal else kernels.FullMask)((padded, padded))
    attend = kernels.make_splash_mha(
        kernels.MultiHeadMask([mask] * heads),
        block_sizes=kernels.BlockSizes(size, size, size, size, size, size, size, size),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=soft_cap,
        interpret=interpret,
    )
    pad = lambda x, value: jnp.pad(
        x, [(0, padded - length if axis == 1 else 0) for axis in range(x.ndim)], constant_values=value
    )
    by_head = lambda x: pad(x, 0).transpose(0, 2, 1, 3)
    one_row = lambda q, k, v, segments: attend(q, k, v, kernels.SegmentIds(segments, segments))
    found = jax.vmap(one_row)(by_head(q * scale), by_head(k), by_head(v), pad(segments, -1))
    return found.transpose(0, 2, 1, 3)[:, :length].astype(v.dtype)


def _on_mesh(kernel, q, k):
    """`kernel` of each device's own rows and heads: XLA cannot divide it. Where they do not divide, it is of all."""
    mesh = jax.sharding.get_abstract_mesh()
    free = {n for n, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind != AxisType.Manual}
    if all(mesh.shape[name] == 1 for name in free):
        return kernel
    rows = tuple(batch_axes())
    rows = rows if q.shape[0] % math.prod(mesh.shape[name] for name in rows) == 0 else ()
    tensor = mesh.shape["tensor"] if "tensor" in free else 1
    heads = "tensor" if tensor > 1 and q.shape[2] % tensor == k.shape[2] % tensor == 0 else None
    spec = PartitionSpec(rows or None, None, heads)
    where = (spec, spec, spec, PartitionSpec(rows or None))
    return jax.shard_map(kernel, in_specs=where, out_specs=spec, axis_names=free, check_vma=False)
