"""One attention over rows of texts, and its implementations, which give the same values and derivatives.

dense      all logits `[B, H, T, T]` at once; the fastest for short rows
blockwise  `BLOCK` queries at a time, computed again in the backward pass: memory grows with T, not with T^2
library    `jax.nn.dot_product_attention`, which XLA's GPU and TPU backends know; no soft cap, no dropout
cudnn      its flash kernel, on NVIDIA GPUs in bf16 or f16
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

Implementation = Literal["dense", "blockwise", "library", "cudnn"]

BLOCK = 128  # queries whose logits exist at a time
_LONG = 2048  # tokens of a row from which blockwise is taken: dense logits are then 16 MB per head


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: jax.Array,
    *,
    causal: bool = False,
    window: jax.Array | int | None = None,
    bias: jax.Array | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    dropout: float = 0.0,
    key: jax.Array | None = None,
    implementation: Implementation | None = None,
) -> jax.Array:
    """`softmax(c tanh((q k^T scale + bias) / c)) v`, c the soft cap, over the keys that a query sees.

    A query sees the keys of its own segment; of these, if `causal`, those not after it, and with a `window` w those at
    a distance of at most w in the row.

    Args:
      q: `[B, T, H, h]`.
      k, v: `[B, T, G, h]`; G divides H, and query head i reads key head `i // (H / G)`.
      segments: text of each token, int `[B, T]`; padding is 0 and sees padding.
      causal: whether a query sees no key after it.
      window: scalar, may be traced.
      bias: added to the scaled logits, `[1 or B, 1 or H, T, T]`.
      scale: None is `h ** -0.5`.
      soft_cap: > 0; None is none (Gemma 2 has 50).
      dropout: share of the weights that are set to 0, the others divided by `1 - dropout`; needs `key`.
      key: None turns dropout off.
      implementation: None takes "dense" on CPU and where weights drop out, "library" elsewhere, and "blockwise" for
        rows longer than 2,048 tokens in either case; a soft cap is not in "library".

    Returns:
      `[B, T, H, h]` of v's type.

    Raises:
      ValueError: for shapes that do not fit, an unknown implementation, or one that lacks what is asked for.
    """
    _check(q, k, v, segments, window, bias, dropout, soft_cap)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    drops = key is not None and dropout > 0
    if implementation is None and q.shape[1] > _LONG:
        implementation = "blockwise"
    if implementation in ("library", "cudnn") and (drops or soft_cap is not None):
        raise ValueError(f"implementation {implementation!r} has neither dropout nor a soft cap")
    ours = functools.partial(
        _dense if implementation != "blockwise" else _blockwise,
        causal=causal,
        scale=scale,
        soft_cap=soft_cap,
        dropout=dropout if drops else 0.0,
        key=key,
    )
    theirs = functools.partial(_library, causal=causal, scale=scale)
    operands = (*map(_guarded, (q, k, v)), segments, window, bias)
    match implementation:
        case "dense" | "blockwise":
            return ours(*operands)
        case "library" | "cudnn":
            return theirs(*operands, implementation="xla" if implementation == "library" else "cudnn")
        case None:
            if drops or soft_cap is not None:
                return ours(*operands)
            # Of the two, XLA's CPU backend runs ours up to five times faster.
            return jax.lax.platform_dependent(*operands, cpu=ours, default=theirs)
    raise ValueError(f"implementation must be dense, blockwise, library, cudnn or None; got {implementation!r}")


@jax.custom_jvp
def _guarded(x: jax.Array) -> jax.Array:
    return x


@_guarded.defjvp
def _guarded_jvp(primals, tangents):
    # Where XLA can see that tangents are 0, its CPU backend (jaxlib 0.10.2) gives garbage for the products below.
    return primals[0], jax.lax.optimization_barrier(tangents[0])


def hidden(segments, query_segments, places, query_places, *, causal: bool, window) -> jax.Array:
    """Which keys `[S]` a query `[T]` does not see, bool `[B, 1, T, S]`."""
    unseen = query_segments[:, None, :, None] != segments[:, None, None, :]
    if causal:
        unseen |= query_places[:, None] < places[None, :]
    if window is not None:
        unseen |= jnp.abs(query_places[:, None] - places[None, :]) > window
    return unseen


def _hide(unseen: jax.Array, dtype) -> jax.Array:
    """The additive bias that hides a key: finite, so that a row that sees nothing stays finite, and summable."""
    return jnp.where(unseen, max(-1e30, float(jnp.finfo(dtype).min)), 0.0).astype(dtype)


def _dense(q, k, v, segments, window, bias, *, causal, scale, soft_cap, dropout, key) -> jax.Array:
    places = jnp.arange(q.shape[1])
    unseen = _hide(hidden(segments, segments, places, places, causal=causal, window=window), q.dtype)
    return _heads(q, k, v, unseen, bias, scale=scale, soft_cap=soft_cap, dropout=dropout, key=key)


def _blockwise(q, k, v, segments, window, bias, *, causal, scale, soft_cap, dropout, key) -> jax.Array:
    length = q.shape[1]
    size = min(BLOCK, length)
    blocks = -(-length // size)
    places = jnp.arange(length)
    pad = lambda x, axis: jnp.pad(x, [(0, blocks * size - length if a == axis else 0) for a in range(x.ndim)])
    split = lambda x, axis: jnp.moveaxis(
        pad(x, axis).reshape(*x.shape[:axis], blocks, size, *x.shape[axis + 1 :]), axis, 0
    )

    @jax.checkpoint
    def block(of):
        q, query_segments, query_places, bias, number = of
        unseen = hidden(segments, query_segments, places, query_places, causal=causal, window=window)
        own = None if key is None else jax.random.fold_in(key, number)
        return _heads(q, k, v, _hide(unseen, q.dtype), bias, scale=scale, soft_cap=soft_cap, dropout=dropout, key=own)

    parts = (split(q, 1), split(segments, 1), split(places, 0), None if bias is None else split(bias, 2))
    found = jax.lax.map(block, (*parts, jnp.arange(blocks)))
    return jnp.moveaxis(found, 0, 1).reshape(q.shape[0], blocks * size, *q.shape[2:])[:, :length]


def _library(q, k, v, segments, window, bias, *, causal, scale, implementation="xla") -> jax.Array:
    places = jnp.arange(q.shape[1])
    added = _hide(hidden(segments, segments, places, places, causal=causal, window=window), q.dtype)
    added = added if bias is None else added + bias.astype(q.dtype)
    return jax.nn.dot_product_attention(q, k, v, added, scale=scale, implementation=implementation)


def _heads(q, k, v, unseen, bias, *, scale, soft_cap, dropout, key) -> jax.Array:
    """`[B, T, H, h]` queries, `[B, S, G, h]` keys and values, additive `unseen` `[B, 1, T, S]`."""
    groups = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(a, groups, axis=2) if groups > 1 else a for a in (k, v))
    # Transposing first gives the CPU backend contiguous matrices, which halves its time.
    q, k, v = (a.transpose(0, 2, 1, 3) for a in (q, k, v))
    logits = jnp.einsum("bhtd,bhsd->bhts", q * scale, k, preferred_element_type=jnp.float32)
    logits = logits if bias is None else logits + bias
    logits = logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)
    keep = kept(key, dropout, logits.shape) if dropout else None
    return _average(logits + unseen, v, keep, dropout).astype(v.dtype).transpose(0, 2, 1, 3)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _average(logits: jax.Array, values: jax.Array, keep: jax.Array | None, dropout: float) -> jax.Array:
    """`dropout(softmax(logits)) values`, f32 `[B, H, T, h]`, with a derivative that touches `[B, H, T, S]` least."""
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    return _weighted(weights, values, keep, dropout) / total  # dividing last, there is less to divide


def _average_jvp(dropout, primals, tangents):
    logits, values, keep = primals
    d_logits, d_values, _ = tangents
    weights = jax.nn.softmax(logits, axis=-1)
    changes = []
    # What is known to be 0 is left out, for the reason given at `_guarded`.
    if not isinstance(d_logits, SymbolicZero):
        moved = weights * d_logits
        moved -= weights * moved.sum(axis=-1, keepdims=True)
        changes.append(_weighted(moved, values, keep, dropout))
    if not isinstance(d_values, SymbolicZero):
        changes.append(_weighted(weights, d_values, keep, dropout))
    found = _weighted(weights, values, keep, dropout)
    return found, sum(changes) if changes else jnp.zeros_like(found)


_average.defjvp(_average_jvp, symbolic_zeros=True)


def _weighted(weights, values, keep, dropout):
    weights = weights if keep is None else jnp.where(keep, weights, 0.0)
    product = functools.partial(jnp.einsum, "bhts,bhsd->bhtd", preferred_element_type=jnp.float32)
    return product(weights.astype(values.dtype), values) / (1.0 - dropout)


def kept(key: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    """True with probability `1 - rate`, from 16 random bits per element: a quarter of `bernoulli`'s time."""
    bits = jax.random.bits(key, (*shape[:-1], -(-shape[-1] // 2)), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(bits, jnp.uint16).reshape(*shape[:-1], -1)
    return halves[..., : shape[-1]] >= np.uint16(min(round(rate * 2**16), 2**16 - 1))


def _check(q, k, v, segments, window, bias, dropout, soft_cap) -> None:
    if q.ndim != 4 or k.shape != v.shape or k.ndim != 4 or (k.shape[:2], k.shape[3]) != (q.shape[:2], q.shape[3]):
        raise ValueError(f"q must be [B, T, H, h], k and v [B, T, G, h]; got {q.shape}, {k.shape} and {v.shape}")
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"the heads of k must divide those of q; got {k.shape[2]} and {q.shape[2]}")
    if segments.shape != q.shape[:2]:
        raise ValueError(f"segments must be [B, T] = {q.shape[:2]}; got {segments.shape}")
    if window is not None and not isinstance(window, jax.core.Tracer) and (window < 0 or window != int(window)):
        raise ValueError(f"window must be a whole number of at least 0; got {window}")
    (rows, length, heads, _), shape = q.shape, None if bias is None else jnp.shape(bias)
    if shape is not None and (
        len(shape) != 4 or shape[0] not in (1, rows) or shape[1] not in (1, heads) or shape[2:] != (length, length)
    ):
        raise ValueError(f"bias must be [1 or {rows}, 1 or {heads}, {length}, {length}]; got {shape}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1); got {dropout}")
    if soft_cap is not None and not soft_cap > 0:
        raise ValueError(f"soft_cap must be > 0; got {soft_cap}")
