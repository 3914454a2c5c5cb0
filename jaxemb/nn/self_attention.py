"""The attention of a layer: projections around `attention`."""

from typing import NamedTuple

import jax
from flax import nnx

from jaxemb.nn.attention import Windows, attention
from jaxemb.nn.linear import Linear
from jaxemb.nn.module import Module
from jaxemb.nn.norm import Norm
from jaxemb.nn.rope import rotate
from jaxemb.nn.stack_config import StackConfig, make_norm


class View(NamedTuple):
    """What decides which tokens a layer's queries see, and how they weigh them by place.

    Attributes:
      segments: text of each token, int `[B, T]`.
      window: see `attention`.
      bias: see `attention`.
      rope: cos and sin, each `[B, T, 1, h]`, see `rotate`; None is no rotation.
      prefix: see `attention`.
    """

    segments: jax.Array
    window: int | Windows | None
    bias: jax.Array | None
    rope: tuple[jax.Array, jax.Array] | None
    prefix: jax.Array | None = None


@nnx.dataclass
class SelfAttention(Module):
    """Multi-head attention; query head i reads key/value head `i // (heads / kv_heads)`."""

    query: Linear = nnx.data()
    key: Linear = nnx.data()
    value: Linear = nnx.data()
    out: Linear = nnx.data()
    query_norm: Norm | None = nnx.data(default=None)
    key_norm: Norm | None = nnx.data(default=None)

    @classmethod
    def init(cls, key: jax.Array, c: StackConfig) -> "SelfAttention":
        kq, kk, kv, ko = jax.random.split(key, 4)
        q_dim, kv_dim = c.heads * c.head_size, c.n_kv_heads * c.head_size
        norm = make_norm(c, c.head_size) if c.query_key_norm else None
        return cls(
            query=Linear.init(kq, c.dim, q_dim, c.qkv_bias, c.initializer_range),
            key=Linear.init(kk, c.dim, kv_dim, c.qkv_bias, c.initializer_range),
            value=Linear.init(kv, c.dim, kv_dim, c.qkv_bias, c.initializer_range),
            out=Linear.init(ko, q_dim, c.dim, c.out_bias, c.initializer_range),
            query_norm=norm,
            key_norm=norm,
        )

    def __call__(self, x: jax.Array, c: StackConfig, view: View, dropout_key: jax.Array | None) -> jax.Array:
        *lead, _ = x.shape
        q = self.query(x).reshape(*lead, c.heads, c.head_size)
        k = self.key(x).reshape(*lead, c.n_kv_heads, c.head_size)
        v = self.value(x).reshape(*lead, c.n_kv_heads, c.head_size)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if view.rope is not None:
            q, k = rotate(q, view.rope), rotate(k, view.rope)
        y = attention(
            q,
            k,
            v,
            view.segments,
            causal=c.causal,
            prefix=view.prefix,
            window=view.window,
            bias=view.bias,
            scale=c.attention_scale,
            soft_cap=c.attention_soft_cap,
            dropout=c.attention_dropout,
            key=dropout_key,
            implementation=c.attention_implementation,
        )
        return self.out(y.reshape(*lead, c.heads * c.head_size))
