"""Kinds of columns: what they check, and what they make of a batch."""

import dataclasses
import math

import jax
import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from jaxemb.data import Column, Layout, Number, RecordError, Text, TextPair, Vector, batches, from_list
from jaxemb.data.columns import kind_of


def batch_of(tokenizer, records, columns, **options):
    options = {"batch_size": len(records), "max_length": 16, "shuffle": False, "prefetch": 0} | options
    return next(iter(batches(from_list(records, name="train.jsonl"), tokenizer, columns, **options)))


@pytest.mark.parametrize(
    ("value", "column"),
    [
        ("text", Text(per_record=1)),
        (["a", "b"], Text(per_record=2)),
        (3, Number("int32")),
        (True, Number("int32")),
        (0.5, Number("float32")),
        (np.float64(1), Number("float32")),
        ([0.5, 1], Vector("float32", 2)),
        ([1, 0, 0], Vector("int32", 3)),
        (np.zeros(4, np.float16), Vector("float32", 4)),
        ([], Text(per_record=1)),
        (None, Text(per_record=1)),
    ],
    ids=str,
)
def test_the_first_record_tells_the_kind(value, column):
    assert kind_of(value) == column and isinstance(column, Column)


def test_lists_of_numbers_are_vectors(tokenizer):
    records = [{"query": f"w{i}", "scores": [i / 4, 1, -0.5], "labels": [1, 0, i]} for i in range(5)]
    batch = batch_of(tokenizer, records, ("query", "scores", "labels"))
    np.testing.assert_array_equal(batch["scores"], np.float32([r["scores"] for r in records]))
    np.testing.assert_array_equal(batch["labels"], np.int32([r["labels"] for r in records]))
    assert batch["scores"].dtype == np.float32 and batch["labels"].dtype == np.int32
    arrays = [{"teacher": np.arange(3.0) + i} for i in range(4)]
    batch = batch_of(tokenizer, arrays, {"teacher": Vector("float16")}, process_index=1, process_count=2)
    np.testing.assert_array_equal(batch["teacher"], np.float16([[2, 3, 4], [3, 4, 5]]))


@pytest.mark.parametrize("pack", [False, 32])
@pytest.mark.parametrize("nested", [False, True])
def test_pairs_are_read_as_one_text(tokenizer, pack, nested):
    records = [{"query": f"w{i}", "document": [f"alpha w{i}", "beta"] if nested else f"alpha w{i}"} for i in range(6)]
    pairs = [(r["query"], d) for r in records for d in (r["document"] if nested else [r["document"]])]
    tokens = batch_of(tokenizer, records, {"pair": TextPair(fields=("query", "document"))}, pack=pack)["pair"]
    listed = [{"pair": [r["query"], r["document"]]} for r in records]
    same = batch_of(tokenizer, listed, {"pair": TextPair()}, pack=pack)["pair"]
    jax.tree.map(np.testing.assert_array_equal, tokens, same)
    slots = np.arange(tokens.count) if tokens.slots is None else tokens.slots
    for slot, pair in zip(slots, pairs, strict=True):
        row, segment = divmod(int(slot), tokens.texts_per_row)
        own = tokens.segment_ids[row] == segment + 1
        expected = tokenizer.backend.encode(*pair)
        assert tokens.ids[row][own].tolist() == expected.ids and tokens.type_ids[row][own].tolist() == expected.type_ids
        assert tokens.positions[row][own].tolist() == list(range(len(expected.ids)))


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=5), st.integers(5, 20))
def test_the_longer_text_of_a_pair_is_cut_first(tokenizer, sizes, max_length):
    pairs = [(" ".join(f"w{i}" for i in range(a)), " ".join(f"w{i + 20}" for i in range(b))) for a, b in sizes]
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    backend.enable_truncation(max_length, strategy="longest_first")
    found = tokenizer.encode_pairs(pairs, max_length)
    for pair, ids, types in zip(pairs, found.ids, found.type_ids, strict=True):
        expected = backend.encode(*pair)
        assert ids.tolist() == expected.ids and types.tolist() == expected.type_ids
    assert found.truncated == sum(a + b + 3 > max_length for a, b in sizes)


def test_pairs_that_cannot_be_encoded_are_named(tokenizer):
    with pytest.raises(TypeError, match=r"pairs\[1\] must be two strings; got tuple \('a', 1\)"):
        tokenizer.encode_pairs([("a", "b"), ("a", 1)])
    with pytest.raises(ValueError, match="max_length must exceed the 3 special tokens by 2; got 4"):
        tokenizer.encode_pairs([("a", "b")], 4)


