"""Poolings without weights, as sentence-transformers defines them, and the names that it gives them."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from jaxemb.checks import checked
from jaxemb.pooling.base import Concatenation, Pooling, members, of_texts, weighted_sum
from jaxemb.types import Tokens

_LEAST = 1e-9  # divides what is empty


def _pick(states: jax.Array, tokens: Tokens, is_wanted: jax.Array) -> jax.Array:
    return of_texts(weighted_sum(states, members(tokens) * is_wanted[:, None, :]), tokens)


@nnx.dataclass
class Cls(Pooling):
    """The state of the text's first token."""

    def __call__(self, states: jax.Array, tokens: Tokens) -> jax.Array:
        preceding = jnp.pad(tokens.segment_ids[:, :-1], ((0, 0), (1, 0)))
        return _pick(states, tokens, tokens.segment_ids != preceding)


@nnx.dataclass
class LastToken(Pooling):
    """The state of the text's last token."""

    def __call__(self, states: jax.Array, tokens: Tokens) -> jax.Array:
        following = jnp.pad(tokens.segment_ids[:, 1:], ((0, 0), (0, 1)))
        return _pick(states, tokens, tokens.segment_ids != following)


@nnx.dataclass
class Mean(Pooling):
    """`sum_t x_t / n`: the mean over the text's tokens."""

    def __call__(self, states: jax.Array, tokens: Tokens) -> jax.Array:
        weights = members(tokens)
        return of_texts(weighted_sum(states, weights) / jnp.maximum(weights.sum(-1, keepdims=True), _LEAST), tokens)


@nnx.dataclass
class MeanSqrtLength(Pooling):
    """`sum_t x_t / sqrt(n)`."""

    def __call__(self, states: jax.Array, tokens: Tokens) -> jax.Array:
        weights = members(tokens)
        counts = jnp.maximum(weights.sum(-1, keepdims=True), _LEAST)
        return of_texts(weighted_sum(states, weights) / jnp.sqrt(counts), tokens)


@nnx.dataclass
class WeightedMean(Pooling):
    """`sum_t t x_t / sum_t t` with t = 1..n the position in the text (SGPT, Muennighoff 2022)."""

    def __call__(self, states: jax.Array, tokens: Tokens) -> jax.Array:
        weights = members(tokens) * (tokens.positions + 1)[:, None, :]
        return of_texts(weighted_sum(states, weights) / jnp.maximum(weights.sum(-1, keepdims=True), _LEAST), tokens)


@nnx.dataclass
class Max(Pooling):
    """The maximum of each dimension over the text's tokens."""

    def __call__(self, states: jax.Array, tokens: Tokens) -> jax.Array:
        def one_slot(member):  # [B, T] -> [B, D]; a slot at a time, so that [B, S, T, D] never exists
            top = jnp.where(member[..., None], states, -jnp.inf).max(axis=1)
            return jnp.where(member.any(-1, keepdims=True), top, 0.0)

        by_slot = jax.lax.map(one_slot, members(tokens, bool).swapaxes(0, 1)).swapaxes(0, 1)
        return of_texts(by_slot.astype(jnp.float32), tokens)


@nnx.dataclass
class AtToken(Pooling):
    """The state at the text's token `id`, such as [MASK] in a prompt; of several their mean, of none NaN."""

    id: int = nnx.static()

    def __call__(self, states: jax.Array, tokens: Tokens) -> jax.Array:
        weights = members(tokens) * (tokens.ids == self.id)[:, None, :]
        return of_texts(weighted_sum(states, weights) / weights.sum(-1, keepdims=True), tokens)


#: The names of sentence-transformers, which stand in model directories.
POOLINGS: Mapping[str, type[Pooling]] = {
    "cls": Cls,
    "mean": Mean,
    "max": Max,
    "mean_sqrt_len_tokens": MeanSqrtLength,
    "weightedmean": WeightedMean,
    "lasttoken": LastToken,
}


@checked()
def named(names: Sequence[str]) -> Pooling:
    """The pooling of these names of `POOLINGS`; of several their concatenation.

    Raises:
      ValueError: for no name, or one that is not in `POOLINGS`.
    """
    if not names or isinstance(names, str) or not set(names) <= POOLINGS.keys():
        raise ValueError(f"names of a pooling must be one or several of {sorted(POOLINGS)}; got {names!r}")
    parts = tuple(POOLINGS[name]() for name in names)
    return parts[0] if len(parts) == 1 else Concatenation(parts)


@checked()
def names_of(pooling: Pooling) -> tuple[str, ...] | None:
    """The names of which `named` makes this pooling; None if there are none."""
    parts = pooling.parts if isinstance(pooling, Concatenation) else (pooling,)
    name_of = {kind: name for name, kind in POOLINGS.items()}
    names = tuple(name_of[type(part)] for part in parts if type(part) in name_of)
    return names if len(names) == len(parts) else None
