"""Encoder, pooling and heads as one module."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxemb.encoders.encoder import Encoder, LayeredEncoder
from jaxemb.encoders.transformer import Transformer
from jaxemb.nn import ACTIVATIONS, Linear, Module, Norm, unit
from jaxemb.pooling import AllLayers, Mean, Pooling


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
    """A batch to one vector per text (or image): any encoder, then a pooling, then heads in order.

    Raises:
      TypeError: for a pooling that is no `jaxemb.pooling.Pooling`.
    """

    encoder: Encoder = nnx.data()
    heads: tuple[Head, ...] = nnx.data(default=())
    pooling: Pooling = nnx.data(default_factory=Mean)

    def __post_init__(self):
        if not isinstance(self.pooling, Pooling):
            raise TypeError(f"pooling must be a jaxemb.pooling.Pooling, such as Mean(); got {self.pooling!r}")

    def __call__(self, batch: Any, *, key: jax.Array | None = None, dim: int | None = None) -> jax.Array:
        """Embeddings f32 `[N, D]`.

        Args:
          batch: what the encoder reads, such as `Tokens` of N texts, one or several per row.
          key: dropout key; None turns dropout off.
          dim: keep the first `dim` dimensions (Matryoshka); re-normalised if the model normalises.

        Raises:
          ValueError: if `dim` is not in 1..D.
        """
        return self._cut(self._through_heads(self._pooled(batch, key)), dim)

    def at_layers(self, batch: Any, layers: Sequence[int], *, key: jax.Array | None = None) -> jax.Array:
        """The embeddings that this model cut to each of several depths gives, of one pass, f32 `[N, len(layers), D]`.

        Args:
          batch: what the encoder reads.
          layers: numbers of layers, in any order; 0 is the encoder's embedding layer alone.
          key: dropout key; None turns dropout off.

        Raises:
          ValueError: if a number of layers is not in 0..L.
          TypeError: if the encoder has no layers, or the pooling reads all of them.
        """
        self._check_cut()
        pooled = self._layered().at_layers(batch, layers, lambda states: self.pooling(states, batch), key=key)
        return self._through_heads(pooled).swapaxes(0, 1)

    def at_sizes(
        self, batch: Any, sizes: Sequence[tuple[int, int]], *, key: jax.Array | None = None
    ) -> tuple[jax.Array, ...]:
        """The embeddings at each of `sizes` = ((layers, dim), ...), of one pass: a tuple of f32 `[N, dim]`.

        Each is what `self.truncate(layers, dim)` gives. Raises ValueError for a size that the model does not have.
        """
        layers = sorted({n for n, _ in sizes})
        x = self.at_layers(batch, layers, key=key)
        return tuple(self._cut(x[:, layers.index(n)], dim) for n, dim in sizes)

    def truncate(self, layers: int | None = None, dim: int | None = None) -> "Embedder":
        """The model with the first `layers` layers only, and the first `dim` dimensions of its embeddings.

        As a model directory cannot say that embeddings are cut, a `Dense` head does it: the last one, if embeddings
        are its outputs, or else a new one, `x I[:, :dim]`. It stands before a final `Normalize`.

        Raises:
          ValueError: if `layers` is not in 1..L or `dim` not in 1..D.
          TypeError: for `layers`, if the encoder has none, or the pooling reads all of them.
        """
        if layers is not None:
            self._check_cut()
        encoder = self.encoder if layers is None else self._layered().truncate(layers)
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

    def _pooled(self, batch: Any, key: jax.Array | None) -> jax.Array:
        if not isinstance(self.pooling, AllLayers):
            return self.pooling(self.encoder(batch, key=key), batch)
        read = lambda states: self.pooling.each(states, batch)
        layers = range(1, self._layered().depth + 1)
        return self.pooling.over_layers(self._layered().at_layers(batch, layers, read, key=key, raw=True))

    def _check_cut(self) -> None:
        if isinstance(self.pooling, AllLayers):
            raise TypeError("a model whose pooling reads all layers has no fewer; give it another pooling")

    def _layered(self) -> LayeredEncoder:
        if not isinstance(self.encoder, LayeredEncoder):
            raise TypeError(f"the encoder, a {type(self.encoder).__name__}, has no layers to cut or read")
        return self.encoder

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
        return kernels[-1].shape[-1] if kernels else self.pooling.output_dim(self.encoder.dim)

    @property
    def depth(self) -> int:
        """The encoder's number of layers L. Raises TypeError if it has none."""
        return self._layered().depth


def transformer_of(model: Embedder) -> Transformer:
    """The model's encoder, where it has to be a transformer over tokens. Raises TypeError for another."""
    if not isinstance(model.encoder, Transformer):
        raise TypeError(f"the encoder must be a Transformer; got a {type(model.encoder).__name__}")
    return model.encoder
