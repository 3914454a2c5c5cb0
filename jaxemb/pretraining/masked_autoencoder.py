"""SMAE: masked autoencoding by several sizes of a model at once, the pre-training of Starbucks (Zhuang et al. 2024).

    model = MaskedAutoEncoder.of(MaskedLanguageModel.of(embedder, jax.random.key(0)))
    objective = masked_autoencoding("text", pieces, mask_id, sizes=((2, 32), (4, 64), (6, 384)))
    embedder = model.language_model.into(embedder)  # after training, for `starbucks`

Each size restores hidden words twice: from its own states, and by a weak decoder that sees a text of which more is
hidden, and one vector of the size. That vector must therefore hold what the text is about.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxemb.checks import checked, filled, shapes, whole
from jaxemb.embedder import transformer_of
from jaxemb.encoders.transformer import layout_of, split_key
from jaxemb.nn import Layer, Module
from jaxemb.objectives.columns import Batch, Objective, text_column
from jaxemb.pooling import Cls, to_slots
from jaxemb.pretraining.denoising import CONTINUATION, SPECIAL
from jaxemb.pretraining.masked_language_model import MaskedLanguageModel, replace_masked
from jaxemb.types import Tokens


@nnx.dataclass
class MaskedAutoEncoder(Module):
    """A masked language model and the decoder of one layer that it is trained with; called, it is the embedder.

    The decoder shares token embeddings and head with the model.
    """

    language_model: MaskedLanguageModel = nnx.data()
    decoder: Layer = nnx.data()  # stacked, of one layer

    @classmethod
    def of(cls, language_model: MaskedLanguageModel) -> "MaskedAutoEncoder":
        """The model with a copy of its first layer as decoder."""
        layers = transformer_of(language_model.embedder).layers
        return cls(language_model, jax.tree.map(lambda leaf: jnp.array(leaf[:1]), layers))

    def __call__(self, tokens: Tokens, *, key: jax.Array | None = None) -> jax.Array:
        return self.language_model(tokens, key=key)

    def decode(self, tokens: Tokens, bottlenecks: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """The decoder's states `[B, T, D]` of texts whose first token is their bottleneck vector, of `[B, S, D]`."""
        encoder = transformer_of(self.language_model.embedder)
        key_embeddings, key_layers = split_key(key)
        x = encoder.embeddings(tokens, encoder.config, key_embeddings)
        slots = jnp.maximum(tokens.segment_ids - 1, 0)[..., None]
        is_first = (tokens.mask & (tokens.positions == 0))[..., None]
        x = jnp.where(is_first, jnp.take_along_axis(bottlenecks, slots, axis=1).astype(x.dtype), x)
        stack = dataclasses.replace(encoder.stack, layers=self.decoder, config=encoder.config.truncate(1))
        return stack(x, layout_of(tokens), key=key_layers)

    def losses(
        self,
        tokens: Tokens,
        sizes: Sequence[tuple[int, int]],
        encoded: tuple[Tokens, jax.Array],
        decoded: tuple[Tokens, jax.Array],
        *,
        key: jax.Array | None = None,
        most: tuple[int | None, int | None] = (None, None),
    ) -> jax.Array:
        """The mean over sizes (n, d) of the mean of two cross-entropies of hidden tokens: by the head from H_n^d, the
        first d components of the states after n layers, and by decoder and head, which get the head's transform of
        H_n^d at the first token, `norm(gelu(H_n^d W[:d] + b))`, in place of that token's embedding.

        Args:
          tokens: the texts as they were, `[B, T]`.
          sizes: (layers, dim).
          encoded, decoded: what encoder and decoder see, and which tokens of it are hidden, bool `[B, T]`.
          key: dropout key; None turns dropout off.
          most: of encoder and decoder, see `MaskedLanguageModel.losses`.

        Returns:
          f32 `[N]`.
        """
        model = self.language_model
        (seen, hidden), (seen_by_decoder, hidden_from_decoder) = encoded, decoded
        key_encoder, key_decoder = (None, None) if key is None else jax.random.split(key)
        keys = None if key_decoder is None else jax.random.split(key_decoder, len(sizes))
        encoder = transformer_of(model.embedder)
        states = encoder.at_layers(seen, [n for n, _ in sizes], lambda x: x, key=key_encoder)
        # The same as slices, but one program for all sizes.
        kept = jnp.arange(states.shape[-1]) < jnp.array([d for _, d in sizes])[:, None, None, None]

        def of_size(inputs):
            states, dropout = inputs
            bottlenecks = model.head.hidden(to_slots(Cls()(states, seen), seen).astype(states.dtype))
            restored = self.decode(seen_by_decoder, bottlenecks, key=dropout)
            by_head = model.losses(states, tokens, hidden, most=most[0])
            by_decoder = model.losses(restored, tokens, hidden_from_decoder, most=most[1])
            return (by_head + by_decoder) / 2

        return jax.lax.map(of_size, (jnp.where(kept, states, 0), keys)).mean(axis=0)


