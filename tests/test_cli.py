"""The `jaxemb` command: what it prints, writes and returns, and what it says about bad input."""

import dataclasses
import errno
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from datetime import date
from decimal import Decimal
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxemb
from jaxemb import files, losses
from jaxemb.cli import commands, main
from jaxemb.data import batches, read
from jaxemb.nn import unit
from jaxemb.objectives import on_columns

ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu"}  # of real processes
COMMANDS = ("quickstart", "train", "compile", "encode", "evaluate", "search", "mine", "info")
TEXTS = ("parse a date", "a dog runs in the park", "read a file line by line", "close the door")


@pytest.fixture(scope="module")
def tiny(tiny_minilm) -> Path:
    return tiny_minilm


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory) -> Path:
    """The directory of a very short quickstart."""
    out = tmp_path_factory.mktemp("runs") / "quickstart"
    arguments = ["--model", str(tiny), "--limit", "24", "--steps", "3", "--batch-size", "8", "--quiet", "--json"]
    assert main(["quickstart", "--out", str(out), *arguments]) == 0
    return out


@pytest.fixture
def notes(tmp_path) -> Path:
    path = tmp_path / "notes.txt"
    path.write_text("".join(f"{text}\n" for text in TEXTS), encoding="utf-8")
    return path


def succeed(capsys, *arguments) -> str:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def fail(capsys, code: int, *arguments) -> str:
    assert main([str(argument) for argument in arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.rstrip("\n").split("\n")[-1]
    assert "Traceback" not in captured.err
    return last


# Help


def test_the_installed_command_prints_its_version():
    done = subprocess.run(
        [sys.executable, "-m", "jaxemb", "--version"], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert (done.returncode, done.stdout) == (0, f"jaxemb {jaxemb.__version__}\n")


def test_the_command_that_is_installed_is_that_of_the_module():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"jaxemb": "jaxemb.__main__:main"}


def test_help_names_every_command(capsys):
    text = succeed(capsys, "--help")
    assert all(f"    {command} " in text for command in COMMANDS)
    assert "130 interrupted" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_examples_and_exit_codes(capsys, command):
    text = succeed(capsys, command, "--help")
    assert f"examples:\n  jaxemb {command}" in text
    assert "exit codes: 0 done, 1 the work failed, 2 bad usage or input, 130 interrupted" in text
    assert all(option in text for option in ("--json", "--quiet", "--debug"))


def test_help_does_not_import_jax():
    script = "import sys; from jaxemb.cli import main; main(['train', '--help']); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], stdout=subprocess.DEVNULL, env=ENVIRONMENT).returncode == 0


# encode


def test_encode_writes_what_the_library_gives(capsys, tiny, notes, tmp_path):
    out = tmp_path / "vectors.npy"
    report = json.loads(succeed(capsys, "encode", notes, "--model", tiny, "--out", out, "--json"))
    assert (report["texts"], report["dim"], report["dtype"]) == (4, 384, "float32")
    np.testing.assert_allclose(np.load(out), jaxemb.load(tiny).encode(list(TEXTS)), atol=1e-6)


def test_encode_options_reach_the_encoder(capsys, tiny, notes, tmp_path):
    out = tmp_path / "vectors.npy"
    options = ("--dim", 32, "--dtype", "float16", "--prompt", "query: ", "--batch-tokens", 64, "--quiet")
    succeed(capsys, "encode", notes, "--model", tiny, "--out", out, *options)
    vectors = np.load(out)
    assert vectors.shape == (4, 32) and vectors.dtype == np.float16
    expected = jaxemb.load(tiny).encode(list(TEXTS), dim=32, prompt="query: ")
    np.testing.assert_allclose(vectors, expected, atol=2e-3)


def test_encode_reads_columns_of_several_files_in_order(capsys, tiny, tmp_path):
    (tmp_path / "a.csv").write_text('id,body\n1,"first, with a comma"\n')
    (tmp_path / "b.jsonl").write_text('{"id": 2, "body": "second"}\n')
    out = tmp_path / "v.npy"
    files = (tmp_path / "a.csv", tmp_path / "b.jsonl")
    succeed(capsys, "encode", *files, "--column", "body", "--model", tiny, "--out", out, "--quiet")
    expected = jaxemb.load(tiny).encode(["first, with a comma", "second"])
    np.testing.assert_allclose(np.load(out), expected, atol=1e-6)


def test_encode_reads_stdin(tiny, tmp_path):
    out = tmp_path / "v.npy"
    command = [sys.executable, "-m", "jaxemb", "encode", "-", "--model", str(tiny), "--out", str(out), "--quiet"]
    done = subprocess.run(command, input="one\ntwo\n", capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{out}: 2 vectors of dimension 384")
    assert np.load(out).shape == (2, 384)


@pytest.mark.parametrize(
    ("stdin", "message"), [(None, "is stdin, which is closed"), (b"caf\xe9\n", "is stdin, which is not utf-8: ")]
)
def test_encode_refuses_what_stdin_does_not_give(capsys, tiny, tmp_path, monkeypatch, stdin, message):
    monkeypatch.setattr("sys.stdin", stdin and io.TextIOWrapper(_Named(stdin), encoding="utf-8"))
    assert f"FILE: - {message}" in fail(capsys, 2, "encode", "-", "--model", tiny, "--out", tmp_path / "v.npy")


def test_stdin_is_read_as_a_file_is(capsys, caplog, tiny, tmp_path, monkeypatch):
    text, file = b"\xef\xbb\xbfa cat\ra dog\n \nclose\x0bthe door\r\n", tmp_path / "texts.txt"
    file.write_bytes(text)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(_Named(text), encoding="ascii"))
    succeed(capsys, "encode", "-", file, "--model", tiny, "--out", tmp_path / "v.npy", "--quiet")
    vectors = np.load(tmp_path / "v.npy")
    assert vectors.shape == (4, 384)
    np.testing.assert_allclose(vectors[:2], vectors[2:], atol=1e-6)
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "1 blank line is left out (2); the texts are counted without them"
    ] * 2


class _Named(io.BytesIO):
    name = "<stdin>"


def test_encode_reads_stdin_once(capsys, tiny, tmp_path):
    message = fail(capsys, 2, "encode", "-", "-", "--model", tiny, "--out", tmp_path / "v.npy")
    assert message == "jaxemb: error: FILE: - is stdin, which can be read only once"


def test_encode_of_an_empty_file_gives_no_vectors(capsys, tiny, tmp_path):
    (tmp_path / "empty.txt").touch()
    out = tmp_path / "v.npy"
    succeed(capsys, "encode", tmp_path / "empty.txt", "--model", tiny, "--out", out, "--quiet")
    assert np.load(out).shape == (0, 384)
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path := tmp_path / "empty.parquet")
    succeed(capsys, "encode", path, "--model", tiny, "--out", out, "--quiet")
    assert np.load(out).shape == (0, 384)
    assert fail(capsys, 2, "search", path, "x", "--model", tiny).endswith("records must not be empty")


