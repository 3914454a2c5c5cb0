"""The linear layer."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxemb.checks import checked, numbers, size
from jaxemb.nn.kernels import times
from jaxemb.nn.module import Module
from jaxemb.trees import PyTree, by_path


@nnx.dataclass
class Linear(Module):
    """`y = x W + b` with W `[in, out]`, an array or an `nn.Kernel`: quantised, or with an adapter beside it."""

    kernel: Any = nnx.data()
    bias: jax.Array | None = nnx.data(default=None)

    @classmethod
    def init(cls, key, n_in: int, n_out: int, bias: bool, std: float) -> "Linear":
        kernel = std * jax.random.truncated_normal(key, -2.0, 2.0, (n_in, n_out))
        return cls(kernel, jnp.zeros(n_out) if bias else None)

    def __call__(self, x: jax.Array) -> jax.Array:
        # As a matrix: XLA's CPU backend takes twice as long for a kernel gradient that contracts two axes of x.
        y = times(x.reshape(-1, x.shape[-1]), self.kernel)
        y = y if self.bias is None else y + self.bias.astype(x.dtype)
        return y.reshape(*x.shape[:-1], -1)


@checked(inputs=size, outputs=size)
def uniform_linear(key: jax.Array, inputs: int, outputs: int) -> Linear:
    """A layer whose weights and biases are uniform in `±1 / sqrt(inputs)`, PyTorch's default."""
    key_kernel, key_bias = jax.random.split(key)
    bound = 1 / math.sqrt(inputs)
    kernel = jax.random.uniform(key_kernel, (inputs, outputs), minval=-bound, maxval=bound)
    return Linear(kernel, jax.random.uniform(key_bias, (outputs,), minval=-bound, maxval=bound))


@checked(model=numbers)
def linear_kernels(model: PyTree) -> dict[str, Any]:
    """The kernels of all `Linear` layers of a model by path, each an array or an `nn.Kernel`."""
    nodes = by_path(model, is_leaf=lambda node: isinstance(node, Linear))
    return {f"{path}.kernel".lstrip("."): node.kernel for path, node in nodes.items() if isinstance(node, Linear)}
