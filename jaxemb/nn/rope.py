"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864). What stretches it: `jaxemb.nn.rope_scaling`."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxemb.checks import check_fields, check_types, checked, shapes


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding, rotate-half layout: angle of dimension pair j is `position * frequencies[j]`.

    Which frequencies, may depend on how long a text is. That is its own length, so that no text changes another's
    vector; transformers takes that of the longest text of the batch.

    Attributes:
      base: `frequencies[j] = base ** (-2j / head_dim)`, unless they are given.
      frequencies: of pairs of dimensions, from the first on; dimensions of a head that have none are not turned.
      attention_factor: of cos and sin.
      trained_length: longest text, in tokens, that the above is for; None is any. Longer texts have
      long_frequencies: these, or
      dynamic_factor: f, the frequencies of the base `base (f n / L - f + 1) ** (h / (h - 2))`, for a text of n tokens,
        L trained ones and h turned dimensions.

    Raises:
      ValueError: for a base or factor that is not finite and > 0, or what long texts have without a trained length.
    """

    base: float = 10_000.0
    frequencies: tuple[float, ...] | None = None
    attention_factor: float = 1.0
    trained_length: int | None = None
    long_frequencies: tuple[float, ...] | None = None
    dynamic_factor: float | None = None

    def __post_init__(self):
        check_fields(self, "finite and > 0", lambda x: 0 < x < math.inf, "base", "attention_factor")
        check_types(self)
        check_fields(self, "finite and > 0, or None", lambda x: x is None or 0 < x < math.inf, "dynamic_factor")
        if (self.trained_length is not None) != (self.long_frequencies is not None or self.dynamic_factor is not None):
            raise ValueError("trained_length goes with long_frequencies or dynamic_factor; got one without the other")
        if self.frequencies and self.long_frequencies and len(self.frequencies) != len(self.long_frequencies):
            expected = f"long_frequencies must be as many as frequencies, {len(self.frequencies)}"
            raise ValueError(f"{expected}; got {len(self.long_frequencies)}")

    def pairs(self, head_dim: int) -> int:
        """How many pairs of a head's dimensions are turned."""
        return len(self.frequencies) if self.frequencies is not None else head_dim // 2

    def tables(
        self, positions: jax.Array, head_dim: int, lengths: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """cos and sin of the angles in f32, each `[B, T, 1, 2 pairs]`.

        Args:
          positions: `[B, T]`.
          head_dim: size of a head.
          lengths: of the text that each token is in, `[B, T]`; needed with a `trained_length`.
        """
        angles = positions[..., None].astype(jnp.float32) * self._frequencies(head_dim, lengths)
        angles = jnp.concatenate([angles, angles], axis=-1)[:, :, None, :]
        return jnp.cos(angles) * self.attention_factor, jnp.sin(angles) * self.attention_factor

    def _frequencies(self, head_dim: int, lengths: jax.Array | None) -> jax.Array:
        """`[pairs]`, or `[B, T, pairs]` where they depend on the text."""
        dim = 2 * self.pairs(head_dim)
        own = self.frequencies or tuple(self.base ** (-2 * j / dim) for j in range(dim // 2))
        frequencies = jnp.asarray(own, jnp.float32)
        if self.trained_length is None:
            return frequencies
        assert lengths is not None
        is_long = (lengths > self.trained_length)[..., None]
        if self.long_frequencies is not None:
            return jnp.where(is_long, jnp.asarray(self.long_frequencies, jnp.float32), frequencies)
        assert self.dynamic_factor is not None
        excess = jnp.maximum(lengths / self.trained_length - 1, 0)
        exponents = -2 * np.arange(dim // 2) / max(dim - 2, 1)  # of a power h / (h - 2) of what the base is times
        return frequencies * (1 + self.dynamic_factor * excess[..., None]) ** exponents.astype(np.float32)


@checked()
def text_lengths(segments: jax.Array, positions: jax.Array) -> jax.Array:
    """The number of tokens of the text that each token is in, int32 `[B, T]`, of what a `Layout` holds."""
    places = jnp.arange(segments.shape[1], dtype=jnp.int32)
    is_last = segments != jnp.pad(segments[:, 1:], ((0, 0), (0, 1)))
    last = jax.lax.cummin(jnp.where(is_last, places, segments.shape[1] - 1), axis=1, reverse=True)
    return jnp.take_along_axis(positions, last, axis=1) + 1


@checked(shapes(x="B T H h"))
def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """`x` `[B, T, H, h]` turned by the angles of `RopeConfig.tables`, rotate-half layout, in f32."""
    cos, sin = tables
    rows, length, _, size = x.shape
    for name, table in {"tables[0]": cos, "tables[1]": sin}.items():
        if table.shape[:-1] not in ((rows, length, 1), (1, length, 1)) or not 0 < table.shape[-1] <= size:
            expected = f"[B, T, 1, 2 pairs] with B, T = {(rows, length)} and at most {size} for x {x.shape}"
            raise ValueError(f"{name} must be {expected}; got {table.shape}")
    if cos.shape != sin.shape or cos.shape[-1] % 2:
        raise ValueError(f"tables must be two of one shape, even in its last axis; got {cos.shape} and {sin.shape}")
    y, rest = x[..., : cos.shape[-1]].astype(jnp.float32), x[..., cos.shape[-1] :]
    first, second = jnp.split(y, 2, axis=-1)
    turned = (y * cos + jnp.concatenate([-second, first], axis=-1) * sin).astype(x.dtype)
    return jnp.concatenate([turned, rest], axis=-1) if rest.shape[-1] else turned