# evaluate


def test_evaluate_sts(capsys, tiny, tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("a cat\ta cat\t5\na cat\ta kitten\t4\na cat\tquarterly tax reports\t0\n")
    arguments = ("evaluate", "--task", "sts", "--data", path, "--names", "sentence1,sentence2,score", "--model", tiny)
    report = json.loads(succeed(capsys, *arguments, "--json"))
    assert report["pairs"] == 3 and report["metrics"]["cosine_spearman"] == pytest.approx(1.0)
    assert "cosine_spearman    1.0000" in succeed(capsys, *arguments)


def test_evaluate_retrieval(capsys, tiny, tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d1", "text": "a cat"}\n{"_id": "d2", "text": "tax reports"}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "a cat"}\n{"_id": "q2", "text": "tax reports"}\n')
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t1\n")
    arguments = ("evaluate", "--task", "retrieval", "--data", tmp_path, "--split", "dev", "--model", tiny)
    report = json.loads(succeed(capsys, *arguments, "--json", "--dim", 64))
    assert report["queries"] == 2 and report["metrics"]["ndcg@10"]["mean"] == 1.0
    assert "ndcg@10            1.0000 ± 0.0000" in succeed(capsys, *arguments)


# search


def test_search_in_a_file_for_each_query(capsys, tiny, notes):
    arguments = ("search", notes, "reading files", "dogs outside", "-k", 2, "--model", tiny, "--quiet")
    first, second = json.loads(succeed(capsys, *arguments, "--json"))["results"]
    assert (first["query"], second["query"]) == ("reading files", "dogs outside")
    assert len(first["hits"]) == 2 and first["hits"][0]["text"] == "read a file line by line"
    assert second["hits"][0]["text"] == "a dog runs in the park"
    lines = succeed(capsys, *arguments).splitlines()
    assert lines[0] == "reading files" and lines[3:5] == ["", "dogs outside"] and len(lines) == 7
    assert lines[1].startswith("  1  0.") and lines[1].endswith("read a file line by line")


def test_blank_lines_are_left_out_and_hits_say_their_line(capsys, caplog, tiny, tmp_path):
    path, out, index = (tmp_path / name for name in ("lines.txt", "v.npy", "lines.index"))
    path.write_text("parse a date\n\na dog runs in the park\n \n\n")
    said = f"{path}: 3 blank lines are left out (2, 4, 5); the texts are counted without them"
    succeed(capsys, "encode", path, "--model", tiny, "--out", out, "--quiet")
    assert np.load(out).shape == (2, 384) and caplog.messages == [said]
    shown = succeed(capsys, "search", path, "dogs", "--model", tiny, "--quiet", "-k", 1, "--out", index)
    assert caplog.messages == [said, said]
    assert (
        shown.endswith("  line 3  a dog runs in the park\n")
        and succeed(capsys, "search", index, "dogs", "-k", 1) == shown
    )
    (hit,) = json.loads(succeed(capsys, "search", index, "dogs", "-k", 1, "--json"))["results"][0]["hits"]
    assert (hit["id"], hit["line"], hit["text"]) == (1, 3, "a dog runs in the park")
    succeed(capsys, "search", path, "dogs", "--model", tiny, "--quiet", "--vectors", out)


def test_records_whose_text_is_blank_are_left_out(capsys, caplog, tiny, tmp_path):
    path, out = tmp_path / "pages.csv", tmp_path / "v.npy"
    path.write_text('id,text\nd1,""\nd2,a dog runs in the park\n')
    succeed(capsys, "encode", path, "--model", tiny, "--out", out, "--quiet")
    assert np.load(out).shape == (1, 384)
    assert caplog.messages == [f"{path}: 1 blank record is left out (1); the texts are counted without them"]


def test_hits_show_the_other_columns(capsys, tiny, tmp_path):
    path = tmp_path / "pages.csv"
    path.write_text("id,title,url,score,body\nd7,Dogs,example.org/dogs,3,a dog runs in the park\n")
    arguments = ("search", path, "dogs", "--model", tiny, "--quiet", "--column", "body")
    first, *others = succeed(capsys, *arguments).splitlines()
    assert first.endswith("  Dogs")
    assert others == [f"{'':12}a dog runs in the park", f"{'':12}id: d7  url: example.org/dogs  score: 3"]
    (hit,) = json.loads(succeed(capsys, *arguments, "--json"))["results"][0]["hits"]
    assert (hit["id"], hit["record_score"]) == ("d7", "3") and -1 < hit["score"] < 1


def test_search_with_vectors_that_encode_wrote(capsys, tiny, notes, tmp_path):
    vectors, other = tmp_path / "notes.npy", tmp_path / "other.npy"
    succeed(capsys, "encode", notes, "--model", tiny, "--out", vectors, "--dtype", "float16", "--quiet")
    arguments = ("search", notes, "dogs", "--model", tiny, "--quiet", "--vectors")
    plain = succeed(capsys, *arguments[:-1], "--json")
    with_vectors = json.loads(succeed(capsys, *arguments, vectors, "--json"))
    for hit, expected in zip(with_vectors["results"][0]["hits"], json.loads(plain)["results"][0]["hits"], strict=True):
        assert hit["id"] == expected["id"] and hit["score"] == pytest.approx(expected["score"], abs=2e-3)
    np.save(other, np.load(vectors)[:, :5])
    message = fail(capsys, 2, *arguments, other)
    assert message.endswith("other.npy must hold (4, 384), a vector of this model for each text; got (4, 5)")
    np.save(other, np.load(vectors)[[0, 2, 1, 3]])
    assert "other.npy is not of these texts and this model: its vector of text" in fail(capsys, 2, *arguments, other)
    other.write_text("no array")
    assert "other.npy is no .npy file of numbers" in fail(capsys, 2, *arguments, other)


def test_the_limit_of_the_size_of_files_is_named(capsys, tiny, notes, tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        message = fail(capsys, 1, "encode", notes, "--model", tiny, "--out", tmp_path / "v.npy", "--quiet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert message.endswith("v.npy may have 4,096 bytes, as all files of this process (ulimit -f)")
    assert list(tmp_path.glob("*v.npy*")) == []


def test_a_limit_that_leaves_no_temporary_directory_is_named(capsys, tmp_path, monkeypatch):
    def none(file, args):
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(commands, "_read_texts", none)
    monkeypatch.setattr(files, "size_limit", lambda: 0)
    message = fail(capsys, 1, "encode", "a.txt", "--out", tmp_path / "v.npy")
    assert "No usable temporary directory" in message and "v.npy may have 0 bytes" in message


def test_search_with_vectors_of_a_length_that_matters(capsys, tiny, notes, tmp_path):
    model, vectors = tmp_path / "dot", tmp_path / "notes.npy"
    embedder = jaxemb.load(tiny)
    embedder.replace(model=dataclasses.replace(embedder.model, heads=()), similarity_fn_name="dot").save(model)
    succeed(capsys, "encode", notes, "--model", model, "--out", vectors, "--quiet")
    arguments = ("search", notes, "dogs", "--model", model, "--quiet", "--vectors", vectors)
    succeed(capsys, *arguments)
    np.save(vectors, np.load(vectors) * [[1], [1], [1.5], [1]])
    assert "its vector of text 2 is 50% of the length away from the model's" in fail(capsys, 2, *arguments)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 384), np.float32), "has a vector that is zero or not finite, of text 0"),
        (np.diag([1, 1, np.nan, 1]) @ np.ones((4, 384)), "has a vector that is zero or not finite, of text 2"),
        (np.ones((4, 384), complex), "must be a .npy file of floating-point numbers; got complex128"),
        (np.zeros((4, 384), "M8[s]"), "must be a .npy file of floating-point numbers; got datetime64[s]"),
        (np.zeros((4, 384), "V4"), "must be a .npy file of floating-point numbers; got |V4"),
        ({"a": np.ones((4, 384))}, "must be a .npy file of floating-point numbers; got an archive"),
        (
            b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (4, -16), }",
            "is no .npy file of numbers",
        ),
        (None, "there is no file"),
    ],
)
def test_search_with_what_are_no_vectors(capsys, tiny, notes, tmp_path, array, message):
    file = tmp_path / "v.npy"
    if isinstance(array, np.ndarray):
        np.save(file, array)
    elif isinstance(array, dict):
        np.savez(tmp_path / "v.npz", **array)
        (tmp_path / "v.npz").rename(file)
    elif isinstance(array, bytes):
        file.write_bytes(array.ljust(127) + b"\n" + bytes(256))
    said = fail(capsys, 2, "search", notes, "dogs", "--model", tiny, "--quiet", "--vectors", file)
    assert "--vectors: " in said and message in said


