"""The convolutional encoders against the same networks made of PyTorch's modules, with the same weights."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxemb import Classifier
from jaxemb.encoders import AlexNet, LeNet, ResNet18
from jaxemb.objectives import classification
from jaxemb.train import init_state, make_train_step
from jaxemb.transforms import chain, ema, running_statistics

torch = pytest.importorskip("torch")
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


def layers_of(model):
    """Convolutions, norms and linear layers in the order of PyTorch's modules."""
    if isinstance(model, ResNet18):
        pairs = [(model.stem, model.norm)]
        pairs += [p for block in model.blocks for p in zip(block.convolutions, block.norms, strict=True)]
    else:
        pairs = list(zip((*model.convolutions, *model.linears), model.norms, strict=True))
    return [layer for pair in pairs for layer in pair if layer is not None]


def tensors(model):
    """The values of all layers, in PyTorch's layout."""
    for layer in layers_of(model):
        if hasattr(layer, "kernel"):
            yield np.moveaxis(np.asarray(layer.kernel), (-1, -2), (0, 1))
        else:
            yield np.asarray(layer.scale)
        if layer.bias is not None:
            yield np.asarray(layer.bias)


def copied(model, network):
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), tensors(model), strict=True):
            parameter.copy_(torch.tensor(value))
    return network


MODELS = {
    "lenet": (partial(LeNet.init, widths=(4, 5, 6)), plain, (28, 28, 1)),
    "alexnet": (partial(AlexNet.init, widths=(4, 6, 6, 4, 4, 8, 8)), plain, (32, 32, 3)),
    "resnet18": (partial(ResNet18.init, width=4), resnet18, (16, 16, 3)),
    "resnet18, hyperinterval": (partial(ResNet18.init, widths=(4, 4, 8, 8, 8), pool=2), resnet18, (32, 32, 3)),
    "resnet18, group": (partial(ResNet18.init, width=4, norm="group"), resnet18, (16, 16, 3)),
}
SLOW = ("alexnet", "resnet18, hyperinterval", "resnet18, group")


@cache
def model_of(name):
    return jax.jit(MODELS[name][0])(jax.random.key(0))


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in MODELS])
def test_outputs_and_gradients_in_training_are_those_of_pytorch(name):
    model, (_, network_of, shape) = model_of(name), MODELS[name]
    network = copied(model, network_of(model)).train()
    images = np.random.default_rng(0).normal(size=(6, *shape)).astype(np.float32)

    def loss(model, images):
        features, statistics = model.forward(images, key=jax.random.key(0))
        return jnp.sum(jnp.sin(features)), (features, statistics)

    (_, (features, statistics)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(model, images)
    expected = network(to_torch(images))
    torch.sin(expected).sum().backward()
    np.testing.assert_allclose(features, expected.detach(), rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(tensors(gradients), network.parameters(), strict=True):
        scale = float(theirs.grad.abs().max())
        np.testing.assert_allclose(ours, theirs.grad, rtol=1e-3, atol=1e-3 * scale)

    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert len(statistics) == len(norms)
    if norms:  # PyTorch's first norm is the stem's, which is last in the tree of our ResNet
        ours = statistics[-1:] + statistics[:-1] if isinstance(model, ResNet18) else statistics
        for batch, norm in zip(ours, norms, strict=True):
            np.testing.assert_allclose(0.1 * batch.mean, norm.running_mean, rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(0.9 + 0.1 * batch.variance, norm.running_var, rtol=1e-3)


@pytest.mark.slow
def test_training_steps_move_weights_and_running_statistics_as_in_pytorch():
    encoder, (_, network_of, shape) = model_of("alexnet"), MODELS["alexnet"]
    model = Classifier.init(jax.random.key(5), encoder, 8, 3)
    network = nn.Sequential(copied(encoder, network_of(encoder)), nn.Linear(8, 3)).train()
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor(np.asarray(model.head.kernel.T)))
        network[1].bias.copy_(torch.tensor(np.asarray(model.head.bias)))
    rng = np.random.default_rng(1)
    images, labels = rng.normal(size=(2, 8, *shape)).astype(np.float32), rng.integers(0, 3, (2, 8)).astype(np.int32)

    transform = chain(ema(), running_statistics())
    optimizer = optax.chain(optax.add_decayed_weights(1e-2), optax.sgd(0.05))
    state = init_state(jax.random.key(0), model, optimizer, transform)
    step = jax.jit(make_train_step(classification(), optimizer, transform))
    sgd = torch.optim.SGD(network.parameters(), 0.05, weight_decay=1e-2)
    for x, y in zip(images, labels, strict=True):
        state, _ = step(state, {"input": x, "label": y})
        sgd.zero_grad()
        nn.functional.cross_entropy(network(to_torch(x)), torch.tensor(y).long()).backward()
        sgd.step()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    for ours, theirs in zip(state.model.encoder.norms, norms, strict=True):
        np.testing.assert_allclose(ours.running.mean, theirs.running_mean, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(ours.running.variance, theirs.running_var, rtol=1e-3)
    evaluated = jax.jit(lambda model, x: model(x))(state.model, images[0])
    np.testing.assert_allclose(evaluated, network.eval()(to_torch(images[0])).detach(), rtol=1e-3, atol=1e-3)


def test_statistics_that_do_not_come_are_named():
    encoder, shape = model_of("alexnet"), MODELS["alexnet"][2]
    model = Classifier.init(jax.random.key(5), encoder, 8, 3)
    batch = {"input": np.zeros((2, *shape), np.float32), "label": np.zeros(2, np.int32)}
    without = lambda model, batch, key: classification()(model, batch, None)
    fewer = lambda model, batch, key: (jnp.zeros(2), {"statistics": encoder.forward(batch["input"], key=key)[1][:2]})
    for objective, message in (
        (without, "output 'statistics'; it returns none"),
        (fewer, "has 7 batch norms; .* has 2"),
    ):
        state = init_state(jax.random.key(0), model, optax.sgd(0.1), running_statistics())
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(make_train_step(objective, optax.sgd(0.1), running_statistics()), state, batch)


def test_bad_options_and_images_are_named():
    key = jax.random.key(0)
    for make, message in (
        (lambda: LeNet.init(key, norm="layer"), "norm must be 'batch', 'group' or 'none'; got 'layer'"),
        (lambda: LeNet.init(key, (12, 12, 1)), r"\(12, 12, 1\) is too small: nothing is left after layer 2"),
        (lambda: AlexNet.init(key, widths=(4, 4)), r"at least 6 numbers of at least 1; got \(4, 4\)"),
        (lambda: ResNet18.init(key, widths=(4, 4)), r"five numbers of at least 1; got \(4, 4\)"),
        (lambda: ResNet18.init(key, width=20, norm="group"), "multiple of 16 channels; got 20"),
        (lambda: ResNet18.init(key, width=2, pool=0), "pool must be at least 1; got 0"),
        (lambda: running_statistics(0.0), r"momentum must be in \(0, 1\]; got 0"),
        (
            lambda: model_of("lenet")(np.zeros((2, 28, 28, 3))),
            r"images must be \[N, 28, 28, 1\]; got \(2, 28, 28, 3\)",
        ),
        (lambda: model_of("resnet18")(np.zeros((2, 8, 8, 1))), r"images must be \[N, H, W, 3\]; got \(2, 8, 8, 1\)"),
        (
            lambda: jax.eval_shape(lambda x: model_of("alexnet")(x, key=key), np.zeros((1, 32, 32, 3), np.float32)),
            "two values per channel in training",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make()
