"""Packed batches of a fixed number of rows, so that one program serves all: how many, and how texts come to fit."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxemb.data import packing


class Packed(NamedTuple):
    """Texts that are to be packed into a fixed number of rows for each batch.

    Attributes:
      lengths: in tokens, int `[records, texts of a record]`.
      row_length, texts_per_row: as of `pack`.
      rows: of a batch.
    """

    lengths: np.ndarray
    row_length: int
    texts_per_row: int
    rows: int

    def place(self, records: np.ndarray) -> packing.Placement:
        """Of the texts of some of the records."""
        return packing.place(self.lengths[records].ravel(), self.row_length, self.texts_per_row)


def plan(
    columns: Mapping[str, Packed], *, batch_size: int, together: int, size: float, row_multiple: int = 1
) -> dict[str, int]:
    """How many rows a batch of each column has: so many that nearly every batch fits, and hardly more.

    The need of a batch is the sample's mean, plus what the mean over a window of `together` batches, between which
    records are exchanged, exceeds by 2.5 standard errors (of both) less than once in a hundred; and so many rows that
    batches of the sample fit once they are leveled.

    Args:
      columns: lengths of a sample of the source; their `rows` do not matter.
      batch_size: records of a batch.
      together: how many batches exchange records; 1 for none.
      size: how many records the source has, or inf.
      row_multiple: the rows are a multiple of this.
    """
    rows = {}
    window = min(together * batch_size, size)
    for name, column in columns.items():
        seen = len(column.lengths)
        needed = column.place(np.arange(seen)).rows - 0.5  # half of the last row is free, on average
        tokens = column.lengths.sum(axis=1)
        error = math.sqrt((1 - window / size) / window + (1 - min(seen / size, 1)) / seen)
        margin = 1 + 2.5 * error * float(tokens.std() / tokens.mean())
        rows[name] = -(-math.ceil(needed / seen * batch_size * margin) // row_multiple) * row_multiple
    windows = [] if together == 1 else _windows(columns, batch_size, together)
    while True:
        planned = {name: column._replace(rows=rows[name]) for name, column in columns.items()}
        leveled = [made for window in windows for made in level(window, planned)]
        short = {name for _, placed in leveled for name in rows if placed[name].rows > rows[name]}
        if not short:
            return rows
        rows |= {name: rows[name] + row_multiple for name in short}


def _windows(columns: Mapping[str, Packed], batch_size: int, together: int) -> list[list[np.ndarray]]:
    """Windows of batches of the sample, of a few orders."""
    seen = min(len(column.lengths) for column in columns.values())
    batches = seen // batch_size
    if not batches:
        return []
    orders = [np.random.default_rng(i).permutation(seen) for i in range(min(-(-4096 // seen), 4))]
    split = [np.split(order[: batches * batch_size], batches) for order in orders]
    return [own[i : i + together] for own in split for i in range(0, batches, together)]


def level(
    batches: Sequence[np.ndarray], columns: Mapping[str, Packed]
) -> list[tuple[np.ndarray, dict[str, packing.Placement]]]:
    """Exchanges records between batches of one size until every column of every batch fits into its rows.

    Again and again, the batch that lacks the most rows and the one with the fewest tokens exchange the two records that
    make them most alike. Batches that fit from the start keep their records but for those that they take in.

    Args:
      batches: numbers of records, `[N]` each.
      columns: what is packed.

    Returns:
      Each batch's records, in their order, and the placement of each column's texts. A column of which all batches
      together have too many tokens, or texts that fill rows badly, may still need more rows than it has.
    """
    batches = [records.copy() for records in batches]
    placed = [{name: column.place(records) for name, column in columns.items()} for records in batches]
    tokens = {name: column.lengths.sum(axis=1) for name, column in columns.items()}
    numbers = range(len(batches))
    if not batches or not columns:
        return list(zip(batches, placed, strict=True))
    for _ in range(4 * len(batches)):
        most, name = max(
            (placed[b][name].rows - column.rows, name) for b in numbers for name, column in columns.items()
        )
        if most <= 0:
            break
        lengths = [tokens[name][records] for records in batches]
        sums = np.array([own.sum() for own in lengths])
        lacks = np.array([placed[b][name].rows - columns[name].rows == most for b in numbers])
        full, free = int(np.argmax(np.where(lacks, sums, 0))), int(np.argmin(sums))
        out, back = _exchange(lengths[full], lengths[free])
        if lengths[full][out] <= lengths[free][back]:
            break
        batches[full][out], batches[free][back] = batches[free][back], batches[full][out]
        for b in (full, free):
            placed[b] = {name: column.place(batches[b]) for name, column in columns.items()}
    return list(zip(batches, placed, strict=True))


def _exchange(full: np.ndarray, free: np.ndarray) -> tuple[int, int]:
    """Which two numbers change places so that the sums of two arrays come closest, while the first one gets smaller."""
    order = np.argsort(free, kind="stable")
    wanted = full - max((full.sum() - free.sum()) / 2, 1)
    right = (
        np.clip(np.searchsorted(free[order], wanted), 1, len(free) - 1) if len(free) > 1 else np.zeros(len(full), int)
    )
    left = np.maximum(right - 1, 0)
    nearest = np.where(np.abs(free[order][left] - wanted) < np.abs(free[order][right] - wanted), left, right)
    out = int(np.argmin(np.abs(free[order][nearest] - wanted)))
    return out, int(order[nearest[out]])
