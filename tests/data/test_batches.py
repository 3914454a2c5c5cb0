import itertools
import json
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxemb.data import NoDuplicates, Number, RecordError, Text, batches, from_list, mixture, padding_share
from jaxemb.types import Tokens

N = 23
RECORDS = [
    {
        "query": f"w{i % 60}",
        "document": " ".join(["alpha"] * (i % 7 + 1)) + f" w{i % 60}",
        "negatives": [f"beta w{i % 60}", f"gamma w{(i + 1) % 60}"],
        "score": i / 4,
        "label": i % 3,
    }
    for i in range(N)
]
SOURCE = from_list(RECORDS)


def texts_of(tokens: Tokens) -> list[list[int]]:
    """The token ids of every text, in the order of the records."""
    slots = np.arange(len(tokens.ids) * tokens.texts_per_row) if tokens.slots is None else tokens.slots
    rows, segments = np.divmod(slots, tokens.texts_per_row)
    return [
        tokens.ids[row][tokens.segment_ids[row] == segment + 1].tolist()
        for row, segment in zip(rows, segments, strict=True)
    ]


def chained(lists) -> list:
    return list(itertools.chain.from_iterable(lists))


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("pack", [False, True])
def test_a_batch_holds_the_records_it_names(tokenizer, pack):
    columns = ("query", "document", "negatives", "score", "label")
    for batch in batches(SOURCE, tokenizer, columns, batch_size=5, max_length=16, epochs=1, pack=pack):
        records = [RECORDS[i] for i in batch["id"]]
        for name in ("query", "document"):
            expected = tokenizer([record[name] for record in records])
            assert texts_of(batch[name]) == [ids.tolist() for ids in expected]
        expected = tokenizer([text for record in records for text in record["negatives"]])  # record-major
        assert texts_of(batch["negatives"]) == [ids.tolist() for ids in expected]
        np.testing.assert_array_equal(batch["score"], np.float32([record["score"] for record in records]))
        np.testing.assert_array_equal(batch["label"], [record["label"] for record in records])
        assert batch["id"].dtype == batch["label"].dtype == np.int32 and batch["score"].dtype == np.float32
        assert "source" not in batch


def test_every_record_comes_once_an_epoch_in_another_order(tokenizer):
    ids = [
        b["id"].tolist()
        for b in batches(SOURCE, tokenizer, ["query"], batch_size=5, max_length=8, epochs=2, drop_remainder=False)
    ]
    assert [len(i) for i in ids] == [5, 5, 5, 5, 3] * 2
    first, second = chained(ids[:5]), chained(ids[5:])
    assert sorted(first) == sorted(second) == list(range(N))
    assert first != second and first != sorted(first)


def test_the_remainder_is_dropped_and_order_is_kept_on_request(tokenizer):
    options = {"batch_size": 5, "max_length": 8, "epochs": 1, "shuffle": False}
    ids = [b["id"].tolist() for b in batches(SOURCE, tokenizer, ["query"], **options)]
    assert chained(ids) == list(range(20))


def test_the_order_depends_on_the_seed_alone(tokenizer):
    def order(seed, source=SOURCE):
        return [
            b["id"].tolist()
            for b in batches(source, tokenizer, ["query"], batch_size=N, max_length=8, seed=seed, epochs=2)
        ]

    assert order(3) == order(3)
    assert order(3)[1] != order(4)[0]  # the second epoch of one seed is not the first of the next


def test_aligned_sources_of_a_mixture_are_not_drawn_in_step(tokenizer):
    drawn = batches(mixture([SOURCE, SOURCE], [1, 1]), tokenizer, ["query"], batch_size=5, max_length=8, epochs=1)
    first, second = ([b["id"].tolist() for b in drawn if b["source"][0] == number] for number in (0, 1))
    assert len(first) == len(second) == 4 and first != second


def mixed():
    other = from_list([{"query": f"delta w{i}", "document": "beta"} for i in range(40)], name="other")
    return mixture([SOURCE, other], [1, 3])


