"""What the device can do: the largest rate of matrix products in each precision, and of copying.

The summary's shares of the peak are shares of the best row of the precision, ours or the peer's.
"""

import functools
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator.measure import Bench, Program, Row, normal

# Square, and the feed-forward of BERT-large on 32,768 tokens.
_SIZES = ((8192, 8192, 8192), (32_768, 1024, 4096), (4096, 4096, 4096))
# On Ampere and later, JAX's default for f32 is TF32.
_PRECISIONS = (("bf16", "bfloat16", None), ("tf32", "float32", None), ("f32", "float32", "highest"))
_COPIED = 2**28  # numbers of f32


def rows(bench: Bench) -> Iterator[Row]:
    """A row for each size and precision, and one for a copy."""
    for m, k, n in ((64, 32, 48),) if bench.smoke else _SIZES:
        for name, dtype, precision in _PRECISIONS:
            yield bench.measure(
                f"{name}, [{m}, {k}] x [{k}, {n}]",
                functools.partial(_product, (m, k), (k, n), dtype, precision),
                flops=2.0 * m * k * n,
                bytes=jnp.dtype(dtype).itemsize * (m * k + k * n + m * n),
                precision=name,
                peer={"size": (m, k, n), "precision": name},
            )
    copied = 1024 if bench.smoke else _COPIED
    yield bench.measure(
        f"copy, {copied:,} numbers of f32",
        lambda: Program(jnp.negative, np.zeros(copied, np.float32)),
        flops=0.0,
        bytes=2 * 4 * copied,
        precision="copy",
        peer={"copied": copied},
    )


def _product(left: tuple[int, int], right: tuple[int, int], dtype: str, precision: str | None) -> Program:
    product = functools.partial(jnp.matmul, precision=precision)
    return Program(product, normal(0, left, dtype), normal(1, right, dtype))


def peer(spec, device):
    """The same product, or copy, in PyTorch."""
    import torch

    if "copied" in spec:
        x = torch.zeros(spec["copied"], device=device)
        return "torch", lambda: torch.neg(x)
    (m, k, n), precision = spec["size"], spec["precision"]
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(m, k, device=device, dtype=dtype), torch.randn(k, n, device=device, dtype=dtype)
    return "torch", lambda: torch.matmul(a, b)
