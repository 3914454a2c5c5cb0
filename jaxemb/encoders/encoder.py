"""What an encoder is: a batch in, states of its parts out. Texts in, vectors out: `jaxemb.text_encoder`."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self, runtime_checkable

import jax


@runtime_checkable
class Encoder(Protocol):
    """A module that gives a state to each part of what is in a batch: a token of a text, a patch of an image."""

    @property
    def dim(self) -> int:
        """D, the size of a state."""
        ...

    def __call__(self, batch: Any, /, *, key: jax.Array | None = None, all_states: bool = False) -> jax.Array:
        """The states `[B, T, D]` of a batch.

        Args:
          batch: of the type that the encoder reads, such as `Tokens`.
          key: dropout key; None turns dropout off.
          all_states: those before the first layer and after each, `[L + 1, B, T, D]`; without layers there is one.
        """
        ...


@runtime_checkable
class LayeredEncoder(Encoder, Protocol):
    """An encoder of layers, which can be cut after any of them."""

    @property
    def depth(self) -> int:
        """L, the number of layers."""
        ...

    def truncate(self, layers: int) -> Self:
        """This encoder without the layers after the first `layers`; raises ValueError if that is not in 1..L."""
        ...

    def at_layers(
        self,
        batch: Any,
        /,
        layers: Sequence[int],
        read: Callable[[jax.Array], jax.Array],
        *,
        key: jax.Array | None = None,
        raw: bool = False,
    ) -> jax.Array:
        """`read` of the states `[B, T, D]` that this encoder cut to each of `layers` gives, of one pass.

        With `raw` they are those between its layers, as `all_states` gives them, that is without a norm that is final.

        Returns:
          `[len(layers), ...]`; 0 layers are the embeddings alone. Raises ValueError for a number that is not in 0..L.
        """
        ...