def test_files_without_a_header_line(capsys, caplog, tiny, tmp_path):
    path, out = tmp_path / "a.csv", tmp_path / "v.npy"
    path.write_text("first,1\nsecond,2\n")
    arguments = ("encode", path, "--model", tiny, "--out", out, "--quiet")
    message = fail(capsys, 2, *arguments)
    assert message.endswith("; if that is no header line, say what the columns are called with --names")
    succeed(capsys, *arguments, "--names", "text,number")
    assert np.load(out).shape == (2, 384)
    path.write_text("first\nsecond\n")
    succeed(capsys, *arguments)
    assert np.load(out).shape == (1, 384)
    assert "a.csv: the first line, 'first', is taken for the name of its column; if it is a text, add" in caplog.text
    message = fail(capsys, 2, "evaluate", "--task", "sts", "--data", path)
    assert "; a file without a header line needs names= (--names)" in message
    mining = ("mine", path, "--model", tiny, "--out", tmp_path / "m.jsonl", "--quiet", "--negatives", 1)
    path.write_text("first question,first answer\nsecond question,second answer\n")
    assert "--names" in fail(capsys, 2, *mining)
    succeed(capsys, *mining, "--names", "query,positive")
    assert "--names: must be names with commas between; got 'a,,b'" in fail(capsys, 2, *mining, "--names", "a,,b")


def test_search_keeps_an_index_that_knows_its_model(capsys, tiny, notes, tmp_path):
    index = tmp_path / "notes.index"
    first = succeed(capsys, "search", notes, "dogs", "--model", tiny, "--out", index, "--quiet")
    assert succeed(capsys, "search", index, "dogs") == first
    assert "a dog runs in the park" in first


def test_how_much_is_read_of_texts_makes_no_other_model(capsys, caplog, tiny, notes, tmp_path):
    index, short = tmp_path / "index", tmp_path / "short"
    succeed(capsys, "search", notes, "dogs", "--model", tiny, "--out", index, "--quiet")
    succeed(capsys, "search", notes, "dogs", "--model", tiny, "--out", short, "--quiet", "--max-length", 3)
    assert succeed(capsys, "search", index, "dogs", "--max-length", 3) and succeed(capsys, "search", short, "dogs")
    assert "another precision" not in caplog.text


def test_hits_show_control_characters_escaped(capsys, tiny, tmp_path):
    path, title = tmp_path / "pages.jsonl", "a\x1b]0;title\x07\nb\x9b"
    path.write_text(
        json.dumps({"text": "dogs\x1b[2J", "title": title, "path": "\x1b[1m", "line": "\r\n1", "by": "\x7f"})
    )
    arguments = ("search", path, "dogs", "--model", tiny, "--quiet")
    first, *others = succeed(capsys, *arguments).split("\n")
    assert first.endswith(r"  a\x1b]0;title\x07 b\x9b  \x1b[1m:1")
    assert others == [f"{'':12}dogs\\x1b[2J", f"{'':12}by: \\x7f", ""]
    assert json.loads(succeed(capsys, *arguments, "--json"))["results"][0]["hits"][0]["title"] == title


def test_search_in_a_run_shows_names_and_places(capsys, finished):
    lines = succeed(capsys, "search", finished, "parse an iso date", "-k", 3).rstrip("\n").split("\n")
    assert len(lines) == 6
    assert ".py:" in lines[0] and lines[0].startswith("  1  0.")


# mine

PAIRS = (
    ("parse a date", "read a date from a text"),
    ("dogs outside", "a dog runs in the park"),
    ("open a file", "read a file line by line"),
)


@pytest.fixture
def pairs(tmp_path) -> Path:
    path = tmp_path / "pairs.csv"
    path.write_text("question,answer,other\n" + "".join(f"{q},{a},x\n" for q, a in PAIRS), encoding="utf-8")
    return path


