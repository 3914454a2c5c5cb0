"""Low-rank adaptation: LoRA and DoRA."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxemb.checks import at_least, checked, positive
from jaxemb.nn import Adapter, Kernel, merge_lora
from jaxemb.nn.kernels import dense, is_kernel
from jaxemb.nn.low_rank import column_lengths
from jaxemb.transforms.base import Transform, Variables
from jaxemb.transforms.frozen import trains_only
from jaxemb.trees import PyTree, Where, chosen


@checked(rank=at_least(1), alpha=positive)
def lora(
    rank: int,
    *,
    alpha: float | None = None,
    where: Where = r"(query|value)\.kernel$",
    train: str | None = None,
    magnitudes: bool = False,
    rank_stabilized: bool = False,
    beside: bool = False,
    start: Mapping[str, Adapter] | None = None,
) -> Transform:
    """Trains, in place of the kernels that `where` chooses, low-rank changes of them; the rest of the model is frozen.

        LoRA  `W' = W + s A B`,  s = alpha / rank
        DoRA  `W' = m (W + s A B) / |W + s A B|`, columns by column; the length is no path of the gradient

    for `y = x W'`. A is uniform in `±1 / sqrt(in)` and B is 0, so training starts at the model as it is. Kernels are
    changed once per step and not for every token, so the forward pass is that of the plain model, whatever it is: this
    is why there is no dropout on the adapters' inputs. What the model hook gives is merged already:
    `train.apply_transform(transform, state)` is a plain model to evaluate, save and serve, and the adapters alone are
    `state.method_params` (of a chain: the entry of this transform).

    W' and its gradient are as large as W, in float32. With `beside`, `y = x W + s (x A) B` holds neither, at the price
    of two small products for every token; over a quantised base (`nn.quantize_base`, `load(..., param_dtype="nf4")`)
    it is always so, as W is never whole. What the model hook gives then encodes as it is, and `save` merges it.

    Args:
      rank: r >= 1.
      alpha: > 0; scale of the change; None for `rank`, so that s = 1.
      where: which kernels; a regular expression or a function of the path, such as "encoder.layers.mlp.up.kernel".
      train: a regular expression of arrays of the model that are trained as they are, such as r"^head\\."; None: none.
      magnitudes: DoRA.
      rank_stabilized: s = alpha / sqrt(rank).
      beside: keep the adapters of `nn.Linear` layers beside their kernels.
      start: adapters to go on with, by path, such as those of `checkpoints.load_adapter`; `where` is then not asked.

    Raises:
      ValueError: for a rank below 1, an alpha <= 0 or, in `init`, if `where` chooses nothing, or arrays with fewer than
        two axes, or if `start` has one that does not fit the kernel at its path.

    References:
      Hu et al. 2021, arXiv 2106.09685, equation 3; Liu et al. 2024 (DoRA), arXiv 2402.09353, equation 5, section 4.3;
      Kalajdzievski 2023 (rank-stabilized), arXiv 2312.03732; Dettmers et al. 2023 (a quantised base), arXiv 2305.14314.
    """
    scale = (rank if alpha is None else alpha) / (math.sqrt(rank) if rank_stabilized else rank)

    def init(key: jax.Array, model: PyTree) -> Variables:
        kernels = chosen(model, where if start is None else set(start).__contains__, is_kernel)
        if flat := [f"{path} {kernel.shape}" for path, kernel in kernels.items() if kernel.ndim < 2]:
            raise ValueError(f"where must choose kernels [..., in, out]; got {', '.join(flat)}")
        if start is not None:
            return Variables(_fitting(start, kernels))
        keys = jax.random.split(key, len(kernels))
        return Variables({path: adapter(k, w) for k, (path, w) in zip(keys, kernels.items(), strict=True)})

    def adapter(key: jax.Array, kernel: jax.Array | Kernel) -> Adapter:
        *stack, inputs, outputs = kernel.shape
        bound = 1 / math.sqrt(inputs)
        dtype = jnp.promote_types(kernel.dtype, jnp.float32)  # what is frozen may be bfloat16, what is trained is not
        down = jax.random.uniform(key, (*stack, inputs, rank), dtype, -bound, bound)
        magnitude = column_lengths(dense(kernel).astype(dtype)) if magnitudes else None
        return Adapter(down, jnp.zeros((*stack, rank, outputs), dtype), magnitude)

    def model(model: PyTree, params: dict[str, Adapter], state: PyTree) -> PyTree:
        return merge_lora(model, params, scale, beside=beside)

    return Transform(init=init, trains=trains_only(train), model=model)


def _fitting(start: Mapping[str, Adapter], kernels: Mapping[str, jax.Array | Kernel]) -> dict[str, Adapter]:
    """The adapters as they are trained, in float32; raises a ValueError for one that does not fit a kernel."""
    for path, (down, up, magnitude) in start.items():
        if path not in kernels:
            raise ValueError(f"start has an adapter of {path}, which is no array of the model")
        *stack, inputs, outputs = kernels[path].shape
        expected = [(*stack, inputs, down.shape[-1]), (*stack, down.shape[-1], outputs)]
        expected += [] if magnitude is None else [(*stack, 1, outputs)]
        if (got := [part.shape for part in (down, up, magnitude) if part is not None]) != expected:
            raise ValueError(f"start[{path!r}] must have the shapes {expected}; got {got}")
    return {path: jax.tree.map(lambda part: jnp.asarray(part, jnp.float32), start[path]) for path in kernels}
