"""The convolutional encoders against the same networks made of PyTorch's modules, with the same weights."""

from functools import cache, partial
from pathlib import Path

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

MODELS = {
    "lenet": (partial(LeNet.init, widths=(4, 5, 6)), (28, 28, 1)),
    "alexnet": (partial(AlexNet.init, widths=(4, 6, 6, 4, 4, 8, 8)), (32, 32, 3)),
    "resnet18": (partial(ResNet18.init, width=4), (16, 16, 3)),
    "resnet18, hyperinterval": (partial(ResNet18.init, widths=(4, 4, 8, 8, 8), pool=2), (32, 32, 3)),
    "resnet18, group": (partial(ResNet18.init, width=4, norm="group"), (16, 16, 3)),
}
KEPT = ("lenet", "resnet18")  # whose values in PyTorch are in convolutional_torch.npz; see torch_convolutional.py


@cache
def model_of(name):
    """The model with weights from NumPy, uniform in `±sqrt(3 / inputs)`, and scales and biases around 1."""
    rng = np.random.default_rng(0)

    def weights(path, like):
        if "running" in (place := jax.tree_util.keystr(path)):
            return np.full(like.shape, "variance" in place, np.float32)
        if like.ndim > 1:
            return rng.uniform(-1, 1, like.shape).astype(np.float32) * np.sqrt(3 / like.size * like.shape[-1])
        return rng.uniform(0.5, 1.5, like.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(weights, jax.eval_shape(MODELS[name][0], jax.random.key(0)))


def images_of(name):
    return np.random.default_rng(1).normal(size=(6, *MODELS[name][1])).astype(np.float32)


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


def in_training(model, images):
    features, statistics = model.forward(images, key=jax.random.key(0))
    return jnp.sum(jnp.sin(features)), (features, statistics)


def assert_equal_values(expected, features, statistics, gradients=None):
    np.testing.assert_allclose(features, expected["outputs"], rtol=1e-4, atol=1e-4)
    assert len(statistics) == sum(key.startswith("mean") for key in expected)
    for i, batch in enumerate(statistics):
        np.testing.assert_allclose(0.1 * batch.mean, expected[f"mean {i}"], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(0.9 + 0.1 * batch.variance, expected[f"variance {i}"], rtol=1e-3)
    for i, ours in enumerate(tensors(gradients) if gradients is not None else ()):
        theirs = expected[f"gradient {i}"]
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * np.abs(theirs).max())


@pytest.mark.parametrize("name", KEPT)
def test_values_in_training_are_those_kept_of_pytorch(name):
    with np.load(Path(__file__).with_name("convolutional_torch.npz")) as arrays:
        expected = {key.removeprefix(f"{name}/"): arrays[key] for key in arrays if key.startswith(f"{name}/")}
    if "gradient 0" in expected:
        (_, values), gradients = jax.jit(jax.value_and_grad(in_training, has_aux=True))(model_of(name), images_of(name))
    else:
        (_, values), gradients = jax.jit(in_training)(model_of(name), images_of(name)), None
    assert_equal_values(expected, *values, gradients)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_gradients_in_training_are_those_of_pytorch(name):
    pytest.importorskip("torch")
    from torch_convolutional import values_of

    (_, values), gradients = jax.jit(jax.value_and_grad(in_training, has_aux=True))(model_of(name), images_of(name))
    assert_equal_values(values_of(name), *values, gradients)


@pytest.mark.slow
def test_training_steps_move_weights_and_running_statistics_as_in_pytorch():
    torch = pytest.importorskip("torch")
    from torch_convolutional import network_of, nn, to_torch

    encoder, (_, shape) = model_of("alexnet"), MODELS["alexnet"]
    model = Classifier.init(jax.random.key(5), encoder, 8, 3)
    network = nn.Sequential(network_of(encoder), nn.Linear(8, 3)).train()
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
    encoder, shape = model_of("alexnet"), MODELS["alexnet"][1]
    model = Classifier.init(jax.random.key(5), encoder, 8, 3)
    batch = {"input": np.zeros((2, *shape), np.float32), "label": np.zeros(2, np.int32)}
    without = lambda model, batch, key: classification()(model, batch, None)
    fewer = lambda model, batch, key: (jnp.zeros(2), {"statistics": encoder.forward(batch["input"], key=key)[1][:2]})
    for objective, message in (
        (without, "output 'statistics'; it returns features, logits"),
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
