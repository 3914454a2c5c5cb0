"""Batch types: one frozen pytree per modality. Everything in jaxemb may import this file."""

import dataclasses

import jax
import jax.numpy as jnp


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
    """

    ids: jax.Array
    segment_ids: jax.Array
    positions: jax.Array
    type_ids: jax.Array | None = None
    slots: jax.Array | None = None
    texts_per_row: int = dataclasses.field(default=1, metadata={"static": True})

    @property
    def mask(self) -> jax.Array:
        """True at real tokens, bool `[B, T]`."""
        return self.segment_ids > 0

    @classmethod
    def from_mask(cls, ids, mask, type_ids=None) -> "Tokens":
        """Tokens of one text per row from `ids` and an attention `mask` (`[B, T]`, padding on either side)."""
        mask = jnp.asarray(mask, jnp.int32)
        positions = jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0) * mask
        return cls(jnp.asarray(ids, jnp.int32), mask, positions, type_ids)
