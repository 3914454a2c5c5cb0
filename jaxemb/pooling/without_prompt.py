"""Prompts that are read and not pooled."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jaxemb.pooling.base import Pooling
from jaxemb.pooling.plain import Mean
from jaxemb.types import Tokens


@nnx.dataclass
class WithoutPrompt(Pooling):
    """Another pooling, over the tokens of each text that are not of its prompt, `Tokens.prompt`.

    The encoder has read the prompt, so that it changes the vector, though its own states do not enter it: instructions
    of NV-Embed and LLM2Vec, `include_prompt=false` of sentence-transformers. A text without a prompt is pooled whole;
    one that is nothing but its prompt gives what the other pooling makes of no tokens.

    Attributes:
      pooling: the other one.
      kept: how many of the prompt's last tokens are pooled nevertheless. 1 is what NV-Embed's published code does,
        which counts the instruction without the token before it.

    Raises:
      ValueError: for a `kept` below 0.
    """

    pooling: Pooling = nnx.data(default_factory=Mean)
    kept: int = nnx.static(default=0, kw_only=True)

    def __post_init__(self):
        if self.kept < 0:
            raise ValueError(f"kept must be at least 0; got {self.kept}")

    def __call__(self, states: jax.Array, tokens: Tokens) -> jax.Array:
        if tokens.prompt is None:
            return self.pooling(states, tokens)
        later = lambda x: jnp.pad(jnp.asarray(x)[:, self.kept :], ((0, 0), (0, min(self.kept, x.shape[1]))))
        left_out = tokens.prompt & later(tokens.prompt) & (later(tokens.segment_ids) == tokens.segment_ids)
        segments = jnp.where(left_out, 0, tokens.segment_ids)
        return self.pooling(states, dataclasses.replace(tokens, segment_ids=segments))

    def output_dim(self, dim: int) -> int:
        return self.pooling.output_dim(dim)

    @property
    def reads_prompt(self) -> bool:
        return True
