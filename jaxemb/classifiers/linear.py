"""An encoder with a linear layer over classes (`Classifier`)."""

import functools
from typing import Any

import jax
from flax import nnx

from jaxemb.checks import checked, size, whole
from jaxemb.nn import Linear, Module, uniform_linear


@nnx.dataclass
class Classifier(Module):
    """`logits = f(x) W + b` for any encoder `f(x, key=key) -> [N, D]`: of images, of tokens, an `Embedder`.

    There is one logit for every class that will ever be seen. Which of them compete is the batch's business: see
    `objectives.classification`.
    """

    encoder: Any = nnx.data()
    head: Linear = nnx.data()

    @classmethod
    @checked(dim=size, classes=functools.partial(whole, least=2, most=2**31 - 1))
    def init(cls, key: jax.Array, encoder: Any, dim: int, classes: int) -> "Classifier":
        """The encoder, whose features are `[N, dim]`, with a new layer, uniform in `±1 / sqrt(dim)`.

        Raises:
          ValueError: for fewer than two classes.
        """
        return cls(encoder, uniform_linear(key, dim, classes))

    def features(self, inputs: Any, *, key: jax.Array | None = None) -> jax.Array:
        """What the encoder makes of the inputs, `[N, D]`; `key` is that of dropout, None for none."""
        return self.encoder(inputs, key=key)

    def forward(self, inputs: Any, *, key: jax.Array | None = None) -> tuple[jax.Array, Any]:
        """The features, and the batch's statistics of an encoder that returns them by `forward`; () of another."""
        if hasattr(self.encoder, "forward"):
            return self.encoder.forward(inputs, key=key)
        return self.features(inputs, key=key), ()

    def __call__(self, inputs: Any, *, key: jax.Array | None = None) -> jax.Array:
        """Logits of all classes, `[N, C]`."""
        return self.head(self.features(inputs, key=key))
