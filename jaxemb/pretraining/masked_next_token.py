"""Masked next-token prediction (LLM2Vec): a decoder learns to use what stands behind a token.

    model = LanguageModel.of(jaxemb.load("SmolLM2-135M", causal=False, pooling="mean"))
    pieces = word_pieces(embedder.tokenizer)
    objective = masked_next_tokens("text", pieces, mask_id=embedder.tokenizer.backend.token_to_id("_"))

A causal model has learnt to predict the token behind a state, so the hidden token at place i is predicted from the
state at place i - 1. After it comes SimCSE, `on_columns(info_nce, "text", "text")` with `attention_dropout` of the
model.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxemb.checks import checked, filled, shapes
from jaxemb.embedder import transformer_of
from jaxemb.objectives.columns import Batch, Objective, text_column
from jaxemb.pretraining.language_model import LanguageModel
from jaxemb.pretraining.masked_language_model import check_masking, mask_tokens, most_hidden, restored_losses


@checked(shapes(pieces="V"), pieces=filled)
def masked_next_tokens(
    column: str, pieces: np.ndarray, mask_id: int, *, ratio: float = 0.2, random: float = 0.1, kept: float = 0.1
) -> Objective:
    """The objective of a `LanguageModel` that sees both ways: restore hidden tokens from the states before them.

    The first token of a text has none before it and is never hidden. Logits exist of the hidden tokens only. Every step
    hides others; without a key it is always the same ones, and dropout is off.

    Args:
      column: of texts, one per record.
      pieces: `word_pieces` of the tokenizer, `[V]`; special tokens are never hidden.
      mask_id: what stands in their place; decoders have no [MASK], LLM2Vec takes "_".
      ratio, random, kept: as of `mask_tokens`. LLM2Vec: as here for Llama, 0.8, 0 and 0 for Mistral.

    Returns:
      An `Objective`; its losses, one per record, have the mean over all hidden tokens of the batch as their mean.

    Raises:
      ValueError: as `mask_tokens`; when called, if the encoder is causal, the batch lacks the column or has several
        texts per record.
      TypeError: when called with another kind of model.

    References:
      BehnamGhader et al. 2024 (LLM2Vec), arXiv 2404.05961.
    """
    check_masking(ratio, random, kept, mask_id, len(pieces))

    def objective(model: LanguageModel, batch: Batch, key: jax.Array | None):
        if not isinstance(model, LanguageModel):
            raise TypeError(f"masked_next_tokens trains a LanguageModel; got {type(model).__name__}")
        if transformer_of(model.embedder).config.causal:
            raise ValueError("masked_next_tokens needs attention both ways: jaxemb.load(..., causal=False); got causal")
        tokens = text_column(batch, column)
        key_hide, key_dropout = (jax.random.key(0), None) if key is None else jax.random.split(key)
        # What is no part of a text is not hidden either.
        eligible = dataclasses.replace(tokens, segment_ids=jnp.where(tokens.positions > 0, tokens.segment_ids, 0))
        seen, hidden = mask_tokens(eligible, key_hide, pieces, mask_id, ratio=ratio, random=random, kept=kept)
        states = model.embedder.encoder(dataclasses.replace(tokens, ids=seen.ids), key=key_dropout)
        before = jnp.roll(states, 1, axis=1)
        return restored_losses(model.logits, before, tokens, hidden, most=most_hidden(ratio, hidden.size)), {}

    return objective
