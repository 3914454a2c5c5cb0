"""LayerNorm and RMSNorm."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxemb.nn.module import Module


@nnx.dataclass
class Norm(Module):
    """LayerNorm (`kind` "layer") or RMSNorm ("rms") over the last axis, computed in f32.

    Raises:
      ValueError: for another kind, or an eps that is not positive.
    """

    weight: jax.Array = nnx.data()
    bias: jax.Array | None = nnx.data(default=None)
    kind: str = nnx.static(default="layer")
    eps: float = nnx.static(default=1e-12)
    weight_offset: float = nnx.static(default=0.0)

    def __post_init__(self):
        if self.kind not in ("layer", "rms"):
            raise ValueError(f"kind must be 'layer' or 'rms'; got {self.kind!r}")
        if not self.eps > 0:
            raise ValueError(f"eps must be > 0; got {self.eps}")

    @classmethod
    def init(
        cls, dim: int, *, kind: str = "layer", bias: bool = True, eps: float = 1e-12, offset: float = 0.0
    ) -> "Norm":
        """Scales by 1 and shifts by 0; the weight is stored less `offset`."""
        return cls(jnp.full(dim, 1.0 - offset), jnp.zeros(dim) if bias else None, kind, eps, offset)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        if self.kind == "layer":
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        y = y * (self.weight.astype(jnp.float32) + self.weight_offset)
        return (y if self.bias is None else y + self.bias).astype(x.dtype)
