"""A pooling that learns which tokens matter."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxemb.nn import Linear
from jaxemb.pooling.base import Pooling, members, of_texts, weighted_sum
from jaxemb.types import Tokens


@nnx.dataclass
class Attention(Pooling):
    """`sum_t a_t x_t` with `a = softmax_t <c, tanh(x_t W + b)>`; W, b and the context c are trained.

    References:
      Yang et al. 2016, https://aclanthology.org/N16-1174, equations 5 to 7.
    """

    linear: Linear = nnx.data()  # D to H
    context: jax.Array = nnx.data()  # [H]

    @classmethod
    def init(cls, key: jax.Array, dim: int, hidden: int | None = None) -> "Attention":
        """An attention over states of `dim` dimensions, with `hidden` units (as many if None); at first it is the mean.

        Raises:
          ValueError: for dim or hidden below 1.
        """
        hidden = dim if hidden is None else hidden
        if min(dim, hidden) < 1:
            raise ValueError(f"dim and hidden must be at least 1; got {dim} and {hidden}")
        return cls(Linear.init(key, dim, hidden, bias=True, std=dim**-0.5), jnp.zeros(hidden))

    def __call__(self, states: jax.Array, tokens: Tokens) -> jax.Array:
        units = jnp.tanh(self.linear(states)).astype(jnp.float32)
        scores = jnp.where(members(tokens, bool), (units @ self.context)[:, None], -jnp.inf)  # [B, S, T]
        top = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
        weights = jnp.exp(scores - jnp.where(jnp.isfinite(top), top, 0.0))  # 0 in a slot without tokens
        total = weights.sum(axis=-1, keepdims=True)
        return of_texts(weighted_sum(states, weights / jnp.where(total > 0, total, 1.0)), tokens)
