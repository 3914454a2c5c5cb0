"""Several batches as the micro-batches of one step."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxemb.checks import checked
from jaxemb.types import Tokens


@checked()
def stack_batches(batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One batch whose arrays have a leading axis of micro-batches.

    Texts may be padded or packed to different shapes in each; all are padded to the largest.

    Raises:
      ValueError: if they have different numbers of records, or are of different sources.
    """
    if not batches:
        raise ValueError("batches must be at least one; got 0")
    if len(names := {batch["source_name"].text for batch in batches if "source_name" in batch}) > 1:
        raise ValueError(f"micro-batches of one step must be of one source; got {sorted(names)}")
    if len(sizes := {len(batch["id"]) for batch in batches}) > 1:
        raise ValueError(f"micro-batches must have the same number of records; got {sorted(sizes)}")
    columns = {name: [batch[name] for batch in batches] for name in batches[0]}
    alike = {name: _same_shape(values) if isinstance(values[0], Tokens) else values for name, values in columns.items()}
    return {name: jax.tree.map(lambda *arrays: np.stack(arrays), *values) for name, values in alike.items()}


def _same_shape(columns: Sequence[Tokens]) -> list[Tokens]:
    rows, length = np.max([tokens.ids.shape for tokens in columns], axis=0)
    slots_per_row = max(tokens.texts_per_row for tokens in columns)

    def pad(array):
        return None if array is None else np.pad(array, [(0, rows - array.shape[0]), (0, length - array.shape[1])])

    def renumber(slots, texts_per_row):
        row, slot = np.divmod(np.asarray(slots, np.int32), np.int32(texts_per_row))
        return row * slots_per_row + slot

    def one(tokens: Tokens) -> Tokens:
        return dataclasses.replace(
            tokens,
            ids=pad(tokens.ids),
            segment_ids=pad(tokens.segment_ids),
            positions=pad(tokens.positions),
            type_ids=pad(tokens.type_ids),
            slots=None if tokens.slots is None else renumber(tokens.slots, tokens.texts_per_row),
            texts_per_row=slots_per_row,
            prompt=pad(tokens.prompt),
        )

    return [one(tokens) for tokens in columns]
