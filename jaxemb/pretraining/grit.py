"""GritLM's joint objective: one decoder that embeds, seeing both ways, and writes, seeing what is before.

    model = LanguageModel.of(jaxemb.load("SmolLM2-135M-Instruct", pooling=WithoutPrompt()))
    embed = on_columns(functools.partial(info_nce, temperature=0.02), "query", "document", negatives="negative")
    objective = embed_and_write(embed, "conversation")

The two modes share all weights.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from jaxemb.checks import checked, non_negative
from jaxemb.embedder import Embedder, transformer_of
from jaxemb.objectives.columns import Batch, Objective
from jaxemb.pretraining.language_model import LanguageModel
from jaxemb.types import Tokens


@checked()
def seeing_both_ways(model: Embedder) -> Embedder:
    """The embedder with the bidirectional attention of `Transformer.bidirectional`, and the same weights."""
    return dataclasses.replace(model, encoder=transformer_of(model).bidirectional())


@checked(weight=non_negative)
def embed_and_write(
    embedding: Objective, column: str, *, weight: float = 1.0, average: Literal["batch", "texts"] = "batch"
) -> Objective:
    """`L_emb + weight L_gen` of a `LanguageModel` whose encoder is causal.

        L_emb  `embedding`'s, of the embedder made bidirectional
        L_gen  `-ln p` of the tokens of the texts in `column`, each given those before it, causal: the mean over all
               tokens of the batch ("batch"), or the sum over a text's tokens, averaged over texts ("texts")

    Of a text with a prompt (`Tokens.prompt`, such as the user's part of a conversation) the tokens after it alone are
    predicted. There may be any number of texts, another than of records: so many that they cost little.

    Args:
      embedding: the objective of an embedder.
      column: of texts.
      weight: lambda. GritLM: 1 with "batch", 0.003 to 0.05 with "texts".
      average: see above.

    Returns:
      An `Objective`; L_gen is added to each record's loss, so that their mean is the sum above. Its outputs are those
      of `embedding` and "generation", L_gen.

    Raises:
      ValueError: for a negative weight or an unknown average; when called, if the encoder is not causal, or the batch
        has no such column of texts.
      TypeError: when called with another kind of model.

    References:
      Muennighoff et al. 2024 (GritLM), arXiv 2402.09906.
    """
    if average not in ("batch", "texts"):
        raise ValueError(f"average must be 'batch' or 'texts'; got {average!r}")

    def objective(model: LanguageModel, batch: Batch, key: jax.Array | None):
        if not isinstance(model, LanguageModel):
            raise TypeError(f"embed_and_write trains a LanguageModel; got {type(model).__name__}")
        if not transformer_of(model.embedder).config.causal:
            raise ValueError("embed_and_write needs a causal encoder, which it makes bidirectional itself")
        if not isinstance(batch.get(column), Tokens):
            raise ValueError(f"the batch must have the texts {column!r}; it has {', '.join(sorted(batch))}")
        key_embed, key_write = (None, None) if key is None else jax.random.split(key)
        losses, outputs = embedding(seeing_both_ways(model.embedder), batch, key_embed)
        written = _generation(model, batch[column], average, key_write)
        return losses + weight * written, {**outputs, "generation": written}

    return objective


def _generation(model: LanguageModel, tokens: Tokens, average: str, key: jax.Array | None) -> jax.Array:
    losses = model.token_losses(model.embedder.encoder(tokens, key=key), tokens)
    predicted = tokens.mask & (tokens.positions > 0)
    predicted = predicted if tokens.prompt is None else predicted & ~jnp.asarray(tokens.prompt)
    count = jnp.sum(predicted) if average == "batch" else tokens.count
    return jnp.sum(jnp.where(predicted, losses, 0.0)) / jnp.maximum(count, 1)
