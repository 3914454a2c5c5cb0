"""The implementations of attention against each other and PyTorch's, in bf16, forward and with the backward pass.

"dense" is the transformer's on CPUs and with dropout, "blockwise" that of long rows, "XLA" the one that it has
elsewhere, `jax.nn.dot_product_attention`; "cuDNN" is this function's other one, which never holds
`[B, H, T, T]`. "segments": with the additive bias that keeps two texts of a row apart.
"""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from benchmarks.accelerator.measure import Bench, Program, Row, normal
from jaxemb.nn.attention import attention

_LENGTHS = (512, 8192, 2048, 128)
_TOKENS, _HEADS, _HEAD_DIM = 16_384, 12, 64


def _ours(q, k, v, bias=None, *, implementation):
    return attention(q, k, v, jnp.ones(q.shape[:2], jnp.int32), bias=bias, implementation=implementation)


#: `(q, k, v, bias or None)`, each `[B, T, H, h]` and the bias `[B, 1, T, T]`.
IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
    "dense": functools.partial(_ours, implementation="dense"),
    "blockwise": functools.partial(_ours, implementation="blockwise"),
    "XLA": functools.partial(jax.nn.dot_product_attention, implementation="xla"),
    "cuDNN": functools.partial(jax.nn.dot_product_attention, implementation="cudnn"),
}


def implementations() -> dict[str, Callable[..., jax.Array]]:
    """Those that this device has."""
    return {name: f for name, f in IMPLEMENTATIONS.items() if name != "cuDNN" or jax.default_backend() == "gpu"}


def rows(bench: Bench) -> Iterator[Row]:
    """A row for each length, implementation and direction; with segments the backward pass only."""
    heads, head_dim = (2, 8) if bench.smoke else (_HEADS, _HEAD_DIM)
    for length in (8,) if bench.smoke else _LENGTHS:
        shape = (2 if bench.smoke else _TOKENS // length, length, heads, head_dim)
        product = shape[0] * heads * length**2 * head_dim
        for name in implementations():
            for segments, backward in ((False, False), (False, True), (True, True)):
                yield bench.measure(
                    f"{name}{', segments' * segments}, {length:,} tokens, {'and backward' if backward else 'forward'}",
                    lambda name=name, shape=shape, s=segments, b=backward: _call(name, shape, s, b),
                    flops=(12 if backward else 4) * product,
                    bytes=(8 if backward else 4) * 2 * shape[0] * length * heads * head_dim,
                    precision="bf16",
                    work=(shape[0] * length, "tokens"),
                    peer={"shape": shape, "segments": segments, "backward": backward},
                )


def _call(name: str, shape: tuple[int, ...], segments: bool, backward: bool) -> Program:
    q, k, v = (normal(seed, shape, "bfloat16") for seed in range(3))
    bias = _two_texts(shape[0], shape[1]) if segments else None
    attend = IMPLEMENTATIONS[name]
    if not backward:
        return Program(attend, q, k, v, bias)
    total = lambda q, k, v, bias: attend(q, k, v, bias).astype(jnp.float32).sum()
    return Program(jax.value_and_grad(total, argnums=(0, 1, 2)), q, k, v, bias)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _two_texts(rows: int, length: int) -> jax.Array:
    """The bias of two texts to a row, `[B, 1, T, T]`."""
    first = jnp.arange(length) < length // 2
    bias = jnp.where(first[:, None] == first[None, :], 0.0, -1e30).astype(jnp.bfloat16)
    return jnp.broadcast_to(bias, (rows, 1, length, length))


def peer(spec, device):
    """PyTorch's `scaled_dot_product_attention`, flash without segments."""
    import torch

    rows, length, heads, head_dim = spec["shape"]
    make = lambda: torch.randn(
        rows, heads, length, head_dim, device=device, dtype=torch.bfloat16, requires_grad=spec["backward"]
    )
    q, k, v = make(), make(), make()
    first = torch.arange(length, device=device) < length // 2
    mask = (first[:, None] == first[None, :]).expand(rows, 1, length, length) if spec["segments"] else None

    def forward():
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def both():
        return torch.autograd.grad(forward().float().sum(), (q, k, v))

    return "torch, sdpa", both if spec["backward"] else forward
