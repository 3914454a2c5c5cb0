"""Training the last layers of an encoder alone: what the layers below give never changes, so it is computed once."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxemb.data import pad
from jaxemb.embedder import Embedder
from jaxemb.encoders import TransformerConfig
from jaxemb.nn import Module
from jaxemb.sentence_embedder import SentenceEmbedder
from jaxemb.types import Tokens

_ROWS = 256  # of texts at a time


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class States(Tokens):
    """Tokens of one text per row, with the hidden states below the trained layers, f16 `[B, T, D]`."""

    states: jax.Array | None = None


@nnx.dataclass
class Given(Module):
    """Stands for the embeddings and the layers that never change: their output comes with the batch."""

    def __call__(self, tokens: States, config: TransformerConfig, key: jax.Array | None) -> jax.Array:
        return tokens.states.astype(config.dtype)


def cut(embedder: Embedder, layers: int) -> tuple[Embedder, Embedder]:
    """The embedder's lower layers, and its last ones, which take the lower ones' states.

    The heads are left out: the features are means of hidden states, not of unit length.
    """
    encoder = embedder.encoder
    below = encoder.config.layers - layers
    take = lambda which, number: dataclasses.replace(
        encoder,
        layers=jax.tree.map(lambda a: a[which], encoder.layers),
        config=dataclasses.replace(encoder.config, layers=number),
    )
    upper = dataclasses.replace(take(slice(below, None), layers), embeddings=Given())
    return (
        dataclasses.replace(embedder, encoder=take(slice(below), below), heads=()),
        dataclasses.replace(embedder, encoder=upper, heads=()),
    )


def states_of(embedder: SentenceEmbedder, lower: Embedder, texts: Sequence[str], length: int) -> States:
    """The states of every text after the lower layers; texts are cut or padded to `length` tokens."""
    tokens = pad(embedder.tokenizer(list(texts), length), length=length)
    take = lambda start: jax.tree.map(lambda a: np.take(a, range(start, start + _ROWS), 0, mode="clip"), tokens)
    states = np.concatenate([_forward(lower, take(start)) for start in range(0, len(texts), _ROWS)])[: len(texts)]
    return States(tokens.ids, tokens.segment_ids, tokens.positions, states=states)


@jax.jit
def _forward(lower: Embedder, rows: Tokens) -> jax.Array:
    return lower.encoder(rows).astype(jnp.float16)
