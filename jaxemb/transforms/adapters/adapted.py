"""A model whose low-rank adapters are arrays of its own, for transforms that act on a model's arrays."""

from typing import Any

import jax
from flax import nnx

from jaxemb.nn import Adapter, Module, merge_lora
from jaxemb.transforms.adapters.lora import lora
from jaxemb.trees import PyTree, Where


@nnx.dataclass
class Adapted(Module):
    """A classifier or encoder with adapters merged in every call: `W + scale A B` (see `lora`).

    What `lora` keeps beside the model is part of it here, under "adapters", so that a hypernetwork can make it: with
    `where=r"^adapters|head"`, the adapters and the head, and the rest of the encoder stays as it is.
    """

    model: Any = nnx.data()
    adapters: dict[str, Adapter] = nnx.data()
    scale: float = nnx.static(default=1.0)

    @classmethod
    def init(
        cls, key: jax.Array, model: PyTree, rank: int, where: Where = r"(query|value)\.kernel$", scale: float = 1.0
    ) -> "Adapted":
        """New adapters of the kernels that `where` chooses; B is 0, so that the model computes what it did.

        Raises:
          ValueError: as `lora`.
        """
        return cls(model, lora(rank, where=where).init(key, model).params, scale)

    @property
    def head(self) -> Any:
        """That of a classifier."""
        return self.model.head

    def features(self, inputs: Any, *, key: jax.Array | None = None) -> jax.Array:
        """Those of a classifier with the adapters, `[N, D]`."""
        return self._merged().features(inputs, key=key)

    def __call__(self, inputs: Any, *, key: jax.Array | None = None) -> jax.Array:
        """What the model with the adapters makes of the inputs."""
        return self._merged()(inputs, key=key)

    def _merged(self) -> Any:
        return merge_lora(self.model, self.adapters, self.scale)
