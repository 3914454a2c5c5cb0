"""The one transformer of texts: every text encoder family is a `TransformerConfig` of it."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from jaxemb.checks import check_fields
from jaxemb.nn import Layer, Layout, Module, Norm, Stack, StackConfig
from jaxemb.nn.dropout import dropout
from jaxemb.nn.stack_config import is_count, is_size, make_norm
from jaxemb.types import Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(StackConfig):
    """Static description of a text encoder or decoder, a stack and the embeddings before it; families map their
    `config.json` to it.

    Raises:
      ValueError: naming the field, for a value out of its range, or one that does not go with the others.
    """

    vocab_size: int
    max_positions: int = 512  # longest text, in tokens, that the model can read
    position_table: int = 0  # rows of the learned position table; 0 = none
    # Row of position 0. In RoBERTa and MPNet it follows the padding id, whose tokens have that row and are not counted.
    position_offset: int = 0
    token_types: int = 0
    embedding_norm: bool = True
    embedding_scale: float = 1.0  # rounded to `dtype`, as Gemma's is

    def __post_init__(self):
        super().__post_init__()
        check_fields(self, "an integer >= 1", is_size, "vocab_size", "max_positions")
        check_fields(self, "an integer >= 0", is_count, "position_table", "position_offset", "token_types")
        check_fields(self, "finite and > 0", lambda x: 0 < x < math.inf, "embedding_scale")
        if self.position_table and self.position_table <= self.position_offset:
            expected = f"position_table must be 0 or more than position_offset, {self.position_offset}"
            raise ValueError(f"{expected}; got {self.position_table}")


@nnx.dataclass
class Embeddings(Module):
    """Sum of token, position and token-type embeddings, then an optional norm."""

    tokens: jax.Array = nnx.data()
    positions: jax.Array | None = nnx.data(default=None)
    types: jax.Array | None = nnx.data(default=None)
    norm: Norm | None = nnx.data(default=None)

    @classmethod
    def init(cls, key: jax.Array, c: TransformerConfig) -> "Embeddings":
        keys = jax.random.split(key, 3)
        table = lambda k, rows: c.initializer_range * jax.random.normal(k, (rows, c.dim)) if rows else None
        return cls(
            tokens=c.initializer_range * jax.random.normal(keys[0], (c.vocab_size, c.dim)),
            positions=table(keys[1], c.position_table),
            types=table(keys[2], c.token_types),
            norm=make_norm(c, c.dim) if c.embedding_norm else None,
        )

    def __call__(self, tokens: Tokens, c: TransformerConfig, key: jax.Array | None) -> jax.Array:
        """`[B, T, D]`.

        An id without a row makes what comes of it NaN: where a program is compiled, it cannot raise.

        Raises:
          ValueError: if T exceeds what the position table can hold; naming an id without a row, if ids are concrete.
        """
        return self.of_vectors(self.of_ids(tokens), tokens, c, key)

    def of_ids(self, tokens: Tokens) -> jax.Array:
        """The tokens' rows of the table, `[B, T, D]`; see a call."""
        return _rows("token ids", self.tokens, tokens.ids, tokens.mask)

    def of_vectors(self, vectors: jax.Array, tokens: Tokens, c: TransformerConfig, key: jax.Array | None) -> jax.Array:
        """As a call, with `vectors` `[B, T, D]` in place of the tokens' rows of the table."""
        length = vectors.shape[1]
        if c.position_table and tokens.texts_per_row == 1 and length > c.position_table - c.position_offset:
            raise ValueError(
                f"tokens: rows of {length} tokens, but the model has {c.position_table - c.position_offset} positions"
            )
        x = vectors.astype(jnp.float32) * jnp.asarray(c.embedding_scale, c.dtype).astype(jnp.float32)
        if self.types is not None:
            of_types = lambda ids: _rows("type ids", self.types, ids, tokens.mask)
            x = x + (self.types[0] if tokens.type_ids is None else of_types(tokens.type_ids))
        if self.positions is not None:
            x = x + self.positions[_position_rows(tokens, c.position_offset)]
        x = x if self.norm is None else self.norm(x)
        return dropout(x, c.dropout, key).astype(c.dtype)


