import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxemb.data import bucket, length_buckets, pack, pad, padding_share, row_bucket
from jaxemb.data.packing import COARSE, FINE, MEDIUM

LENGTHS = st.lists(st.integers(1, 24), max_size=40)


def sequences_of(lengths) -> list[np.ndarray]:
    """Sequences in which every token of every sequence is another number."""
    ends = np.cumsum(lengths)
    return [np.arange(end - length, end, dtype=np.int32) + 1 for length, end in zip(lengths, ends, strict=True)]


def unpacked(tokens) -> list[np.ndarray]:
    """The tokens of every text, read back by its slot."""
    rows, segments = np.divmod(tokens.slots, tokens.texts_per_row)
    return [
        tokens.ids[row][tokens.segment_ids[row] == segment + 1] for row, segment in zip(rows, segments, strict=True)
    ]


@given(LENGTHS, st.sampled_from([None, 1, 2, 4]), st.sampled_from([1, 3, 8]))
def test_packing_keeps_every_text_whole_and_apart(lengths, texts_per_row, multiple):
    sequences = sequences_of(lengths)
    tokens = pack(sequences, row_length=24, texts_per_row=texts_per_row, row_multiple=multiple)
    for sequence, found in zip(sequences, unpacked(tokens), strict=True):
        np.testing.assert_array_equal(found, sequence)
    assert np.count_nonzero(tokens.segment_ids) == sum(lengths)
    assert len(tokens.ids) % multiple == 0
    assert tokens.segment_ids.max(initial=0) <= tokens.texts_per_row
    assert len(set(tokens.slots.tolist())) == len(lengths)
    assert (tokens.ids[tokens.segment_ids == 0] == 0).all()
    for row_segments, row_positions in zip(tokens.segment_ids, tokens.positions, strict=True):
        for segment in range(1, row_segments.max(initial=0) + 1):
            where = np.flatnonzero(row_segments == segment)
            np.testing.assert_array_equal(where, where[0] + np.arange(len(where)))  # contiguous
            np.testing.assert_array_equal(row_positions[where], np.arange(len(where)))


def first_fit_decreasing(lengths, capacity) -> list[list[int]]:
    """The textbook algorithm, one text at a time."""
    rows: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        row = next((row for row in rows if sum(row) + length <= capacity), None)
        if row is None:
            rows.append(row := [])
        row.append(length)
    return rows


@given(LENGTHS)
def test_packing_is_first_fit_decreasing(lengths):
    expected = first_fit_decreasing(lengths, 24)
    tokens = pack(sequences_of(lengths), row_length=24)
    found = [np.unique(row[row > 0], return_counts=True)[1].tolist() for row in tokens.segment_ids]
    assert found[: len(expected)] == expected
    assert not any(found[len(expected) :])


@given(st.lists(st.integers(0, 24), max_size=20))
def test_padding_puts_each_text_in_its_row(lengths):
    sequences = sequences_of(lengths)
    tokens = pad(sequences)
    assert tokens.ids.shape == (len(lengths), 16 if max(lengths, default=0) <= 16 else 24)
    for row, sequence in enumerate(sequences):
        n = len(sequence)
        np.testing.assert_array_equal(tokens.ids[row], np.pad(sequence, (0, tokens.ids.shape[1] - n)))
        np.testing.assert_array_equal(tokens.segment_ids[row], np.arange(tokens.ids.shape[1]) < n)
        np.testing.assert_array_equal(tokens.positions[row, :n], np.arange(n))


@given(st.integers(0, 10**6), st.integers(1, 64))
def test_row_buckets_waste_at_most_an_eighth(rows, multiple):
    found = row_bucket(rows, multiple)
    assert found >= rows and found % multiple == 0
    needed = -(-max(rows, 1) // multiple) * multiple
    assert found <= needed * 9 / 8
    assert row_bucket(found, multiple) == found


def test_row_buckets_are_few():
    assert len({row_bucket(rows) for rows in range(1, 1025)}) <= 8 * 8


@pytest.mark.parametrize(
    ("n", "expected"), [(0, 16), (16, 16), (17, 24), (25, 32), (512, 512), (12288, 12288), (12289, 24576)]
)
def test_length_buckets(n, expected):
    assert bucket(n) == expected


def test_padding_share_counts_positions_without_a_token():
    assert padding_share(pad(sequences_of([4, 12]), length=16)) == 0.5
    assert padding_share(pack(sequences_of([4, 12]), row_length=16)) == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pad(sequences_of([3, 20]), length=16), r"length: sequences\[1\] has 20 tokens; got length=16"),
        (lambda: pack(sequences_of([20]), row_length=16), r"row_length: sequences\[0\] has 20 tokens"),
        (lambda: pack(sequences_of([2, 0]), row_length=16), r"sequences\[1\] is empty"),
        (lambda: pack(sequences_of([16] * 3), row_length=16, rows=2), "rows: 3 texts need 3 rows of 16 tokens; got 2"),
        (lambda: bucket(3, ()), "buckets must be positive and not empty"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_length_buckets_are_even_steps_of_an_octave():
    assert COARSE == (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
    assert tuple(sorted({base << k for base in (16, 24) for k in range(10)})) == MEDIUM
    assert FINE[:9] == (8, 16, 24, 32, 40, 48, 56, 64, 72) and FINE[-2:] == (15 * 8192, 16 * 8192)
    for per_octave, lengths in ((1, COARSE), (2, MEDIUM), (8, FINE)):
        assert lengths == length_buckets(per_octave, lengths[0], lengths[-1])
        wasted = [1 - (short + 1) / long for short, long in itertools.pairwise(lengths) if long > 8 * (per_octave + 1)]
        assert max(wasted) < 1 / (per_octave + 1)
