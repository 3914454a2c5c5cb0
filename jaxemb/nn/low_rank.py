"""Low-rank changes of kernels, beside them or merged: what LoRA and DoRA make of a model."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxemb.checks import checked
from jaxemb.nn.kernels import Kernel, dense, map_kernels, times
from jaxemb.nn.linear import linear_kernels
from jaxemb.trees import PyTree


class Adapter(NamedTuple):
    """What is trained in place of one kernel `[..., in, out]`; layers that are stacked have leading axes.

    Attributes:
      down: A, `[..., in, rank]`.
      up: B, `[..., rank, out]`; 0 at the start.
      magnitude: m of DoRA, `[..., 1, out]`, at the start the length of each column of the kernel; None for LoRA.
    """

    down: jax.Array
    up: jax.Array
    magnitude: jax.Array | None = None


@nnx.dataclass
class LowRank(Kernel):
    """A kernel with an adapter beside it: `y = x W + s (x A) B`, or of DoRA `m / |W + s A B|` times that.

    What is held for the backward pass is of the size of x and of the adapter; of DoRA, the lengths need each layer's
    whole matrix, one at a time.
    """

    base: Any = nnx.data()  # an array or a Kernel
    adapter: Adapter = nnx.data()
    scale: float = nnx.static(default=1.0)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def times(self, x: jax.Array) -> jax.Array:
        down, up, magnitude = self.adapter
        y = times(x, self.base) + self.scale * ((x @ down.astype(x.dtype)) @ up.astype(x.dtype))
        if magnitude is None:
            return y
        changed = jax.lax.stop_gradient(self)
        lengths = column_lengths(_changed(dense(changed.base), changed.adapter, self.scale))
        return y * (magnitude / lengths).astype(x.dtype)

    def dense(self, dtype: Any = jnp.float32) -> jax.Array:
        return merged(dense(self.base), self.adapter, self.scale).astype(dtype)


@checked()
def merge_lora(model: PyTree, adapters: Mapping[str, Adapter], scale: float = 1.0, *, beside: bool = False) -> PyTree:
    """The model with every adapter, by path of its kernel, merged: `W + scale A B`, or DoRA's W' (see `lora`).

    Args:
      model: any.
      adapters: those of arrays that are nowhere in the model do nothing.
      scale: s.
      beside: keep them beside the kernels of `nn.Linear` layers (`nn.LowRank`); for quantised kernels it is always so.
    """
    linear = linear_kernels(model)

    def changed(path: str, kernel: Any) -> Any:
        if path not in adapters:
            return kernel
        if path in linear and (beside or isinstance(kernel, Kernel)):
            return LowRank(kernel, adapters[path], scale)
        return merged(kernel, adapters[path], scale)

    return map_kernels(changed, model)


def merged(kernel: jax.Array, adapter: Adapter, scale: float) -> jax.Array:
    """`W + scale A B`, or DoRA's `m (W + scale A B) / |W + scale A B|`; the length is no path of the gradient."""
    changed = _changed(kernel, adapter, scale)
    if adapter.magnitude is None:
        return changed
    return adapter.magnitude * changed / jax.lax.stop_gradient(column_lengths(changed))


def column_lengths(kernel: jax.Array) -> jax.Array:
    """The length of each column, `[..., 1, out]`."""
    return jnp.linalg.norm(kernel, axis=-2, keepdims=True)


def _changed(kernel: jax.Array, adapter: Adapter, scale: float) -> jax.Array:
    return kernel + scale * (adapter.down @ adapter.up)
