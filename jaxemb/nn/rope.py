"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864)."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxemb.checks import check_fields, checked


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding, rotate-half layout: angle of dimension pair j is `position * frequencies[j]`.

    `base` gives `frequencies[j] = base ** (-2j / head_dim)`. Scaled variants (linear, llama3, yarn, ...) only
    change the frequencies and the factor on cos and sin, so a family computes them and passes them here.

    Raises:
      ValueError: for a base or factor that is not finite and > 0.
    """

    base: float = 10_000.0
    frequencies: tuple[float, ...] | None = None
    attention_factor: float = 1.0

    def __post_init__(self):
        check_fields(self, "finite and > 0", lambda x: 0 < x < math.inf, "base", "attention_factor")

    def tables(self, positions: jax.Array, head_dim: int) -> tuple[jax.Array, jax.Array]:
        """cos and sin of the angles at positions `[B, T]` in f32, each `[B, T, 1, head_dim]`."""
        frequencies = self.frequencies or tuple(self.base ** (-2 * j / head_dim) for j in range(head_dim // 2))
        angles = positions[..., None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)
        angles = jnp.concatenate([angles, angles], axis=-1)[:, :, None, :]
        return jnp.cos(angles) * self.attention_factor, jnp.sin(angles) * self.attention_factor


@checked()
def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """`x` `[B, T, H, h]` turned by the angles of `RopeConfig.tables`, rotate-half layout, in f32."""
    cos, sin = tables
    y = x.astype(jnp.float32)
    first, second = jnp.split(y, 2, axis=-1)
    return (y * cos + jnp.concatenate([-second, first], axis=-1) * sin).astype(x.dtype)
