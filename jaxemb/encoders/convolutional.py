"""Convolutional encoders of images: LeNet, AlexNet and ResNet-18 as small images (28 to 64 pixels) need them."""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxemb.nn import Linear, Module, uniform_linear

NormKind = Literal["batch", "group", "none"]
_CHANNELS_PER_GROUP = 16
_EPSILON = 1e-5


class Statistics(NamedTuple):
    """Mean and variance of every channel, `[C]` each."""

    mean: jax.Array
    variance: jax.Array


@nnx.dataclass
class Convolution(Module):
    """`y = x * W + b` of images `[N, H, W, C]`, W `[k, k, C, C']`."""

    kernel: jax.Array = nnx.data()
    bias: jax.Array | None = nnx.data(default=None)
    stride: int = nnx.static(default=1)
    padding: int = nnx.static(default=0)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jax.lax.conv_general_dilated(
            x,
            self.kernel.astype(x.dtype),
            (self.stride, self.stride),
            [(self.padding, self.padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y if self.bias is None else y + self.bias.astype(x.dtype)


@nnx.dataclass
class ChannelNorm(Module):
    """`y = (x - mean) / sqrt(variance + 1e-5) * scale + bias`, channels last, in f32.

    Batch norm if there are `running` statistics: in training over all but the channels, otherwise `running` is used.
    Group norm if not: mean and variance are of one image and a group of 16 channels (all, if there are fewer).
    """

    scale: jax.Array = nnx.data()
    bias: jax.Array = nnx.data()
    running: Statistics | None = nnx.data(default=None)

    @classmethod
    def init(cls, channels: int, kind: NormKind) -> "ChannelNorm | None":
        """The norm of that kind; None for "none".

        Raises:
          ValueError: for another kind, or group norm of channels that are no multiple of 16 and more than 16.
        """
        if kind not in ("batch", "group", "none"):
            raise ValueError(f"norm must be 'batch', 'group' or 'none'; got {kind!r}")
        if kind == "group" and channels > _CHANNELS_PER_GROUP and channels % _CHANNELS_PER_GROUP:
            raise ValueError(f"group norm needs a multiple of {_CHANNELS_PER_GROUP} channels; got {channels}")
        if kind == "none":
            return None
        running = Statistics(jnp.zeros(channels), jnp.ones(channels)) if kind == "batch" else None
        return cls(jnp.ones(channels), jnp.zeros(channels), running)

    def __call__(self, x: jax.Array, training: bool) -> tuple[jax.Array, tuple[Statistics, ...]]:
        """Outputs, and the batch's statistics if they were used; their variance is the unbiased one, as in PyTorch.

        Raises:
          ValueError: in training with batch norm, if there is one value per channel.
        """
        x32 = x.astype(jnp.float32)
        used: tuple[Statistics, ...] = ()
        if self.running is None:
            groups = max(1, x.shape[-1] // _CHANNELS_PER_GROUP)
            grouped = x32.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
            centred = grouped - grouped.mean((1, 3), keepdims=True)
            normal = centred * jax.lax.rsqrt(jnp.square(centred).mean((1, 3), keepdims=True) + _EPSILON)
            normal = normal.reshape(x.shape)
        else:
            statistics = jax.lax.stop_gradient(self.running)
            if training:
                if (count := x.size // x.shape[-1]) < 2:
                    raise ValueError(f"batch norm needs two values per channel in training; got inputs {x.shape}")
                axes = tuple(range(x.ndim - 1))
                statistics = Statistics(x32.mean(axes), x32.var(axes))
                unbiased = Statistics(statistics.mean, statistics.variance * (count / (count - 1)))
                used = (jax.lax.stop_gradient(unbiased),)
            normal = (x32 - statistics.mean) * jax.lax.rsqrt(statistics.variance + _EPSILON)
        return (normal * self.scale + self.bias).astype(x.dtype), used


def _normalised(norm: ChannelNorm | None, x: jax.Array, training: bool) -> tuple[jax.Array, tuple[Statistics, ...]]:
    return (x, ()) if norm is None else norm(x, training)


class _ImageEncoder(Module):
    """Images to features, and in training to the statistics of the batch."""

    def __call__(self, images: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """The features of `forward`, `[N, D]`."""
        return self.forward(images, key=key)[0]

    def forward(self, images: jax.Array, *, key: jax.Array | None = None) -> tuple[jax.Array, tuple[Statistics, ...]]:
        """Features `[N, D]` of images `[N, H, W, C]`, and the batch's statistics.

        Args:
          images: floats.
          key: a key means training: batch norm uses the batch's statistics. With None it uses the running ones.

        Returns:
          The features; a `Statistics` for every batch norm, in the order of the module's tree; () without a key.

        Raises:
          ValueError: if the images have another shape (for a ResNet, another number of channels) than at `init`.
        """
        raise NotImplementedError


@nnx.dataclass
class _PlainNet(_ImageEncoder):
    """Convolution, max-pooling (where `pools`), ReLU, norm; then linear layer, ReLU, norm."""

    convolutions: tuple[Convolution, ...] = nnx.data()
    linears: tuple[Linear, ...] = nnx.data()
    norms: tuple[ChannelNorm | None, ...] = nnx.data()
    pools: tuple[bool, ...] = nnx.static(default=())
    image_shape: tuple[int, int, int] = nnx.static(default=(0, 0, 0))

    def forward(self, images: jax.Array, *, key: jax.Array | None = None) -> tuple[jax.Array, tuple[Statistics, ...]]:
        if images.shape[1:] != self.image_shape:
            raise ValueError(f"images must be [N, {', '.join(map(str, self.image_shape))}]; got {images.shape}")
        x, norms = images, iter(self.norms)
        used: tuple[Statistics, ...] = ()
        for convolution, pool in zip(self.convolutions, self.pools, strict=True):
            x = convolution(x)
            x, new = _normalised(next(norms), jax.nn.relu(_max_pool(x) if pool else x), key is not None)
            used += new
        x = x.reshape(x.shape[0], -1)
        for linear, norm in zip(self.linears, norms, strict=True):
            x, new = _normalised(norm, jax.nn.relu(linear(x)), key is not None)
            used += new
        return x, used


@nnx.dataclass
class LeNet(_PlainNet):
    """Two 5x5 convolutions, each with a ReLU and 2x2 max-pooling, and a linear layer with a ReLU."""

    @classmethod
    def init(
        cls,
        key: jax.Array,
        image_shape: tuple[int, int, int] = (28, 28, 1),
        *,
        widths: tuple[int, int, int] = (20, 50, 500),
        norm: NormKind = "none",
    ) -> "LeNet":
        """A new network, all weights uniform in `±1 / sqrt(inputs of the layer)`.

        Args:
          key: of the weights.
          image_shape: (H, W, C) of the images.
          widths: maps of the convolutions and units of the linear layer; the last is D.
          norm: after each ReLU.

        Raises:
          ValueError: if the images are too small, or for another number of widths.

        References:
          LeCun et al. 1998, in Caffe's form, which the hypernetwork literature uses (hypnettorch's "mnist_large").
        """
        layers = [(1, 0, True)] * 2
        return cls(*_plain_layers(key, image_shape, widths, 5, layers, norm), (True,) * 2, tuple(image_shape))  # type: ignore[call-arg]


@nnx.dataclass
class AlexNet(_PlainNet):
    """Five 3x3 convolutions and two linear layers, as HyperInterval uses for 32x32 images."""

    @classmethod
    def init(
        cls,
        key: jax.Array,
        image_shape: tuple[int, int, int] = (32, 32, 3),
        *,
        widths: tuple[int, ...] = (64, 192, 384, 256, 256, 4096, 4096),
        norm: NormKind = "batch",
    ) -> "AlexNet":
        """A new network, all weights uniform in `±1 / sqrt(inputs of the layer)`.

        The first convolution has stride 2; 2x2 max-pooling follows the first, the second and the fifth, before the
        ReLU; the norm follows the ReLU.

        Args:
          key: of the weights.
          image_shape: (H, W, C) of the images.
          widths: maps of the convolutions, then units of the linear layers; the last is D.
          norm: after each ReLU.

        Raises:
          ValueError: if the images are too small, or for another number of widths.

        References:
          Krizhevsky et al. 2012; Krukowski et al. 2024, arXiv 2405.15444 (the official code's "cifar" architecture).
        """
        layers = [(2, 1, True), (1, 1, True), (1, 1, False), (1, 1, False), (1, 1, True)]
        pools = tuple(pool for _, _, pool in layers)
        return cls(*_plain_layers(key, image_shape, widths, 3, layers, norm), pools, tuple(image_shape))  # type: ignore[call-arg]


def _plain_layers(
    key: jax.Array,
    image_shape: tuple[int, int, int],
    widths: Sequence[int],
    size: int,
    layers: Sequence[tuple[int, int, bool]],
    norm: NormKind,
):
    """Convolutions of (stride, padding, pool), linear layers for the widths that are left, and the norms of all."""
    if len(image_shape) != 3:
        raise ValueError(f"image_shape must be (H, W, C); got {image_shape}")
    minimum = len(layers) + 1
    if len(widths) < minimum or min(widths) < 1:
        raise ValueError(f"widths must be at least {minimum} numbers of at least 1; got {tuple(widths)}")
    *sides, channels = image_shape
    keys = jax.random.split(key, len(widths))
    convolutions = []
    for number, (stride, padding, pool) in enumerate(layers):
        sides = [((side + 2 * padding - size) // stride + 1) // (2 if pool else 1) for side in sides]
        if min(sides) < 1:
            raise ValueError(f"image_shape {tuple(image_shape)} is too small: nothing is left after layer {number + 1}")
        flat = uniform_linear(keys[number], size * size * channels, widths[number])
        kernel = flat.kernel.reshape(size, size, channels, widths[number])
        convolutions.append(Convolution(kernel, flat.bias, stride, padding))
        channels = widths[number]
    units = (math.prod(sides) * channels, *widths[len(layers) :])
    linears = (uniform_linear(k, *pair) for k, pair in zip(keys[len(layers) :], itertools.pairwise(units), strict=True))
    return tuple(convolutions), tuple(linears), tuple(ChannelNorm.init(width, norm) for width in widths)


@nnx.dataclass
class _Block(Module):
    """`relu(norm(conv(relu(norm(conv(x))))) + shortcut(x))`; the shortcut is a 1x1 convolution where shapes change."""

    convolutions: tuple[Convolution, ...] = nnx.data()  # the third is the shortcut
    norms: tuple[ChannelNorm | None, ...] = nnx.data()

    @classmethod
    def init(cls, key: jax.Array, inputs: int, outputs: int, stride: int, norm: NormKind) -> "_Block":
        keys = jax.random.split(key, 3)
        convolutions = [
            _kaiming(keys[0], 3, inputs, outputs, stride),
            _kaiming(keys[1], 3, outputs, outputs, 1),
        ]
        if stride != 1 or inputs != outputs:
            convolutions.append(_kaiming(keys[2], 1, inputs, outputs, stride))
        return cls(tuple(convolutions), tuple(ChannelNorm.init(outputs, norm) for _ in convolutions))

    def __call__(self, x: jax.Array, training: bool) -> tuple[jax.Array, tuple[Statistics, ...]]:
        y, first = _normalised(self.norms[0], self.convolutions[0](x), training)
        y, second = _normalised(self.norms[1], self.convolutions[1](jax.nn.relu(y)), training)
        shortcut: tuple[Statistics, ...] = ()
        if len(self.convolutions) == 3:
            x, shortcut = _normalised(self.norms[2], self.convolutions[2](x), training)
        return jax.nn.relu(x + y), first + second + shortcut


@nnx.dataclass
class ResNet18(_ImageEncoder):
    """ResNet-18 for small images: a 3x3 stem of stride 1, no max-pooling, four stages of two blocks."""

    blocks: tuple[_Block, ...] = nnx.data()
    norm: ChannelNorm | None = nnx.data()
    stem: Convolution = nnx.data()
    pool: int | None = nnx.static(default=None)

    @classmethod
    def init(
        cls,
        key: jax.Array,
        channels: int = 3,
        *,
        width: int = 64,
        widths: tuple[int, int, int, int, int] | None = None,
        norm: NormKind = "batch",
        pool: int | None = None,
    ) -> "ResNet18":
        """A new network, all kernels normal with variance `2 / (k^2 outputs)` (Kaiming, fan-out).

        Args:
          key: of the weights.
          channels: C of the images.
          width: maps of the stem and the first stage; the stages have 1, 2, 4 and 8 times as many, so D = 8 width.
          widths: instead of `width`, the maps of the stem and of the four stages: (16, 16, 32, 64, 128) in
            HyperInterval.
          norm: after every convolution.
          pool: side of the last average pooling, whose outputs are flattened (2 in HyperInterval); None averages over
            all pixels.

        Raises:
          ValueError: for a width or pool below 1, or other than five widths.

        References:
          He et al. 2016, arXiv 1512.03385; the stem is that of the CIFAR networks of the continual-learning
          literature (Lopez-Paz and Ranzato 2017, arXiv 1706.08840).
        """
        widths = (width, width, 2 * width, 4 * width, 8 * width) if widths is None else widths
        if len(widths) != 5 or min(widths) < 1:
            raise ValueError(f"widths must be five numbers of at least 1; got {tuple(widths)}")
        if pool is not None and pool < 1:
            raise ValueError(f"pool must be at least 1; got {pool}")
        keys = iter(jax.random.split(key, 9))
        stem = _kaiming(next(keys), 3, channels, widths[0], 1)
        blocks = []
        for stage, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            blocks.append(_Block.init(next(keys), inputs, outputs, 1 if stage == 0 else 2, norm))
            blocks.append(_Block.init(next(keys), outputs, outputs, 1, norm))
        return cls(tuple(blocks), ChannelNorm.init(widths[0], norm), stem, pool)

    def forward(self, images: jax.Array, *, key: jax.Array | None = None) -> tuple[jax.Array, tuple[Statistics, ...]]:
        if images.ndim != 4 or images.shape[-1] != (channels := self.stem.kernel.shape[2]):
            raise ValueError(f"images must be [N, H, W, {channels}]; got {images.shape}")
        x, stem = _normalised(self.norm, self.stem(images), key is not None)
        x = jax.nn.relu(x)
        used: tuple[Statistics, ...] = ()
        for block in self.blocks:
            x, new = block(x, key is not None)
            used += new
        if self.pool is None:
            return x.mean((1, 2)), used + stem
        window = (1, self.pool, self.pool, 1)
        sums = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, window, "VALID")
        return (sums / self.pool**2).reshape(x.shape[0], -1), used + stem


def _kaiming(key: jax.Array, size: int, inputs: int, outputs: int, stride: int) -> Convolution:
    kernel = jax.random.normal(key, (size, size, inputs, outputs)) * math.sqrt(2 / (size * size * outputs))
    return Convolution(kernel, None, stride, size // 2)


def _max_pool(x: jax.Array) -> jax.Array:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