@pytest.mark.parametrize("source", [SOURCE, mixed()], ids=["source", "mixture"])
@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("seen", [0, 1, 7])
def test_resuming_is_exact(tokenizer, source, pack, seen):
    make = lambda: iter(
        batches(source, tokenizer, ("query", "document"), batch_size=4, max_length=16, seed=5, pack=pack)
    )
    original = make()
    for _ in range(seen):
        next(original)
    state = json.dumps(original.get_state()).encode()
    expected = [next(original) for _ in range(9)]
    resumed = make()
    next(resumed)  # whatever it did before
    resumed.set_state(json.loads(state))
    for batch in expected:
        assert_equal(next(resumed), batch)
    original.set_state(json.loads(state))
    assert_equal(next(original), expected[0])


@settings(max_examples=10)
@given(processes=st.sampled_from([1, 2, 3, 4]), pack=st.booleans(), fixed=st.booleans(), seed=st.integers(0, 2**31))
def test_processes_share_each_batch_exactly(tokenizer, processes, pack, fixed, seed):
    options = {"batch_size": 12, "max_length": 16, "seed": seed, "epochs": 1, "pack": pack}
    options |= {"buckets": (16,)} if fixed else {}
    columns = ("document", "negatives", "score")
    make = lambda index, count: batches(
        SOURCE, tokenizer, columns, process_index=index, process_count=count, row_multiple=12, **options
    )
    whole = list(make(0, 1))
    parts = [list(make(index, processes)) for index in range(processes)]
    assert len(whole) == 1 and {len(part) for part in parts} == {1}
    joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *(part[0] for part in parts))
    assert_equal(joined, whole[0])


def test_a_fixed_length_reads_only_the_processs_own_records(tokenizer):
    read = []

    class Rows:
        __len__ = lambda self: N

        def __getitem__(self, index):
            read.append(index)
            return RECORDS[index]

    source = from_list(Rows())
    options = {"batch_size": 4, "max_length": 16, "epochs": 1, "process_index": 1, "process_count": 4}
    ids = [b["id"].tolist() for b in batches(source, tokenizer, ["query"], buckets=(16,), **options)]
    assert [len(i) for i in ids] == [1] * 5
    assert read[-5:] == chained(ids) and set(read[:-5]) <= {0}  # record 0 is looked at in advance


def test_mixture_batches_come_from_one_source_in_proportion(tokenizer):
    iterator = iter(batches(mixed(), tokenizer, ("query", "document"), batch_size=4, max_length=16))
    drawn = [next(iterator) for _ in range(60)]
    for n, batch in enumerate(drawn, 1):
        assert len(set(batch["source"].tolist())) == 1 and batch["source"].dtype == np.int32
        source = mixed().sources[int(batch["source"][0])]
        expected = tokenizer([source[i]["query"] for i in batch["id"].tolist()])
        assert texts_of(batch["query"]) == [ids.tolist() for ids in expected]
        assert abs(sum(int(b["source"][0]) for b in drawn[:n]) - 0.75 * n) <= 1
    ids = [i for b in drawn if b["source"][0] == 0 for i in b["id"].tolist()]
    assert sorted(ids[:20]) == sorted(set(ids[:20]))  # an epoch of one source is without repetition


