"""Writes peft.npz: what PEFT makes of two stacked kernels with LoRA and DoRA. Run where `peft` is installed."""

from pathlib import Path

import numpy as np
import peft
import torch

RNG = np.random.default_rng(0)


def adapted(use_dora):
    """Two linear layers 5 -> 4 after one step of SGD on `sum y^2` from adapters with a B that is not 0."""
    torch.manual_seed(0)
    layers = torch.nn.ModuleDict({str(i): torch.nn.Linear(5, 4, bias=False) for i in range(2)})
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["0", "1"], use_dora=use_dora)
    model = peft.get_peft_model(layers, config)
    linears = [model.base_model.model[str(i)] for i in range(2)]
    x = torch.tensor(RNG.normal(size=(2, 3, 5)).astype(np.float32))
    stack = lambda get: np.stack([get(linear).detach().numpy().T for linear in linears])
    with torch.no_grad():
        for linear in linears:
            linear.lora_B["default"].weight.normal_()
    parts = {
        "kernel": lambda linear: linear.base_layer.weight,
        "down": lambda linear: linear.lora_A["default"].weight,
        "up": lambda linear: linear.lora_B["default"].weight,
    }
    if use_dora:
        parts["magnitude"] = lambda linear: linear.lora_magnitude_vector["default"].weight[:, None]
    before = {name: stack(get) for name, get in parts.items()}
    y = [linear(x[i]) for i, linear in enumerate(linears)]
    sum(one.square().sum() for one in y).backward()
    gradients = {
        "down_gradient": stack(lambda linear: linear.lora_A["default"].weight.grad),
        "up_gradient": stack(lambda linear: linear.lora_B["default"].weight.grad),
    }
    if use_dora:
        gradients["magnitude_gradient"] = stack(
            lambda linear: linear.lora_magnitude_vector["default"].weight.grad[:, None]
        )
    outputs = {"x": x.numpy(), "y": np.stack([one.detach().numpy() for one in y])}
    merged = stack(lambda linear: (linear.merge(), linear.base_layer.weight)[1])
    return before | gradients | outputs | {"merged": merged}


if __name__ == "__main__":
    results = {f"{kind}/{name}": a for kind in ("lora", "dora") for name, a in adapted(kind == "dora").items()}
    np.savez(Path(__file__).with_name("peft.npz"), **results)
