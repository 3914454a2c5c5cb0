import csv
import gzip
import json
import logging
import os
import random
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxemb.data import RecordError, from_list, huggingface, read, stream

RECORDS = [
    {"a": "plain", "b": "two words"},
    {"a": 'a "quoted" word', "b": "comma, and tab-free"},
    {"a": "ünï¢ødé 漢字 🙂", "b": ""},
]


def write(path, content: str | bytes):
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def records_of(source) -> list[dict]:
    return [source[i] for i in range(len(source))]


def write_records(path, records):
    """The records in the format of the path's name, by another writer than ours."""
    if ".jsonl" in path.name:
        return write(path, "".join(json.dumps(record) + "\n" for record in records))
    if ".parquet" in path.name:
        pq.write_table(pa.Table.from_pylist(records), path)
        return path
    if ".tsv" in path.name:
        return write(path, "".join("\t".join(row) + "\n" for row in [list(records[0]), *(r.values() for r in records)]))
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    with open(plain, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    return write(path, plain.read_bytes())


@pytest.mark.parametrize(
    "name", ["x.csv", "x.csv.gz", "x.tsv", "x.tsv.gz", "x.jsonl", "x.jsonl.gz", "x.ndjson", "x.parquet"]
)
def test_every_format_gives_the_same_records(tmp_path, name):
    path = write_records(tmp_path / name.replace("ndjson", "jsonl"), RECORDS)
    source = read(path.rename(tmp_path / name))
    assert records_of(source) == RECORDS
    assert source.skipped == 0
    assert records_of(read(tmp_path / name, columns={"query": "b"})) == [{"query": record["b"]} for record in RECORDS]
    assert records_of(read(tmp_path / name, columns=["a"])) == [{"a": record["a"]} for record in RECORDS]


@given(
    st.lists(st.tuples(*[st.text(st.characters(exclude_categories=["Cs"]), min_size=1)] * 2), min_size=1, max_size=8)
)
def test_csv_quoting_is_that_of_rfc_4180(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    quoted = "\r\n".join(",".join('"' + field.replace('"', '""') + '"' for field in row) for row in rows)
    write(path, quoted)
    assert [tuple(record.values()) for record in records_of(read(path, names=["a", "b"]))] == rows


def test_in_tsv_a_quote_is_a_character_like_any_other(tmp_path):
    path = write(tmp_path / "x.tsv", 'a\tb\n"open\t5" disk\r\nsingle\t"whole"\n')
    assert records_of(read(path)) == [{"a": '"open', "b": '5" disk'}, {"a": "single", "b": '"whole"'}]


def test_blank_lines_of_text_files_are_left_out_and_told(tmp_path, caplog):
    path = write(tmp_path / "x.txt.gz", "first\n\n third \r\n")
    left = [{"text": "first"}, {"text": " third "}]
    assert records_of(read(path)) == left == list(stream(path))
    said = f"{path}: 1 blank line is left out (2); keep_blank=True keeps them, as empty texts"
    assert caplog.messages == [said, said]
    caplog.clear()
    kept = [left[0], {"text": ""}, left[1]]
    assert records_of(read(path, keep_blank=True)) == kept == list(stream(path, keep_blank=True))
    read(write(tmp_path / "y.txt", "a\n" + " \t\n" * 7))
    assert caplog.messages == [
        f"{tmp_path / 'y.txt'}: 7 blank lines are left out (2, 3, 4, 5, 6, ...); "
        "keep_blank=True keeps them, as empty texts"
    ]


def test_a_byte_order_mark_is_no_text(tmp_path):
    for name, content in (("x.csv", "a,b\n1,2\n"), ("x.jsonl", '{"a": "1", "b": "2"}\n'), ("x.tsv", "a\tb\n1\t2")):
        assert records_of(read(write(tmp_path / name, b"\xef\xbb\xbf" + content.encode()))) == [{"a": "1", "b": "2"}]


def test_names_delimiter_types_and_format(tmp_path):
    path = write(tmp_path / "scores.data", "x;y;4.5\n\nz;w;3\n")
    source = read(
        path,
        format="csv",
        delimiter=";",
        names=["s1", "s2", "gold"],
        columns={"a": "s1", "score": "gold"},
        types={"score": float},
    )
    assert records_of(source) == [{"a": "x", "score": 4.5}, {"a": "z", "score": 3.0}]


def test_fields_longer_than_the_csv_modules_limit(tmp_path):
    limit = csv.field_size_limit()
    long = "x" * (limit + 1)
    assert read(write(tmp_path / "x.csv", f"a\n{long}\n"))[0] == {"a": long}
    assert csv.field_size_limit() == limit


def test_jsonl_may_lack_fields_where_no_columns_are_asked_for(tmp_path):
    path = write(tmp_path / "x.jsonl", '{"a": 1}\n{"b": ["x", "y"]}\n')
    assert records_of(read(path)) == [{"a": 1, "b": None}, {"a": None, "b": ["x", "y"]}]


# Each file has one good row before and one after the malformed one.
MALFORMED = {
    "csv: fields": ("x.csv", b"a,b\n1,2\n3\n4,5\n", {}, r"x.csv:3: expected 2 fields \['a', 'b'\]; got 1"),
    "csv: quote": ("x.csv", b'a,b\n1,2\n"3"4,5\n4,5\n', {}, r"x.csv:3: .*expected after"),
    "csv: utf-8": ("x.csv", b"a,b\n1,2\n3\xff,3\n4,5\n", {}, r"x.csv:3: .*utf-8.*0xff"),
    "csv: number": ("x.csv", b"a,b\n1,2\n1,high\n4,5\n", {"types": {"b": float}}, r"x.csv:3: column 'b': .*'high'"),
    "csv: utf-8 in a quoted field": ("x.csv", b'a,b\n1,2\n"3 \xff\nx,y\nz",3\n4,5\n', {}, r"x.csv:3: .*utf-8.*0xff"),
    "csv: after lines": ("x.csv", b'a,b\n"1\n1",2\n3\n4,5\n', {}, "x.csv:4: expected 2 fields"),
    "tsv: fields": ("x.tsv.gz", b"a\tb\n1\t2\n1\t2\t3\n4\t5\n", {}, "x.tsv.gz:3: expected 2 fields .*; got 3"),
    "tsv: line end": ("x.tsv", b"a\tb\n1\t2\n1\r1\t2\n4\t5\n", {}, "x.tsv:3: new-line character"),
    "jsonl: json": ("x.jsonl", b'{"a":"1"}\n\n{"a":\n{"a":"4"}\n', {}, "x.jsonl:3: not valid JSON .Expecting value"),
    "jsonl: a key twice": ("x.jsonl", b'{"a":"1"}\n{"a":"2","a":"3"}\n{"a":"4"}\n', {}, "the key 'a' comes twice"),
    "jsonl: object": ("x.jsonl", b'{"a":"1"}\n[1]\n{"a":"4"}\n', {}, "x.jsonl:2: expected a JSON object; got a list"),
    "jsonl: utf-8": ("x.jsonl.gz", b'{"a":"1"}\n{"a":"\xff"}\n{"a":"4"}\n', {}, "x.jsonl.gz:2: not UTF-8, at byte 6"),
    "jsonl: field": (
        "x.jsonl",
        b'{"a":"1"}\n{"b":"2"}\n{"a":"4"}\n',
        {"columns": {"query": "a"}},
        r"x.jsonl:2: no field 'a' \(for column 'query'\); there are \['b'\]",
    ),
    "jsonl: null": (
        "x.jsonl",
        b'{"a":"1"}\n{"a":null}\n{"a":"4"}\n',
        {"columns": ["a"]},
        "x.jsonl:2: column 'a' is null",
    ),
    "txt: utf-8": ("x.txt", b"1\n\xc3\n4\n", {}, "x.txt:2: .*utf-8"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_row_raises_or_is_skipped_and_counted(tmp_path, caplog, case):
    name, content, options, message = MALFORMED[case]
    path = write(tmp_path / name, content)
    with pytest.raises(RecordError, match=message):
        read(path, **options)
    with caplog.at_level(logging.WARNING, "jaxemb"):
        source = read(path, on_error="skip", **options)
    assert (len(source), source.skipped) == (2, 1)
    assert next(iter(source[1].values())) == "4"
    assert caplog.records[-1].getMessage().startswith(f"{path}: skipped 1 malformed rows, the first: {path}:")


@pytest.mark.parametrize("on_error", ["strict", "skip"])
def test_a_quote_that_nothing_closes_is_no_skipped_row(tmp_path, on_error):
    path = write(tmp_path / "x.csv", 'a,b\n1,2\n"3,4\n' + "5,6\n" * 9)
    for reads in (lambda: read(path, on_error=on_error), lambda: list(stream(path, on_error=on_error))):
        with pytest.raises(RecordError, match=r"x.csv:3: a quote is opened here or below that nothing closes"):
            reads()


def test_a_file_of_zeros_is_no_empty_table(tmp_path):
    with pytest.raises(ValueError, match=r"x.csv:1: the header has zero bytes"):
        read(write(tmp_path / "x.csv", b"\0" * 99))


def test_names_that_come_twice_are_refused(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["1"]), pa.array(["2"])], names=["a", "a"]), path)
    text = write(tmp_path / "x.csv", "1,2\n")
    for reads in (lambda: read(path), lambda: read(text, names=["a", "a"]), lambda: list(stream(path))):
        with pytest.raises(ValueError, match="names a field twice: 'a'"):
            reads()


def test_a_null_in_a_parquet_column_is_malformed(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": ["1", None, "4"], "unused": [None, None, None]}), path, row_group_size=1)
    with pytest.raises(RecordError, match=r"x.parquet: row 1: column 'query' is null"):
        read(path, columns={"query": "a"})
    source = read(path, columns={"query": "a"}, on_error="skip")
    assert (records_of(source), source.skipped) == ([{"query": "1"}, {"query": "4"}], 1)
    assert len(read(path)) == 3


def test_a_parquet_file_without_rows(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": pa.array([], pa.string())}), path)
    for source in (read(path), read(path, columns={"query": "a"})):
        assert len(source) == 0 and source.__getitems__([]) == []


def test_a_conversion_that_overflows_names_the_line(tmp_path):
    path = write(tmp_path / "x.jsonl", '{"a": 1}\n{"a": ' + "9" * 400 + "}\n")
    with pytest.raises(RecordError, match=r"x.jsonl:2: column 'a': int too large to convert to float"):
        read(path, types={"a": float})


def test_skipping_everything_is_an_error(tmp_path):
    with pytest.raises(RecordError, match=r"all of the 2 rows are malformed, the first: .*x.jsonl:1: not valid JSON"):
        read(write(tmp_path / "x.jsonl", "a,b\n1,2\n"), on_error="skip")


@pytest.mark.parametrize(
    ("name", "content", "options", "error", "message"),
    [
        ("x.dat", b"", {}, ValueError, r"format: 'x.dat' does not tell; pass one of \['csv'"),
        ("x.csv", b"", {"format": "xml"}, ValueError, "format must be one of .*; got 'xml'"),
        ("x.csv", b"", {"on_error": "ignore"}, ValueError, "on_error must be 'strict' or 'skip'; got 'ignore'"),
        ("x.csv", b"a,a\n1,2\n", {}, ValueError, "x.csv:1: the header names a field twice"),
        ("x.csv", b"a,b\n", {"columns": ["c"]}, ValueError, "x.csv: no field 'c'"),
        (
            "x.csv",
            b"a,b\n1,2\n",
            {"columns": {"q": "c"}},
            ValueError,
            r"x.csv: no field 'c' .*there are \['a', 'b'\]; a file without a header line needs names=",
        ),
        (
            "x.csv",
            b"a,b\n1,2\n",
            {"columns": "a"},
            TypeError,
            "columns must be a mapping or a sequence of strings or None; got str",
        ),
        ("x.csv", b"a,b\n1,2\n", {"types": {"c": float}}, ValueError, r"types: no column 'c'; there are \['a', 'b'\]"),
        ("x.jsonl", b"{}", {"names": ["a"]}, ValueError, "names and delimiter are for csv and tsv"),
        ("x.parquet", b"no parquet", {}, ValueError, "x.parquet: not a whole parquet file"),
        ("x.parquet", b"", {"types": {"a": float}}, ValueError, "types: a parquet file has types of its own"),
    ],
)
def test_unusable_arguments_and_files_are_named(tmp_path, name, content, options, error, message):
    with pytest.raises(error, match=message):
        read(write(tmp_path / name, content), **options)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file: .*absent.csv"):
        read(tmp_path / "absent.csv")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(FileExistsError, match=r"pipe.csv is no regular file; write what it gives to one"):
        read(tmp_path / "pipe.csv")


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-20], lambda data: b"plain text", lambda data: data[:30] + b"\0" * 40]
)
def test_a_damaged_gzip_file_is_named_in_both_modes(tmp_path, damage):
    lines = "".join(f"{random.Random(i).random()}\n" for i in range(500))
    (tmp_path / "x.txt.gz").write_bytes(damage(gzip.compress(lines.encode())))
    for on_error in ("strict", "skip"):
        with pytest.raises(ValueError, match=r"x.txt.gz: not a whole gzip file"):
            read(tmp_path / "x.txt.gz", on_error=on_error)


