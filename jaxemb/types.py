"""Batch types: one frozen pytree per modality. Everything in jaxemb may import this file."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxemb.checks import in_32_bits


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
    """Tokenised texts, several of which may share a row (*packing*).

    A row of length T holds up to `texts_per_row` texts. `segment_ids` says which text a token belongs
    to: 1 for the first text of its row, 2 for the second, ..., 0 for padding. Tokens of different texts
    never attend to or are pooled with each other, so a packed batch gives the embeddings of an
    unpacked one.

    Attributes:
      ids: token ids, int32 `[B, T]`.
      segment_ids: text number within the row, 0 = padding, int32 `[B, T]`.
      positions: position of a token within its own text, from 0, int32 `[B, T]`.
      type_ids: token types of text pairs (BERT's sentence A / B), int32 `[B, T]`; None means all 0.
      slots: where each text of a packed batch is, `row * S + segment_id - 1`, int32 `[N]`; None means that the
        texts are the slots, in order (N = B * S).
      texts_per_row: static S, the number of text slots of a row.
      prompt: True at tokens of the prompt in front of a text, such as its instruction, bool `[B, T]`; None means that
        nobody asks. See `with_prompt`.
    """

    ids: jax.Array
    segment_ids: jax.Array
    positions: jax.Array
    type_ids: jax.Array | None = None
    slots: jax.Array | None = None
    texts_per_row: int = dataclasses.field(default=1, metadata={"static": True})
    prompt: jax.Array | None = None

    @property
    def mask(self) -> jax.Array:
        """True at real tokens, bool `[B, T]`."""
        return self.segment_ids > 0

    @property
    def count(self) -> int:
        """N, the number of texts."""
        return self.ids.shape[0] * self.texts_per_row if self.slots is None else self.slots.shape[0]

    @classmethod
    def from_mask(cls, ids, mask, type_ids=None) -> "Tokens":
        """Tokens of one text per row from `ids` and an attention `mask` (`[B, T]`, padding on either side).

        Raises ValueError for ids beyond 32 bits.
        """
        in_32_bits("ids", ids)
        mask = jnp.asarray(mask, jnp.int32)
        positions = jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0) * mask
        return cls(jnp.asarray(ids, jnp.int32), mask, positions, type_ids)

    def with_prompt(self, lengths: jax.Array | int) -> "Tokens":
        """These tokens with the first ones of each text as its prompt: of all as many, or `[N]`."""
        rows, per_row = self.ids.shape[0], self.texts_per_row
        slots = jnp.arange(rows * per_row) if self.slots is None else self.slots
        by_slot = jnp.zeros(rows * per_row, jnp.int32).at[slots].set(lengths).reshape(rows, per_row)
        of_token = jnp.take_along_axis(by_slot, jnp.maximum(self.segment_ids - 1, 0), axis=1)
        return dataclasses.replace(self, prompt=(self.segment_ids > 0) & (self.positions < of_token))


def concatenate(batches: Sequence[Tokens]) -> Tokens:
    """The texts of several batches as one; they must have rows of one length and the same number of text slots.

    Raises:
      ValueError: if row lengths, slots per row or the presence of token types differ.
    """
    first = batches[0]
    if len({_layout(tokens) for tokens in batches}) != 1:
        raise ValueError(f"batches must have the same layout of rows; got {[_layout(tokens) for tokens in batches]}")
    per_row = first.texts_per_row
    starts = np.cumsum([0, *(tokens.ids.shape[0] * per_row for tokens in batches)])
    slots = [
        start + (jnp.arange(tokens.ids.shape[0] * per_row, dtype=jnp.int32) if tokens.slots is None else tokens.slots)
        for start, tokens in zip(starts, batches, strict=False)
    ]
    join = lambda name: jnp.concatenate([getattr(tokens, name) for tokens in batches])
    if any(tokens.prompt is not None for tokens in batches):
        batches = [
            t if t.prompt is not None else dataclasses.replace(t, prompt=jnp.zeros_like(t.mask)) for t in batches
        ]
    return Tokens(
        ids=join("ids"),
        segment_ids=join("segment_ids"),
        positions=join("positions"),
        type_ids=None if first.type_ids is None else join("type_ids"),
        slots=None if all(tokens.slots is None for tokens in batches) else jnp.concatenate(slots),
        texts_per_row=per_row,
        prompt=None if batches[0].prompt is None else join("prompt"),
    )


def _layout(tokens: Tokens) -> tuple[int, int, bool]:
    return tokens.ids.shape[1], tokens.texts_per_row, tokens.type_ids is not None


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class SourceName:
    """The name of the source that a batch's records come from. It is static: each name is a program of its own."""

    text: str
