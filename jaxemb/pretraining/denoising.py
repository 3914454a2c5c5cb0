"""TSDAE: embeddings of damaged texts, good enough for a decoder to restore the texts from them (Wang et al. 2021).

    model = DenoisingAutoEncoder.init(jax.random.key(0), embedder.model)
    objective = denoising("text", word_pieces(embedder.tokenizer))

What is wanted is `model.embedder`; the decoder is thrown away after training. Bare texts are all that it needs.
"""

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxemb.checks import checked, filled, having, shapes
from jaxemb.embedder import Embedder, transformer_of
from jaxemb.encoders.transformer import Transformer, layout_of, split_key
from jaxemb.nn import ACTIVATIONS, Layer, Linear, Module, Norm, make_norm
from jaxemb.objectives.columns import Batch, Objective, text_column
from jaxemb.types import Tokens

if TYPE_CHECKING:
    from jaxemb.data import Tokenizer

SPECIAL, START, CONTINUATION = 0, 1, 2


@checked(tokenizer=having("backend", "special_ids"))
def word_pieces(tokenizer: "Tokenizer") -> np.ndarray:
    """What each token is: `SPECIAL` (such as [CLS] and padding), the `START` of a word, or its `CONTINUATION`.

    Continuations are known by WordPiece's prefix "##", or else by the lack of the mark that SentencePiece ("▁") and
    byte-level BPE ("Ġ") put before a word; in a vocabulary without any mark, each token is a word.

    Returns:
      int8 `[V]`.
    """
    texts = {i: token for token, i in tokenizer.backend.get_vocab(with_added_tokens=True).items()}
    model = tokenizer.backend.model
    is_word_piece = type(model).__name__ == "WordPiece"
    mark = next((mark for mark in "▁Ġ" if any(text.startswith(mark) for text in texts.values())), "")
    mark = model.continuing_subword_prefix if is_word_piece else mark
    pieces = np.full(max(texts) + 1, START, np.int8)
    pieces[[i for i, text in texts.items() if text.startswith(mark) == is_word_piece]] = CONTINUATION
    # An unknown word is a word.
    pieces[[i for role, i in tokenizer.special_ids.items() if role != "unk"]] = SPECIAL
    return pieces