def test_mine_writes_records_that_batches_reads(capsys, tiny, pairs, notes, tmp_path):
    from jaxemb.retrieval import mine_hard_negatives

    out = tmp_path / "negatives.jsonl"
    arguments = ("mine", pairs, "--columns", "question,answer", "--out", out, "--model", tiny, "--negatives", 2)
    report = json.loads(succeed(capsys, *arguments, "--corpus", notes, "--json", "--quiet"))
    assert (report["records"], report["queries"], report["documents"]) == (3, 3, 5)  # the notes, one new answer
    assert report["queries_with_too_few"] == 0 and report["discarded"] == {}
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["question"], r["answer"]) for r in written] == list(PAIRS)
    columns = {"query_column": "question", "positive_column": "answer"}
    expected = mine_hard_negatives(jaxemb.load(tiny), read(pairs), list(TEXTS), num_negatives=2, **columns)
    assert written == expected.records("list")
    assert not list(tmp_path.glob("*.unfinished"))

    tokenizer = jaxemb.load(tiny).tokenizer
    batch = next(iter(batches(read(out), tokenizer, ["question", "answer", "negatives"], batch_size=3, max_length=16)))
    assert batch["negatives"].count == 6 and batch["answer"].count == 3


@pytest.mark.parametrize("format", ["list", "labeled-list"])
def test_mined_scores_are_what_a_student_learns_from(capsys, tiny, pairs, notes, tmp_path, format):
    """To the model that mined, the teacher's margins are its own: no loss; another one learns them."""
    out, embedder = tmp_path / "scored.jsonl", jaxemb.load(tiny)
    arguments = ("mine", pairs, "--columns", "question,answer", "--out", out, "--model", tiny, "--negatives", 2)
    succeed(capsys, *arguments, "--corpus", notes, "--quiet", "--scores", "--output-format", format)
    rate = {"list": 0.02, "labeled-list": 0.3}[format]
    if format == "list":
        columns = ("question", "answer", "negatives", "scores")
        objective = on_columns(losses.margin_mse, *columns[:3], others={"teacher_scores": "scores"})
    else:
        columns = ("question", "answer", "scores")  # a list of the positive and its negatives
        listwise = lambda q, d, scores: losses.distill_kl_scores((unit(d) @ unit(q)[..., None])[..., 0], scores)
        objective = on_columns(listwise, "question", "answer", others=["scores"])
    (batch,) = batches(read(out), embedder.tokenizer, columns, batch_size=3, max_length=16, epochs=1)
    assert batch["scores"].shape == (3, 3) and batch["scores"].dtype == np.float32

    def descend(model):
        value, gradient = jax.value_and_grad(lambda model: objective(model, batch, None)[0].mean())(model)
        return value, jax.tree.map(lambda leaf, slope: leaf - rate * slope, model, gradient)

    step = jax.jit(descend)
    assert step(embedder.model)[0] < 1e-6
    student = jax.tree.map(lambda leaf: leaf if leaf.ndim < 3 else leaf[..., ::-1], embedder.model)
    first, student = step(student)
    for _ in range(5):
        last, student = step(student)
    assert last < 0.8 * first


def test_mine_options_reach_the_miner(capsys, tiny, pairs, tmp_path):
    out = tmp_path / "pairs.jsonl"
    arguments = ("mine", pairs, "--columns", "question,answer", "--out", out, "--model", tiny, "--quiet")
    options = ("--output-format", "labeled-pair", "--scores", "--negatives", 2, "--max-score", -2, "--dim", 64)
    text = succeed(capsys, *arguments, *options)
    assert text == (
        f"{out}: 3 records of 3 pairs (3 queries, 3 documents)\n"
        "3 queries have less than 2 negatives; another --max-score may find more\n"
        "6 candidates discarded by max_score\n"
    )
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [list(record) for record in written] == [["question", "answer", "score"]] * 3


def test_mine_keeps_columns_and_says_what_is_left_out(capsys, tiny, pairs, tmp_path):
    out = tmp_path / "kept.jsonl"
    arguments = ("mine", pairs, "--columns", "question,answer", "--out", out, "--model", tiny, "--quiet")
    succeed(capsys, *arguments, "--negatives", 1, "--keep", "other", "--max-length", 8)
    assert [list(json.loads(line)) for line in out.read_text().splitlines()] == [
        ["question", "answer", "negatives", "other", "negatives_other"]
    ] * 3
    assert succeed(capsys, *arguments, "--negatives", 2, "--max-score", -2) == (
        f"{out}: 0 records of 3 pairs (3 queries, 3 documents)\n"
        "3 queries have less than 2 negatives and are left out; another --max-score may find more\n"
        "6 candidates discarded by max_score\n"
    )
    message = fail(capsys, 2, *arguments, "--keep", "id")
    assert "no field 'id'" in message and message.endswith("; choose others with --columns and --keep")
    message = fail(capsys, 2, *arguments, "--max-length", 4096)
    assert message.endswith("error: --max-length must be at most 256, what the model reads; got 4096")


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        (("--negatives", 9), "a larger --corpus"),
        (("--range-min", 100), "a smaller --range-min"),
        (("--max-score", -2, "--range-max", 1), "a larger --range-max or another --max-score"),
    ],
)
def test_what_may_find_more_negatives(capsys, tiny, notes, pairs, tmp_path, options, advice):
    arguments = ("mine", pairs, "--columns", "question,answer", "--out", tmp_path / "n.jsonl", "--model", tiny)
    shown = succeed(capsys, *arguments, "--corpus", notes, "--quiet", "--negatives", 1, *options)
    assert f"; {advice} may find more" in shown


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("NaN", "is not JSON: Out of range float values are not JSON compliant"),
        ("[1, 1e999]", "is not JSON: Out of range float values are not JSON compliant"),
        (r'"\ud83d"', "has a lone surrogate, half a character"),
    ],
)
def test_columns_to_keep_that_json_does_not_have(capsys, tiny, tmp_path, value, message):
    path, corpus, out = (tmp_path / name for name in ("pairs.jsonl", "corpus.jsonl", "v.jsonl"))
    path.write_text('{"query": "a", "positive": "b", "id": 1}\n' * 2)
    corpus.write_text('{"text": "c"}\n{"text": " "}\n{"text": "d", "id": ' + value + "}\n")
    arguments = ("mine", path, "--keep", "id", "--out", out, "--model", tiny / "absent")
    said = fail(capsys, 2, *arguments, "--corpus", corpus)
    assert f"error: {corpus}: record 2: column 'id' (--keep) {message}" in said
    path.write_text('{"query": "a", "positive": "b", "id": 1}\n{"query": "a", "positive": "c", "id": ' + value + "}\n")
    assert f"error: {path}: record 1: column 'id' (--keep) {message}" in fail(capsys, 2, *arguments)


