"""The states between the layers of a decoder, and token prepending, which changes what its layers read."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jaxemb.checks import checked
from jaxemb.encoders.transformer import Transformer, layout_of, split_key
from jaxemb.nn import Module, Stack
from jaxemb.nn.rope import text_lengths
from jaxemb.types import Tokens


@dataclasses.dataclass(frozen=True)
class Prepending:
    """How token prepending (Fu et al. 2024, arXiv 2412.11556) goes on: it lets early tokens see the end of a text.

    In front of the layers number `start` to `stop - 1`, from 0, the state of the prepended token is replaced by that of
    the text's last token. Its embedding is drawn from a normal distribution, and never trained.

    Attributes:
      start, stop: with `start == stop` the token is there and nothing is replaced.
      seed: of the embedding.

    Raises:
      ValueError: unless 0 <= start <= stop.
    """

    start: int = 1
    stop: int = 7
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.start <= self.stop:
            raise ValueError(f"start and stop must be 0 <= start <= stop; got {self.start} and {self.stop}")


@nnx.dataclass
class StatesAt(Module):
    """The states of a transformer after some of its layers as an encoder; those after all have the final norm.

    Attributes:
      transformer: with L layers.
      layer: 1 to L.
      prepended: the embedding of the prepended token, `[D]`; None for none.
      prepended_id: its id, whose row in the table, if there is one, is not read.
      layers: in front of which its state is replaced.
    """

    transformer: Transformer = nnx.data()
    prepended: jax.Array | None = nnx.data(default=None)
    layer: int = nnx.static(kw_only=True)
    prepended_id: int = nnx.static(default=-1, kw_only=True)
    layers: tuple[int, int] = nnx.static(default=(0, 0), kw_only=True)

    @property
    def dim(self) -> int:
        return self.transformer.dim

    def __call__(self, tokens: Tokens, *, key: jax.Array | None = None, all_states: bool = False) -> jax.Array:
        """States `[B, T, D]` or, with `all_states`, `[layer + 1, B, T, D]`."""
        key_embeddings, key_layers = split_key(key)
        embeddings, config = self.transformer.embeddings, self.transformer.config
        if self.prepended is None:
            x, before = embeddings(tokens, config, key_embeddings), None
        else:
            is_prepended = tokens.ids == self.prepended_id
            known = dataclasses.replace(tokens, ids=jnp.where(is_prepended, 0, tokens.ids))
            vectors = jnp.where(is_prepended[..., None], self.prepended, embeddings.of_ids(known))
            x, before = embeddings.of_vectors(vectors, tokens, config, key_embeddings), self._replacing(tokens)
        return self._stack()(x, layout_of(tokens), key=key_layers, all_states=all_states, before=before)

    def _stack(self) -> Stack:
        stack = self.transformer.stack.truncate(self.layer)
        return stack if self.layer == self.transformer.depth else dataclasses.replace(stack, final_norm=None)

    def _replacing(self, tokens: Tokens) -> "_Replacing":
        layers = jnp.arange(self.layer)
        active = (layers >= self.layers[0]) & (layers < self.layers[1])
        lengths = text_lengths(tokens.segment_ids, tokens.positions)
        last = jnp.arange(tokens.ids.shape[1]) + lengths - 1 - tokens.positions
        of_each = lambda x: jnp.broadcast_to(x, (self.layer, *x.shape))
        return _Replacing(active[:, None, None] & (tokens.ids == self.prepended_id), of_each(last))


@nnx.dataclass
class _Replacing(Module):
    """Of each layer, which states are replaced, and by those of which tokens of the row, both `[L, B, T]`."""

    replaced: jax.Array = nnx.data()
    by: jax.Array = nnx.data()

    def __call__(self, x: jax.Array) -> jax.Array:
        others = jnp.take_along_axis(x, self.by[..., None], axis=1)
        return jnp.where(self.replaced[..., None], others, x)


@checked()
def states_at(transformer: Transformer, layer: int) -> StatesAt:
    """The encoder that gives the states number `layer`, as `hidden_states` of transformers are numbered.

    Raises:
      ValueError: for a layer that is not in 1..L or -L..-1.
    """
    depth = transformer.depth
    number = depth + 1 + layer if layer < 0 else layer
    if not 1 <= number <= depth:
        raise ValueError(f"layer must be in 1..{depth} or -{depth}..-1; got {layer}")
    return StatesAt(transformer, layer=number)
