"""Encoding gives the same vectors however texts are batched, and says clearly what it cannot take."""

import dataclasses
import logging
import re
import resource

import jax
import numpy as np
import pytest

import jaxemb
from jaxemb import encode as encoding
from jaxemb.embedder import Dense
from jaxemb.nn import Linear
from jaxemb.parallel import make_mesh

SENTENCE = "a plane is taking off from the runway of a small airport near the sea"


@pytest.fixture(scope="module")
def embedder(tiny_minilm):
    return jaxemb.load(tiny_minilm)


@pytest.fixture(scope="module")
def texts():
    """Texts from very short to long, in an order that is not theirs, one of them empty."""
    words = SENTENCE.split()
    return ["", *(" ".join((words * 20)[i : i + (3, 70, 12, 1, 40)[i % 5]]) for i in range(40))]


@pytest.fixture(scope="module")
def one_by_one(embedder, texts):
    return np.stack([embedder.encode(text) for text in texts])


def test_batched_and_packed_equal_one_by_one(embedder, texts, one_by_one):
    batches = list(encoding.plan(embedder.tokenizer(texts, 256), 1024, 256))
    assert {batch.tokens.texts_per_row > 1 for batch in batches} == {True, False}  # some packed, some not
    np.testing.assert_allclose(embedder.encode(texts), one_by_one, atol=1e-5)


def test_small_and_unaligned_batches_change_nothing(embedder, texts, one_by_one):
    np.testing.assert_allclose(embedder.encode(texts, batch_tokens=300), one_by_one, atol=1e-5)


@pytest.mark.parametrize("devices", [*(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2)), 8])
def test_any_number_of_devices_gives_the_same(embedder, texts, one_by_one, devices):
    mesh = make_mesh(devices=jax.devices()[:devices])
    np.testing.assert_allclose(embedder.encode(texts, mesh=mesh, batch_tokens=256), one_by_one, atol=1e-5)


def test_windows_are_put_back_in_order(embedder, monkeypatch):
    monkeypatch.setattr(encoding, "_LEAST_WINDOW", 4)
    texts = [f"{word} number {i}" for i, word in enumerate(SENTENCE.split())]
    got = embedder.encode(texts, batch_tokens=32)
    monkeypatch.undo()
    np.testing.assert_allclose(got, embedder.encode(texts), atol=1e-5)


def test_every_text_is_planned_once():
    rng = np.random.default_rng(0)
    sequences = [rng.integers(1, 99, n) for n in rng.integers(2, 200, 500)]
    seen = []
    for batch in encoding.plan(sequences, 512, 200, shards=2):
        tokens = batch.tokens
        assert tokens.ids.shape[0] % 2 == 0 and tokens.ids.shape[1] <= 200
        row, segment = batch.slots // tokens.texts_per_row, batch.slots % tokens.texts_per_row + 1
        for index, r, s in zip(batch.indices, row, segment, strict=True):
            np.testing.assert_array_equal(tokens.ids[r][tokens.segment_ids[r] == s], sequences[index])
            seen.append(index)
    assert sorted(seen) == list(range(500))


def test_shapes_of_a_string_a_list_and_nothing(embedder):
    assert embedder.encode("one").shape == (384,)
    assert embedder.encode(["one"]).shape == (1, 384)
    assert embedder.encode([]).shape == (0, 384)
    assert embedder.encode([], dim=32).shape == (0, 32)
    assert embedder.encode(["one"], dtype="float16").dtype == np.float16


def test_an_empty_string_is_a_text(embedder):
    assert np.linalg.norm(embedder.encode("")) == pytest.approx(1, abs=1e-5)


def test_prompts_are_put_in_front(embedder):
    prompted = embedder.replace(prompts={"query": "query: "}, default_prompt_name="query")
    expected = embedder.encode(["query: one"])
    np.testing.assert_array_equal(embedder.encode(["one"], prompt="query: "), expected)
    np.testing.assert_array_equal(prompted.encode(["one"]), expected)
    np.testing.assert_array_equal(prompted.encode(["one"], prompt=""), embedder.encode(["one"]))


def test_results_go_to_a_memory_mapped_file(embedder, tmp_path, texts, one_by_one):
    got = embedder.encode(texts, out=tmp_path / "vectors.npy")
    assert isinstance(got, np.memmap)
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy", mmap_mode="r"), one_by_one, atol=1e-5)
    assert isinstance(embedder.encode(["one"], out=tmp_path / "x.vec"), np.memmap)
    assert embedder.encode([], out=tmp_path / "x.vec").shape == np.load(tmp_path / "x.vec").shape == (0, 384)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vectors.npy", "x.vec"]