def test_columns_to_keep_of_types_that_json_does_not_have(capsys, tiny, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    row = {"query": "a", "positive": "b", "day": date(2020, 1, 2), "price": Decimal("1.5"), "raw": b"x"}
    pq.write_table(pa.Table.from_pylist([row]), path := tmp_path / "pairs.parquet")
    for column, kind in {"day": "date", "price": "Decimal", "raw": "bytes"}.items():
        said = fail(capsys, 2, "mine", path, "--keep", column, "--out", tmp_path / "v.jsonl", "--model", tiny)
        assert f"{path}: record 0: column '{column}' (--keep) is not JSON: Object of type {kind} is not" in said


# info


def test_info_about_a_model(capsys, minilm):
    report = json.loads(succeed(capsys, "info", minilm, "--json"))
    assert report["family"] == "bert" and report["layers"] == 6 and report["embedding_dim"] == 384
    assert report["parameters"] == 22_565_376
    assert report["pooling"] == ["mean"] and report["similarity"] == "cosine" and report["max_length"] == 256
    assert report["tensors"] == {"float32": 101}
    text = succeed(capsys, "info", minilm)
    assert "parameters       22,565,376\n" in text and "tensors          float32: 101\n" in text
    assert "prompts          none\n" in text and "unit length      yes\n" in text


def test_info_about_the_machine(capsys):
    report = json.loads(succeed(capsys, "info", "--json"))
    assert report["jaxemb"] == jaxemb.__version__ and report["backend"] == "cpu" and len(report["devices"]) == 8


# train and quickstart


CONFIG = """
from tiny_run import toy_run

from jaxemb.train import adamw

def run(steps=2, learning_rate=1e-4):
    options = {"learning_rate": learning_rate}
    return toy_run(steps=steps, optimizer=adamw(learning_rate, steps), evaluate_every=1, options=options)
"""


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("    return undefined", 1, "NameError: name 'undefined' is not defined"),
        ("    return toy_run(\n        steps=0)", 2, "Run.steps must be a whole number of at least 1; got 0"),
        ("    return toy_run(data=lambda e: [][0])", 1, "IndexError: list index out of range"),
        ("    raise SystemExit(0)", 1, "SystemExit: 0"),
        ("    raise type('Enough', (BaseException,), {})('of it')", 1, "Enough: of it"),
        ("    return toy_run(data=lambda e: exit(0))", 1, "SystemExit: 0"),
        ("    raise type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})", 1, "Odd: no message"),
    ],
)
def test_an_error_in_a_config_file_shows_its_line(capsys, tmp_path, body, code, message):
    config = tmp_path / "config.py"
    config.write_text(f"from tiny_run import toy_run\n\ndef run():\n{body}\n")
    last = fail(capsys, code, "train", config, "--out", tmp_path / "run", "--quiet")
    assert f"error: {config}:4: {message}" in last


def test_train_runs_a_config_file_and_goes_on(capsys, tmp_path):
    config, out = tmp_path / "config.py", tmp_path / "run"
    config.write_text(CONFIG)
    arguments = ("train", config, "--out", out, "--quiet", "--json")
    report = json.loads(succeed(capsys, *arguments, "--set", "learning_rate=3e-5"))
    assert report["steps"] == 2 and report["metrics"]["toy/error"] > 0
    assert (out / "model").is_dir()
    again = json.loads(succeed(capsys, *arguments, "--set", "learning_rate=3e-5"))
    assert again["metrics"] == report["metrics"] and (report["steps_taken"], again["steps_taken"]) == (2, 0)
    text = succeed(capsys, *arguments[:-1], "--set", "learning_rate=3e-5")
    assert text.startswith("the run was finished, and nothing is trained; this is what it gave then:\ntoy/error  ")
    message = fail(capsys, 2, *arguments, "--set", "learning_rate=4e-5")
    assert "holds a different run" in message and "0.0001" not in message
    assert "To train this one, start anew with --overwrite, choose another directory" in message


def test_quickstart_leaves_everything_it_promises(finished):
    numbers = json.loads((finished / "metrics.json").read_text())
    assert numbers["pairs"] == {"train": 24, "validation": 24, "test": 24}
    for moment in ("before", "after"):
        assert 0 < numbers[moment]["ndcg@10"] <= 1 and numbers[moment]["ndcg@10_se"] > 0
    gain = numbers["after"]["ndcg@10"] - numbers["before"]["ndcg@10"]
    assert numbers["change"]["ndcg@10"] == pytest.approx(gain)
    assert jaxemb.load(finished / "model").max_length == 128
    page = (finished / "report.html").read_text()
    assert page.count("<circle ") == 72 and "jaxemb search" in page
    assert {"model", "index", "checkpoints", "metrics.jsonl", "run.json"} <= {p.name for p in finished.iterdir()}


def test_quickstart_again_trains_nothing_anew(capsys, tiny, finished):
    before = (finished / "metrics.jsonl").read_text()
    options = ("--limit", 24, "--steps", 3, "--batch-size", 8, "--quiet", "--json")
    numbers = json.loads(succeed(capsys, "quickstart", "--out", finished, "--model", tiny, *options))
    assert numbers["options"]["steps"] == 3
    assert (finished / "metrics.jsonl").read_text() == before


def test_a_directory_in_which_another_run_trains_is_bad_input(capsys, tmp_path):
    config, out = tmp_path / "config.py", tmp_path / "run"
    config.write_text(CONFIG)
    out.mkdir()
    with files.locked(out):
        message = fail(capsys, 2, "train", config, "--out", out, "--quiet")
    assert message == f"jaxemb: error: {out} is in use by another process; wait for it, or name another one"


