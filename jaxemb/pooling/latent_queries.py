"""Poolings by trained queries, over tokens, over one vector, or over the vectors of all layers (Tang and Yang 2024)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxemb.checks import checked, size
from jaxemb.nn import CrossAttention
from jaxemb.pooling.base import Pooling, members, of_texts
from jaxemb.pooling.plain import LastToken, Mean
from jaxemb.types import Tokens


@nnx.dataclass
class LatentQueries(Pooling):
    """The mean over r latents of what they make of a text, by `jaxemb.nn.CrossAttention`: latents ask, tokens answer.

    The other way round than `LatentAttention`.

    Attributes:
      latents: `[r, D]`.
      block: its queries are the latents, its context is the states of a text's tokens.
      first: a pooling whose one vector is read in place of the tokens; then the softmax has one key, and the block is
        a feed-forward. None for the tokens.

    References:
      Tang and Yang 2024, arXiv 2409.02727; with `first=LastToken()` its model 2, without and with bidirectional
      attention its model 4.
    """

    latents: jax.Array = nnx.data()
    block: CrossAttention = nnx.data()
    first: Pooling | None = nnx.data(default=None)

    @classmethod
    @checked(dim=size, latents=size, heads=size, head_dim=size)
    def init(
        cls,
        key: jax.Array,
        dim: int,
        *,
        latents: int = 768,
        heads: int = 32,
        head_dim: int | None = None,
        first: Pooling | None = None,
    ) -> "LatentQueries":
        """New weights for states of `dim` dimensions; latents are standard normal.

        Args:
          key: random key.
          dim: D.
          latents: r.
          heads, head_dim: H and e; e is D / 2 if None, as in the published code.
          first: see above.
        """
        key_latents, key_block = jax.random.split(key)
        block = CrossAttention.init(key_block, dim, heads=heads, head_dim=head_dim or max(dim // 2, 1))
        return cls(jax.random.normal(key_latents, (latents, dim)), block, first)

    def of_vectors(self, vectors: jax.Array) -> jax.Array:
        """Of n vectors for each text, `[N, n, D]`, one for each, `[N, D]`."""
        latents = jnp.broadcast_to(self.latents.astype(vectors.dtype), (len(vectors), *self.latents.shape))
        return self.block(latents, self.block.read(vectors)).mean(axis=1)

    def __call__(self, states: jax.Array, tokens: Tokens) -> jax.Array:
        if self.first is not None:
            return self.of_vectors(self.first(states, tokens)[:, None])
        context = self.block.read(states)
        latents = jnp.broadcast_to(self.latents.astype(states.dtype), (len(states), *self.latents.shape))

        def one_slot(member):  # [B, T] -> [B, D]
            found = self.block(latents, context, member[:, None, :]).astype(jnp.float32).mean(axis=1)
            return jnp.where(member.any(axis=1, keepdims=True), found, 0.0)

        return of_texts(jax.lax.map(one_slot, members(tokens, bool).swapaxes(0, 1)).swapaxes(0, 1), tokens)

    @property
    def reads_prompt(self) -> bool:
        return self.first is not None and self.first.reads_prompt


@nnx.dataclass
class AllLayers(Pooling):
    """A pooling that reads the states after every layer, `[L, B, T, D]`, as `all_states` gives them but for the first.

    In an `Embedder` each layer's states are pooled when they are made, so that only `[L, N, D]` is kept.

    Attributes:
      each: of one layer's states, `[B, T, D]`, a vector for each text.
      layers: added to the vectors of each layer, `[L, D]`.
      over: of a text's L vectors, one.

    References:
      Tang and Yang 2024, arXiv 2409.02727, multi-layers trainable pooling: model 3 with `LastToken()` and causal,
      model 5 with `Mean()` and bidirectional attention.
    """

    each: Pooling = nnx.data()
    layers: jax.Array = nnx.data()
    over: LatentQueries = nnx.data()

    @classmethod
    @checked(dim=size, layers=size)
    def init(
        cls, key: jax.Array, dim: int, layers: int, each: Pooling | None = None, *, std: float = 1.0, **options: Any
    ) -> "AllLayers":
        """New weights for `layers` layers of states of `dim` dimensions.

        Args:
          key: random key.
          dim: D.
          layers: L, all of the encoder.
          each: None for `Mean()`.
          std: of the normal vectors that are added. Early layers have small states, of which 1, as in the published
            code, leaves little to see.
          **options: `latents`, `heads`, `head_dim` of `LatentQueries.init`.
        """
        key_layers, key_over = jax.random.split(key)
        added = std * jax.random.normal(key_layers, (layers, dim))
        return cls(Mean() if each is None else each, added, LatentQueries.init(key_over, dim, **options))

    def over_layers(self, vectors: jax.Array) -> jax.Array:
        """Of the vectors of all layers, `[L, N, D]`, one for each text, `[N, D]`.

        Raises:
          ValueError: for another number of layers.
        """
        if len(vectors) != len(self.layers):
            raise ValueError(
                f"vectors must be of {len(self.layers)} layers, which the pooling was made for; got {len(vectors)}"
            )
        return self.over.of_vectors((vectors + self.layers[:, None]).swapaxes(0, 1))

    def __call__(self, states: jax.Array, tokens: Tokens) -> jax.Array:
        return self.over_layers(jax.lax.map(lambda layer: self.each(layer, tokens), states))

    @property
    def reads_prompt(self) -> bool:
        return self.each.reads_prompt


@checked(dim=size, layers=size)
def pooling_design(number: int, key: jax.Array, dim: int, layers: int, **options: Any) -> tuple[Pooling, bool]:
    """One of the five designs of Tang and Yang 2024: a pooling, and whether attention is to be causal.

        1  causal          the last token's state
        2  causal          `LatentQueries` over that one vector
        3  causal          `AllLayers` of last tokens
        4  bidirectional   `LatentQueries` over all tokens
        5  bidirectional   `AllLayers` of means

    Args:
      number: 1 to 5.
      key: random key.
      dim, layers: D and L of the encoder.
      **options: `latents`, `heads`, `head_dim` of `LatentQueries.init`.

    Raises:
      ValueError: for another number.
    """
    if number not in range(1, 6):
        raise ValueError(f"number must be in 1..5; got {number}")
    if number == 1:
        return LastToken(), True
    if number in (3, 5):
        return AllLayers.init(key, dim, layers, LastToken() if number == 3 else Mean(), **options), number == 3
    over = LatentQueries.init(key, dim, **options)
    return (dataclasses.replace(over, first=LastToken()), True) if number == 2 else (over, False)
