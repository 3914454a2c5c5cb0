"""The multi-layer perceptron: an encoder of flat inputs, and the usual projection head."""

import itertools
from collections.abc import Sequence

import jax
from flax import nnx

from jaxemb.nn import Linear, Module, uniform_linear


@nnx.dataclass
class Mlp(Module):
    """`x_{l+1} = relu(x_l W_l + b_l)`; the last layer has its ReLU only if `final_activation`."""

    layers: tuple[Linear, ...] = nnx.data()
    final_activation: bool = nnx.static(default=True)

    @classmethod
    def init(cls, key: jax.Array, sizes: Sequence[int], *, final_activation: bool = True) -> "Mlp":
        """Layers from `sizes[0]` inputs to `sizes[-1]` outputs, all values uniform in `±1 / sqrt(inputs of the layer)`.

        Raises:
          ValueError: for fewer than two sizes, or one below 1.
        """
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"sizes must be two or more numbers of at least 1; got {tuple(sizes)}")
        keys = jax.random.split(key, len(sizes) - 1)
        layers = (uniform_linear(k, *pair) for k, pair in zip(keys, itertools.pairwise(sizes), strict=True))
        return cls(tuple(layers), final_activation)

    def __call__(self, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """Outputs `[N, D]` of inputs `[N, ...]`, which are flattened; `key` changes nothing: there is no dropout.

        Raises:
          ValueError: if the inputs have another size than the first layer's.
        """
        x = x.reshape(x.shape[0], -1)
        if x.shape[1] != (inputs := self.layers[0].kernel.shape[0]):
            raise ValueError(f"inputs must have {inputs} values each; got {x.shape[1]}")
        for number, layer in enumerate(self.layers, 1):
            x = layer(x)
            if number < len(self.layers) or self.final_activation:
                x = jax.nn.relu(x)
        return x
