"""What may stand in place of the kernel of a `Linear`."""

import abc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxemb.checks import checked, numbers
from jaxemb.nn.module import Module
from jaxemb.trees import PyTree, map_with_path


class Kernel(Module, abc.ABC):
    """A matrix `[..., in, out]` that is kept as something else than an array; layers that are stacked come first."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """That of the matrix, `[..., in, out]`."""

    @abc.abstractmethod
    def times(self, x: jax.Array) -> jax.Array:
        """`x W`, `[N, in]` to `[N, out]`, in the type of x."""

    @abc.abstractmethod
    def dense(self, dtype: Any = jnp.float32) -> jax.Array:
        """The matrix as an array."""

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        """float32, as which the matrix is computed."""
        return jnp.dtype(jnp.float32)


def is_kernel(node: Any) -> bool:
    """Whether a node of a tree is a `Kernel`."""
    return isinstance(node, Kernel)


def times(x: jax.Array, kernel: jax.Array | Kernel) -> jax.Array:
    """`x W`, `[N, in]` to `[N, out]`, in the type of x."""
    return kernel.times(x) if isinstance(kernel, Kernel) else x @ kernel.astype(x.dtype)


def dense(kernel: jax.Array | Kernel) -> jax.Array:
    """The matrix, float32 where it is no array."""
    return kernel.dense() if isinstance(kernel, Kernel) else kernel


@checked(model=numbers)
def dense_kernels(model: PyTree) -> PyTree:
    """The model with arrays in place of all that stands for them: quantised kernels as float32, adapters merged."""
    return map_kernels(lambda _, leaf: dense(leaf), model)


def map_kernels(function: Callable[[str, Any], Any], model: PyTree) -> PyTree:
    """The tree of `function(path, leaf)`, for which a `Kernel` is one leaf, called as the array in its place is."""
    return map_with_path(function, model, is_leaf=is_kernel)
