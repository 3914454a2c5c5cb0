"""Soft prompts: trained vectors in front of every text."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxemb.encoders.transformer import Transformer, TransformerConfig
from jaxemb.nn import Module
from jaxemb.transforms.base import Transform, Variables
from jaxemb.transforms.frozen import trains_only
from jaxemb.trees import PyTree
from jaxemb.types import Tokens


@nnx.dataclass
class PromptedTable(Module):
    """A token table `[V, D]` with the prompt's vectors `[P, D]` as the rows V to V + P - 1, without a copy of it."""

    tokens: jax.Array = nnx.data()
    prompt: jax.Array = nnx.data()

    def __getitem__(self, ids: jax.Array) -> jax.Array:
        words = len(self.tokens)
        is_word = (ids < words)[..., None]
        return jnp.where(is_word, self.tokens[jnp.where(ids < words, ids, 0)], self.prompt[jnp.maximum(ids - words, 0)])


@nnx.dataclass
class PromptedTransformer(Module):
    """The transformer with P virtual tokens in front of each text, which are seen but whose states are not returned."""

    transformer: Transformer = nnx.data()
    prompt: jax.Array = nnx.data()

    @property
    def config(self) -> TransformerConfig:
        return self.transformer.config

    @property
    def dim(self) -> int:
        return self.transformer.dim

    def __call__(self, tokens: Tokens, *, key: jax.Array | None = None, **options: Any) -> jax.Array:
        """As `Transformer`: the states of the texts' own tokens, `[B, T, D]`, so that pooling sees no prompt."""
        inner, longer, places = self._prompted(tokens)
        states = inner(longer, key=key, **options)
        places = places[..., None] if states.ndim == 3 else places[None, ..., None]
        return jnp.take_along_axis(states, places, axis=-2)

    def at_layers(
        self,
        tokens: Tokens,
        layers: Sequence[int],
        read: Callable[[jax.Array], jax.Array],
        *,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """As `Transformer.at_layers`; `read` gets the states of the texts' own tokens, `[B, T, D]`."""
        inner, longer, places = self._prompted(tokens)
        own = lambda states: jnp.take_along_axis(states, places[..., None], axis=-2)
        return inner.at_layers(longer, layers, lambda states: read(own(states)), key=key)

    def _prompted(self, tokens: Tokens) -> tuple[Transformer, Tokens, jax.Array]:
        """The transformer that knows the prompt, what it reads, and where the texts' own tokens are in it."""
        embeddings = self.transformer.embeddings
        table: Any = PromptedTable(embeddings.tokens, self.prompt)
        inner = dataclasses.replace(self.transformer, embeddings=dataclasses.replace(embeddings, tokens=table))
        return inner, *with_prompts(tokens, len(self.prompt), len(embeddings.tokens))


def with_prompts(tokens: Tokens, length: int, first_id: int) -> tuple[Tokens, jax.Array]:
    """The texts, each after virtual tokens with the ids `first_id` to `first_id + length - 1`.

    Positions count from the first virtual token. Rows become longer by `length` for every text slot; padding ends up
    last.

    Args:
      tokens: `[B, T]`, one or several texts per row.
      length: P, virtual tokens in front of each text.
      first_id: id of the first of them.

    Returns:
      Tokens `[B, S P + T]`, S = `tokens.texts_per_row`; and where the tokens have gone, int32 `[B, T]`.
    """
    rows, slots = tokens.ids.shape[0], tokens.texts_per_row
    number = jnp.tile(jnp.arange(length), slots)
    spread = lambda row: jnp.broadcast_to(row.astype(jnp.int32), (rows, slots * length))
    before = lambda prompt, own: jnp.concatenate([spread(prompt), own], axis=1)
    segments = before(jnp.repeat(jnp.arange(1, slots + 1), length), tokens.segment_ids)
    # A stable sort by text brings each text's virtual tokens, which come first, in front of it.
    order = jnp.argsort(jnp.where(segments > 0, segments, slots + 1), axis=1, stable=True)
    sorted_by_text = lambda x: jnp.take_along_axis(x, order, axis=1)
    types = tokens.type_ids
    longer = dataclasses.replace(
        tokens,
        ids=sorted_by_text(before(first_id + number, tokens.ids)),
        segment_ids=sorted_by_text(segments),
        positions=sorted_by_text(before(number, jnp.where(tokens.mask, tokens.positions + length, 0))),
        type_ids=None if types is None else sorted_by_text(before(jnp.zeros_like(number), types)),
    )
    return longer, jnp.argsort(order, axis=1)[:, slots * length :].astype(jnp.int32)


def prompts(length: int, *, train: str | None = None) -> Transform:
    """Trains P vectors that stand in front of every text; the rest of the model is frozen.

    They take the place of token embeddings: position and type embeddings and the norm come after, as for any token.
    Texts may be packed, each has its own copy. Pooling sees only the texts' own tokens, which attend to the prompt. The
    model's `Transformer`, wherever it is inside, becomes a `PromptedTransformer`.

    The vectors start as the embeddings of tokens drawn from the vocabulary. Texts may have P tokens less than before:
    the prompt takes positions too.

    Args:
      length: P >= 1.
      train: a regular expression of arrays of the model that are trained as well, such as r"^head\\."; None for none.

    Raises:
      ValueError: for a length below 1; in `init`, if the model does not contain exactly one `Transformer`; when the
        model is called, if rows with their prompts exceed its position table.

    References:
      Lester et al. 2021, arXiv 2104.08691.
    """
    if length < 1:
        raise ValueError(f"length must be at least 1; got {length}")
    is_transformer = lambda node: isinstance(node, Transformer)

    def init(key: jax.Array, model: PyTree) -> Variables:
        found = [node for node in jax.tree.leaves(model, is_leaf=is_transformer) if is_transformer(node)]
        if len(found) != 1:
            raise ValueError(f"the model must contain exactly one Transformer; found {len(found)}")
        table = found[0].embeddings.tokens
        return Variables(params=table[jax.random.choice(key, len(table), (length,))])

    def model(model: PyTree, params: jax.Array, state: PyTree) -> PyTree:
        wrap = lambda node: PromptedTransformer(node, params) if is_transformer(node) else node
        return jax.tree.map(wrap, model, is_leaf=is_transformer)

    return Transform(init=init, trains=trains_only(train), model=model)
