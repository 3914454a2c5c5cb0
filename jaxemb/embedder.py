"""Encoder, pooling and heads as one module."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from jaxemb import pooling
from jaxemb.encoders.transformer import Transformer
from jaxemb.nn import ACTIVATIONS, Linear, Module, Norm, unit
from jaxemb.types import Tokens

# The names that sentence-transformers gives them in a model directory.
POOLINGS: Mapping[str, pooling.Pooling] = {
    "cls": pooling.cls,
    "mean": pooling.mean,
    "max": pooling.max,
    "mean_sqrt_len_tokens": pooling.mean_sqrt_length,
    "weightedmean": pooling.weighted_mean,
    "lasttoken": pooling.last_token,
}


@nnx.dataclass
class Dense(Module):
    """Head `activation(x W + b)`. Raises ValueError for an activation that `jaxemb.nn.ACTIVATIONS` does not have."""

    linear: Linear = nnx.data()
    activation: str = nnx.static(default="identity")

    def __post_init__(self):
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}; got {self.activation!r}")

    def __call__(self, x: jax.Array) -> jax.Array:
        return ACTIVATIONS[self.activation](self.linear(x))


@nnx.dataclass
class Normalize(Module):
    """Head that gives embeddings unit length."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return unit(x)


Head = Dense | Normalize | Norm


@nnx.dataclass
class Embedder(Module):
    """Tokens to one vector per text: encoder, then pooling (several are concatenated), then heads in order.

    Raises:
      ValueError: for no pooling, or one that is not in `POOLINGS`.
    """

    encoder: Transformer = nnx.data()
    heads: tuple[Head, ...] = nnx.data(default=())
    pooling: tuple[str, ...] = nnx.static(default=("mean",))

    def __post_init__(self):
        if not self.pooling or isinstance(self.pooling, str) or not set(self.pooling) <= POOLINGS.keys():
            raise ValueError(f"pooling must be a tuple of some of {sorted(POOLINGS)}; got {self.pooling!r}")

    def __call__(self, tokens: Tokens, *, key: jax.Array | None = None, dim: int | None = None) -> jax.Array:
        """Embeddings of the texts, f32 `[N, D]`.

        Args:
          tokens: N texts, one or several per row.
          key: dropout key; None turns dropout off.
          dim: keep the first `dim` dimensions (Matryoshka); re-normalised if the model normalises.

        Raises:
          ValueError: if `dim` is not in 1..D.
        """
        return self._cut(self._through_heads(self._pool(self.encoder(tokens, key=key), tokens)), dim)

    def at_layers(self, tokens: Tokens, layers: Sequence[int], *, key: jax.Array | None = None) -> jax.Array:
        """The embeddings that this model cut to each of several depths gives, of one pass, f32 `[N, len(layers), D]`.

        Args:
          tokens: N texts, one or several per row.
          layers: numbers of layers, in any order; 0 is the encoder's embedding layer alone.
          key: dropout key; None turns dropout off.

        Raises:
          ValueError: if a number of layers is not in 0..L.
        """
        pooled = self.encoder.at_layers(tokens, layers, lambda states: self._pool(states, tokens), key=key)
        return self._through_heads(pooled).swapaxes(0, 1)

    def at_sizes(
        self, tokens: Tokens, sizes: Sequence[tuple[int, int]], *, key: jax.Array | None = None
    ) -> tuple[jax.Array, ...]:
        """The embeddings at each of `sizes` = ((layers, dim), ...), of one pass: a tuple of f32 `[N, dim]`.

        Each is what `self.truncate(layers, dim)` gives. Raises ValueError for a size that the model does not have.
        """
        layers = sorted({n for n, _ in sizes})
        x = self.at_layers(tokens, layers, key=key)
        return tuple(self._cut(x[:, layers.index(n)], dim) for n, dim in sizes)

    def truncate(self, layers: int | None = None, dim: int | None = None) -> "Embedder":
        """The model with the first `layers` layers only, and the first `dim` dimensions of its embeddings.

        As a model directory cannot say that embeddings are cut, a `Dense` head does it: the last one, if embeddings
        are its outputs, or else a new one, `x I[:, :dim]`. It stands before a final `Normalize`.

        Raises:
          ValueError: if `layers` is not in 1..L or `dim` not in 1..D.
        """
        encoder = self.encoder if layers is None else self.encoder.truncate(layers)
        if dim is None or dim == self.dim:
            return dataclasses.replace(self, encoder=encoder)
        self._check_dim(dim, self.dim)
        end = len(self.heads) - self.normalizes
        before, after = self.heads[:end], self.heads[end:]
        if before and isinstance(before[-1], Dense):
            linear = jax.tree.map(lambda leaf: leaf[..., :dim], before[-1].linear)
            before = (*before[:-1], dataclasses.replace(before[-1], linear=linear))
        else:
            before = (*before, Dense(linear=Linear(jnp.eye(self.dim, dim))))
        return dataclasses.replace(self, encoder=encoder, heads=(*before, *after))

    def _pool(self, states: jax.Array, tokens: Tokens) -> jax.Array:
        """States `[B, T, D]` to `[N, D * poolings]`."""
        x = jnp.concatenate([POOLINGS[name](states, tokens) for name in self.pooling], axis=-1)
        x = x.reshape(-1, x.shape[-1])
        return x if tokens.slots is None else x[tokens.slots]

    def _through_heads(self, x: jax.Array) -> jax.Array:
        for head in self.heads:
            x = head(x)
        return x

    def _cut(self, x: jax.Array, dim: int | None) -> jax.Array:
        if dim is None or dim == x.shape[-1]:
            return x
        self._check_dim(dim, x.shape[-1])
        return unit(x[..., :dim]) if self.normalizes else x[..., :dim]

    @staticmethod
    def _check_dim(dim: int, most: int) -> None:
        if not 1 <= dim <= most:
            raise ValueError(f"dim must be in 1..{most}, the dimension of the embeddings; got {dim}")

    @property
    def normalizes(self) -> bool:
        """Whether the embeddings have unit length."""
        return bool(self.heads) and isinstance(self.heads[-1], Normalize)

    @property
    def dim(self) -> int:
        """Dimension D of the embeddings."""
        kernels = [head.linear.kernel for head in self.heads if isinstance(head, Dense)]
        return kernels[-1].shape[-1] if kernels else self.encoder.config.dim * len(self.pooling)