RECORDS = [{"text": f"w{i}", "pair": [f"w{i}", "beta"], "scores": [0.5, float(i)], "labels": [0, i]} for i in range(5)]


@pytest.mark.parametrize(
    ("columns", "value", "message"),
    [
        (["scores"], [0.5], "column 'scores': expected a list of 2 numbers; got 1"),
        (["scores"], 0.5, "column 'scores': expected a list of 2 numbers; got float 0.5"),
        (["scores"], [0.5, "a"], r"column 'scores': expected a list of 2 numbers; got list \[0.5, 'a'\]"),
        (["scores"], [0.5, math.nan], "column 'scores': expected a list of finite numbers; got float nan at 1"),
        (["scores"], None, "column 'scores': expected a list of 2 numbers; got NoneType None"),
        (
            {"labels": Vector("int32")},
            [1, 0.5],
            r"column 'labels': expected a list of integers \(int32\); got float 0.5 at 1",
        ),
        ({"pair": TextPair()}, "w1", "column 'pair': expected a pair of texts; got str 'w1'"),
        ({"pair": TextPair()}, ["w1", 3], "column 'pair': second of a pair: expected a str; got int 3"),
        ({"pair": TextPair()}, [None, "w1"], "expected a str as the first text of a pair; got NoneType None"),
        (["text"], [0.5, 1.0], "column 'text': expected a list of 1 texts; got 2"),
        ({"text": Text(per_record=3)}, "w1", "column 'text': expected a list of 3 texts; got str 'w"),
    ],
)
def test_what_is_wrong_names_record_and_column(tokenizer, columns, value, message):
    (name,) = columns
    records = [dict(record) for record in RECORDS]
    records[3][name] = value
    with pytest.raises(RecordError, match=r"train.jsonl: record \d, .*" + message):
        batch_of(tokenizer, records, columns)


def test_what_is_no_column_is_refused(tokenizer):
    with pytest.raises(TypeError, match=r"columns\['text'\] must be a Column or None; got str 'text'"):
        batch_of(tokenizer, RECORDS, {"text": "text"})
    with pytest.raises(RecordError, match=r"train.jsonl: record 0 has no column 'document'; it has \['labels', 'pair'"):
        batch_of(tokenizer, RECORDS, {"pair": TextPair(fields=("text", "document"))})
    with pytest.raises(ValueError, match="columns: the name 'source_name' is taken"):
        batch_of(tokenizer, RECORDS, ["source_name"])


@dataclasses.dataclass(frozen=True)
class Pixels:
    """A column that is none of jaxemb's."""

    size: int | None = None

    def complete(self, value):
        return Pixels(len(value))

    def check(self, value):
        if len(value) != self.size:
            raise ValueError(f"expected {self.size} bytes; got {len(value)}")

    def collate(self, values, layout: Layout):
        return {"pixels": np.stack([np.frombuffer(value, np.uint8) for value in values])}


def test_a_column_of_another_kind_is_a_class_of_three_methods(tokenizer):
    records = [{"image": bytes([i, i + 1])} for i in range(4)]
    batch = batch_of(tokenizer, records, {"image": Pixels()}, process_index=1, process_count=2)
    assert batch["image"]["pixels"].tolist() == [[2, 3], [3, 4]]
    with pytest.raises(RecordError, match=r"train.jsonl: record 4, column 'image': expected 2 bytes; got 1"):
        batch_of(tokenizer, [*records, {"image": b"x"}], {"image": Pixels()})


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (Number("float32"), 1e300),
        (Number("int32"), 2**40),
        (Number("uint8"), -1),
        (Number("int32"), 10**400),
        (Vector("float32", 2), [0.5, 1e300]),
        (Vector("int32", 2), [1, 2**70]),
    ],
    ids=str,
)
def test_numbers_that_do_not_fit_are_refused(column, value):
    with pytest.raises(ValueError, match="expected"):
        column.check(value)


@pytest.mark.parametrize("value", [2**32, np.int64(2**32), -(2**31) - 1, np.uint32(2**31)])
def test_whole_numbers_beyond_their_type_are_refused(value):
    with pytest.raises(ValueError, match="expected numbers in the range of int32; got"):
        Number("int32").check(value)
    with pytest.raises(ValueError, match="expected numbers in the range of int32; got"):
        Vector("int32", 2).check(np.array([0, value]) if isinstance(value, np.generic) else [0, value])
