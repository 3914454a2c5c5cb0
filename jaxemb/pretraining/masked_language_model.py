"""Masked language modelling (Devlin et al. 2018): hidden tokens are restored from what stands around them.

    model = MaskedLanguageModel.of(embedder, jax.random.key(0))
    pieces, mask_id = word_pieces(embedder.tokenizer), embedder.tokenizer.special_ids["mask"]
    objective = masked_language_modelling("text", pieces, mask_id)
    embedder = model.into(embedder)  # after training

Bare texts are all that it needs.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxemb.checkpoints.heads import add_head, read_head, write_head
from jaxemb.checks import checked, filled, shapes
from jaxemb.embedder import Embedder, transformer_of
from jaxemb.encoders.families import family_of
from jaxemb.encoders.transformer import TransformerConfig
from jaxemb.nn import ACTIVATIONS, Linear, Module, Norm, make_norm
from jaxemb.objectives.columns import Batch, Objective, text_column
from jaxemb.pretraining.denoising import SPECIAL
from jaxemb.trees import by_path
from jaxemb.types import Tokens

if TYPE_CHECKING:
    from jaxemb.sentence_embedder import SentenceEmbedder

# The leaves without which there is no head in a checkpoint.
_NEEDED = {"transform.kernel", "norm.weight", "bias"}


@nnx.dataclass
class MaskedLanguageHead(Module):
    """Logits of tokens from their states h, with the token embeddings E: `norm(f(h W + b)) E^T + c`, f mostly gelu."""

    transform: Linear = nnx.data()
    norm: Norm = nnx.data()
    bias: jax.Array = nnx.data()
    activation: str = nnx.static(default="gelu", kw_only=True)

    @classmethod
    def init(cls, key: jax.Array, config: TransformerConfig, vocabulary: int) -> "MaskedLanguageHead":
        """A randomly initialised head for states of `config.dim` and `vocabulary` tokens."""
        with_bias = config.norm_bias  # ModernBERT has neither
        return cls(
            transform=Linear.init(key, config.dim, config.dim, with_bias, config.initializer_range),
            norm=make_norm(config, config.dim),
            bias=jnp.zeros(vocabulary),
        )

    def hidden(self, states: jax.Array) -> jax.Array:
        """`norm(f(h W + b))`, `[..., d]` to `[..., D]`; for d < D with the first d rows of W."""
        kernel = self.transform.kernel[: states.shape[-1]]
        return self.norm(ACTIVATIONS[self.activation](dataclasses.replace(self.transform, kernel=kernel)(states)))

    def __call__(self, states: jax.Array, table: jax.Array) -> jax.Array:
        """Logits f32 `[..., V]` from states `[..., d]`, d <= D, and embeddings `[V, D]`."""
        h = self.hidden(states)
        return jnp.matmul(h, table.T.astype(h.dtype), preferred_element_type=jnp.float32) + self.bias


@nnx.dataclass
class MaskedLanguageModel(Module):
    """An embedder with the head that it is pre-trained with; called, it is the embedder."""

    embedder: Embedder = nnx.data()
    head: MaskedLanguageHead = nnx.data()

    @classmethod
    def init(cls, key: jax.Array, embedder: Embedder) -> "MaskedLanguageModel":
        """A new head for an embedder. Raises TypeError if its encoder is no transformer."""
        encoder = transformer_of(embedder)
        return cls(embedder, MaskedLanguageHead.init(key, encoder.config, encoder.embeddings.tokens.shape[0]))

    @classmethod
    def of(cls, embedder: "SentenceEmbedder", key: jax.Array) -> "MaskedLanguageModel":
        """The model of `embedder` with the head that its checkpoint has, or a new one if it has none.

        Raises:
          TypeError: if its encoder is no transformer.
          ValueError: if the output matrix of the checkpoint's head is not the token embeddings.
        """
        model, format = cls.init(key, embedder.model), embedder.format.encoder
        known = family_of(format.config).heads.get("masked_language")
        if known is not None:
            activation = known.activation_in(format.config, transformer_of(embedder.model).config.activation)
            model = dataclasses.replace(model, head=dataclasses.replace(model.head, activation=activation))
        stored = {leaf: jnp.asarray(array) for leaf, array in read_head(format, "masked_language").items()}
        if not stored.keys() >= _NEEDED:
            return model
        if not format.config.get("tie_word_embeddings", True):
            raise ValueError("config.json: tie_word_embeddings=false is not supported for a masked language model")
        weight, bias = stored["norm.weight"], stored.get("norm.bias")
        head = MaskedLanguageHead(
            transform=Linear(stored["transform.kernel"], stored.get("transform.bias")),
            norm=dataclasses.replace(model.head.norm, weight=weight, bias=bias, weight_offset=0.0),
            bias=stored["bias"],
            activation=model.head.activation,
        )
        return dataclasses.replace(model, head=head)

    def into(self, embedder: "SentenceEmbedder", *, with_head: bool = False) -> "SentenceEmbedder":
        """`embedder` with this model; it is saved with this head if its checkpoint has one, or `with_head`.

        Raises:
          ValueError: with `with_head`, for a family whose checkpoints have no such head that jaxemb knows.
        """
        format, head = embedder.format.encoder, by_path(self.head)
        has_head = read_head(format, "masked_language").keys() >= _NEEDED
        if not (has_head or with_head):
            return embedder.replace(model=self.embedder)
        format = write_head(format, "masked_language", head) if has_head else add_head(format, "masked_language", head)
        return embedder.replace(model=self.embedder, format=dataclasses.replace(embedder.format, encoder=format))

    def __call__(self, tokens: Tokens, *, key: jax.Array | None = None) -> jax.Array:
        return self.embedder(tokens, key=key)

    def losses(self, states: jax.Array, tokens: Tokens, hidden: jax.Array, *, most: int | None = None) -> jax.Array:
        """Cross-entropy of the hidden tokens.

        Args:
          states: of the text with hidden tokens, `[B, T, d]`.
          tokens: the text as it was, `[B, T]`.
          hidden: which tokens are to be restored, bool `[B, T]`.
          most: logits are computed of so many tokens, the first hidden ones of the batch; None for B T.

        Returns:
          f32 `[N]`, whose mean is the mean over all hidden tokens of the batch: a text counts by their number.
        """
        table = transformer_of(self.embedder).embeddings.tokens
        return restored_losses(lambda states: self.head(states, table), states, tokens, hidden, most=most)


def restored_losses(
    head: Callable[[jax.Array], jax.Array],
    states: jax.Array,
    tokens: Tokens,
    hidden: jax.Array,
    *,
    most: int | None = None,
) -> jax.Array:
    """Cross-entropy of the hidden tokens, by text, as of `MaskedLanguageModel.losses`.

    Args:
      head: of states `[M, d]` the logits `[M, V]`.
      states: from which the token at each place is predicted, `[B, T, d]`.
      tokens, hidden, most: see there.
    """
    size = hidden.size if most is None else min(most, hidden.size)
    (where,) = jnp.nonzero(hidden.ravel(), size=size, fill_value=hidden.size)
    pick = lambda x: jnp.take(x.reshape(-1, *x.shape[2:]), where, axis=0, mode="clip")
    wanted = pick(jnp.asarray(tokens.ids))
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(head(pick(states)), wanted)
    losses = jnp.where(where < hidden.size, losses, 0.0)
    slots = jnp.arange(tokens.ids.shape[0])[:, None] * tokens.texts_per_row + jnp.maximum(tokens.segment_ids - 1, 0)
    of_text = jax.ops.segment_sum(losses, pick(slots), tokens.ids.shape[0] * tokens.texts_per_row)
    of_text = of_text if tokens.slots is None else of_text[tokens.slots]
    return of_text * (tokens.count / jnp.maximum(jnp.sum(where < hidden.size), 1))


@checked(shapes(pieces="V"), pieces=filled)
def mask_tokens(
    tokens: Tokens,
    key: jax.Array,
    pieces: np.ndarray | jax.Array,
    mask_id: int,
    *,
    ratio: float = 0.15,
    random: float = 0.1,
    kept: float = 0.1,
) -> tuple[Tokens, jax.Array]:
    """The texts with some tokens hidden, each with probability `ratio`.

    Args:
      tokens: the texts, `[B, T]`.
      key: random key.
      pieces: `word_pieces` of the tokenizer, `[V]`; special tokens are never hidden.
      mask_id: the token [MASK].
      ratio: in [0, 1].
      random, kept: of the hidden tokens, the shares that become any token instead of [MASK], and that stay.

    Returns:
      The tokens, and which are hidden (those that stay as well), bool `[B, T]`.

    Raises:
      ValueError: for a ratio outside of [0, 1], shares that are negative or of a sum above 1, or a mask_id that is no
        token.

    References:
      Devlin et al. 2018, https://arxiv.org/abs/1810.04805, section 3.1.
    """
    check_masking(ratio, random, kept, mask_id, len(pieces))
    key_hidden, key_replaced = jax.random.split(key)
    can_hide = tokens.mask & (jnp.asarray(pieces)[tokens.ids] != SPECIAL)
    hidden = can_hide & jax.random.bernoulli(key_hidden, 1.0 * ratio, tokens.ids.shape)
    return replace_masked(tokens, hidden, key_replaced, len(pieces), mask_id, random=random, kept=kept), hidden


def replace_masked(
    tokens: Tokens,
    hidden: jax.Array,
    key: jax.Array,
    vocabulary: int,
    mask_id: int,
    *,
    random: float = 0.1,
    kept: float = 0.1,
) -> Tokens:
    """The tokens with the hidden ones replaced: by [MASK], a share `random` by any token, a share `kept` not at all."""
    key_how, key_token = jax.random.split(key)
    how = jax.random.uniform(key_how, tokens.ids.shape)
    anything = jax.random.randint(key_token, tokens.ids.shape, 0, vocabulary, jnp.int32)
    replaced = jnp.where(how < random, anything, mask_id)
    return dataclasses.replace(tokens, ids=jnp.where(hidden & (how < 1 - kept), replaced, tokens.ids))


@checked(shapes(pieces="V"), pieces=filled)
def masked_language_modelling(
    column: str, pieces: np.ndarray, mask_id: int, *, ratio: float = 0.15, random: float = 0.1, kept: float = 0.1
) -> Objective:
    """The objective of a `MaskedLanguageModel`: hide tokens, read the text, restore them.

    Every step hides other tokens of a text. Without a key it is always the same ones, and dropout is off. Logits exist
    of the hidden tokens only.

    Args:
      column: of texts, one per record.
      pieces, mask_id, ratio, random, kept: as of `mask_tokens`.

    Returns:
      An `Objective`; its losses are those of `MaskedLanguageModel.losses`.

    Raises:
      ValueError: as `mask_tokens`; when called, if the batch lacks the column or has several texts per record.
      TypeError: when called with another kind of model.

    References:
      Devlin et al. 2018, https://arxiv.org/abs/1810.04805.
    """
    check_masking(ratio, random, kept, mask_id, len(pieces))

    def objective(model: MaskedLanguageModel, batch: Batch, key: jax.Array | None):
        if not isinstance(model, MaskedLanguageModel):
            raise TypeError(f"masked_language_modelling trains a MaskedLanguageModel; got {type(model).__name__}")
        tokens = text_column(batch, column)
        key_hide, key_dropout = (jax.random.key(0), None) if key is None else jax.random.split(key)
        seen, hidden = mask_tokens(tokens, key_hide, pieces, mask_id, ratio=ratio, random=random, kept=kept)
        states = model.embedder.encoder(seen, key=key_dropout)
        return model.losses(states, tokens, hidden, most=most_hidden(ratio, hidden.size)), {}

    return objective


def most_hidden(ratio: float, tokens: int) -> int:
    """More tokens than are ever hidden: 6 standard deviations above the mean."""
    return math.ceil(ratio * tokens + 6 * math.sqrt(ratio * tokens)) + 1


def check_masking(ratio: float, random: float, kept: float, mask_id: int, vocabulary: int) -> None:
    """Raises a ValueError for what `mask_tokens` cannot do."""
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio must be in [0, 1]; got {ratio}")
    if min(random, kept) < 0 or random + kept > 1:
        raise ValueError(f"random and kept must be shares >= 0 of a sum <= 1; got {random=}, {kept=}")
    if not 0 <= mask_id < vocabulary:
        raise ValueError(f"mask_id must be in 0..{vocabulary - 1}, the tokens of pieces; got {mask_id}")
