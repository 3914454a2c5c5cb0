"""Pooling: from token states to one vector per text. Pure functions, all aware of packed rows.

Each takes states `[B, T, D]` and `Tokens`, and returns `[B, S, D]`, S = `tokens.texts_per_row`. A text slot
without tokens gives zeros. Definitions follow sentence-transformers.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxemb.types import Tokens

Pooling = Callable[[jax.Array, Tokens], jax.Array]


def _members(tokens: Tokens, dtype) -> jax.Array:
    """1 where token t belongs to text s of its row, `[B, S, T]`."""
    slots = jnp.arange(1, tokens.texts_per_row + 1)
    return (tokens.segment_ids[:, None, :] == slots[None, :, None]).astype(dtype)


def _weighted_sum(states: jax.Array, weights: jax.Array) -> jax.Array:
    chex.assert_rank(states, 3)
    chex.assert_equal_shape_prefix([states, weights.swapaxes(1, 2)], 2)
    return jnp.einsum("bst,btd->bsd", weights, states, preferred_element_type=jnp.float32)


def _pick(states: jax.Array, tokens: Tokens, is_wanted: jax.Array) -> jax.Array:
    return _weighted_sum(states, _members(tokens, jnp.float32) * is_wanted[:, None, :])


def mean(states: jax.Array, tokens: Tokens) -> jax.Array:
    """`sum_t x_t / n`: the mean over the text's tokens."""
    members = _members(tokens, jnp.float32)
    return _weighted_sum(states, members) / jnp.maximum(members.sum(-1, keepdims=True), 1e-9)


def mean_sqrt_length(states: jax.Array, tokens: Tokens) -> jax.Array:
    """`sum_t x_t / sqrt(n)`."""
    members = _members(tokens, jnp.float32)
    return _weighted_sum(states, members) / jnp.sqrt(jnp.maximum(members.sum(-1, keepdims=True), 1e-9))


def weighted_mean(states: jax.Array, tokens: Tokens) -> jax.Array:
    """`sum_t t x_t / sum_t t` with t = 1..n the position in the text (SGPT, Muennighoff 2022)."""
    weights = _members(tokens, jnp.float32) * (tokens.positions + 1)[:, None, :]
    return _weighted_sum(states, weights) / jnp.maximum(weights.sum(-1, keepdims=True), 1e-9)


def cls(states: jax.Array, tokens: Tokens) -> jax.Array:
    """The state of the text's first token."""
    return _pick(states, tokens, tokens.positions == 0)


def last_token(states: jax.Array, tokens: Tokens) -> jax.Array:
    """The state of the text's last token."""
    following = jnp.pad(tokens.segment_ids[:, 1:], ((0, 0), (0, 1)))
    return _pick(states, tokens, tokens.segment_ids != following)


def max(states: jax.Array, tokens: Tokens) -> jax.Array:
    """The maximum of each dimension over the text's tokens."""
    members = _members(tokens, bool)

    def one_slot(member):  # [B, T] -> [B, D]; a slot at a time, so that [B, S, T, D] never exists
        top = jnp.where(member[..., None], states, -jnp.inf).max(axis=1)
        return jnp.where(member.any(-1, keepdims=True), top, 0.0)

    return jax.lax.map(one_slot, members.swapaxes(0, 1)).swapaxes(0, 1).astype(jnp.float32)
