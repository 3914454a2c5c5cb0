import itertools
import json
import math
from collections import Counter

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxemb.data import (
    GroupByLabel,
    GroupByLength,
    NoDuplicates,
    RecordError,
    batches,
    concatenate,
    from_list,
    merge_small,
    mixture,
)
from jaxemb.data.samplers import RowBatches, SharedValues, group_by_label, group_by_length, no_duplicates


def shared_values(table) -> SharedValues:
    """Of rows that are lists of values."""
    rows = np.repeat(np.arange(len(table)), [len(values) for values in table])
    return SharedValues.of(rows, np.array([v for values in table for v in values], np.uint64), len(table))


def first_fit(order, table, batch_size) -> list[list[int]]:
    """What `no_duplicates` promises, by trying every row that is left for every batch."""
    left, found = list(order), []
    while left:
        batch, values = [], set()
        for row in left:
            if len(batch) < batch_size and values.isdisjoint(table[row]):
                batch.append(row)
                values |= set(table[row])
        found.append(batch)
        left = [row for row in left if row not in batch]
    return found


tables = st.lists(st.lists(st.integers(0, 12), min_size=0, max_size=3), min_size=1, max_size=40)


@settings(max_examples=300)
@given(table=tables, batch_size=st.integers(1, 7), seed=st.integers(0, 99))
def test_each_batch_takes_the_first_rows_that_fit(table, batch_size, seed):
    order = np.random.default_rng(seed).permutation(len(table))
    shared = shared_values(table)
    found = no_duplicates(order, shared, batch_size)
    assert [found[b].tolist() for b in range(len(found))] == first_fit(order.tolist(), table, batch_size)
    assert len(found) <= len(table) // batch_size + shared.most_conflicts + 1


def test_values_of_one_row_alone_are_left_out():
    shared = shared_values([[5, 5], [7, 9], [9], [1]])  # 5 stands twice, but in one row
    assert shared.starts.tolist() == [0, 0, 1, 2, 2] and len(set(shared.values.tolist())) == 1
    assert shared.most_conflicts == 1


def test_common_values_cost_little():
    """Half of the rows share a value, so that 50,000 wait: with a trial of each for each batch this takes minutes."""
    table = np.arange(100_000)
    table[::2] = 0
    shared = SharedValues.of(np.arange(100_000), table, 100_000)
    found = no_duplicates(np.arange(100_000), shared, 8)
    sizes = np.diff(found.bounds)
    assert len(found) == 50_000 and (sizes[:7142] == 8).all() and (sizes[7143:] == 1).all()
    assert (np.sort(found.rows) == np.arange(100_000)).all()


@settings(max_examples=150)
@given(
    labels=st.lists(st.integers(0, 5), min_size=4, max_size=60),
    half=st.integers(2, 6),
    seed=st.none() | st.integers(0, 99),
)
def test_batches_hold_several_labels_in_pairs(labels, half, seed):
    labels = np.array(labels)
    if np.count_nonzero(np.bincount(labels) >= 2) < 2:
        return
    found = group_by_label(labels, 2 * half, None if seed is None else np.random.default_rng(seed))
    assert len(set(found.rows.tolist())) == len(found.rows)
    for b in range(len(found)):
        counts = Counter(labels[found[b]].tolist())
        assert len(counts) >= 2 and min(counts.values()) >= 2
        assert len(found[b]) == 2 * half or (b == len(found) - 1 and 4 <= len(found[b]) < 2 * half)


def test_labels_take_turns():
    labels = np.array([0] * 9 + [1] * 4 + [2] * 7 + [3])
    found = group_by_label(labels, 4)  # no generator: rows and labels in their order
    expected = [[0, 1, 9, 10], [13, 14, 2, 3], [11, 12, 15, 16], [4, 5, 17, 18]]
    assert [found[b].tolist() for b in range(len(found))] == expected
    first, second = (group_by_label(labels, 4, np.random.default_rng(seed)).rows.tolist() for seed in (0, 1))
    assert first != second and Counter(labels[first].tolist()) == Counter(labels[second].tolist()) == {0: 6, 1: 4, 2: 6}


