"""Texts to vectors in bf16, tokens given: the model alone, on rows of one length without padding.

The peer is transformers' BertModel in bf16, weights included, with PyTorch's flash attention, not compiled.
"""

from collections.abc import Iterator

from benchmarks.accelerator import shapes
from benchmarks.accelerator.measure import Bench, Program, Row

_LENGTHS = (128, 8192, 512, 32)  # the most telling first
_TOKENS = {8192: 16_384}  # of a batch: fewer where attention takes much memory
_MOST_TOKENS = 65_536


def rows(bench: Bench) -> Iterator[Row]:
    """A row for each shape and length."""
    for length in (16,) if bench.smoke else _LENGTHS:
        for name, shape in {"tiny": shapes.TINY}.items() if bench.smoke else shapes.SHAPES.items():
            number = 2 if bench.smoke else _TOKENS.get(length, _MOST_TOKENS) // length
            yield bench.measure(
                f"{name} ({shape.layers} x {shape.dim}), {number:,} texts of {length:,} tokens",
                lambda shape=shape, number=number, length=length: _encoding(shape, number, length),
                flops=shape.flops(number, length),
                bytes=2 * shape.weights() + 4 * number * shape.dim,
                precision="bf16",
                work=(number * length, "tokens"),
                peer={"shape": shape, "rows": number, "length": length},
            )


def _encoding(shape: shapes.Shape, rows: int, length: int) -> Program:
    model = shapes.embedder(shape, max(length, 512), weights="bfloat16")
    return Program(lambda model, tokens: model(tokens), model, shapes.full_rows(shape, rows, length))


def peer(spec, device):
    """The same model in PyTorch."""
    import torch

    shape, length = shapes.Shape(*spec["shape"]), spec["length"]
    model = shapes.torch_bert(shape, max(length, 512), device, torch.bfloat16).eval()
    ids = shapes.torch_rows(shape, spec["rows"], length, device)

    @torch.inference_mode()
    def run():
        states = model(input_ids=ids).last_hidden_state
        return torch.nn.functional.normalize(states.float().mean(dim=1), dim=-1)

    return "transformers, sdpa", run