def test_lists_maps_and_selections():
    source = from_list([{"n": i, "m": str(i)} for i in range(10)], columns={"x": "n"})
    assert source[3] == {"x": 3}
    doubled = source.map(lambda record: {"x": 2 * record["x"]}).select([7, 1, 7])
    assert records_of(doubled) == [{"x": 14}, {"x": 2}, {"x": 14}]
    assert records_of(doubled.select(range(1, 3))) == [{"x": 2}, {"x": 14}]
    assert source.__getitems__(np.array([2, 0])) == [{"x": 2}, {"x": 0}]


@pytest.mark.parametrize("index", [-1, 10])
def test_an_index_out_of_range_names_the_source(index):
    with pytest.raises(IndexError, match=f"numbers: record {index} of 10"):
        from_list([{"n": 1}] * 10, name="numbers")[index]


def test_a_missing_column_of_a_list_is_named():
    with pytest.raises(ValueError, match=r"list: no field 'c' \(for column 'q'\); there are \['a', 'b'\]"):
        from_list(RECORDS, columns={"q": "c"})


def test_hugging_face_datasets(tmp_path):
    pytest.importorskip("datasets")
    path = write_records(tmp_path / "x.jsonl", RECORDS)
    source = huggingface(
        "json", "train", columns={"query": "a"}, data_files=str(path), cache_dir=str(tmp_path / "cache")
    )
    assert records_of(source) == [{"query": record["a"]} for record in RECORDS]


def test_without_hugging_face_datasets_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install datasets"):
        huggingface("imdb", "train")
