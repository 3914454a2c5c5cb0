"""Attention of some vectors to others, and a feed-forward: the block of the poolings that are trained."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxemb.checks import checked, size
from jaxemb.nn.activations import gelu
from jaxemb.nn.linear import Linear
from jaxemb.nn.module import Module
from jaxemb.nn.norm import Norm

_EPS = 1e-5


class Context(NamedTuple):
    """Keys and values `[..., m, H, e]` of what is attended to."""

    keys: jax.Array
    values: jax.Array


@nnx.dataclass
class CrossAttention(Module):
    """What queries x `[..., n, D]` make of a context c `[..., m, C]`:

        y = x + concat_h(softmax(q_h k_h^T / sqrt(e)) v_h) W_o,   q = N_q(x) W_q,  k = N_c(c) W_k,  v = N_c(c) W_v
        u = y + (a * gelu(b)) W_2 + b_2,                          a = N_f(y) W_a + b_a,  b = N_f(y) W_b + b_b

    with layer norms N, weights of the softmax in f32, and the exact gelu. There are H heads of the width e, which need
    not be D / H.
    """

    query_norm: Norm = nnx.data()
    context_norm: Norm = nnx.data()
    query: Linear = nnx.data()  # D to H e
    key: Linear = nnx.data()  # C to H e
    value: Linear = nnx.data()
    out: Linear = nnx.data()  # H e to D
    mlp_norm: Norm = nnx.data()
    up: Linear = nnx.data()  # W_a
    gate: Linear = nnx.data()  # W_b
    down: Linear = nnx.data()  # W_2
    heads: int = nnx.static(kw_only=True)

    @classmethod
    @checked(dim=size, heads=size, head_dim=size, context_dim=size, mlp_ratio=size)
    def init(
        cls,
        key: jax.Array,
        dim: int,
        *,
        heads: int,
        head_dim: int,
        context_dim: int | None = None,
        mlp_ratio: int = 4,
    ) -> "CrossAttention":
        """New weights for queries of `dim` and a context of `context_dim` (as many if None) dimensions."""
        context_dim, width, hidden = context_dim or dim, heads * head_dim, mlp_ratio * dim
        keys = iter(jax.random.split(key, 7))
        linear = lambda n_in, n_out, bias=False: Linear.init(next(keys), n_in, n_out, bias, n_in**-0.5)
        return cls(
            query_norm=Norm.init(dim, eps=_EPS),
            context_norm=Norm.init(context_dim, eps=_EPS),
            query=linear(dim, width),
            key=linear(context_dim, width),
            value=linear(context_dim, width),
            out=linear(width, dim),
            mlp_norm=Norm.init(dim, eps=_EPS),
            up=linear(dim, hidden, True),
            gate=linear(dim, hidden, True),
            down=linear(hidden, dim, True),
            heads=heads,
        )

    def read(self, context: jax.Array) -> Context:
        """The keys and values of a context `[..., m, C]`."""
        normed = self.context_norm(context)
        return Context(self._by_head(self.key(normed)), self._by_head(self.value(normed)))

    def __call__(self, x: jax.Array, context: Context | jax.Array, seen: jax.Array | None = None) -> jax.Array:
        """u `[..., n, D]`.

        Args:
          x: the queries, `[..., n, D]`; leading axes are as those of the context, or are broadcast.
          context: `[..., m, C]`, or what `read` made of it.
          seen: which of the context each query sees, bool `[..., n, m]` or `[..., 1, m]`; None is all. What sees none
            gets none.
        """
        keys, values = self.read(context) if isinstance(context, jax.Array) else context
        q = self._by_head(self.query(self.query_norm(x)))
        logits = jnp.einsum("...nhe,...mhe->...hnm", q, keys, preferred_element_type=jnp.float32)
        logits = logits / math.sqrt(keys.shape[-1])
        if seen is None:
            weights = jax.nn.softmax(logits)
        else:
            seen = seen[..., None, :, :]
            weights = jnp.where(seen, jax.nn.softmax(jnp.where(seen, logits, -1e30)), 0.0)
        found = jnp.einsum("...hnm,...mhe->...nhe", weights.astype(values.dtype), values)
        y = x + self.out(found.reshape(*found.shape[:-2], -1))
        normed = self.mlp_norm(y)
        return y + self.down(self.up(normed) * gelu(self.gate(normed)))

    def _by_head(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], self.heads, -1)
