"""Low-rank adaptation: LoRA and DoRA."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxemb.checks import at_least, checked, positive
from jaxemb.transforms.base import Transform, Variables
from jaxemb.transforms.frozen import trains_only
from jaxemb.trees import PyTree, Where, chosen, replaced


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


@checked(rank=at_least(1), alpha=positive)
def lora(
    rank: int,
    *,
    alpha: float | None = None,
    where: Where = r"(query|value)\.kernel$",
    train: str | None = None,
    magnitudes: bool = False,
    rank_stabilized: bool = False,
) -> Transform:
    """Trains, in place of the kernels that `where` chooses, low-rank changes of them; the rest of the model is frozen.

        LoRA  `W' = W + s A B`,  s = alpha / rank
        DoRA  `W' = m (W + s A B) / |W + s A B|`, columns by column; the length is no path of the gradient

    for `y = x W'`. A is uniform in `±1 / sqrt(in)` and B is 0, so training starts at the model as it is. Kernels are
    changed once per step and not for every token, so the forward pass is that of the plain model, whatever it is: this
    is why there is no dropout on the adapters' inputs. What the model hook gives is merged already:
    `train.apply_transform(transform, state)` is a plain model to evaluate, save and serve, and the adapters alone are
    `state.method_params` (of a chain: the entry of this transform).

    Args:
      rank: r >= 1.
      alpha: > 0; scale of the change; None for `rank`, so that s = 1.
      where: which kernels; a regular expression or a function of the path, such as "encoder.layers.mlp.up.kernel".
      train: a regular expression of arrays of the model that are trained as they are, such as r"^head\\."; None: none.
      magnitudes: DoRA.
      rank_stabilized: s = alpha / sqrt(rank).

    Raises:
      ValueError: for a rank below 1, an alpha <= 0 or, in `init`, if `where` chooses nothing, or arrays with fewer than
        two axes.

    References:
      Hu et al. 2021, arXiv 2106.09685, equation 3; Liu et al. 2024 (DoRA), arXiv 2402.09353, equation 5, section 4.3;
      Kalajdzievski 2023 (rank-stabilized), arXiv 2312.03732.
    """
    scale = (rank if alpha is None else alpha) / (math.sqrt(rank) if rank_stabilized else rank)

    def init(key: jax.Array, model: PyTree) -> Variables:
        kernels = chosen(model, where)
        if flat := [f"{path} {kernel.shape}" for path, kernel in kernels.items() if kernel.ndim < 2]:
            raise ValueError(f"where must choose kernels [..., in, out]; got {', '.join(flat)}")
        keys = jax.random.split(key, len(kernels))
        return Variables({path: adapter(k, w) for k, (path, w) in zip(keys, kernels.items(), strict=True)})

    def adapter(key: jax.Array, kernel: jax.Array) -> Adapter:
        *stack, inputs, outputs = kernel.shape
        bound = 1 / math.sqrt(inputs)
        dtype = jnp.promote_types(kernel.dtype, jnp.float32)  # what is frozen may be bfloat16, what is trained is not
        down = jax.random.uniform(key, (*stack, inputs, rank), dtype, -bound, bound)
        magnitude = _lengths(kernel.astype(dtype)) if magnitudes else None
        return Adapter(down, jnp.zeros((*stack, rank, outputs), dtype), magnitude)

    def model(model: PyTree, params: dict[str, Adapter], state: PyTree) -> PyTree:
        return merge_lora(model, params, scale)

    return Transform(init=init, trains=trains_only(train), model=model)


@checked()
def merge_lora(model: PyTree, adapters: dict[str, Adapter], scale: float = 1.0) -> PyTree:
    """The model with every adapter, by path of its kernel, merged: `W + scale A B`, or DoRA's W' (see `lora`)."""

    def merged(path: str, kernel: jax.Array) -> jax.Array:
        down, up, magnitude = adapters[path]
        changed = kernel + scale * (down @ up)
        return changed if magnitude is None else magnitude * changed / jax.lax.stop_gradient(_lengths(changed))

    return replaced(model, lambda path: path in adapters, merged)


def _lengths(kernel: jax.Array) -> jax.Array:
    """The length of each column, `[..., 1, out]`."""
    return jnp.linalg.norm(kernel, axis=-2, keepdims=True)