@pytest.mark.parametrize("failure", ["text", "interrupt", "disk"])
def test_a_file_of_vectors_stays_as_it_was_if_encoding_fails(embedder, tmp_path, monkeypatch, failure):
    out = tmp_path / "vectors.npy"
    before, bytes_before = embedder.encode(["one", "two"], out=out), out.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    match failure:
        case "text":
            texts, error = ["a", "b", "broken \ud83d"], (TypeError, ValueError)
        case "interrupt":
            texts, error = ["a", "b"], KeyboardInterrupt
            monkeypatch.setattr(encoding, "_embed", lambda *args, **options: (_ for _ in ()).throw(KeyboardInterrupt))
        case "disk":
            texts, error = ["a", "b", "c"], OSError
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(error) as raised:
            embedder.encode(texts, out=out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    if failure == "disk":
        assert str(out) in str(raised.value)
    assert out.read_bytes() == bytes_before and list(tmp_path.iterdir()) == [out]
    np.testing.assert_array_equal(before, np.load(out))


def test_vectors_are_encoded_only_where_they_can_be_written(embedder, tmp_path):
    (tmp_path / "directory").mkdir()
    with pytest.raises(OSError, match=r"is no regular file: .*directory"):
        embedder.encode(["one"], out=tmp_path / "directory")
    with pytest.raises(ValueError, match="expected a path; got ''"):
        embedder.encode(["one"], out="")


def test_a_single_string_has_every_option_too(embedder, tmp_path, capsys):
    mesh = make_mesh(devices=jax.devices()[:1])
    got = embedder.encode("one", out=tmp_path / "vector.npy", mesh=mesh, show_progress=True)
    assert "texts" in capsys.readouterr().err
    assert isinstance(got, np.memmap) and got.shape == (384,)
    np.testing.assert_array_equal(np.load(tmp_path / "vector.npy"), got[None])
    np.testing.assert_allclose(got, embedder.encode("one"), atol=1e-5)


def test_texts_that_are_cut_are_counted_in_one_warning(embedder, caplog):
    for _ in range(2):  # as evaluations of a run do
        with caplog.at_level(logging.WARNING):
            embedder.encode(["word " * 300, "short", "word " * 400])
    assert [r.getMessage() for r in caplog.records] == ["2 of 3 texts were cut to max_length = 256 tokens"]


@pytest.mark.parametrize(
    ("texts", "options", "error", "message"),
    [
        (["a", None], {}, TypeError, r"texts\[1\] must be a string; got NoneType None"),
        ([3.5], {}, TypeError, r"texts\[0\] must be a string; got float 3.5"),
        (["a", "b", b"c"], {}, TypeError, r"texts\[2\] must be a string; got bytes b'c'"),
        (b"abc", {}, TypeError, "texts must be a string or a sequence of strings; got bytes"),
        (None, {}, TypeError, "texts must be a string or a sequence of strings; got NoneType"),
        (np.array("a"), {}, TypeError, "texts must be a string or a sequence of strings; got ndarray"),
        (["a"], {"dim": 0}, ValueError, r"dim must be in 1..384, the dimension of the embeddings; got 0"),
        (["a"], {"dim": 385}, ValueError, r"dim must be in 1..384, the dimension of the embeddings; got 385"),
        (["a"], {"batch_tokens": 0}, ValueError, "batch_tokens must be in 1.."),
        (["a"], {"dtype": "int8"}, ValueError, "dtype must be one of .*; got 'int8'"),
        (["a"], {"prompt_name": ""}, ValueError, "prompt_name is not known: the model has no prompts; got ''"),
        (["a"], {"prompt_name": "none"}, ValueError, "prompt_name is not known: the model has no prompts; got 'none'"),
    ],
)
def test_bad_input_is_named(embedder, texts, options, error, message):
    with pytest.raises(error, match=message):
        embedder.encode(texts, **options)


def test_texts_without_finite_embeddings_are_named(embedder, tmp_path):
    """As with weights that training has spoilt, or numbers that float16 cannot hold."""
    encoder, plane = embedder.model.encoder, embedder.tokenizer(["plane"])[0][1]
    spoilt = dataclasses.replace(encoder.embeddings, tokens=encoder.embeddings.tokens.at[plane].set(np.nan))
    large = Dense(linear=Linear(1e7 * np.eye(384, 8, dtype=np.float32)))
    for dtype, changes, texts in (
        ("float32", {"encoder": dataclasses.replace(encoder, embeddings=spoilt)}, ["a train " * 40, "a plane"]),
        ("float16", {"heads": (large,)}, ["a train"]),
    ):
        model = dataclasses.replace(embedder.model, **changes)
        message = f"no finite embedding in {dtype} of texts[{len(texts) - 1}] {texts[-1]!r}; weights or"
        with pytest.raises(ValueError, match=re.escape(message)):
            embedder.replace(model=model).encode(texts, dtype=dtype, out=tmp_path / "x.npy")
        assert not list(tmp_path.iterdir())


def test_a_prompt_and_the_name_of_one_exclude_each_other(embedder):
    prompted = embedder.replace(prompts={"query": "q: "})
    with pytest.raises(ValueError, match="prompt and prompt_name exclude each other; got 'p: ' and 'query'"):
        prompted.encode(["one"], prompt="p: ", prompt_name="query")


def test_a_prompt_of_a_model_that_has_none(embedder):
    with pytest.raises(ValueError, match="prompt_name is not known: the model has no prompts; got 'query'"):
        embedder.replace(prompts={}).encode(["one"], prompt_name="query")
    with pytest.raises(ValueError, match=r"prompt_name must be one of \['query'\]; got 'doc'"):
        embedder.replace(prompts={"query": "q: "}).encode(["one"], prompt_name="doc")
