"""The feed-forward part of a layer."""

import jax
from flax import nnx

from jaxemb.nn.activations import ACTIVATIONS
from jaxemb.nn.linear import Linear
from jaxemb.nn.module import Module
from jaxemb.nn.stack_config import StackConfig


@nnx.dataclass
class Mlp(Module):
    """`down(act(up(x)))`, or `down(act(gate(x)) * up(x))` when gated."""

    up: Linear = nnx.data()
    down: Linear = nnx.data()
    gate: Linear | None = nnx.data(default=None)

    @classmethod
    def init(cls, key: jax.Array, c: StackConfig) -> "Mlp":
        ku, kd, kg = jax.random.split(key, 3)
        return cls(
            up=Linear.init(ku, c.dim, c.mlp_dim, c.mlp_bias, c.initializer_range),
            down=Linear.init(kd, c.mlp_dim, c.dim, c.mlp_bias, c.initializer_range),
            gate=Linear.init(kg, c.dim, c.mlp_dim, c.mlp_bias, c.initializer_range) if c.gated else None,
        )

    def __call__(self, x: jax.Array, c: StackConfig) -> jax.Array:
        act = ACTIVATIONS[c.activation]
        return self.down(act(self.up(x)) if self.gate is None else act(self.gate(x)) * self.up(x))