@checked(shapes(pieces="V"), pieces=filled)
def mask_words(
    tokens: Tokens, key: jax.Array, pieces: np.ndarray | jax.Array, ratios: Sequence[float]
) -> tuple[jax.Array, ...]:
    """Which tokens are hidden where whole words are, once for each ratio; what a smaller one hides, a larger one does.

    The words of a text are tried in random order. One is hidden if there is room for it: at most
    `max(1, round(ratio n))` of the text's n tokens, special ones among them, are hidden, but no special ones.

    Args:
      tokens: the texts, `[B, T]`.
      key: random key.
      pieces: `word_pieces` of the tokenizer, `[V]`.
      ratios: ascending, in [0, 1].

    Returns:
      bool `[B, T]` for each ratio.

    Raises:
      ValueError: for ratios that are not as above.
    """
    if not ratios or not 0 <= min(ratios) <= max(ratios) <= 1 or list(ratios) != sorted(ratios):
        raise ValueError(f"ratios must be in [0, 1], ascending; got {tuple(ratios)}")
    rows, length = tokens.ids.shape
    segments = jnp.asarray(tokens.segment_ids)
    kind = jnp.where(tokens.mask, jnp.asarray(pieces)[tokens.ids], SPECIAL)
    before = lambda x, first: jnp.pad(x[:, :-1], ((0, 0), (1, 0)), constant_values=first)
    is_start = (kind != CONTINUATION) | (before(kind, SPECIAL) == SPECIAL) | (before(segments, 0) != segments)
    word = jnp.cumsum(is_start, axis=1)  # 1..T
    in_words = jax.vmap(lambda x, w: jax.ops.segment_sum(x, w, length + 1))
    sizes = in_words(jnp.asarray(kind != SPECIAL, jnp.int32), word)
    text_of = jax.vmap(lambda x, w: jax.ops.segment_max(x, w, length + 1))(segments, word)
    in_text = (segments[:, None] == jnp.arange(tokens.texts_per_row + 1)[:, None]).sum(axis=-1)  # [B, S + 1]
    budgets = [jnp.asarray(np.maximum(1, np.round(r * np.arange(length + 1))), jnp.int32)[in_text] for r in ratios]
    at = lambda x, i: jnp.take_along_axis(x, i[:, None], axis=1)[:, 0]

    def one_word(room, i):
        size, text = at(sizes, i), jnp.maximum(at(text_of, i), 0)
        taken: list[jax.Array] = []
        left: list[jax.Array] = []
        wanted = size > 0
        for free in reversed(room):
            wanted &= size <= at(free, text)
            taken.insert(0, wanted)
            left.insert(0, free.at[jnp.arange(rows), text].add(-jnp.where(wanted, size, 0)))
        return left, taken

    order = jnp.argsort(jax.random.uniform(key, (rows, length + 1)), axis=1)
    _, taken = jax.lax.scan(one_word, budgets, order.T)
    ranks = jnp.argsort(order, axis=1)
    of_word = [jnp.take_along_axis(t.T, ranks, axis=1) for t in taken]
    return tuple(jnp.take_along_axis(t, word, axis=1) & (kind != SPECIAL) for t in of_word)


@checked(shapes(pieces="V"), pieces=filled)
def masked_autoencoding(
    column: str,
    pieces: np.ndarray,
    mask_id: int,
    sizes: Sequence[tuple[int, int]],
    *,
    encoder_ratio: float = 0.2,
    decoder_ratio: float = 0.4,
) -> Objective:
    """The objective of a `MaskedAutoEncoder`: hide words, more from the decoder than from the encoder; restore them.

    Every step hides other words of a text; without a key it is always the same ones, and dropout is off.

    Args:
      column: of texts, one per record.
      pieces, mask_id: as of `mask_tokens`; of hidden tokens 80 % become [MASK], 10 % any token, 10 % stay.
      sizes: (layers, dim), both strictly increasing; the last one the full size (L, D).
      encoder_ratio, decoder_ratio: of tokens that are hidden, see `mask_words`; the latter is larger.

    Returns:
      An `Objective`; its losses are those of `MaskedAutoEncoder.losses`.

    Raises:
      ValueError: for sizes or ratios that are not as above; when called, if the batch lacks the column or has several
        texts per record.
      TypeError: when called with another kind of model.

    References:
      Zhuang et al. 2024, https://arxiv.org/abs/2410.13230; after RetroMAE, https://arxiv.org/abs/2205.12035.
    """
    sizes = tuple((n, d) for n, d in sizes)
    if not sizes or min(sizes[0]) < 1 or not all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(sizes)):
        raise ValueError(f"sizes must be (layers, dim) >= 1, both strictly increasing; got {sizes}")
    if not 0 <= encoder_ratio < decoder_ratio <= 1:
        raise ValueError(f"ratios must be 0 <= encoder < decoder <= 1; got {encoder_ratio=}, {decoder_ratio=}")
    whole("mask_id", mask_id, 0, len(pieces) - 1)
    ratios = (encoder_ratio, decoder_ratio)

    def objective(model: MaskedAutoEncoder, batch: Batch, key: jax.Array | None):
        if not isinstance(model, MaskedAutoEncoder):
            raise TypeError(f"masked_autoencoding trains a MaskedAutoEncoder; got {type(model).__name__}")
        encoder = transformer_of(model.language_model.embedder)
        if sizes[-1] != (full := (encoder.depth, encoder.dim)):
            raise ValueError(f"the last of sizes must be the full size {full}; got {sizes[-1]}")
        tokens = text_column(batch, column)
        key_words, key_encoder, key_decoder, key_dropout = jax.random.split(
            jax.random.key(0) if key is None else key, 4
        )
        hidden = mask_words(tokens, key_words, pieces, ratios)
        encoded, decoded = (
            (replace_masked(tokens, which, k, len(pieces), mask_id), which)
            for which, k in zip(hidden, (key_encoder, key_decoder), strict=True)
        )
        texts, length = tokens.ids.shape[0] * tokens.texts_per_row, tokens.ids.shape[1]
        encoder_most, decoder_most = (texts * math.ceil(ratio * length + 1) for ratio in ratios)
        dropout = None if key is None else key_dropout
        losses = model.losses(tokens, sizes, encoded, decoded, key=dropout, most=(encoder_most, decoder_most))
        return losses, {}

    return objective
