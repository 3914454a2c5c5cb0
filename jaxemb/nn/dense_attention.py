"""Attention by plain products: dense, in blocks of queries, and JAX's own function for the same."""

import functools

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxemb.nn.dropout import kept, share_kept

BLOCK = 128  # queries whose logits exist at a time


@jax.custom_jvp
def guarded(x: jax.Array) -> jax.Array:
    """x, with a tangent of which XLA does not know that it is 0."""
    return x


@guarded.defjvp
def _guarded_jvp(primals, tangents):
    # Where XLA can see that tangents are 0, its CPU backend (jaxlib 0.10.2) gives garbage for the products below.
    return primals[0], jax.lax.optimization_barrier(tangents[0])


def _hidden(segments, query_segments, places, query_places, *, causal: bool, window, prefix) -> jax.Array:
    """Which keys `[S]` a query `[T]` does not see, bool `[B, 1, T, S]`."""
    unseen = query_segments[:, None, :, None] != segments[:, None, None, :]
    if causal:
        later = query_places[:, None] < places[None, :]
        unseen |= later if prefix is None else later & ~prefix[:, None, None, :]
    if window is not None:
        unseen |= jnp.abs(query_places[:, None] - places[None, :]) > window
    return unseen


def _hide(unseen: jax.Array, dtype) -> jax.Array:
    """The additive bias that hides a key: finite, so that a row that sees nothing stays finite, and summable."""
    return jnp.where(unseen, max(-1e30, float(jnp.finfo(dtype).min)), 0.0).astype(dtype)


def dense(q, k, v, segments, window, bias, prefix=None, *, causal, scale, soft_cap, dropout, key) -> jax.Array:
    """`softmax(scale q k^T + bias) v` with all logits `[B, H, T, T]` at once; arguments as of `nn.attention`."""
    places = jnp.arange(q.shape[1])
    unseen = _hide(_hidden(segments, segments, places, places, causal=causal, window=window, prefix=prefix), q.dtype)
    return _heads(q, k, v, unseen, bias, scale=scale, soft_cap=soft_cap, dropout=dropout, key=key)


def blockwise(q, k, v, segments, window, bias, prefix=None, *, causal, scale, soft_cap, dropout, key) -> jax.Array:
    """The same with the logits of `BLOCK` queries at a time, made again for the gradient: memory is linear in T."""
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
        mask = {"causal": causal, "window": window, "prefix": prefix}
        unseen = _hidden(segments, query_segments, places, query_places, **mask)
        own = None if key is None else jax.random.fold_in(key, number)
        return _heads(q, k, v, _hide(unseen, q.dtype), bias, scale=scale, soft_cap=soft_cap, dropout=dropout, key=own)

    parts = (split(q, 1), split(segments, 1), split(places, 0), None if bias is None else split(bias, 2))
    found = jax.lax.map(block, (*parts, jnp.arange(blocks)))
    return jnp.moveaxis(found, 0, 1).reshape(q.shape[0], blocks * size, *q.shape[2:])[:, :length]


def library(q, k, v, segments, window, bias, prefix=None, *, causal, scale, implementation="xla") -> jax.Array:
    """The same by `jax.nn.dot_product_attention`, whose "cudnn" never holds the logits."""
    places = jnp.arange(q.shape[1])
    added = _hide(_hidden(segments, segments, places, places, causal=causal, window=window, prefix=prefix), q.dtype)
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
    found = product(weights.astype(values.dtype), values)
    return found if keep is None else found / share_kept(dropout)
