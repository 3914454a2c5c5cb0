"""Training the last layers of an encoder alone: what the layers below give never changes, so it is computed once."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxemb.data import pad
from jaxemb.embedder import Embedder
from jaxemb.nn import Layout, Module, Stack, StackConfig
from jaxemb.sentence_embedder import SentenceEmbedder
from jaxemb.types import Tokens

_ROWS = 256  # of texts at a time


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class States(Tokens):
    """Tokens of one text per row, with the hidden states below the trained layers, f16 `[B, T, D]`."""

    states: jax.Array | None = None


@nnx.dataclass
class LastLayers(Module):
    """An encoder without the embeddings and the layers that never change: their output comes with the batch."""

    stack: Stack = nnx.data()

    @property
    def config(self) -> StackConfig:
        return self.stack.config

    def __call__(self, tokens: States, *, key: jax.Array | None = None) -> jax.Array:
        """`[B, T, D]`."""
        return self.stack(tokens.states, Layout(tokens.segment_ids, tokens.positions), key=key)


def cut(embedder: Embedder, layers: int) -> tuple[Embedder, Embedder]:
    """The embedder's lower layers, and its last ones, which take the lower ones' states.

    The heads are left out: the features are means of hidden states, not of unit length.
    """
    encoder = embedder.encoder
    below = encoder.config.layers - layers
    take = lambda part, which, number: dataclasses.replace(
        part,
        layers=jax.tree.map(lambda a: a[which], part.layers),
        config=dataclasses.replace(part.config, layers=number),
    )
    upper: Any = LastLayers(take(encoder.stack, slice(below, None), layers))
    return (
        dataclasses.replace(embedder, encoder=take(encoder, slice(below), below), heads=()),
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
