"""InfoNCE of large batches by itself: value and gradient in f32 at full precision, tiled and dense."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from benchmarks.accelerator.measure import Bench, Program, Row, normal
from jaxemb.losses import info_nce
from jaxemb.nn import dot, unit

_SIZES, _DIM = (65_536, 8192), 768
_TORCH_TILE = 4096  # rows of the peer's logits at a time


def tiled(queries: jax.Array, documents: jax.Array) -> jax.Array:
    """The library's."""
    return info_nce(queries, documents).mean()


def dense(queries: jax.Array, documents: jax.Array) -> jax.Array:
    """The same with all logits at once."""
    logits = dot(unit(queries), unit(documents)) / 0.05
    return (jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits)).mean()


def rows(bench: Bench) -> Iterator[Row]:
    """A row for each size and way."""
    sizes, dim = ((32,), 8) if bench.smoke else (_SIZES, _DIM)
    for f in (tiled, dense):  # the tiled first, as the process's peak of memory stays where the dense one has been
        for size in sizes:
            yield bench.measure(
                f"{f.__name__}, B = {size:,}, D = {dim}",
                lambda f=f, size=size: _gradient(f, size, dim),
                flops=3 * 2.0 * size**2 * dim,
                bytes=4 * 4 * size * dim,
                precision="f32",
                work=(size, "pairs"),
                peer={"size": size, "dim": dim, "tile": size if f is dense else _TORCH_TILE},
            )


def _gradient(f, size: int, dim: int) -> Program:
    return Program(jax.value_and_grad(f, argnums=(0, 1)), *(normal(seed, (size, dim)) for seed in range(2)))


def peer(spec, device):
    """The same in PyTorch, with the gradient of `tile` rows at a time."""
    import torch
    from torch.nn import functional

    torch.set_float32_matmul_precision("highest")
    size, tile = spec["size"], spec["tile"]
    queries, documents = (torch.randn(size, spec["dim"], device=device, requires_grad=True) for _ in range(2))
    labels = torch.arange(size, device=device)

    def run():
        queries.grad = documents.grad = None
        q, d = functional.normalize(queries, dim=-1), functional.normalize(documents, dim=-1)
        leaf_q, leaf_d = q.detach().requires_grad_(), d.detach().requires_grad_()
        for start in range(0, size, tile):
            rows = slice(start, start + tile)
            logits = leaf_q[rows] @ leaf_d.T / 0.05
            (functional.cross_entropy(logits, labels[rows], reduction="sum") / size).backward()
        torch.autograd.backward((q, d), (leaf_q.grad, leaf_d.grad))

    return "torch, dense" if tile >= size else "torch, in chunks", run