def _rows(name: str, table: jax.Array, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """`table[ids]`, but NaN where `mask` has an id that is no row, which an index alone would take for another one."""
    absent = mask & ((ids < 0) | (ids >= len(table)))
    if not isinstance(absent, jax.core.Tracer) and absent.any():
        raise ValueError(f"{name} must be in 0..{len(table) - 1}, as the table has rows; got {ids[absent][0]}")
    return jnp.where(absent[..., None], jnp.nan, table[ids])


def _position_rows(tokens: Tokens, offset: int) -> jax.Array:
    """The rows of the position table, `[B, T]`, with padding tokens that a text itself holds left out of the count."""
    if not offset:
        return tokens.positions
    is_padding = tokens.ids == offset - 1
    before = jnp.cumsum(is_padding, axis=1) - is_padding
    starts = jnp.maximum(jnp.arange(tokens.ids.shape[1]) - tokens.positions, 0)
    of_text = before - jnp.take_along_axis(before, starts, axis=1)
    return jnp.where(is_padding, offset - 1, tokens.positions + offset - of_text)


@nnx.dataclass
class Transformer(Module):
    """Token ids to hidden states: embeddings, and a `Stack`, whose arrays are this module's own.

    `layers` holds all layers stacked on a leading axis `L`.
    """

    embeddings: Embeddings = nnx.data()
    layers: Layer = nnx.data()
    final_norm: Norm | None = nnx.data(default=None)
    relative_bias: jax.Array | None = nnx.data(default=None)  # [buckets, heads]
    config: TransformerConfig = nnx.static(kw_only=True)

    @classmethod
    def init(cls, key: jax.Array, config: TransformerConfig) -> "Transformer":
        """A randomly initialised transformer (truncated normal kernels, unit norms)."""
        key_embeddings, key_stack = jax.random.split(key)
        stack = Stack.init(key_stack, config)
        return cls(
            embeddings=Embeddings.init(key_embeddings, config),
            layers=stack.layers,
            final_norm=stack.final_norm,
            relative_bias=stack.relative_bias,
            config=config,
        )

    @property
    def dim(self) -> int:
        """D, the size of a state."""
        return self.config.dim

    @property
    def depth(self) -> int:
        """L, the number of layers."""
        return self.config.layers

    @property
    def stack(self) -> Stack:
        """What comes after the embeddings."""
        return Stack(
            layers=self.layers, final_norm=self.final_norm, relative_bias=self.relative_bias, config=self.config
        )

    def __call__(self, tokens: Tokens, *, key: jax.Array | None = None, all_states: bool = False) -> jax.Array:
        """Hidden states of every token.

        Args:
          tokens: the batch, `[B, T]`.
          key: dropout key; None turns dropout off.
          all_states: also return the embeddings and every layer's state.

        Returns:
          Final states `[B, T, D]`, or with `all_states` `[L + 1, B, T, D]`: the embeddings, then the state after
          each layer; the last one includes the final norm, as the final states do.

        Raises:
          ValueError: if T exceeds what the position table can hold.
        """
        key_embeddings, key_layers = split_key(key)
        x = self.embeddings(tokens, self.config, key_embeddings)
        return self.stack(x, layout_of(tokens), key=key_layers, all_states=all_states)

    def at_layers(
        self,
        tokens: Tokens,
        layers: Sequence[int],
        read: Callable[[jax.Array], jax.Array],
        *,
        key: jax.Array | None = None,
        raw: bool = False,
    ) -> jax.Array:
        """What `read` makes of the final states `[B, T, D]` of this transformer cut to each of several depths.

        Args:
          tokens: the batch, `[B, T]`.
          layers: numbers of layers, in any order; 0 is the embeddings.
          read: states to anything of one shape; see `Stack.at_layers`.
          key: dropout key; None turns dropout off.
          raw: without the final norm but after layer L; see there.

        Returns:
          `[len(layers), ...]`.

        Raises:
          ValueError: if a number of layers is not in 0..L.
        """
        key_embeddings, key_layers = split_key(key)
        x = self.embeddings(tokens, self.config, key_embeddings)
        return self.stack.at_layers(x, layout_of(tokens), layers, read, key=key_layers, raw=raw)

    def truncate(self, layers: int) -> "Transformer":
        """This transformer without the layers after the first `layers`; the final norm, if any, stays.

        Raises:
          ValueError: if `layers` is not in 1..L.
        """
        kept = self.stack.truncate(layers).layers
        return dataclasses.replace(self, layers=kept, config=self.config.truncate(layers))

    def bidirectional(self) -> "Transformer":
        """The same weights without a causal mask and without windows: every token sees all of its text.

        Windows of a causal model are half as wide as those that see both ways; `jaxemb.load(..., causal=False)` keeps
        them, as transformers does.
        """
        return dataclasses.replace(
            self, config=dataclasses.replace(self.config, causal=False, prefix_attention=False, windows=())
        )


def layout_of(tokens: Tokens) -> Layout:
    """How the rows of a batch of texts are laid out."""
    return Layout(segments=tokens.segment_ids, positions=tokens.positions, prompt=tokens.prompt)


def split_key(key: jax.Array | None) -> tuple[jax.Array | None, jax.Array | None]:
    """Dropout keys of the embeddings and of the layers; None gives None."""
    return (None, None) if key is None else tuple(jax.random.split(key))
