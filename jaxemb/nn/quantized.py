"""Frozen kernels of few bits, blockwise: 8-bit integers and 4-bit NormalFloat (NF4)."""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxemb.checks import at_least, checked, one_of
from jaxemb.nn.kernels import Kernel
from jaxemb.nn.linear import linear_kernels
from jaxemb.nn.module import Module
from jaxemb.trees import PyTree, Where, replaced, selects

QuantizedDtype = Literal["int8", "nf4"]
DTYPES: tuple[QuantizedDtype, ...] = ("int8", "nf4")
BLOCK = 64
_SCALES_BLOCK = 256
#: The 16 values of NF4: QLoRA, appendix E.
NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022833288, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)


def _dynamic_tree() -> np.ndarray:
    """The 256 values of an 8-bit float whose exponent takes as many bits as it needs, ascending.

    Of the magnitudes below `10^-e` and above a tenth of it there are `2^(6 - e)`, e = 0..6: the middles of as many
    equal parts. Both signs, 0 and 1 make 256. Dettmers et al. 2022 (8-bit optimizers), arXiv 2110.02861, section 1.3.
    """
    edges = [np.linspace(0.1, 1, 2 ** (6 - e) + 1) * 10.0**-e for e in range(7)]
    magnitudes = np.concatenate([(edge[1:] + edge[:-1]) / 2 for edge in edges])
    return np.sort(np.concatenate([-magnitudes, [0.0], magnitudes, [1.0]])).astype(np.float32)


FLOAT8 = _dynamic_tree()


@nnx.dataclass
class QuantizedScales(Module):
    """Scales of blocks `[..., blocks, out]` as 8-bit floats, `mean + steps * FLOAT8[codes]` (double quantisation)."""

    codes: jax.Array = nnx.data()  # uint8 [..., blocks, out]
    steps: jax.Array = nnx.data()  # f32 [..., blocks, ceil(out / 256)]: the largest of 256 outputs
    mean: jax.Array = nnx.data()  # f32 [..., 1, 1]

    @classmethod
    def of(cls, scales: jax.Array) -> "QuantizedScales":
        """The nearest ones to scales `[..., blocks, out]`."""
        mean = scales.mean((-2, -1), keepdims=True)
        rest, outputs = scales - mean, scales.shape[-1]
        grouped = jnp.pad(rest, [(0, 0)] * (rest.ndim - 1) + [(0, -outputs % _SCALES_BLOCK)])
        grouped = grouped.reshape(*rest.shape[:-1], -1, _SCALES_BLOCK)
        steps = jnp.abs(grouped).max(-1)
        codes = _nearest(grouped * _inverse(steps, jnp)[..., None], FLOAT8, jnp)
        return cls(codes.reshape(*rest.shape[:-1], -1)[..., :outputs], steps, mean)

    def dense(self) -> jax.Array:
        """The scales, f32 `[..., blocks, out]`."""
        steps = jnp.repeat(self.steps, _SCALES_BLOCK, -1)[..., : self.codes.shape[-1]]
        return _values(FLOAT8, self.codes) * steps + self.mean


@nnx.dataclass
class Quantized(Kernel):
    """A frozen kernel `[..., in, out]`; of every output, so many inputs in a row share a scale.

        int8  `w = scale q`,       scale = max |w| / 127,  q the nearest integer
        nf4   `w = scale NF4[q]`,  scale = max |w|,        q the nearest of the 16 values

    The matrix is made in the type of x where it is used, and again for the backward pass: none is kept until then.
    """

    codes: jax.Array = nnx.data()  # int8 [..., in, out], or uint8 [..., in / 2, out], the first of two in the high bits
    scales: jax.Array | QuantizedScales = nnx.data()  # f32 [..., in / block, out]

    @property
    def kind(self) -> QuantizedDtype:
        return "int8" if self.codes.dtype == jnp.int8 else "nf4"

    @property
    def shape(self) -> tuple[int, ...]:
        *stack, rows, outputs = self.codes.shape
        return (*stack, rows * _per_code(self.kind), outputs)

    def times(self, x: jax.Array) -> jax.Array:
        return jax.checkpoint(lambda x, kernel: x @ kernel.dense(x.dtype))(x, self)

    def dense(self, dtype: Any = jnp.float32) -> jax.Array:
        kernel = jax.lax.stop_gradient(self)
        scales = kernel.scales.dense() if isinstance(kernel.scales, QuantizedScales) else kernel.scales
        values = kernel.codes.astype(jnp.float32)
        if self.kind == "nf4":
            values = _values(NF4, jnp.stack([kernel.codes >> 4, kernel.codes & 15], -2))
        *stack, inputs, outputs = self.shape
        blocks = values.reshape(*stack, scales.shape[-2], -1, outputs) * scales[..., None, :]
        return blocks.reshape(*stack, inputs, outputs).astype(dtype)