@given(st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_mixture_proportions(tokenizer, weights):
    sources = [from_list([{"text": f"w{i}"}], name=str(i)) for i in range(len(weights))]
    iterator = iter(batches(mixture(sources, weights), tokenizer, ["text"], batch_size=1, max_length=8))
    counts = np.bincount([int(next(iterator)["source"][0]) for _ in range(120)], minlength=len(weights))
    expected = 120 * np.array(weights) / sum(weights)
    assert np.abs(counts - expected).max() <= 2 + 0.01 * 120


def test_mixtures_weigh_by_records_and_end_with_the_first_source_that_does(tokenizer):
    small, large = from_list(RECORDS[:6]), from_list(RECORDS[6:])
    by_size = mixture([small, large])
    assert by_size.weights == (6 / 23, 17 / 23)
    drawn = [
        int(b["source"][0])
        for b in batches(mixture([small, large], [1, 1]), tokenizer, ["query"], batch_size=2, max_length=8, epochs=2)
    ]
    assert drawn.count(0) == 6 and drawn.count(1) == 6


def test_lengths_are_bucketed_and_cut(tokenizer):
    source = from_list([{"text": " ".join(["alpha"] * n)} for n in (3, 20, 50, 500)])
    options = {"batch_size": 1, "max_length": 100, "shuffle": False, "epochs": 1}
    shapes = [b["text"].ids.shape for b in batches(source, tokenizer, ["text"], **options)]
    assert shapes == [(1, 16), (1, 32), (1, 64), (1, 100)]
    columns = {"text": Text(max_length=10)}
    assert {b["text"].ids.shape for b in batches(source, tokenizer, columns, buckets=(64,), **options)} == {(1, 10)}
    last = list(batches(source, tokenizer, columns, **options))[-1]["text"]
    assert last.ids[0, 0] == 2 and last.ids[0, -1] == 3  # still [CLS] ... [SEP]


def test_packed_rows_hold_several_texts(tokenizer):
    batch = next(iter(batches(SOURCE, tokenizer, ["query"], batch_size=20, max_length=16, pack=32, row_multiple=4)))
    assert batch["query"].ids.shape == (8, 32) and batch["query"].texts_per_row == 4
    assert len(np.unique(batch["query"].slots // 4)) == 5  # of the 8 rows, as 20 texts fill 5


LONG = [
    {"query": f"w{i % 60}", "document": " ".join(["alpha"] * int(n))}
    for i, n in enumerate(np.random.default_rng(0).geometric(0.08, 700))
]


def test_packed_batches_have_one_shape(tokenizer):
    """Lengths vary, so that batches as they come need 5 to 10 rows of 64 tokens."""
    source, options = from_list(LONG), {"batch_size": 32, "max_length": 64, "pack": True, "epochs": 2}
    found = list(batches(source, tokenizer, ("query", "document"), **options))
    assert len({tuple(leaf.shape for leaf in jax.tree.leaves(batch)) for batch in found}) == 1
    ids = [batch["id"].tolist() for batch in found]
    first, second = chained(ids[:21]), chained(ids[21:])
    assert len(ids) == 42 and len(set(first)) == len(first) == len(set(second)) == 21 * 32 and first != second
    assert np.mean([padding_share(batch["document"]) for batch in found]) < 0.2
    rest = list(batches(source, tokenizer, ("query", "document"), drop_remainder=False, **options | {"epochs": 1}))
    assert sorted(chained(batch["id"].tolist() for batch in rest)) == list(range(700))
    for batch in (found[0], found[-1], rest[-1]):
        expected = tokenizer([LONG[i]["document"] for i in batch["id"]], 64)
        assert texts_of(batch["document"]) == [ids.tolist() for ids in expected]
    as_drawn = batches(source, tokenizer, ["document"], sampler=NoDuplicates(["query"]), **options)
    assert len({batch["document"].ids.shape for batch in as_drawn}) <= 2


def test_where_there_is_no_text_nothing_is_packed():
    found = next(iter(batches(SOURCE, None, ["score"], batch_size=4, max_length=8, pack=True)))
    assert found["score"].shape == (4,)


@pytest.mark.slow
def test_worker_processes_give_the_same_packed_batches(tokenizer):
    make = lambda workers: iter(
        batches(from_list(LONG), tokenizer, ["document"], batch_size=32, max_length=64, pack=True, workers=workers)
    )
    expected, workers = make(0), make(2)
    for _ in range(50):
        assert_equal(next(workers), next(expected))
    state = json.dumps(workers.get_state())
    wanted = [next(expected) for _ in range(3)]
    workers.set_state(json.loads(state))
    for batch in wanted:
        assert_equal(next(workers), batch)


def test_rows_may_be_given(tokenizer):
    options = {"batch_size": 32, "max_length": 64, "pack": True, "epochs": 1}
    found = batches(from_list(LONG), tokenizer, ("query", "document"), rows={"query": 4, "document": 9}, **options)
    assert {(b["query"].ids.shape, b["document"].ids.shape) for b in found} == {((4, 64), (9, 64))}
    with pytest.raises(ValueError, match=r"rows: list, column 'document': 32 texts need \d+ rows of 64 tokens; got 6"):
        list(batches(from_list(LONG), tokenizer, ["document"], rows=6, **options))
    with pytest.raises(ValueError, match=r"rows must be positive multiples of 4, of the columns \['document'\]; got 6"):
        batches(from_list(LONG), tokenizer, ["document"], rows=6, row_multiple=4, **options)
    with pytest.raises(ValueError, match="rows are those of packed columns, but pack is off; got 6"):
        batches(from_list(LONG), tokenizer, ["document"], rows=6, **options | {"pack": False})


def test_sources_with_names_may_have_columns_and_samplers_of_their_own(tokenizer):
    scored = from_list([{"first": f"w{i}", "second": f"w{i + 1}", "score": i / 9} for i in range(12)])
    mixed = mixture({"pairs": SOURCE, "scored": scored}, {"scored": 1, "pairs": 1})
    columns = {"pairs": ("query", "document"), "scored": {"first": Text(), "second": Text(), "score": Number()}}
    options = {"batch_size": 4, "max_length": 16, "epochs": 1}
    samplers = {"pairs": NoDuplicates(["score"]), "scored": None}
    for pack in (False, True):
        found = list(batches(mixed, tokenizer, columns, sampler=samplers, pack=pack, **options))
        names = [batch["source_name"].text for batch in found]
        assert names.count("scored") == 3 and names.count("pairs") in (3, 4)  # until the first one ends
        for name, batch in zip(names, found, strict=True):
            assert set(batch) == {*columns[name], "id", "source", "source_name"}
            assert set(batch["source"].tolist()) == {["pairs", "scored"].index(name)}
    with pytest.raises(
        ValueError, match=r"columns: expected one for each source of a mixture, \['pairs', 'scored'\]; got"
    ):
        batches(mixed, tokenizer, {"pairs": ("query",)}, **options)
    with pytest.raises(ValueError, match="sampler of each source need a mixture of sources with names"):
        batches(SOURCE, tokenizer, ["query"], sampler=samplers, **options)
    with pytest.raises(ValueError, match=r"weights: expected one for each source, \['a'\]; got \['b'\]"):
        mixture({"a": SOURCE}, {"b": 1})


def test_prompts_stand_in_front(tokenizer):
    columns = {"query": Text(prompt="query: "), "score": Number("float16")}
    batch = next(iter(batches(SOURCE, tokenizer, columns, batch_size=3, max_length=16)))
    expected = tokenizer([f"query: w{i}" for i in batch["id"].tolist()])
    assert texts_of(batch["query"]) == [ids.tolist() for ids in expected]
    assert batch["score"].dtype == np.float16


def test_worker_processes_give_the_same_batches_and_resume(tokenizer):
    options = {"batch_size": 4, "max_length": 16, "seed": 2}
    expected = iter(batches(SOURCE, tokenizer, ("query", "score"), **options))
    workers = iter(batches(SOURCE, tokenizer, ("query", "score"), workers=2, **options))
    for _ in range(3):
        assert_equal(next(workers), next(expected))
    state = json.dumps(workers.get_state())
    wanted = [next(expected) for _ in range(3)]
    for batch in wanted:
        assert_equal(next(workers), batch)
    workers.set_state(json.loads(state))
    for batch in wanted:
        assert_equal(next(workers), batch)


def batch_with(tokenizer, changes=None, columns=("query", "score"), source=None, **options):
    records = [dict(record) for record in RECORDS]
    for index, change in (changes or {}).items():
        records[index] |= change
    source = from_list(records, name="train.csv") if source is None else source
    options = {"batch_size": N, "max_length": 16, "prefetch": 0} | options
    return next(iter(batches(source, tokenizer, columns, **options)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"columns": ["question"]}, RecordError, r"train.csv: record 0 has no column 'question'; it has \['document'"),
        ({"columns": []}, ValueError, "columns must be a mapping or a sequence of names, not empty"),
        ({"columns": "query"}, TypeError, "columns must be a sequence of strings or a mapping; got str 'query'"),
        ({"columns": ["id"]}, ValueError, "columns: the name 'id' is taken"),
        (
            {"changes": {0: {"query": None}}},
            RecordError,
            "train.csv: record 0, column 'query': expected a str; got NoneType",
        ),
        ({"changes": {7: {"query": 5}}}, RecordError, "train.csv: record 7, column 'query': expected a str; got int 5"),
        ({"changes": {7: {"query": b"x"}}}, RecordError, "record 7, column 'query': expected a str; got bytes b'x'"),
        (
            {"changes": {7: {"score": "high"}}},
            RecordError,
            "record 7, column 'score': expected a finite number; got str 'high'",
        ),
        (
            {"changes": {7: {"score": math.nan}}},
            RecordError,
            "record 7, column 'score': expected a finite number; got float nan",
        ),
        ({"columns": {"score": Text()}}, RecordError, "record 0, column 'score': expected a str; got float 0.0"),
        (
            {"columns": {"query": Number()}},
            RecordError,
            "record 0, column 'query': expected a finite number; got str 'w0'",
        ),
        (
            {"changes": {7: {"label": 0.5}}, "columns": {"label": Number("int32")}},
            RecordError,
            r"record 7, column 'label': expected an integer \(int32\); got float 0.5",
        ),
        (
            {"changes": {7: {"negatives": ["one"]}}, "columns": ["negatives"], "shuffle": False},
            RecordError,
            "record 7, column 'negatives': expected a list of 2 texts; got 1",
        ),
        (
            {"changes": {0: {"negatives": []}}, "columns": ["negatives"]},
            RecordError,
            "record 0, column 'negatives': expected a list of some texts",
        ),
        (
            {"changes": {7: {"negatives": ["one", None]}}, "columns": ["negatives"]},
            RecordError,
            "record 7, column 'negatives': expected a list of str; got NoneType None at 1",
        ),
        (
            {"changes": {7: {"negatives": "one"}}, "columns": ["negatives"]},
            RecordError,
            "record 7, column 'negatives': expected a list of 2 texts; got str 'one'",
        ),
        ({"source": from_list([], name="empty.csv")}, ValueError, "empty.csv has no records"),
        ({"batch_size": 24}, ValueError, "batch_size: train.csv has 23 records, less than a batch of 24"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1; got 0"),
        ({"max_length": 0}, ValueError, "max_length must be at least 1; got 0"),
        ({"max_length": 2}, ValueError, "max_length must exceed the 2 special tokens; got 2"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1; got 0"),
        (
            {"process_index": 2, "process_count": 2},
            ValueError,
            r"process_index must be in \[0, process_count\); got 2 of 2",
        ),
        (
            {"process_index": 0, "process_count": 2},
            ValueError,
            "batch_size must be a multiple of process_count, 2; got 23",
        ),
        (
            {"process_index": 0, "process_count": 2, "batch_size": 2, "drop_remainder": False},
            ValueError,
            "drop_remainder must be true with 2 processes",
        ),
    ],
)
def test_what_cannot_be_trained_on_is_named(tokenizer, arguments, error, message):
    with pytest.raises(error, match=message):
        batch_with(tokenizer, **arguments)


@pytest.mark.parametrize(
    ("sources", "weights", "message"),
    [
        ([], None, "sources: a mixture needs at least one source"),
        ([SOURCE, from_list([], name="empty.csv")], None, "empty.csv has no records"),
        ([SOURCE, SOURCE], [1], "weights: expected one for each of 2 sources; got 1"),
        ([SOURCE, SOURCE], [1, 0], r"weights must be positive and finite; got \[1, 0\]"),
        ([SOURCE, SOURCE], [1, math.inf], "weights must be positive and finite"),
    ],
)
def test_mixtures_that_make_no_sense_are_refused(sources, weights, message):
    with pytest.raises(ValueError, match=message):
        mixture(sources, weights)


def test_sources_of_different_columns_are_told_how_to_name_them(tokenizer):
    pairs, scored = from_list([{"query": "a", "document": "b"}] * 4), from_list([{"first": "a", "score": 1.0}] * 4)
    options = {"batch_size": 2, "max_length": 8}
    columns = {"pairs": ("query", "document"), "scored": ("first", "score")}
    expected = r'sources with columns of their own: mixture\({"a": source, "b": source}\) with columns={"a": \(...\), '
    with pytest.raises(RecordError, match=rf"record 0 has no column 'first'; .*; {expected}"):
        batches(mixture({"pairs": pairs, "scored": scored}), tokenizer, ("query", "first"), **options)
    with pytest.raises(ValueError, match=rf"columns of each source need a mixture of sources with names; {expected}"):
        batches(mixture([pairs, scored]), tokenizer, columns, **options)
    found = batches(mixture({"pairs": pairs, "scored": scored}), tokenizer, columns, **options)
    assert {batch["source_name"].text for batch, _ in zip(found, range(4), strict=False)} == {"pairs", "scored"}
