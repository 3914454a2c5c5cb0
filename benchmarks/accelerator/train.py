"""A step of contrastive training: plain, with cached gradients, and of LoRA's adapters only.

Weights in f32, the model in bf16, dropout, InfoNCE in f32, the gradient's norm clipped, AdamW: the same in both.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.accelerator import shapes
from benchmarks.accelerator.measure import Bench, Program, Row
from jaxemb.losses import info_nce
from jaxemb.objectives import on_columns
from jaxemb.train import adamw, init_state, make_train_step
from jaxemb.transforms import identity, lora

_RANK = 8
_RATE = 2e-5


class Case(NamedTuple):
    """A step on pairs of texts of `length` tokens; with cached gradients `chunk` texts at a time."""

    shape: shapes.Shape
    pairs: int
    length: int
    chunk: int | None = None
    lora: bool = False

    def flops(self) -> float:
        """Forward passes, the backward pass (twice one, without the frozen weights' gradients once), and the loss."""
        forward = self.shape.flops(2 * self.pairs, self.length)
        attention = self.shape.attention_flops(2 * self.pairs, self.length)
        passes = 2 * forward + attention if self.lora else (3 if self.chunk is None else 4) * forward
        return passes + 3 * 2.0 * self.pairs**2 * self.shape.dim


_CASES = {
    "plain, MiniLM": Case(shapes.SHAPES["MiniLM"], 256, 128),
    "cached gradients, MiniLM": Case(shapes.SHAPES["MiniLM"], 8192, 64, chunk=2048),
    "LoRA, MPNet-base": Case(shapes.SHAPES["MPNet-base"], 256, 128, lora=True),
    "plain, MPNet-base": Case(shapes.SHAPES["MPNet-base"], 256, 128),
}
_SMOKE = {  # a plain step is among the numerical checks
    "cached gradients, tiny": Case(shapes.TINY, 8, 8, chunk=4),
    "LoRA, tiny": Case(shapes.TINY, 4, 8, lora=True),
}


def rows(bench: Bench) -> Iterator[Row]:
    """A row for each case."""
    for name, case in (_SMOKE if bench.smoke else _CASES).items():
        # AdamW reads and writes weights and both moments, and reads the gradient, which something has written.
        trained = 4 * 2 * case.shape.layers * case.shape.dim * _RANK if case.lora else case.shape.weights()
        yield bench.measure(
            f"{name}, {case.pairs:,} pairs of {case.length} tokens",
            lambda case=case: step(case),
            flops=case.flops(),
            bytes=4 * 8 * trained,
            precision="bf16",
            work=(case.pairs, "pairs"),
            peer=case._asdict(),
        )


def step(case: Case, rate: float = _RATE) -> Program:
    """A train step, which goes on from its own state; gives it and the metrics."""
    model = shapes.embedder(case.shape)
    transform = lora(_RANK) if case.lora else identity()
    optimizer = adamw(rate, 10_000, warmup=0.0)
    objective = on_columns(info_nce, "query", "document", chunk=case.chunk)
    state = init_state(jax.random.key(0), model, optimizer, transform)
    batch = {"id": np.arange(case.pairs, dtype=np.int32)} | {
        column: shapes.full_rows(case.shape, case.pairs, case.length, seed)
        for seed, column in enumerate(("query", "document"))
    }
    return Program(make_train_step(objective, optimizer, transform), state, jax.device_put(batch), carries=True)


def peer(spec, device):
    """The same step in PyTorch, with GradCache written out and LoRA by peft."""
    import torch
    from torch.nn import functional

    case = Case(**{**spec, "shape": shapes.Shape(*spec["shape"])})
    model = shapes.torch_bert(case.shape, 512, device, torch.float32).train()
    name = "transformers, sdpa, autocast"
    if case.lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=_RANK, lora_alpha=_RANK, target_modules=["query", "value"]))
        name = f"peft, {name}"
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=_RATE, weight_decay=0.01, fused=device == "cuda")
    columns = [shapes.torch_rows(case.shape, case.pairs, case.length, device, seed) for seed in range(2)]

    def encode(ids):
        with torch.autocast(device, torch.bfloat16):
            states = model(input_ids=ids).last_hidden_state
        return functional.normalize(states.float().mean(dim=1), dim=-1)

    def loss(queries, documents):
        return functional.cross_entropy(queries @ documents.T / 0.05, torch.arange(case.pairs, device=device))

    def plain_gradient():
        loss(*encode(torch.cat(columns)).chunk(2)).backward()

    random = torch.cuda if device == "cuda" else torch

    def cached_gradient():
        chunks = torch.cat(columns).split(case.chunk)
        states, vectors = [], []
        for ids in chunks:
            states.append(random.get_rng_state())  # for the same dropout in the second pass
            with torch.no_grad():
                vectors.append(encode(ids))
        vectors = torch.cat(vectors).requires_grad_()
        loss(*vectors.chunk(2)).backward()
        for ids, state, gradient in zip(chunks, states, vectors.grad.split(case.chunk), strict=True):
            random.set_rng_state(state)
            encode(ids).backward(gradient)

    def run():
        optimizer.zero_grad()
        plain_gradient() if case.chunk is None else cached_gradient()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    return name, run
