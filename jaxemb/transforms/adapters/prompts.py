"""Soft prompts: trained vectors in front of every text."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from jaxemb.checks import checked
from jaxemb.encoders.transformer import Transformer, TransformerConfig, layout_of, split_key
from jaxemb.nn import Module
from jaxemb.transforms.base import Transform, Variables
from jaxemb.transforms.frozen import trains_only
from jaxemb.trees import PyTree
from jaxemb.types import Tokens


@nnx.dataclass
class PromptedTransformer(Module):
    """The transformer with P virtual tokens in front of each text, which are seen but whose states are not returned.

    It is called as `Transformer` is; the states are those of the texts' own tokens, so that pooling sees no prompt.
    """

    transformer: Transformer = nnx.data()
    prompt: jax.Array = nnx.data()  # [P, D]

    @property
    def config(self) -> TransformerConfig:
        return self.transformer.config

    @property
    def dim(self) -> int:
        return self.transformer.dim

    @property
    def depth(self) -> int:
        return self.transformer.depth

    def __call__(self, tokens: Tokens, *, key: jax.Array | None = None, all_states: bool = False) -> jax.Array:
        """Hidden states `[B, T, D]` or, with `all_states`, `[L + 1, B, T, D]`."""
        longer, order, places = with_prompts(tokens, len(self.prompt))
        key_embeddings, key_layers = split_key(key)
        x = self._embedded(tokens, longer, order, key_embeddings)
        states = self.transformer.stack(x, layout_of(longer), key=key_layers, all_states=all_states)
        return _taken(states, places)

    def at_layers(
        self,
        tokens: Tokens,
        layers: Sequence[int],
        read: Callable[[jax.Array], jax.Array],
        *,
        key: jax.Array | None = None,
        raw: bool = False,
    ) -> jax.Array:
        """As `Transformer.at_layers`."""
        longer, order, places = with_prompts(tokens, len(self.prompt))
        key_embeddings, key_layers = split_key(key)
        x = self._embedded(tokens, longer, order, key_embeddings)
        read_own = lambda states: read(_taken(states, places))
        return self.transformer.stack.at_layers(x, layout_of(longer), layers, read_own, key=key_layers, raw=raw)

    def truncate(self, layers: int) -> "PromptedTransformer":
        """As `Transformer.truncate`; the prompt stays."""
        return dataclasses.replace(self, transformer=self.transformer.truncate(layers))

    def _embedded(self, tokens: Tokens, longer: Tokens, order: jax.Array, key: jax.Array | None) -> jax.Array:
        embeddings = self.transformer.embeddings
        shape = (tokens.ids.shape[0], tokens.texts_per_row * len(self.prompt), self.prompt.shape[1])
        prompts = jnp.broadcast_to(jnp.tile(self.prompt, (tokens.texts_per_row, 1)), shape)
        vectors = jnp.concatenate([prompts, embeddings.of_ids(tokens)], axis=1)
        return embeddings.of_vectors(_taken(vectors, order), longer, self.config, key)


def with_prompts(tokens: Tokens, length: int) -> tuple[Tokens, jax.Array, jax.Array]:
    """The texts, each after virtual tokens, whose ids are 0.

    Positions count from the first virtual token. Rows become longer by `length` for every text slot; padding ends up
    last.

    Args:
      tokens: `[B, T]`, one or several texts per row.
      length: P, virtual tokens in front of each text.

    Returns:
      Tokens `[B, S P + T]`, S = `tokens.texts_per_row`; of which of a row's S P virtual tokens, followed by its T own
      ones, each of them is, int32 `[B, S P + T]`; and where the own ones have gone, int32 `[B, T]`.
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
    none = jnp.zeros_like(number)
    longer = dataclasses.replace(
        tokens,
        ids=sorted_by_text(before(none, tokens.ids)),
        segment_ids=sorted_by_text(segments),
        positions=sorted_by_text(before(number, jnp.where(tokens.mask, tokens.positions + length, 0))),
        type_ids=None if types is None else sorted_by_text(before(none, types)),
        prompt=None if tokens.prompt is None else sorted_by_text(before(none + 1, tokens.prompt)) > 0,
    )
    return longer, order.astype(jnp.int32), jnp.argsort(order, axis=1)[:, slots * length :].astype(jnp.int32)


def _taken(vectors: jax.Array, places: jax.Array) -> jax.Array:
    """Of vectors `[..., B, T, D]`, those at `places` `[B, U]`."""
    return jnp.take_along_axis(vectors, places.reshape(*[1] * (vectors.ndim - 3), *places.shape, 1), axis=-2)


@checked()
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
