"""Files that are small and hold much, or hold what is no text: refused early, by name."""

import gzip
import json

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jaxemb
from jaxemb.data import RecordError, Tokenizer, batches, from_list, read, stream
from jaxemb.losses import cosent
from jaxemb.objectives import on_columns

TOKENIZER = Tokenizer.train(["a cat", "a dog"], 60)


def _batches(source, columns, **options):
    return iter(batches(source, TOKENIZER, columns, batch_size=2, max_length=8, shuffle=False, epochs=1, **options))


@pytest.mark.parametrize("line", [b"a cat " * 100_000 + b"\n", b"x"], ids=["lines", "one line"])
@pytest.mark.parametrize("way", [read, lambda path, **options: list(stream(path, **options))], ids=["read", "stream"])
def test_a_gzip_bomb_is_refused(tmp_path, way, line):
    path = tmp_path / "bomb.txt.gz"
    with gzip.open(path, "wb", 9) as file:
        file.write(line * ((70 << 20) // len(line)))
    with pytest.raises(RecordError, match=r"bomb.txt.gz: holds more than 64 MB and 100 times .* max_ratio"):
        way(path)


def test_how_much_a_gzip_file_may_hold_is_an_option(tmp_path):
    path = tmp_path / "good.txt.gz"
    path.write_bytes(gzip.compress(b"a cat\n" * (12 << 20)))
    rows = stream(path, max_ratio=2000)
    assert sum(1 for _ in zip(rows, range(10), strict=False)) == 10


def test_a_parquet_file_of_endless_rows_is_refused(tmp_path):
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"a": pa.nulls(70 << 20, pa.int8())}), path)
    for way in (read, lambda path: next(iter(stream(path)))):
        with pytest.raises(RecordError, match=r"bomb.parquet: holds more than 64 MB and 100 times"):
            way(path)


def test_rows_of_different_fields_take_no_more_than_they_hold(tmp_path):
    path = tmp_path / "keys.jsonl"
    path.write_text("".join(f'{{"k{i}": 1}}\n' for i in range(2000)))
    with pytest.raises(RecordError, match=r"keys.jsonl:\d+: the rows up to here have \d+ different fields"):
        read(path)
    assert read(path, columns=["k7"], on_error="skip")[0] == {"k7": 1}
    some = tmp_path / "some.jsonl"
    some.write_text("".join(json.dumps({"text": "a", f"k{i % 40}": i}) + "\n" for i in range(4000)))
    assert read(some)[41]["k1"] == 41


@pytest.mark.parametrize("way", [read, lambda path: list(stream(path))], ids=["read", "stream"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "name"])
def test_a_damaged_parquet_file_is_named(tmp_path, way, damage):
    path = tmp_path / "bad.parquet"
    pq.write_table(pa.table({"text": ["a cat"] * 50, "n": list(range(50))}), path, compression="none")
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[4:60] = bytes(56)
    elif damage == "name":
        content = content.replace(b"\x18\x04text", b"\x18\x04tex\xe4")
    else:
        where = content.index(b"a cat")
        content[where : where + 5] = b"\xff\xfe\xfd\xfc\xfb"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"bad.parquet: not a whole parquet file"):
        way(path)


def test_a_directory_is_not_an_absent_file(tmp_path):
    (tmp_path / "d.parquet").mkdir()
    with pytest.raises(IsADirectoryError, match=r"d.parquet is a directory; .* or stream\('.*/\*.parquet'"):
        read(tmp_path / "d.parquet")


def test_a_deep_line_is_a_malformed_one(tmp_path):
    path = tmp_path / "deep.jsonl"
    path.write_text('{"a": 1}\n' + "[" * 100_000 + "\n")
    assert len(read(path, on_error="skip")) == 1
    with pytest.raises(RecordError, match=r"deep.jsonl:2: .*nested too deeply"):
        read(path)


def test_half_a_character_is_named_by_its_record(tmp_path):
    path = tmp_path / "half.jsonl"
    path.write_text('{"query": "ok", "list": ["a", "b"]}\n{"query": "broken \\ud83d", "list": ["a", "\\ud83d"]}\n')
    source = read(path)
    for column, where in (("query", "the text"), ("list", "text 1")):
        with pytest.raises(RecordError, match=rf"half.jsonl: record 1, column '{column}': {where} has a lone"):
            next(_batches(source, [column]))


def test_the_first_records_tell_the_kinds_of_columns():
    numbers = from_list([{"q": "a", "s": 1}, {"q": "b", "s": 0.75}])
    assert next(_batches(numbers, ("q", "s")))["s"].tolist() == [1.0, 0.75]
    vectors = from_list([{"v": [1, 2]}, {"v": [0.5, 2]}])
    np.testing.assert_array_equal(next(_batches(vectors, ("v",)))["v"], [[1, 2], [0.5, 2]])
    with pytest.raises(RecordError, match=r"record 0, column 'q': expected a str; got float nan"):
        next(_batches(from_list([{"q": float("nan")}, {"q": "b"}]), ("q",)))
    late = from_list([{"s": 1}] * 98 + [{"s": 0.75}] * 2)
    with pytest.raises(RecordError, match=r"record 98, column 's': expected an integer \(int32\)"):
        list(_batches(late, ("s",)))


def test_numbers_of_a_csv_file_that_were_left_texts_are_explained(tmp_path):
    path = tmp_path / "sts.csv"
    path.write_text("first,second,scores\na cat,a dog,0.5\na,b,0.1\n")
    batch = next(_batches(read(path), ("first", "second", "scores")))
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = jaxemb.new("bert", sizes, TOKENIZER, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"column 'scores' has texts, .* read with types=\{'scores': float\}"):
        on_columns(cosent, "first", "second", others=["scores"])(model.model, batch, None)