@checked(block=at_least(1))
def quantize(kernel: jax.Array, dtype: QuantizedDtype, *, block: int = BLOCK, double: bool = False) -> Quantized:
    """The kernel `[..., in, out]`, see `Quantized`.

    Args:
      kernel: of floats.
      dtype: "int8" or "nf4".
      block: inputs that share a scale, at most: the largest divisor of `in` up to it.
      double: keep the scales as 8-bit floats, 256 outputs together (`QuantizedScales`).

    Raises:
      ValueError: for another dtype, or of "nf4" if `in` is odd.

    References:
      Dettmers et al. 2023 (QLoRA), arXiv 2305.14314, section 3 and appendix E.
    """
    one_of("dtype", dtype, DTYPES)
    return _quantized(kernel, dtype, shapes("kernel", kernel.shape, dtype, block).scales[-2], double)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _quantized(kernel: jax.Array, dtype: QuantizedDtype, blocks: int, double: bool) -> Quantized:
    kernel = kernel.astype(jnp.float32)
    steps = scales_of(kernel, dtype, blocks, jnp)
    codes = codes_of(kernel, steps, dtype, jnp)
    return Quantized(codes, QuantizedScales.of(steps) if double else steps)


@checked(block=at_least(1))
def quantize_base(
    model: PyTree,
    dtype: QuantizedDtype,
    *,
    block: int = BLOCK,
    double: bool = False,
    where: Where = r"\blayers\..*\.kernel$",
) -> PyTree:
    """The model with quantised kernels in place of those of its layers; the rest of it stays as it is.

        base = quantize_base(embedder.model, "nf4")
        state = init_state(key, base, optimizer, lora(16, alpha=32, where=r"layers\\..*\\.kernel$"))

    They are frozen: no gradient reaches them, and a transform that would train them is refused. What does not fit
    whole in memory is quantised while it is read: `jaxemb.load(..., param_dtype="nf4")`.

    Args:
      model: with `nn.Linear` layers.
      dtype, block, double: see `quantize`.
      where: which kernels of `nn.Linear` layers, by path.

    Raises:
      ValueError: if there are no such kernels; otherwise as `quantize`, naming the kernel.
    """
    picks, kernels = selects(where), linear_kernels(model)
    if not (found := {path for path, kernel in kernels.items() if picks(path) and not isinstance(kernel, Kernel)}):
        some = ", ".join(list(kernels)[:8])
        raise ValueError(f"where must choose a kernel of a linear layer; {where!r} chooses none of {some}")
    for path in found:
        shapes(path, kernels[path].shape, dtype, block)
    one = functools.partial(quantize, dtype=dtype, block=block, double=double)
    return replaced(model, found.__contains__, lambda _, kernel: one(kernel))


# The arithmetic, for numpy and JAX alike


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Those of the arrays of a `Quantized`."""

    codes: tuple[int, ...]
    scales: tuple[int, ...]


def shapes(name: str, shape: tuple[int, ...], dtype: QuantizedDtype, block: int = BLOCK) -> Shapes:
    """Those of the arrays for a kernel `[..., in, out]`; raises a ValueError that names it if `in` is odd, for nf4."""
    *stack, inputs, outputs = shape
    if inputs % _per_code(dtype):
        raise ValueError(f"{name} of shape {list(shape)} must have an even number of inputs to be nf4")
    longest = max(n for n in range(1, min(block, inputs) + 1) if inputs % n == 0)
    return Shapes((*stack, inputs // _per_code(dtype), outputs), (*stack, inputs // longest, outputs))


def scales_of(kernel: Any, dtype: QuantizedDtype, blocks: int, xp: Any) -> Any:
    """The scales `[..., blocks, out]` of a kernel `[..., in, out]`; `xp` is numpy or jax.numpy."""
    *stack, _, outputs = kernel.shape
    largest = xp.abs(kernel).reshape(*stack, blocks, -1, outputs).max(-2)
    return largest * np.float32(1 / 127) if dtype == "int8" else largest


def codes_of(kernel: Any, scales: Any, dtype: QuantizedDtype, xp: Any) -> Any:
    """The codes of a kernel `[..., in, out]` with scales `[..., blocks, out]`; `xp` is numpy or jax.numpy."""
    *stack, inputs, outputs = kernel.shape
    scaled = kernel.reshape(*stack, scales.shape[-2], -1, outputs) * _inverse(scales, xp)[..., None, :]
    scaled = scaled.reshape(*stack, inputs, outputs)
    if dtype == "int8":
        return xp.clip(xp.round(scaled), -127, 127).astype(np.int8)
    codes = _nearest(scaled, NF4, xp)
    return codes[..., ::2, :] << 4 | codes[..., 1::2, :]


def _per_code(dtype: str) -> int:
    return 2 if dtype == "nf4" else 1


def _nearest(x: Any, values: np.ndarray, xp: Any) -> Any:
    """The index of the nearest of ascending values, uint8."""
    middles = (values[1:] + values[:-1]) / 2
    if len(middles) > 16:
        return xp.searchsorted(middles, x).astype(np.uint8)
    return sum((x > middle).astype(np.uint8) for middle in middles)  # several times faster for a few


def _inverse(scales: Any, xp: Any) -> Any:
    """By which is multiplied, as compilers may make this of a division: so all of them round alike."""
    return np.float32(1) / xp.where(scales == 0, np.float32(1), scales)


def _values(table: np.ndarray, codes: jax.Array) -> jax.Array:
    return jnp.asarray(table).at[codes].get(mode="promise_in_bounds")
