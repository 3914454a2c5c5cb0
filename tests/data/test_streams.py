"""Records of unknown number: files, generators, shares, windows, positions."""

import gzip
import itertools
import json

import grain
import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxemb.data import (
    GroupByLabel,
    GroupByLength,
    NoDuplicates,
    RecordError,
    batches,
    from_iterable,
    from_list,
    mixture,
    padding_share,
    read,
    stream,
)

N = 50
RECORDS = [
    {"query": f"w{i % 12}", "document": " ".join(["alpha"] * (i % 6 + 1)) + f" w{i}", "label": i % 4, "n": i}
    for i in range(N)
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The records as files of every format, by the format's name."""
    directory = tmp_path_factory.mktemp("files")
    lines = [json.dumps(record) for record in RECORDS]
    (directory / "a.jsonl").write_text("\n".join(lines[:20]) + "\n\n" + "\n".join(lines[20:]) + "\n")
    (directory / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    quoted = "".join('"{}","{}",{},{}\n'.format(r["query"], r["document"], r["label"], r["n"]) for r in RECORDS)
    quoted = quoted.replace("alpha w", "alpha\nw")  # a field of two lines
    (directory / "a.csv").write_text("\ufeffquery,document,label,n\n" + quoted, encoding="utf-8")
    tabs = "".join("{}\t{}\n".format(r["query"], r["document"]) for r in RECORDS)
    (directory / "a.tsv").write_text("query\tdocument\n" + tabs)
    (directory / "a.txt").write_text("\n".join(r["document"] for r in RECORDS))
    pq.write_table(pa.Table.from_pylist(RECORDS), directory / "a.parquet", row_group_size=7)
    for part in range(4):
        (directory / f"part-{part}.jsonl").write_text("\n".join(lines[part::4]))
    return directory


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.tsv", "a.txt", "a.parquet"])
@pytest.mark.parametrize("seen", [0, 1, 23, 50])
def test_files_are_read_as_by_read_and_resumed_at_any_record(files, name, seen):
    source = read(files / name)
    expected = source.__getitems__(range(len(source)))
    reader = iter(stream(files / name))
    assert list(itertools.islice(reader, seen)) == expected[:seen]
    state = json.loads(json.dumps(reader.get_state()))
    assert list(reader) == expected[seen:]
    resumed = iter(stream(files / name))
    next(resumed)  # whatever it did before
    resumed.set_state(state)
    assert resumed.count == seen and list(resumed) == expected[seen:]


def test_several_files_are_one_stream(files):
    found = stream(str(files / "part-*.jsonl"), columns={"text": "query", "number": "n"})
    expected = [i for part in range(4) for i in range(part, N, 4)]
    assert [record["number"] for record in found] == expected
    assert [record["number"] for record in found] == expected  # it begins anew
    assert next(iter(found.map(lambda record: {"n": -record["number"]}))) == {"n": 0}
    assert next(iter(found.with_columns(["text"]))) == {"text": "w0"}
    reader = iter(found)
    list(itertools.islice(reader, 30))
    resumed = iter(found)
    resumed.set_state(reader.get_state())
    assert [record["number"] for record in resumed] == expected[30:]


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("several", [False, True])
def test_shares_are_all_records_once(files, count, several):
    whole = stream(str(files / "part-*.jsonl")) if several else stream(files / "a.csv")
    shares = [whole.shard(index, count) for index in range(count)]
    numbers = [[int(record["n"]) for record in share] for share in shares]
    assert sorted(itertools.chain(*numbers)) == list(range(N))
    reader = iter(shares[1])
    list(itertools.islice(reader, 5))
    resumed = iter(shares[1])
    resumed.set_state(json.loads(json.dumps(reader.get_state())))
    assert [int(record["n"]) for record in resumed] == numbers[1][5:]
    with pytest.raises(ValueError, match=rf"is share \(0, {count}\) of its records; the position is of \(1, {count}\)"):
        iter(shares[0]).set_state(reader.get_state())
    with pytest.raises(ValueError, match=f"is a share already, 1 of {count}"):
        shares[1].shard(0, 2)
    with pytest.raises(ValueError, match=r"index must be in \[0, count\); got 4 of 4"):
        whole.shard(4, 4)


def test_malformed_rows_are_named_or_skipped(tmp_path, caplog):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a":"1"}\n{"a":\n{"a":"3"}\n{"b":"4"}\n')
    with pytest.raises(RecordError, match=r"x.jsonl:2: not valid JSON"):
        list(stream(path))
    skipping = stream(path, columns=["a"], on_error="skip")
    assert list(skipping) == [{"a": "1"}, {"a": "3"}]
    assert caplog.messages[-1].startswith(f"{path}: skipped 2 malformed rows, the first: {path}:2: not valid JSON")
    reader = iter(skipping)
    next(reader), next(reader)
    resumed = iter(skipping)
    resumed.set_state(reader.get_state())
    assert list(resumed) == []
    with pytest.raises(FileNotFoundError, match=r"no files: .*y-\*.jsonl"):
        stream(str(tmp_path / "y-*.jsonl"))
    with pytest.raises(ValueError, match=r"x.jsonl: no field 'c'"):
        stream(path).with_columns({"text": "c"})


def test_iterables_and_functions_are_streams():
    numbers = lambda rows: [record["n"] for record in rows]
    generated = from_iterable(lambda: ({"n": i} for i in range(9)), columns={"m": "n"})
    reader = iter(generated)
    next(reader), next(reader)
    resumed = iter(generated)
    resumed.set_state(reader.get_state())
    assert [record["m"] for record in resumed] == [2, 3, 4, 5, 6, 7, 8]
    with pytest.raises(TypeError, match="a stream must be able to begin anew; got the generator"):
        from_iterable(record for record in RECORDS)
    of_grain = from_iterable(grain.MapDataset.source(RECORDS).shuffle(seed=3).to_iter_dataset())
    reader = iter(of_grain)
    list(itertools.islice(reader, 20))
    state, rest = json.loads(json.dumps(reader.get_state())), numbers(reader)
    assert "next_index" in json.dumps(state)  # grain's own position, not a count of ours
    resumed = iter(of_grain)
    resumed.set_state(state)
    assert numbers(resumed) == rest and len(rest) == 30


def test_hugging_face_iterable_datasets_are_streams():
    datasets = pytest.importorskip("datasets")
    hub = from_iterable(datasets.Dataset.from_list(RECORDS).to_iterable_dataset(), name="hub")
    reader = iter(hub)
    list(itertools.islice(reader, 20))
    resumed = iter(hub)
    resumed.set_state(reader.get_state())
    assert list(resumed) == RECORDS[20:]


# In `batches`

SAMPLERS = [None, NoDuplicates(), GroupByLabel(), GroupByLength(batches=2)]
NAMES = ["none", "no_duplicates", "group_by_label", "group_by_length"]


def streamed(**options):
    return from_iterable(RECORDS, name="records", **options)


def drawn(tokenizer, source=None, columns=("query", "document"), **options):
    options = {"batch_size": 4, "max_length": 12, "epochs": 1, "window": 20} | options
    return list(batches(streamed() if source is None else source, tokenizer, columns, **options))


def ids_of(drawn):
    return [batch["id"].tolist() for batch in drawn]


def test_every_record_comes_once_an_epoch_near_its_place(tokenizer):
    ids = ids_of(drawn(tokenizer, epochs=2, drop_remainder=False))
    assert [len(batch) for batch in ids] == ([4] * 12 + [2]) * 2
    first, second = (list(itertools.chain(*ids[i : i + 13])) for i in (0, 13))
    assert sorted(first) == sorted(second) == list(range(N)) and first != second
    for window in (slice(0, 20), slice(20, 40), slice(40, 50)):
        assert sorted(first[window]) == list(range(N))[window] != first[window]
    assert ids_of(drawn(tokenizer, shuffle=False)) == np.arange(48).reshape(12, 4).tolist()
    assert ids_of(drawn(tokenizer, seed=1)) == ids_of(drawn(tokenizer, seed=1)) != ids_of(drawn(tokenizer, seed=2))


def test_a_batch_holds_the_records_it_names(tokenizer):
    for batch in drawn(tokenizer, columns=("document", "label")):
        texts = tokenizer([RECORDS[i]["document"] for i in batch["id"]])
        assert [row[row > 0].tolist() for row in batch["document"].ids] == [ids.tolist() for ids in texts]
        assert batch["label"].tolist() == [RECORDS[i]["label"] for i in batch["id"]]


def test_samplers_work_within_windows(tokenizer):
    for ids in ids_of(drawn(tokenizer, sampler=NoDuplicates(["query"]), epochs=3)):
        assert len({RECORDS[i]["query"] for i in ids}) == 4 and max(ids) // 20 == min(ids) // 20
    for ids in ids_of(drawn(tokenizer, sampler=GroupByLabel(), epochs=3)):
        labels = [RECORDS[i]["label"] for i in ids]
        assert sorted(np.unique(labels, return_counts=True)[1]) == [2, 2]
    few = from_iterable([*RECORDS[:20], RECORDS[0], RECORDS[4]])  # of one label is the last window
    assert len(drawn(tokenizer, few, sampler=GroupByLabel())) == 4


@pytest.mark.parametrize("sampler", SAMPLERS, ids=NAMES)
@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("seen", [0, 1, 7, 13])
def test_resuming_is_exact(tokenizer, files, sampler, pack, seen):
    source = stream(str(files / "part-*.jsonl"))
    options = {"sampler": sampler, "pack": pack, "epochs": None, "seed": 5, "window": 16}
    make = lambda: iter(batches(source, tokenizer, ("query", "document"), batch_size=4, max_length=16, **options))
    original = make()
    for _ in range(seen):
        next(original)
    state = json.dumps(original.get_state())
    expected = [next(original) for _ in range(15)]
    resumed = make()
    next(resumed)
    resumed.set_state(json.loads(state))
    for batch in expected:
        jax.tree.map(np.testing.assert_array_equal, next(resumed), batch)


@pytest.mark.parametrize("options", [{}, {"buckets": (12,)}, {"pack": 24}], ids=["padded", "fixed", "packed"])
def test_processes_share_each_batch_exactly(tokenizer, options):
    make = lambda index, count: drawn(
        tokenizer, process_index=index, process_count=count, row_multiple=2, sampler=None, **options
    )
    for whole, *parts in zip(make(0, 1), make(0, 2), make(1, 2), strict=True):
        joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
        jax.tree.map(np.testing.assert_array_equal, joined, whole)


def test_a_process_may_read_its_share_alone(tokenizer, files):
    whole = stream(str(files / "part-*.jsonl"))
    options = {"batch_size": 2, "buckets": (12,), "process_index": 0, "process_count": 1}
    shares = [drawn(tokenizer, whole.shard(index, 2), **options) for index in range(2)]
    ids = [list(itertools.chain(*ids_of(share))) for share in shares]
    assert len(ids[0]) == len(ids[1]) == 24 and not set(ids[0]) & set(ids[1])  # 26 and 24 records, two to a batch
    assert {batch["query"].ids.shape for share in shares for batch in share} == {(2, 12)}


def test_packed_batches_of_a_stream_have_one_shape(tokenizer):
    found = drawn(tokenizer, pack=24, batch_size=8, window=48, epochs=4)
    assert len({tuple(leaf.shape for leaf in jax.tree.leaves(batch)) for batch in found}) == 1
    assert np.mean([padding_share(batch["document"]) for batch in found]) < 0.3


def test_streams_mix_with_sources(tokenizer):
    other = from_list([{"query": f"delta w{i}", "document": "beta"} for i in range(40)], name="other")
    mixed = mixture([streamed(), other], [1, 3])
    iterator = iter(batches(mixed, tokenizer, ("query", "document"), batch_size=4, max_length=12, window=20))
    found = [next(iterator) for _ in range(20)]
    state = json.loads(json.dumps(iterator.get_state()))
    assert abs(sum(int(batch["source"][0]) for batch in found) - 15) <= 1
    expected = [next(iterator) for _ in range(6)]
    iterator.set_state(state)
    for batch in expected:
        jax.tree.map(np.testing.assert_array_equal, next(iterator), batch)
    with pytest.raises(ValueError, match="nobody knows how many records records has; give weights, or temperature"):
        mixture([streamed(), other])


@pytest.mark.slow
@pytest.mark.parametrize("pack", [False, True])
def test_worker_processes_give_the_same_batches_and_resume(tokenizer, files, pack):
    source = stream(files / "a.jsonl")
    make = lambda workers: iter(
        batches(source, tokenizer, ("query",), batch_size=4, max_length=12, window=8, pack=pack, workers=workers)
    )
    expected, workers = make(0), make(2)
    for _ in range(9):
        jax.tree.map(np.testing.assert_array_equal, next(workers), next(expected))
    state = json.loads(json.dumps(workers.get_state()))
    wanted = [next(expected) for _ in range(5)]
    workers.set_state(state)
    for batch in wanted:
        jax.tree.map(np.testing.assert_array_equal, next(workers), batch)


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        (from_iterable([], name="empty"), {}, ValueError, "empty has no records"),
        (streamed(), {"batch_size": 60}, ValueError, "batch_size: records has 50 records, less than a batch of 60"),
        (streamed(), {"window": 0}, ValueError, "window must be at least 1; got 0"),
        (streamed(), {"columns": ["answer"]}, RecordError, "records: record 0 has no column 'answer'"),
        (
            streamed(),
            {"columns": {"n": None}, "sampler": NoDuplicates(["label"]), "batch_size": 8},
            ValueError,
            "no batch",
        ),
        (
            from_iterable([*RECORDS[:30], {"query": 5, "document": ""}], name="records"),
            {"drop_remainder": False},
            RecordError,
            "records: record 30, column 'query': expected a str; got int 5",
        ),
    ],
)
def test_what_cannot_be_trained_on_is_named(tokenizer, source, options, error, message):
    with pytest.raises(error, match=message):
        drawn(tokenizer, source, **options)
