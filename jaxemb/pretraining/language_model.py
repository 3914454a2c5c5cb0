"""Causal language modelling (Bengio et al. 2003, Radford et al. 2018): each token is predicted from those before it.

model = LanguageModel.of(jaxemb.load("SmolLM2-135M"))
losses = model.token_losses(model.embedder.encoder(tokens), tokens)  # -ln p of each token
perplexity = jnp.exp(losses.sum() / (losses > 0).sum())
"""

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxemb import parallel
from jaxemb.checkpoints.heads import add_head, read_head, write_head
from jaxemb.checks import at_least, checked
from jaxemb.embedder import Embedder, transformer_of
from jaxemb.encoders.families import family_of
from jaxemb.nn import Module
from jaxemb.objectives.columns import Batch, Objective, text_column
from jaxemb.pooling import members, of_texts
from jaxemb.settings import flag, number
from jaxemb.types import Tokens

if TYPE_CHECKING:
    from jaxemb.sentence_embedder import SentenceEmbedder


@nnx.dataclass
class LanguageHead(Module):
    """Logits of the next token from a state h: `h E^T`, or with a soft cap c `c tanh(h E^T / c)` (Gemma 2).

    E is the head's own table `[V, D]`, or without one the token embeddings.
    """

    table: jax.Array | None = nnx.data(default=None)
    soft_cap: float | None = nnx.static(default=None)

    def __call__(self, states: jax.Array, embeddings: jax.Array) -> jax.Array:
        """Logits f32 `[..., V]` of states `[..., D]`, with the token embeddings `[V, D]`."""
        table = embeddings if self.table is None else self.table
        logits = jnp.matmul(states, table.T.astype(states.dtype), preferred_element_type=jnp.float32)
        return logits if self.soft_cap is None else self.soft_cap * jnp.tanh(logits / self.soft_cap)


@nnx.dataclass
class LanguageModel(Module):
    """An embedder with the head that predicts the next token; called, it is the embedder."""

    embedder: Embedder = nnx.data()
    head: LanguageHead = nnx.data()

    @classmethod
    def of(cls, embedder: "SentenceEmbedder") -> "LanguageModel":
        """The model of `embedder` with the head that its checkpoint has; a table of its own lies as the embeddings do.

        Raises:
          TypeError: if its encoder is no transformer.
          ValueError: if checkpoints of its family have no such head, or this one lacks its table.
        """
        embeddings, format = transformer_of(embedder.model).embeddings.tokens, embedder.format.encoder
        known = family_of(format.config).heads.get("language")
        if known is None:
            raise ValueError(f"{format.config['model_type']} predicts no next token; expected a decoder")
        cap = known.soft_cap
        if "final_logit_softcapping" in format.config:
            cap = number(format.config, "final_logit_softcapping", None, above=0)
        if flag(format.config, "tie_word_embeddings", known.is_tied):
            return cls(embedder.model, LanguageHead(soft_cap=cap))
        table = read_head(format, "language").get("table")
        if table is None or table.shape != embeddings.shape:
            shape = None if table is None else list(table.shape)
            raise ValueError(f"the checkpoint must have lm_head.weight, {list(embeddings.shape)}; got {shape}")
        table = parallel.put(table.astype(embeddings.dtype), embeddings.sharding)
        return cls(embedder.model, LanguageHead(table, cap))

    def into(self, embedder: "SentenceEmbedder", *, with_head: bool = False) -> "SentenceEmbedder":
        """`embedder` with this model; it is saved with this head if its checkpoint has one, or `with_head`.

        With a head it is what transformers reads as `...ForCausalLM`.
        """
        format = embedder.format.encoder
        leaves = {} if self.head.table is None else {"table": np.asarray(self.head.table)}
        if read_head(format, "language"):
            format = write_head(format, "language", leaves)
        elif with_head:
            format = add_head(format, "language", leaves)
            format = dataclasses.replace(format, config={**format.config, "tie_word_embeddings": not leaves})
        return embedder.replace(model=self.embedder, format=dataclasses.replace(embedder.format, encoder=format))

    def __call__(self, tokens: Tokens, *, key: jax.Array | None = None) -> jax.Array:
        return self.embedder(tokens, key=key)

    def logits(self, states: jax.Array) -> jax.Array:
        """Of the token that follows each state, f32 `[..., V]` of `[..., D]`."""
        return self.head(states, transformer_of(self.embedder).embeddings.tokens)

    @checked(chunk=at_least(1))
    def token_losses(self, states: jax.Array, tokens: Tokens, *, chunk: int = 128) -> jax.Array:
        """`-ln p(token | those before it in its text)`, f32 `[B, T]`; 0 for the first of a text and for padding.

        Logits exist of `chunk` tokens of each row at a time, in the gradient as well, which computes them once more.

        Args:
          states: of the tokens, `[B, T, D]`.
          tokens: the texts.
          chunk: tokens per step.
        """
        length = states.shape[1]
        size = min(chunk, length)
        split = lambda x: jnp.moveaxis(
            jnp.pad(x, [(0, 0), (0, -length % size)] + [(0, 0)] * (x.ndim - 2)).reshape(
                x.shape[0], -1, size, *x.shape[2:]
            ),
            1,
            0,
        )
        following = jnp.roll(jnp.asarray(tokens.ids), -1, axis=1)

        @jax.checkpoint
        def losses(of: tuple[jax.Array, jax.Array]) -> jax.Array:
            return optax.losses.softmax_cross_entropy_with_integer_labels(self.logits(of[0]), of[1])

        found = jnp.moveaxis(jax.lax.map(losses, (split(states), split(following))), 0, 1)
        of_following = found.reshape(len(states), -1)[:, :length]
        is_predicted = tokens.mask & (tokens.positions > 0)
        return jnp.where(is_predicted, jnp.roll(of_following, 1, axis=1), 0.0)


@checked()
def language_modelling(column: str) -> Objective:
    """The objective of a `LanguageModel`: the cross-entropy of each token, given those before it.

    Args:
      column: of texts, one per record.

    Returns:
      An `Objective`; the mean of its losses, one per record, is the mean over all predicted tokens of the batch: a text
      counts by their number.

    Raises:
      ValueError: when called, if the batch lacks the column or has several texts per record, or the encoder is not
        causal, so that what it is to predict it sees.
      TypeError: when called with another kind of model.
    """

    def objective(model: LanguageModel, batch: Batch, key: jax.Array | None):
        if not isinstance(model, LanguageModel):
            raise TypeError(f"language_modelling trains a LanguageModel; got {type(model).__name__}")
        if not transformer_of(model.embedder).config.causal:
            raise ValueError("language_modelling needs causal attention; the encoder's is bidirectional")
        tokens = text_column(batch, column)
        losses = model.token_losses(model.embedder.encoder(tokens, key=key), tokens)
        of_text = of_texts(jnp.einsum("bst,bt->bs", members(tokens), losses), tokens)
        predicted = jnp.sum(tokens.mask & (tokens.positions > 0))
        return of_text * (tokens.count / jnp.maximum(predicted, 1)), {}

    return objective
