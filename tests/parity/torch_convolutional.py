"""The convolutional encoders made of PyTorch's modules.

Run with the repository on PYTHONPATH, it writes convolutional_torch.npz, which the tests compare with.
"""

from pathlib import Path

import numpy as np
import torch
from test_convolutional_torch import KEPT, images_of, model_of, tensors

from jaxemb.encoders import ResNet18

nn = torch.nn


def to_torch(images):
    return torch.tensor(np.asarray(images)).permute(0, 3, 1, 2)


def torch_norm(norm):
    channels = len(norm.scale)
    return nn.GroupNorm(max(1, channels // 16), channels) if norm.running is None else nn.BatchNorm2d(channels)


def plain(model):
    """The layers of a LeNet or AlexNet; flattening is in NHWC order."""
    size = [len(n.scale) if n is not None else None for n in model.norms]
    layers = []
    for convolution, pool, norm in zip(model.convolutions, model.pools, model.norms, strict=False):
        k, _, inputs, outputs = convolution.kernel.shape
        layers += [nn.Conv2d(inputs, outputs, k, convolution.stride, convolution.padding)]
        layers += [*([nn.MaxPool2d(2)] if pool else []), nn.ReLU(), *([torch_norm(norm)] if norm is not None else [])]
    layers += [Permute(), nn.Flatten()]
    for linear, channels in zip(model.linears, size[len(model.convolutions) :], strict=True):
        layers += [nn.Linear(*linear.kernel.shape), nn.ReLU(), *([nn.BatchNorm1d(channels)] if channels else [])]
    return nn.Sequential(*layers)


class Permute(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


class Block(nn.Module):
    def __init__(self, block):
        super().__init__()
        shapes = [c.kernel.shape for c in block.convolutions]
        conv = lambda i: nn.Conv2d(
            *shapes[i][2:], shapes[i][0], block.convolutions[i].stride, shapes[i][0] // 2, bias=False
        )
        self.path = nn.Sequential(conv(0), torch_norm(block.norms[0]), nn.ReLU(), conv(1), torch_norm(block.norms[1]))
        self.shortcut = nn.Sequential(conv(2), torch_norm(block.norms[2])) if len(shapes) == 3 else nn.Identity()

    def forward(self, x):
        return torch.relu(self.path(x) + self.shortcut(x))


def resnet18(model):
    stem = nn.Conv2d(*model.stem.kernel.shape[2:], 3, 1, 1, bias=False)
    pool = [nn.AdaptiveAvgPool2d(1)] if model.pool is None else [nn.AvgPool2d(model.pool), Permute()]
    blocks = [Block(block) for block in model.blocks]
    return nn.Sequential(stem, torch_norm(model.norm), nn.ReLU(), *blocks, *pool, nn.Flatten())


def network_of(model):
    """The network with the model's weights, in training."""
    network = resnet18(model) if isinstance(model, ResNet18) else plain(model)
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), tensors(model), strict=True):
            parameter.copy_(torch.tensor(value))
    return network.train()


def values_of(name):
    """Outputs in training, the gradients of the sum of their sines, and the running statistics after that."""
    model = model_of(name)
    network = network_of(model)
    outputs = network(to_torch(images_of(name)))
    torch.sin(outputs).sum().backward()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    if isinstance(model, ResNet18):  # PyTorch's first norm is the stem's, which is last in the tree of our ResNet
        norms = norms[1:] + norms[:1]
    values = {"outputs": outputs.detach()}
    values |= {f"gradient {i}": p.grad for i, p in enumerate(network.parameters())}
    for i, norm in enumerate(norms):
        values |= {f"mean {i}": norm.running_mean, f"variance {i}": norm.running_var}
    return {key: value.numpy() for key, value in values.items()}


if __name__ == "__main__":
    kept = {f"{name}/{key}": value for name in KEPT for key, value in values_of(name).items()}
    # The gradients of the ResNet would be most of the file.
    kept = {key: value for key, value in kept.items() if not key.startswith("resnet18/gradient")}
    np.savez_compressed(Path(__file__).with_name("convolutional_torch.npz"), **kept)