@checked(shapes(pieces="V"), pieces=filled)
def delete_words(tokens: Tokens, key: jax.Array, pieces: np.ndarray | jax.Array, *, ratio: float = 0.6) -> Tokens:
    """The texts with each word deleted with probability `ratio`, but at least one word of each left.

    Args:
      tokens: the texts, `[B, T]`.
      key: random key.
      pieces: `word_pieces`, `[V]`. All tokens of a word go or stay together; special tokens stay.
      ratio: in [0, 1].

    Returns:
      Tokens of the same shape; what is left has moved up, and padding fills the row.

    Raises:
      ValueError: for a ratio outside of [0, 1].

    References:
      Wang et al. 2021, https://arxiv.org/abs/2104.06979.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio must be in [0, 1]; got {ratio}")
    rows, length = tokens.ids.shape
    kind = jnp.where(tokens.mask, jnp.asarray(pieces)[tokens.ids], SPECIAL)
    word = jnp.cumsum((kind != CONTINUATION) | (tokens.segment_ids != _shifted(tokens.segment_ids)), axis=1)
    drawn = jnp.take_along_axis(jax.random.uniform(key, (rows, length + 1)), word, axis=1)
    drawn = jnp.where(kind == SPECIAL, -1.0, drawn)
    in_batch = tokens.segment_ids + (tokens.texts_per_row + 1) * jnp.arange(rows)[:, None]
    largest = jax.ops.segment_max(drawn.ravel(), in_batch.ravel(), rows * (tokens.texts_per_row + 1))[in_batch]
    keep = tokens.mask & ((kind == SPECIAL) | (drawn >= ratio) | (drawn == largest))

    order = jnp.argsort(~keep, axis=1, stable=True)
    left = jnp.take_along_axis(keep, order, axis=1)
    move = lambda x: jnp.where(left, jnp.take_along_axis(jnp.asarray(x), order, axis=1), 0)
    segment_ids = move(tokens.segment_ids)
    place = jnp.arange(length)
    starts = jax.lax.cummax(jnp.where(segment_ids != _shifted(segment_ids), place, 0), axis=1)
    return dataclasses.replace(
        tokens,
        ids=move(tokens.ids),
        segment_ids=segment_ids,
        positions=jnp.where(left, place - starts, 0),
        type_ids=None if tokens.type_ids is None else move(tokens.type_ids),
    )


@nnx.dataclass
class Decoder(Module):
    """Restores texts from their embeddings, one token after the other.

    It is the encoder, made causal, with cross-attention to the embedding in front of each layer. As attention to a
    single vector has a weight of 1 whatever the query, the sublayer is no more than `x + W z`, with a norm after it
    where the encoder has its norms after its sublayers. Token embeddings are the encoder's, at the output as well:

        logits = norm(gelu(h W + b)) E^T + c
    """

    memory: Linear = nnx.data()  # stacked over layers: from embeddings to states
    transform: Linear = nnx.data()
    transform_norm: Norm = nnx.data()
    bias: jax.Array = nnx.data()
    memory_norm: Norm | None = nnx.data(default=None)
    layers: Layer | None = nnx.data(default=None)  # None: the encoder's

    @classmethod
    def init(cls, key: jax.Array, embedder: Embedder, layers: int | None = None) -> "Decoder":
        """A randomly initialised decoder; `layers` as in `DenoisingAutoEncoder.init`."""
        encoder = transformer_of(embedder)
        c = encoder.config
        depth = c.layers if layers is None else layers
        km, kt, kl = jax.random.split(key, 3)
        init = lambda k: Linear.init(k, embedder.dim, c.dim, True, c.initializer_range)
        norms = jax.vmap(lambda _: make_norm(c, c.dim))(jnp.arange(depth))
        return cls(
            memory=jax.vmap(init)(jax.random.split(km, depth)),
            memory_norm=norms if c.norm_placement == "post" else None,
            transform=Linear.init(kt, c.dim, c.dim, True, c.initializer_range),
            transform_norm=make_norm(c, c.dim),
            bias=jnp.zeros(encoder.embeddings.tokens.shape[0]),
            layers=None if layers is None else Layer.init_stacked(kl, c, depth),
        )

    def __call__(
        self, encoder: Transformer, tokens: Tokens, embeddings: jax.Array, *, key: jax.Array | None = None
    ) -> jax.Array:
        """Logits of the token after each token, given those up to it and the embedding of its text alone.

        Args:
          encoder: whose embeddings, and layers if it has none of its own, the decoder shares.
          tokens: N texts, `[B, T]`.
          embeddings: of each, `[N, D]`.
          key: dropout key; None turns dropout off.

        Returns:
          f32 `[B, T, V]`.
        """
        rows, length = tokens.ids.shape
        by_slot = embeddings
        if tokens.slots is not None:
            by_slot = jnp.zeros((rows * tokens.texts_per_row, embeddings.shape[-1])).at[tokens.slots].set(embeddings)
        memory = jax.vmap(lambda linear: linear(by_slot))(self.memory)
        depth = memory.shape[0]
        cross_attention = _CrossAttention(
            memory=memory.reshape(depth, rows, tokens.texts_per_row, -1),
            norm=self.memory_norm,
            slots=jnp.broadcast_to(jnp.maximum(tokens.segment_ids - 1, 0), (depth, rows, length)),
        )
        stack = dataclasses.replace(
            encoder.stack,
            layers=encoder.layers if self.layers is None else self.layers,
            config=dataclasses.replace(encoder.config.truncate(depth), causal=True),
        )
        key_embeddings, key_layers = split_key(key)
        x = encoder.embeddings(tokens, encoder.config, key_embeddings)
        states = stack(x, layout_of(tokens), key=key_layers, before=cross_attention)
        states = self.transform_norm(ACTIVATIONS["gelu"](self.transform(states)))
        table = encoder.embeddings.tokens.astype(states.dtype)
        return jnp.einsum("btd,vd->btv", states, table, preferred_element_type=jnp.float32) + self.bias

    def losses(
        self, encoder: Transformer, tokens: Tokens, embeddings: jax.Array, *, key: jax.Array | None = None
    ) -> jax.Array:
        """Cross-entropy of each text's tokens but the first, teacher-forced; arguments as of a call.

        Returns:
          f32 `[N]`, whose mean is the mean over all predicted tokens of the batch: a text counts by its length.
        """
        logits = self(encoder, tokens, embeddings, key=key)[:, :-1]
        following, segments = jnp.asarray(tokens.ids)[:, 1:], jnp.asarray(tokens.segment_ids)[:, 1:]
        correct = jnp.take_along_axis(logits, following[..., None], axis=-1)[..., 0]
        predicted = (segments > 0) & (segments == tokens.segment_ids[:, :-1])
        losses = jnp.where(predicted, jax.nn.logsumexp(logits, axis=-1) - correct, 0.0)
        members = segments[:, None, :] == jnp.arange(1, tokens.texts_per_row + 1)[:, None]
        of_text = jnp.sum(jnp.where(members, losses[:, None, :], 0.0), axis=-1).ravel()
        of_text = of_text if tokens.slots is None else of_text[tokens.slots]
        return of_text * (tokens.count / jnp.maximum(predicted.sum(), 1))


@nnx.dataclass
class DenoisingAutoEncoder(Module):
    """An embedder and the decoder that it is trained with; called, it is the embedder."""

    embedder: Embedder = nnx.data()
    decoder: Decoder = nnx.data()

    @classmethod
    def init(cls, key: jax.Array, embedder: Embedder, *, layers: int | None = None) -> "DenoisingAutoEncoder":
        """A new decoder for an embedder.

        Args:
          key: random key.
          embedder: what is to be trained; TSDAE pools "cls" or "mean".
          layers: of the decoder, with weights of their own; None shares the encoder's layers (tied weights, as in the
            paper).

        Raises:
          ValueError: for fewer than one layer, or more than the encoder has.
        """
        if layers is not None and not 1 <= layers <= embedder.depth:
            raise ValueError(f"layers must be in 1..{embedder.depth} or None; got {layers}")
        return cls(embedder=embedder, decoder=Decoder.init(key, embedder, layers))

    def __call__(self, tokens: Tokens, *, key: jax.Array | None = None) -> jax.Array:
        return self.embedder(tokens, key=key)


@checked()
def denoising(column: str, pieces: np.ndarray, *, ratio: float = 0.6) -> Objective:
    """The objective of a `DenoisingAutoEncoder`: delete words, embed what is left, decode the whole text from that.

    Every step deletes other words of a text. Without a key nothing is deleted, and dropout is off.

    Args:
      column: of texts, one per record.
      pieces: `word_pieces` of the tokenizer.
      ratio: of words that are deleted, see `delete_words`.

    Returns:
      An `Objective`; its losses are those of `Decoder.losses`, its output the embeddings of the damaged texts.

    Raises:
      ValueError: for a ratio outside of [0, 1]; when called, if the batch lacks the column or has several texts per
        record.
      TypeError: when called with another kind of model.

    References:
      Wang et al. 2021, https://arxiv.org/abs/2104.06979.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio must be in [0, 1]; got {ratio}")

    def objective(model: DenoisingAutoEncoder, batch: Batch, key: jax.Array | None):
        if not isinstance(model, DenoisingAutoEncoder):
            raise TypeError(f"denoising trains a DenoisingAutoEncoder; got {type(model).__name__}")
        tokens = text_column(batch, column)
        noise, encoder_key, decoder_key = (None, None, None) if key is None else jax.random.split(key, 3)
        damaged = tokens if noise is None else delete_words(tokens, noise, pieces, ratio=ratio)
        embeddings = model.embedder(damaged, key=encoder_key)
        losses = model.decoder.losses(transformer_of(model.embedder), tokens, embeddings, key=decoder_key)
        return losses, {column: embeddings}

    return objective


@nnx.dataclass
class _CrossAttention(Module):
    """What stands in front of every layer of the decoder; as one it has all layers', `[L, ...]`."""

    memory: jax.Array = nnx.data()  # [B, S, D], what each text's embedding adds
    slots: jax.Array = nnx.data()  # [B, T], the text of each token
    norm: Norm | None = nnx.data(default=None)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + jnp.take_along_axis(self.memory, self.slots[..., None], axis=1).astype(x.dtype)
        return x if self.norm is None else self.norm(x)


def _shifted(x: jax.Array) -> jax.Array:
    """What stands before each entry of a row; 0 before the first."""
    return jnp.pad(x[:, :-1], ((0, 0), (1, 0)))
