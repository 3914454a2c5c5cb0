"""The linear layer."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from jaxemb.checks import checked, size
from jaxemb.nn.module import Module


@nnx.dataclass
class Linear(Module):
    """`y = x W + b` with W `[in, out]`."""

    kernel: jax.Array = nnx.data()
    bias: jax.Array | None = nnx.data(default=None)

    @classmethod
    def init(cls, key, n_in: int, n_out: int, bias: bool, std: float) -> "Linear":
        kernel = std * jax.random.truncated_normal(key, -2.0, 2.0, (n_in, n_out))
        return cls(kernel, jnp.zeros(n_out) if bias else None)

    def __call__(self, x: jax.Array) -> jax.Array:
        # As a matrix: XLA's CPU backend takes twice as long for a kernel gradient that contracts two axes of x.
        y = x.reshape(-1, x.shape[-1]) @ self.kernel.astype(x.dtype)
        y = y if self.bias is None else y + self.bias.astype(x.dtype)
        return y.reshape(*x.shape[:-1], -1)


@checked(inputs=size, outputs=size)
def uniform_linear(key: jax.Array, inputs: int, outputs: int) -> Linear:
    """A layer whose weights and biases are uniform in `±1 / sqrt(inputs)`, PyTorch's default."""
    key_kernel, key_bias = jax.random.split(key)
    bound = 1 / math.sqrt(inputs)
    kernel = jax.random.uniform(key_kernel, (inputs, outputs), minval=-bound, maxval=bound)
    return Linear(kernel, jax.random.uniform(key_bias, (outputs,), minval=-bound, maxval=bound))
