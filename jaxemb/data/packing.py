"""From token sequences of many lengths to `Tokens` of a few static shapes: padded, or packed several to a row.

Every new shape compiles a new program, so lengths and row counts are rounded up to *buckets*.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxemb.checks import at_least, checked, shapes, size
from jaxemb.types import Tokens


@checked(per_octave=at_least(1), shortest=at_least(1), longest=at_least(1))
def length_buckets(per_octave: int, shortest: int, longest: int) -> tuple[int, ...]:
    """Row lengths, ascending: from each power of two to the next `per_octave` equal steps, of at least eight tokens.

    Of a long row at most one part in `per_octave + 1` is rounding; every length is a program to compile.

    >>> length_buckets(2, 16, 128)
    (16, 24, 32, 48, 64, 96, 128)
    """
    lengths = [shortest]
    while (last := lengths[-1]) < longest:
        lengths.append(last + max((1 << last.bit_length() - 1) // per_octave, 8))
    return tuple(lengths)


COARSE = length_buckets(1, 16, 8192)  # of training: a step is compiled for each combination of its columns' lengths
MEDIUM = length_buckets(2, 16, 12_288)
FINE = length_buckets(8, 8, 131_072)  # of encoding, whose programs are small and whose rows are all the work


@checked(n=at_least(0))
def bucket(n: int, buckets: Sequence[int] = MEDIUM) -> int:
    """The smallest of `buckets` (ascending) that is >= n; past the last one, the next multiple of it."""
    if not buckets or buckets[0] < 1:
        raise ValueError(f"buckets must be positive and not empty; got {tuple(buckets)}")
    i = int(np.searchsorted(buckets, n))
    return int(buckets[i]) if i < len(buckets) else -(-n // buckets[-1]) * int(buckets[-1])


@checked(n=at_least(0), multiple=at_least(1))
def row_bucket(n: int, multiple: int = 1) -> int:
    """`n` rows rounded up to one of eight steps per octave (8, 9, ..., 16, 18, ..., 32, 36, ...): at most 1/8 more.

    The result is a multiple of `multiple`, such as the number of devices that share the rows.
    """
    groups = -(-max(n, 1) // multiple)
    step = 1 << max((groups - 1).bit_length() - 4, 0)
    return -(-groups // step) * step * multiple


class Placement(NamedTuple):
    """Where packed sequences go: row, number within the row (from 1) and first position of each, `[N]`."""

    row: np.ndarray
    segment: np.ndarray
    start: np.ndarray

    @property
    def rows(self) -> int:
        """How many rows are needed."""
        return int(self.row.max(initial=-1)) + 1


@checked(length=size)
def pad(
    sequences: Sequence[np.ndarray],
    *,
    length: int | None = None,
    buckets: Sequence[int] = MEDIUM,
    type_ids: Sequence[np.ndarray] | None = None,
) -> Tokens:
    """One text per row.

    Args:
      sequences: id arrays, `[length_n]` each; an empty one becomes a row of padding.
      length: length T of the rows; None takes the bucket of the longest sequence.
      buckets: row lengths to choose from, ascending.
      type_ids: token types of each sequence.

    Returns:
      Tokens `[N, T]` as NumPy arrays, row n holding sequence n.

    Raises:
      ValueError: a sequence is longer than `length`; names its index.
    """
    lengths = _lengths(sequences)
    longest = int(lengths.max(initial=0))
    length = bucket(longest, buckets) if length is None else length
    _check_fits(lengths, length, "length")
    rows = np.arange(len(sequences))
    one_each = Placement(rows, np.ones_like(rows), np.zeros_like(rows))
    return _scatter(sequences, lengths, one_each, (len(sequences), length), type_ids)


@checked(row_length=size, rows=size, row_multiple=size, texts_per_row=size)
def pack(
    sequences: Sequence[np.ndarray],
    *,
    row_length: int,
    rows: int | None = None,
    texts_per_row: int | None = None,
    row_multiple: int = 1,
    type_ids: Sequence[np.ndarray] | None = None,
    placement: Placement | None = None,
) -> Tokens:
    """Several texts per row, by first-fit decreasing: longest text first, each into the first row with room.

    The embedding of text n is at `slots[n]` of the flattened `[B * S]` text slots, so the order of the texts is
    kept whatever row they are in. First-fit decreasing needs at most 11/9 of the optimal rows, plus one (Johnson 1973).

    Args:
      sequences: id arrays, `[length_n]` each, not empty.
      row_length: length T of the rows.
      rows: number B of rows; None takes `row_bucket` of what is needed.
      texts_per_row: most texts that a row may hold, and the static S; None sets no limit and takes for S the
        power of two at or above the fullest row's count.
      row_multiple: B is a multiple of this where `rows` is None.
      type_ids: token types of each sequence.
      placement: what `place` gave for these lengths, if it is known already.

    Returns:
      Tokens `[B, T]` as NumPy arrays, with `slots` `[N]` and `texts_per_row` S.

    Raises:
      ValueError: a sequence is empty or longer than `row_length`, or `rows` are too few; names the numbers.
    """
    lengths = _lengths(sequences)
    placement = place(lengths, row_length, texts_per_row) if placement is None else placement
    needed = placement.rows
    if rows is None:
        rows = row_bucket(needed, row_multiple)
    if needed > rows:
        raise ValueError(f"rows: {len(sequences)} texts need {needed} rows of {row_length} tokens; got {rows}")
    if texts_per_row is None:
        texts_per_row = 1 << (max(int(placement.segment.max(initial=1)), 1) - 1).bit_length()
    slots = (placement.row * texts_per_row + placement.segment - 1).astype(np.int32)
    return _scatter(sequences, lengths, placement, (rows, row_length), type_ids, slots, texts_per_row)


@checked(shapes(lengths="N"))
def marked(tokens: Tokens, lengths: np.ndarray) -> Tokens:
    """The tokens, the first ones of each text being of its prompt, as `Tokens.with_prompt` marks them; in NumPy.

    Args:
      tokens: of N texts.
      lengths: how many tokens of each text, int `[N]`.
    """
    rows, per_row = tokens.ids.shape[0], tokens.texts_per_row
    by_slot = np.zeros(rows * per_row, np.int32)
    by_slot[slice(None) if tokens.slots is None else tokens.slots] = lengths
    of_text = np.maximum(np.asarray(tokens.segment_ids) - 1, 0)
    of_token = np.take_along_axis(by_slot.reshape(rows, per_row), of_text, axis=1)
    return dataclasses.replace(tokens, prompt=(tokens.segment_ids > 0) & (tokens.positions < of_token))


@checked()
def padding_share(tokens: Tokens) -> float:
    """The share of token positions that hold padding, in [0, 1]: work done for nothing."""
    return 1.0 - float(np.count_nonzero(tokens.segment_ids)) / max(tokens.segment_ids.size, 1)


def _lengths(sequences: Sequence[np.ndarray]) -> np.ndarray:
    return np.fromiter(map(len, sequences), np.int64, len(sequences))


def _check_fits(lengths: np.ndarray, limit: int, name: str) -> None:
    if lengths.size and lengths.max() > limit:
        i = int(np.argmax(lengths))
        raise ValueError(f"{name}: sequences[{i}] has {lengths[i]} tokens; got {name}={limit}")


@checked()
def place(lengths: np.ndarray, capacity: int, texts_per_row: int | None = None) -> Placement:
    """First-fit decreasing of sequences of these `lengths`, int `[N]` in 1..capacity, into rows of `capacity` tokens.

    Raises:
      ValueError: a length outside of 1..capacity.
    """
    _check_fits(lengths, capacity, "row_length")
    if (lengths == 0).any():
        raise ValueError(f"sequences[{int(np.argmin(lengths))}] is empty: it has no tokens to pack")
    one_by_one = len(lengths) <= 1024  # about where the other begins to be faster
    return (_place_one_by_one if one_by_one else _place_by_length)(lengths, capacity, texts_per_row or capacity)


def _place_one_by_one(lengths: np.ndarray, capacity: int, most: int) -> Placement:
    room: list[int] = []  # tokens free in each row
    count: list[int] = []  # texts in each row
    places = np.empty((3, len(lengths)), np.int64)
    for i in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[i])
        row = next((r for r, free in enumerate(room) if free >= length and count[r] < most), len(room))
        if row == len(room):
            room.append(capacity)
            count.append(0)
        places[:, i] = row, count[row] + 1, capacity - room[row]
        room[row] -= length
        count[row] += 1
    return Placement(*places)


def _place_by_length(lengths: np.ndarray, capacity: int, most: int) -> Placement:
    """The same for many sequences.

    Equal lengths are placed together: first-fit fills the first row with room to the brim, then the next one. So it
    is one cumulative sum per distinct length, not a search per sequence.
    """
    row, segment, start = (np.zeros(len(lengths), np.int64) for _ in range(3))
    room = np.zeros(0, np.int64)  # tokens free in each row
    count = np.zeros(0, np.int64)  # texts in each row
    order = np.argsort(-lengths, kind="stable")
    values, sizes = np.unique(lengths[order], return_counts=True)
    placed = 0
    for length, n in zip(values[::-1].tolist(), sizes[::-1].tolist(), strict=True):
        fits = np.minimum(room // length, most - count)
        missing = n - int(fits.sum())
        if missing > 0:
            per_row = min(capacity // length, most)
            fresh = -(-missing // per_row)
            room, count = np.pad(room, (0, fresh), constant_values=capacity), np.pad(count, (0, fresh))
            fits = np.pad(fits, (0, fresh), constant_values=per_row)
        before = np.cumsum(fits) - fits
        taken = np.clip(n - before, 0, fits)  # how many of the n go into each row
        rows = np.repeat(np.arange(len(taken)), taken)
        nth = np.arange(n) - before[rows]  # 0, 1, ... within the row
        members = order[placed : placed + n]
        row[members] = rows
        segment[members] = count[rows] + nth + 1
        start[members] = capacity - room[rows] + nth * length
        room -= taken * length
        count += taken
        placed += n
    return Placement(row, segment, start)


def _scatter(
    sequences: Sequence[np.ndarray],
    lengths: np.ndarray,
    placement: Placement,
    shape: tuple[int, int],
    type_ids: Sequence[np.ndarray] | None,
    slots: Any = None,
    texts_per_row: int = 1,
) -> Tokens:
    """Writes each sequence into its row from its start on."""
    if type_ids is not None and len(type_ids) != len(sequences):
        raise ValueError(f"type_ids must be those of each of {len(sequences)} sequences; got {len(type_ids)}")
    arrays: list[Any] = [np.zeros(shape, np.int32) for _ in range(3 if type_ids is None else 4)]
    if lengths.sum():
        position = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        where = np.repeat(placement.row * shape[1] + placement.start, lengths) + position
        values = [np.concatenate(sequences), np.repeat(placement.segment, lengths), position]
        values += [] if type_ids is None else [np.concatenate(type_ids)]
        for array, value in zip(arrays, values, strict=True):
            array.reshape(-1)[where] = value
    ids, segment_ids, positions, *types = arrays
    return Tokens(ids, segment_ids, positions, types[0] if types else None, slots, texts_per_row)