@given(lengths=st.lists(st.integers(1, 99), min_size=1, max_size=60), seed=st.none() | st.integers(0, 99))
def test_lengths_are_sorted_within_groups_of_batches(lengths, seed):
    lengths = np.array(lengths)
    found = group_by_length(lengths, 4, 3, None if seed is None else np.random.default_rng(seed))
    assert sorted(found.rows.tolist()) == list(range(len(lengths)))
    assert np.diff(found.bounds).tolist() == [4] * (len(lengths) // 4) + [len(lengths) % 4] * (len(lengths) % 4 > 0)
    if seed is None:
        for start in range(0, len(lengths), 12):
            assert lengths[found.rows[start : start + 12]].tolist() == sorted(lengths[start : start + 12])[::-1]
    one_group = group_by_length(lengths, 4, 99, np.random.default_rng(0))
    spans = sorted((lengths[rows].max(), lengths[rows].min()) for rows in one_group)
    assert all(low[0] <= high[1] for low, high in itertools.pairwise(spans))


def test_row_batches_are_indexed_and_selected():
    found = RowBatches(np.arange(7), np.array([0, 3, 4, 7]))
    assert [batch.tolist() for batch in found] == [[0, 1, 2], [3], [4, 5, 6]]
    assert [batch.tolist() for batch in found.only(3)] == [[0, 1, 2], [4, 5, 6]]
    with pytest.raises(IndexError, match="batch 3 of 3"):
        found[3]


# In `batches`

# 30 records of 12 queries and 20 documents, so that both columns hold duplicates; a query may also be a document.
RECORDS = [{"query": f"w{i % 12}", "document": f"w{10 + i * 7 % 20}", "label": i % 4, "score": 1.0} for i in range(30)]
SOURCE = from_list(RECORDS, name="train.csv")
SAMPLERS = [NoDuplicates(), GroupByLabel(), GroupByLength(batches=2)]
NAMES = ["no_duplicates", "group_by_label", "group_by_length"]


def drawn(tokenizer, source=SOURCE, columns=("query", "document"), **options):
    options = {"batch_size": 4, "max_length": 8, "epochs": 1} | options
    return [batch["id"].tolist() for batch in batches(source, tokenizer, columns, **options)]


def chained(lists) -> list:
    return list(itertools.chain.from_iterable(lists))


def test_no_text_comes_twice_in_a_batch(tokenizer):
    ids = drawn(tokenizer, sampler=NoDuplicates(), drop_remainder=False, epochs=2)
    for batch in ids:
        texts = [{RECORDS[i]["query"], RECORDS[i]["document"]} for i in batch]
        assert len(set().union(*texts)) == sum(map(len, texts))
    half = next(n for n in range(len(ids)) if len(chained(ids[:n])) == 30)
    assert sorted(chained(ids[:half])) == sorted(chained(ids[half:])) == list(range(30))
    assert ids[:half] != ids[half:]
    full = drawn(tokenizer, sampler=NoDuplicates(), epochs=2)
    assert full == [batch for batch in ids if len(batch) == 4] and len(full) < len(ids)


def test_the_columns_of_a_sampler_can_be_chosen(tokenizer):
    ids = drawn(tokenizer, sampler=NoDuplicates(["query"]), columns=("query", "document", "score"))
    queries = [[RECORDS[i]["query"] for i in batch] for batch in ids]
    assert all(len(set(batch)) == 4 for batch in queries)
    documents = [[RECORDS[i]["document"] for i in batch] + queries[n] for n, batch in enumerate(ids)]
    assert any(len(set(batch)) < 8 for batch in documents)
    # Numbers are no text: equal scores do not keep records apart, unless they are named.
    with pytest.raises(ValueError, match=r"train.csv: no batch of 4 records meets the sampler's condition"):
        drawn(tokenizer, sampler=NoDuplicates(["score"]))


def test_texts_of_lists_are_compared_one_by_one(tokenizer):
    records = [{"query": f"w{i}", "negatives": [f"w{i + 1}", "alpha" if i < 2 else f"w{40 + i}"]} for i in range(12)]
    ids = drawn(tokenizer, from_list(records), columns=("query", "negatives"), sampler=NoDuplicates(), batch_size=3)
    for batch in ids:
        assert not {0, 1} <= set(batch) and not any({i, i + 1} <= set(batch) for i in range(11))


def test_records_are_grouped_by_a_label_that_is_no_column(tokenizer):
    ids = drawn(tokenizer, sampler=GroupByLabel(), columns=["query"])
    assert len(ids) == 7
    for batch in ids:
        assert sorted(Counter(RECORDS[i]["label"] for i in batch).values()) == [2, 2]
    texts = from_list([{"text": f"w{i}", "class": "ab"[i % 2]} for i in range(8)])
    assert (
        len(drawn(tokenizer, texts, ["text"], sampler=GroupByLabel("class"), drop_remainder=False, batch_size=6)) == 1
    )


@pytest.mark.parametrize("sampler", SAMPLERS, ids=NAMES)
def test_the_order_depends_on_seed_and_epoch_alone(tokenizer, sampler):
    make = lambda seed, **options: drawn(tokenizer, sampler=sampler, seed=seed, **options)
    three = make(3, epochs=3)
    assert three == make(3, epochs=3) and three[: len(make(3))] == make(3)
    assert make(3) != make(4)
    in_order = make(3, shuffle=False)
    assert in_order == make(4, shuffle=False)
    assert make(3, shuffle=False, epochs=2) == in_order * 2


@pytest.mark.parametrize("sampler", SAMPLERS, ids=NAMES)
@pytest.mark.parametrize("mixed", [False, True], ids=["source", "mixture"])
@pytest.mark.parametrize("seen", [0, 1, 6, 13])
def test_resuming_is_exact(tokenizer, sampler, mixed, seen):
    source = mixture([SOURCE, from_list(RECORDS[:18])], [2, 1]) if mixed else SOURCE
    make = lambda: iter(
        batches(source, tokenizer, ["query", "document"], batch_size=4, max_length=8, sampler=sampler, seed=5)
    )
    original = make()
    for _ in range(seen):
        next(original)
    state = json.dumps(original.get_state())
    assert len(state) < 200
    expected = [next(original) for _ in range(15)]
    resumed = make()
    resumed.set_state(json.loads(state))
    for batch in expected:
        jax.tree.map(np.testing.assert_array_equal, next(resumed), batch)


@settings(max_examples=20)
@given(processes=st.sampled_from([2, 4]), seed=st.integers(0, 2**31), fixed=st.booleans())
@pytest.mark.parametrize("sampler", SAMPLERS, ids=NAMES)
def test_processes_share_each_batch_exactly(tokenizer, sampler, processes, seed, fixed):
    options = {"sampler": sampler, "seed": seed, "epochs": 2} | ({"buckets": (8,)} if fixed else {})
    whole = drawn(tokenizer, process_index=0, process_count=1, **options)
    parts = [drawn(tokenizer, process_index=i, process_count=processes, **options) for i in range(processes)]
    assert [chained(batch) for batch in zip(*parts, strict=True)] == whole


def test_worker_processes_give_the_same_batches(tokenizer):
    options = {"batch_size": 4, "max_length": 8, "epochs": 1, "sampler": NoDuplicates()}
    expected = drawn(tokenizer, sampler=NoDuplicates())
    assert [
        b["id"].tolist() for b in batches(SOURCE, tokenizer, ["query", "document"], workers=2, **options)
    ] == expected


def test_records_that_fit_into_no_full_batch_are_reported(tokenizer, caplog):
    records = [{"text": "alpha" if i < 10 else f"w{i}"} for i in range(20)]
    ids = drawn(tokenizer, from_list(records, name="train.csv"), ["text"], sampler=NoDuplicates(), epochs=2)
    assert len(chained(ids)) == 24  # each epoch: three batches, with one "alpha" each
    assert caplog.messages == ["train.csv: 8 of 20 records fit into no full batch of 4 in an epoch"]


@pytest.mark.parametrize(
    ("sampler", "options", "error", "message"),
    [
        (NoDuplicates(["answer"]), {}, RecordError, r"train.csv: record 0 has no column 'answer'; it has \['document'"),
        (NoDuplicates([]), {}, ValueError, r"columns must be a sequence of names, not empty; got \[\]"),
        (GroupByLabel("class"), {}, RecordError, "train.csv: record 0 has no column 'class'"),
        (GroupByLabel(), {"batch_size": 5}, ValueError, "batch_size must be even and at least 4; got 5"),
        (GroupByLabel(), {"batch_size": 2}, ValueError, "batch_size must be even and at least 4; got 2"),
        (
            GroupByLabel("score"),
            {},
            ValueError,
            "train.csv, column 'score': expected at least 2 labels with at least 2 records each; got 1",
        ),
        (GroupByLabel(), {"batch_size": 30}, ValueError, "no batch of 30 records meets the sampler's condition"),
    ],
)
def test_samplers_that_cannot_work_are_refused(tokenizer, sampler, options, error, message):
    with pytest.raises(error, match=message):
        drawn(tokenizer, sampler=sampler, **options)


def test_a_sampler_is_refused_when_it_is_made():
    with pytest.raises(TypeError, match="columns must be a sequence of strings or None; got str 'query'"):
        NoDuplicates("query")
    with pytest.raises(TypeError, match="batches must be a whole number; got str '5'"):
        GroupByLength(batches="5")


def test_a_label_of_another_kind_is_named(tokenizer):
    source = from_list([{"text": "w1", "label": [1] if i == 3 else i % 2} for i in range(8)], name="train.csv")
    with pytest.raises(RecordError, match=r"train.csv: record 3, column 'label': expected a label; got list \[1\]"):
        drawn(tokenizer, source, ["text"], sampler=GroupByLabel())


# Several sources


def sources(*sizes):
    return [from_list([{"text": f"w{i}"} for i in range(size)], name=f"s{n}") for n, size in enumerate(sizes)]


def test_temperature_lifts_small_sources():
    assert mixture(sources(10, 90)).weights == (0.1, 0.9)
    assert mixture(sources(10, 90), temperature=2).weights == pytest.approx((0.25, 0.75))
    assert mixture(sources(10, 90), temperature=math.inf).weights == (0.5, 0.5)
    for temperature, weights in [(0, None), (-1, None), (math.nan, None), (2, [1, 1])]:
        with pytest.raises(ValueError, match=r"temperature must be (positive, and 1 beside weights|a number); got"):
            mixture(sources(10, 90), weights, temperature=temperature)


def test_equal_shares_are_round_robin_until_the_first_is_exhausted(tokenizer):
    mixed = mixture(sources(8, 20, 9), temperature=math.inf)
    found = [
        (int(b["source"][0]), b["id"].tolist())
        for b in batches(mixed, tokenizer, ["text"], batch_size=4, max_length=8, epochs=1)
    ]
    assert [sorted(number for number, _ in found[i : i + 3]) for i in (0, 3)] == [[0, 1, 2]] * 2 and len(found) == 6
    assert sorted(chained(ids for number, ids in found if number == 0)) == list(range(8))


def test_small_sources_are_merged_or_dropped():
    a, b, c = sources(3, 10, 4)
    merged = merge_small([a, b, c], small_threshold=5)
    assert [source.name for source in merged] == ["s1", "s0 + s2"] and len(merged[1]) == 7
    assert [r["text"] for r in merged[1].__getitems__([6, 0, 3])] == ["w3", "w0", "w0"]
    assert merge_small([a, b, c], small_threshold=5, drop_threshold=7)[1].name == "s0 + s2"
    assert merge_small([a, b, c], small_threshold=5, drop_threshold=8) == [b]
    assert merge_small([a, b, c], small_threshold=0) == [a, b, c]
    with pytest.raises(ValueError, match="sources: there is nothing to concatenate"):
        concatenate([])
    with pytest.raises(IndexError, match=r"s0 \+ s2: record 7 of 7"):
        merged[1][7]