def test_an_interrupt_exits_with_130(tiny, tmp_path):
    script = tmp_path / "config.py"
    script.write_text("import time\ndef run():\n    print('ready', flush=True)\n    time.sleep(60)\n")
    # A job that a shell runs in the background ignores SIGINT, and so would its children.
    program = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('jaxemb', run_name='__main__')"
    )
    command = [sys.executable, "-c", program, "train", str(script), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.rstrip().split("\n")[-1] == "jaxemb: interrupted"


@pytest.mark.parametrize(
    "at",
    [
        *(f"import {name}" for name in ("argparse", "jaxemb.cli.commands", "numpy", "jax", "jaxlib.xla_client")),
        "argparse.ArgumentParser.parse_args",
        "jaxemb.cli.commands._describe_machine",
    ],
)
def test_an_interrupt_at_any_time_is_one_line(at):
    """When a module is looked for, or a function called."""
    program = f"""
import importlib, os, runpy, signal, sys
from importlib.abc import MetaPathFinder
signal.signal(signal.SIGINT, signal.default_int_handler)
class Interrupts(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if "import " + name == {at!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupts())
sys.modules.pop("argparse", None)
if not {at!r}.startswith("import"):
    where, _, name = {at!r}.rpartition(".")
    module, _, kind = where.partition(".A")
    module = importlib.import_module(module)
    owner = getattr(module, "A" + kind) if kind else module
    setattr(owner, name, lambda *args: os.kill(os.getpid(), signal.SIGINT))
sys.argv = ["jaxemb", "info"]
runpy.run_module("jaxemb", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "jaxemb: interrupted\n")


# Bad input


def test_no_command_is_bad_usage(capsys):
    assert fail(capsys, 2) == "jaxemb: error: the following arguments are required: COMMAND [OPTIONS]"


@pytest.mark.parametrize("value", ["0", "-3", "many"])
def test_counts_are_positive(capsys, notes, value):
    message = fail(capsys, 2, "search", notes, "x", "-k", value)
    assert message.endswith(f"argument -k: must be a whole number of at least 1; got '{value}'")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("evaluate --task sts --data a.csv --layers 2", "argument --layers: only with --grid"),
        ("evaluate --task sts --data a.csv --max-loss 0.1", "argument --max-loss: only with --grid"),
        ("evaluate --task sts --data a.csv --split dev", "argument --split: only with --task retrieval"),
        ("evaluate --task retrieval --data a --columns a,b,c", "argument --columns: only with --task sts"),
        ("search . x --out b", "argument --out: only for a file of texts"),
        ("search . x --vectors b.npy", "argument --vectors: only for a file of texts"),
        ("mine a.csv --out b.jsonl --corpus-column c", "argument --corpus-column: only with --corpus"),
        ("encode - --out b.npy --column c", "argument --column: only for a file, as each line of stdin (-) is a text"),
        ("encode - --out b.npy --names c", "argument --names: only for a file, as each line of stdin (-) is a text"),
        (
            "encode - --out b.npy --format csv",
            "argument --format: only for a file, as each line of stdin (-) is a text",
        ),
        (
            "mine a.csv --out b.jsonl --corpus - --corpus-format csv",
            "argument --corpus-format: only for a file, as each line of stdin (-) is a text",
        ),
        ("mine a.csv --out b.jsonl --seed 1", "argument --seed: only with --sampling random"),
        (
            "encode a.txt --out b.npy --prompt x --prompt-name y",
            "argument --prompt-name: not allowed with argument --prompt",
        ),
    ],
)
def test_no_option_is_ignored(capsys, line, message):
    assert fail(capsys, 2, *line.split()).endswith(message)


@pytest.mark.parametrize(
    ("command", "option", "value", "message"),
    [
        ("mine", "--negatives", "9" * 20, "must be below 2**31"),
        ("mine", "--seed", "-1", "must be a whole number of at least 0"),
        ("mine", "--max-score", "nan", "must be a finite number"),
        ("mine", "--corpus-column", " ", "must not be empty"),
        ("mine", "--query-prompt", "\ud83d", "must be UTF-8"),
        ("evaluate", "--max-loss", "-0.1", "must be at least 0"),
        ("encode", "--model", "", "must not be empty"),
        ("encode", "--out", "a\0.npy", "must not have a zero byte"),
        ("mine", "--query-prompt", "a\0", "must not have a zero byte"),
        ("train", "--out", "", "must not be empty"),
    ],
)
def test_values_of_options_are_checked_before_anything_is_read(capsys, command, option, value, message):
    required = {"mine": ["a.csv", "--out", "b.jsonl"], "evaluate": ["--task", "sts", "--data", "a.csv"]}
    required |= {"encode": ["a.txt", "--out", "b.npy"], "train": ["a.py"]}
    assert fail(capsys, 2, command, *required[command], option, value).endswith(
        f"argument {option}: {message}; got {value!r}"
    )


def test_a_missing_file(capsys, tiny, tmp_path):
    arguments = ("encode", tmp_path / "none.txt", "--model", tiny, "--out", tmp_path / "v.npy")
    assert fail(capsys, 2, *arguments) == f"jaxemb: error: no such file: {tmp_path / 'none.txt'}"


def test_a_model_that_is_not_there(capsys, notes, tmp_path):
    message = fail(capsys, 2, "encode", notes, "--model", tmp_path / "none", "--out", tmp_path / "v.npy")
    assert message.startswith(f"jaxemb: error: '{tmp_path / 'none'}' is not a directory")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--out", "v.csv"), "--out must be a .jsonl file; got 'v.csv'"),
        (("--out", "none/v.jsonl"), "--out: there is no directory none"),
        (("--columns", "a,b,c"), "--columns must name two columns, QUERY,POSITIVE; got 'a,b,c'"),
        (
            ("--columns", "a,answer"),
            "no field 'a' (for column 'a'); there are ['answer', 'other', 'question']; a file without a header line "
            "needs names= (--names); choose others with --columns",
        ),
        (("--range-min", "-1"), "argument --range-min: must be a whole number of at least 0; got '-1'"),
        (("--range-max", "2"), "range_max must leave num_negatives = 3 candidates after range_min = 0; got 2"),
        (("--corpus", "none.txt"), "no such file: none.txt"),
        (
            ("--names", "label,other,x", "--columns", "label,other", "--output-format", "labeled-pair"),
            "the result (labeled-pair) would have two columns 'label'; rename that of the records, or choose another "
            "format",
        ),
    ],
)
def test_what_cannot_be_mined(capsys, tiny, pairs, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    arguments = ("mine", pairs, "--columns", "question,answer", "--out", "v.jsonl", "--model", tiny, "--quiet")
    assert fail(capsys, 2, *arguments, *options).endswith(message)
    assert not (tmp_path / "v.jsonl").exists()


def test_an_output_that_is_an_input(capsys, tiny, notes, tmp_path):
    pairs, texts, index, link = (tmp_path / name for name in ("p.jsonl", "v.npy", "notes.index", "link.jsonl"))
    pairs.write_text(before := '{"query": "a", "positive": "b"}\n')
    texts.write_text("a text\n")
    link.symlink_to(pairs)
    other = tmp_path / "q.csv"
    other.write_text("query,positive\na,b\n")
    succeed(capsys, "search", notes, "dogs", "--model", tiny, "--out", index, "--quiet")
    records = (index / "records.jsonl").read_text()
    for read_, arguments in (
        (pairs, ("mine", pairs, "--out", pairs)),
        (link, ("mine", link, "--out", pairs)),
        (pairs, ("mine", other, "--corpus", pairs, "--out", link)),
        (texts, ("encode", notes, texts, "--format", "txt", "--out", texts)),
        (index / "records.jsonl", ("search", index / "records.jsonl", "dogs", "--out", index)),
        (index / "vectors.npy", ("search", notes, "dogs", "--vectors", index / "vectors.npy", "--out", index)),
    ):
        message = fail(capsys, 2, *arguments, "--model", tiny, "--quiet")
        assert message == f"jaxemb: error: --out: {read_} is read, and would be overwritten; write elsewhere"
    assert (pairs.read_text(), (index / "records.jsonl").read_text()) == (before, records)


def test_an_output_that_is_no_npy(capsys, notes, tiny, tmp_path):
    message = fail(capsys, 2, "encode", notes, "--model", tiny, "--out", tmp_path / "v.csv")
    assert message == f"jaxemb: error: --out must be a .npy file; got '{tmp_path / 'v.csv'}'"


def test_an_output_directory_that_is_not_there(capsys, notes, tiny, tmp_path):
    message = fail(capsys, 2, "encode", notes, "--model", tiny, "--out", tmp_path / "no" / "v.npy")
    assert message == f"jaxemb: error: --out: there is no directory {tmp_path / 'no'}"


def test_a_file_with_several_columns(capsys, tmp_path):
    (tmp_path / "a.csv").write_text("title,body\nx,y\n")
    message = fail(capsys, 2, "encode", tmp_path / "a.csv", "--out", tmp_path / "v.npy")
    assert "a.csv has the columns title, body; choose one with --column" in message


def test_a_column_that_is_not_there(capsys, tmp_path):
    (tmp_path / "a.csv").write_text("title,body\nx,y\n")
    message = fail(capsys, 2, "encode", tmp_path / "a.csv", "--column", "text", "--out", tmp_path / "v.npy")
    assert message.endswith("record 0 has no text in column 'text' (--column); it has ['body', 'title']")


def test_a_text_that_is_none(capsys, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": 3}\n')
    message = fail(capsys, 2, "encode", tmp_path / "a.jsonl", "--out", tmp_path / "v.npy")
    assert message.endswith("record 1 has no text in column 'text' (--column); it has int 3 there")


def test_a_malformed_line(capsys, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\nbad\n')
    message = fail(capsys, 2, "encode", tmp_path / "a.jsonl", "--out", tmp_path / "v.npy")
    assert f"{tmp_path / 'a.jsonl'}:2: not valid JSON" in message


def test_a_prompt_that_the_model_does_not_have(capsys, notes, tiny, tmp_path):
    arguments = ("encode", notes, "--model", tiny, "--out", tmp_path / "v.npy", "--prompt-name", "query")
    assert "prompt_name is not known: the model has no prompts; got " in fail(capsys, 2, *arguments)


def test_more_dimensions_than_the_model_has(capsys, notes, tiny, tmp_path):
    arguments = ("encode", notes, "--model", tiny, "--out", tmp_path / "v.npy", "--dim", 1000)
    assert "dim must be in 1..384, the dimension of the embeddings; got 1000" in fail(capsys, 2, *arguments)


def test_columns_of_pairs_that_are_not_three(capsys, notes):
    message = fail(capsys, 2, "evaluate", "--task", "sts", "--data", notes, "--columns", "a,b")
    assert message == "jaxemb: error: --columns must name three columns, A,B,SCORE; got 'a,b'"


def test_columns_that_a_file_does_not_have(capsys, pairs, tmp_path):
    there = (
        "there are ['answer', 'other', 'question']; a file without a header line needs names= (--names); "
        "choose others with --columns"
    )
    message = fail(capsys, 2, "evaluate", "--task", "sts", "--data", pairs)
    assert message == f"jaxemb: error: {pairs}: no field 'sentence1' (for column 'first'); {there}"
    assert there in fail(capsys, 2, "mine", pairs, "--columns", "question,title", "--out", tmp_path / "x.jsonl")
    corpus = ("--corpus", pairs, "--corpus-column", "title")
    message = fail(capsys, 2, "mine", pairs, "--columns", "question,answer", *corpus, "--out", tmp_path / "x.jsonl")
    assert "record 0 has no text in column 'title' (--corpus-column)" in message


def test_data_that_is_not_there(capsys, notes):
    assert fail(capsys, 2, "evaluate", "--task", "sts", "--data", "absent") == "jaxemb: error: no such file: absent"
    message = fail(capsys, 2, "evaluate", "--task", "retrieval", "--data", "absent")
    assert message.startswith("jaxemb: error: there is no directory absent; expected a directory of corpus.jsonl")
    message = fail(capsys, 2, "evaluate", "--task", "retrieval", "--data", notes)
    assert f"{notes} is a file; expected a directory of corpus.jsonl" in message


def test_a_score_that_is_no_number(capsys, tmp_path):
    (tmp_path / "a.csv").write_text("sentence1,sentence2,score\nx,y,high\n")
    message = fail(capsys, 2, "evaluate", "--task", "sts", "--data", tmp_path / "a.csv")
    assert "a.csv:2: " in message and "'high'" in message
    (tmp_path / "a.jsonl").write_text('{"sentence1": "x", "sentence2": "y", "score": ' + "9" * 400 + "}\n")
    message = fail(capsys, 2, "evaluate", "--task", "sts", "--data", tmp_path / "a.jsonl")
    assert "a.jsonl:1: column 'score': int too large to convert to float" in message


def test_a_directory_that_is_no_retrieval_set(capsys, tmp_path):
    message = fail(capsys, 2, "evaluate", "--task", "retrieval", "--data", tmp_path)
    assert (
        f"{tmp_path} is no retrieval set, as it has []; expected a directory of corpus.jsonl, queries.jsonl" in message
    )
    (tmp_path / "pairs.csv").write_text("query,positive\na,b\n")
    message = fail(capsys, 2, "evaluate", "--task", "retrieval", "--data", tmp_path / "pairs.csv")
    assert "pairs.csv is a file; expected a directory of" in message and "RetrievalSet takes the same" in message


def test_an_index_makes_nobody_fetch_its_model(capsys, monkeypatch, tiny, notes, tmp_path):
    index = tmp_path / "index"
    succeed(capsys, "search", notes, "dogs", "--model", tiny, "--out", index, "--quiet")
    manifest = json.loads((index / "manifest.json").read_text())
    (index / "manifest.json").write_text(json.dumps(manifest | {"model": "acme/model"}))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    message = fail(capsys, 2, "search", index, "dogs")
    assert f"{index}: the model of the index is absent; name it with --model: 'acme/model' is not" in message
    succeed(capsys, "search", index, "dogs", "--model", tiny)


def test_a_model_that_is_a_path_is_not_looked_up_on_the_hub(capsys, monkeypatch, notes, tmp_path):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    message = fail(capsys, 2, "encode", notes, "--out", tmp_path / "a.npy", "--model", "./my-model")
    assert "'./my-model' is not a directory" in message


def test_searching_nothing(capsys, tmp_path, notes):
    assert fail(capsys, 2, "search", tmp_path / "none", "x").endswith(f"no run, index or file {tmp_path / 'none'}")
    assert fail(capsys, 2, "search", notes, " ").endswith("argument QUERY: must not be empty; got ' '")
    assert "is no complete search index: manifest.json is missing" in fail(capsys, 2, "search", tmp_path, "x")
    (tmp_path / "run" / "model").mkdir(parents=True)
    message = fail(capsys, 2, "search", tmp_path / "run", "x")
    assert f"run {tmp_path / 'run'} has no index" in message and f"--out {tmp_path / 'run' / 'index'}" in message
    (tmp_path / "run" / "model").rmdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    assert f"the run {tmp_path / 'run'} has no model yet; go on" in fail(capsys, 2, "search", tmp_path / "run", "x")


def test_a_name_that_no_path_can_have(capsys, tmp_path):
    (tmp_path / "run.py").write_text("from tiny_run import toy_run as run")
    assert "File name too long" in fail(capsys, 2, "train", tmp_path / "run.py", "--out", tmp_path / ("a" * 300))


def test_a_config_that_is_not_there(capsys, tmp_path):
    message = fail(capsys, 2, "train", tmp_path / "none.py", "--out", tmp_path / "run")
    assert message == f"jaxemb: error: no config file {tmp_path / 'none.py'}"


def test_a_config_without_run(capsys, tmp_path):
    (tmp_path / "config.py").write_text("steps = 3\n")
    message = fail(capsys, 2, "train", tmp_path / "config.py", "--out", tmp_path / "run")
    assert "must define a function run(**options)" in message


def test_a_config_with_a_syntax_error(capsys, tmp_path):
    (tmp_path / "config.py").write_text("def run(:\n")
    message = fail(capsys, 2, "train", tmp_path / "config.py", "--out", tmp_path / "run")
    assert "invalid syntax (config.py, line 1)" in message


def test_an_option_that_run_does_not_take(capsys, tmp_path):
    (tmp_path / "config.py").write_text("def run(steps=3):\n    pass\n")
    arguments = ("train", tmp_path / "config.py", "--out", tmp_path / "run")
    assert "unexpected keyword argument 'colour'" in fail(capsys, 2, *arguments, "--set", "colour=red")
    assert "--set must be NAME=VALUE; got 'colour'" in fail(capsys, 2, *arguments, "--set", "colour")
    assert "must return a jaxemb.train.Run; got NoneType" in fail(capsys, 2, *arguments)


# compile


TOY = """
from tiny_run import toy_run
import jax.numpy as jnp
from jaxemb.checkpoints import Parameters

def run(size=5):
    return toy_run(embedder=lambda: Parameters({"w": jnp.zeros(5), "more": jnp.zeros((2**18, size))}))
"""


def test_compile_says_what_a_run_needs(capsys, tmp_path):
    pytest.importorskip("libtpu", reason="the TPU compiler is absent: pip install 'jaxemb[tpu]'")
    (tmp_path / "config.py").write_text(TOY)
    arguments = ("compile", tmp_path / "config.py", "--topology", "v5e:2x2", "--records", 16)
    report = json.loads(succeed(capsys, *arguments, "--mesh", "data=2,fsdp=2", "--json"))
    assert report["fits"] and report["records"] == 16 and report["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1}


@pytest.mark.slow
def test_compile_fails_if_the_run_does_not_fit(capsys, tmp_path):
    pytest.importorskip("libtpu", reason="the TPU compiler is absent: pip install 'jaxemb[tpu]'")
    (tmp_path / "config.py").write_text(TOY)
    arguments = ("compile", tmp_path / "config.py", "--topology", "v5e:2x2")
    assert succeed(capsys, *arguments).startswith("v5e:2x2: 4 chips, mesh data=4 fsdp=1 tensor=1; 8 records")
    assert main([*map(str, arguments), "--set", "size=1000000"]) == 1
    printed = capsys.readouterr()
    assert "DOES NOT FIT" in printed.out and "Traceback" not in printed.err
    assert printed.err.endswith("config.py needs more than the memory of a chip of v5e:2x2\n")


@pytest.mark.parametrize("mesh", ["data", "data=", "rows=4", "data=2,data=2", "data=2;fsdp=2", ""])
def test_a_mesh_that_is_none(capsys, mesh):
    message = fail(capsys, 2, "compile", "config.py", "--topology", "v5e:2x2", "--mesh", mesh)
    assert "argument --mesh: must be sizes of data, fsdp, tensor, such as data=16,fsdp=4" in message


def test_a_topology_that_is_none(capsys):
    assert "a topology is v5e:AxB" in fail(capsys, 2, "compile", "config.py", "--topology", "v5e")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--num-processes", 2), "--coordinator, --num-processes and --process-id need --distributed"),
        (("--distributed", "--process-id", 0), "are given all three or, to find out, none"),
        (("--distributed", "--coordinator", "host"), "argument --coordinator: must be HOST:PORT; got 'host'"),
        (
            ("--distributed", "--coordinator", "host:1", "--num-processes", 2, "--process-id", 2),
            "--process-id must be in 0..1; got 2",
        ),
    ],
)
def test_processes_that_cannot_be_joined(capsys, tmp_path, options, message):
    (tmp_path / "config.py").write_text("def run():\n    raise AssertionError\n")
    assert message in fail(capsys, 2, "train", tmp_path / "config.py", "--out", tmp_path / "run", *options)


@pytest.mark.slow
def test_processes_find_each_other_before_the_config_is_read(tmp_path):
    config = tmp_path / "config.py"
    config.write_text(
        "import jax\ndef run():\n    raise ValueError(f'{jax.process_index()} of {jax.process_count()}')\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "jaxemb", "train", str(config), "--out", str(tmp_path / "run"), "--distributed"]
    command += ["--coordinator", address, "--num-processes", "2", "--process-id"]
    processes = [
        subprocess.Popen([*command, i], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) for i in ("0", "1")
    ]
    said = [process.communicate(timeout=120)[1] for process in processes]
    for i, process in enumerate(processes):
        assert process.returncode == 2 and f"jaxemb: error: {config}:3: {i} of 2" in said[i]


def test_work_that_fails_is_told_from_bad_input(capsys, tmp_path):
    (tmp_path / "config.py").write_text("def run():\n    raise RuntimeError('the disk\\nis full')\n")
    arguments = ("train", tmp_path / "config.py", "--out", tmp_path / "run")
    assert fail(capsys, 1, *arguments) == f"jaxemb: error: {arguments[1]}:2: RuntimeError: the disk is full"
    with pytest.raises(RuntimeError, match="the disk"):
        main([*map(str, arguments), "--debug"])
