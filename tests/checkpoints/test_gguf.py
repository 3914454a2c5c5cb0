"""GGUF files are read as the directories that they were made from."""

import struct

import jax
import numpy as np
import pytest
from gguf_files import CONFIGS, byte_pairs, sentence_pieces, tensors_of, write_directory, write_gguf

import jaxemb
from jaxemb.checkpoints import CheckpointError, load_encoder
from jaxemb.pooling import LastToken, Mean
from jaxemb.pretraining import LanguageModel

gguf = pytest.importorskip("gguf")

TEXTS = ["cat at a cat", "☃ <|start|>", ""]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_model_is_that_of_its_directory(name, tmp_path):
    tensors = tensors_of(CONFIGS[name])
    write_directory(tmp_path, CONFIGS[name], tensors)
    write_gguf(tmp_path / "model.gguf", name, tensors, more=byte_pairs)
    expected, _ = load_encoder(tmp_path)
    found = jaxemb.load(tmp_path / "model.gguf")
    assert found.model.encoder.config == expected.config
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found.model.encoder, expected)
    if name == "llama":
        np.testing.assert_array_equal(LanguageModel.of(found).head.table, tensors["lm_head.weight"])


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16"])
def test_quantised_weights_are_what_they_stand_for(kind, tmp_path):
    tensors, kind = tensors_of(CONFIGS["qwen2"]), gguf.GGMLQuantizationType[kind]
    write_gguf(tmp_path / "model.gguf", "qwen2", tensors, kind, byte_pairs)
    rounded = {n: gguf.dequantize(gguf.quantize(t, kind), kind) if t.ndim == 2 else t for n, t in tensors.items()}
    write_directory(tmp_path, CONFIGS["qwen2"], rounded)
    found, expected = jaxemb.load(tmp_path / "model.gguf").model.encoder, load_encoder(tmp_path)[0]
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_what_is_saved_is_a_directory_of_the_same_model(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, "qwen3", tensors_of(CONFIGS["qwen3"]), gguf.GGMLQuantizationType.Q8_0, byte_pairs)
    found = jaxemb.load(path)
    assert isinstance(found.model.pooling, LastToken) and found.max_length == 48
    found.save(tmp_path / "saved")
    again = jaxemb.load(tmp_path / "saved")
    jax.tree.map(np.testing.assert_array_equal, again.model, found.model)
    assert again.tokenizer.special_ids == found.tokenizer.special_ids == {"bos": 1, "eos": 0, "pad": 0}
    for ours, theirs in zip(found.tokenizer(TEXTS), again.tokenizer(TEXTS), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    messages = [{"role": "user", "content": "cat"}]
    assert again.tokenizer.chat(messages) == found.tokenizer.chat(messages) == "<|start|>cat"


def test_tokens_are_those_that_the_file_says(tmp_path):
    tensors = tensors_of(CONFIGS["llama"])

    def ids(tokenizer, text):
        write_gguf(tmp_path / "model.gguf", "llama", tensors, more=tokenizer)
        found = jaxemb.load(tmp_path / "model.gguf", pooling="mean", causal=False)
        assert isinstance(found.model.pooling, Mean) and not found.model.encoder.config.causal
        return [found.tokenizer.backend.id_to_token(i) for i in found.tokenizer([text])[0]]

    assert ids(byte_pairs, "cat at a") == ["<|start|>", "cat", "Ġa", "t", "Ġa", "<|end|>"]
    assert ids(sentence_pieces, "cat at ☃") == ["<s>", "▁cat", "▁", "at", "▁", "<0xE2>", "<0x98>", "<0x83>"]


def test_what_is_not_read_is_named(tmp_path):
    path, tensors = tmp_path / "model.gguf", tensors_of(CONFIGS["llama"])
    path.write_bytes(b"GGUF and no more")
    with pytest.raises(CheckpointError, match="not a complete GGUF file"):
        jaxemb.load(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    write_gguf(path, "llama", tensors, more=byte_pairs)
    with pytest.raises(CheckpointError, match=r"missing: layers\.1\.mlp\.up_proj\.weight"):
        jaxemb.load(path)
    writer = gguf.GGUFWriter(path, "falcon")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"general.architecture must be one of \['gemma2', .*; got 'falcon'"):
        jaxemb.load(path)


def replaced(tokenizer, **entries):
    """What adds the tokenizer, but for some entries, "__" for each "."; None for none."""

    def add(writer):
        tokenizer(writer)
        for key, value in entries.items():
            key = key.replace("__", ".")
            writer.kv_data[0].pop(key, None)
            kinds = {bool: "BOOL", int: "INT32", float: "FLOAT32", str: "STRING", list: "ARRAY"}
            if value is not None:
                writer.add_key_value(key, value, gguf.GGUFValueType[kinds[type(value)]])

    return add


@pytest.mark.parametrize(
    ("tokenizer", "key", "value", "expected"),
    [
        (byte_pairs, "token_type", [3, 3], "must be a list of 300 whole numbers in 0..6, one for each token"),
        (byte_pairs, "token_type", 0, "must be a list of 300"),
        (byte_pairs, "token_type", [7] * 300, "must be a list of 300"),
        (byte_pairs, "merges", ["abc"], "must be two tokens.*got 'abc'"),
        (byte_pairs, "merges", ["c zzz"], "must be two tokens.*got 'c zzz'"),
        (byte_pairs, "tokens", ["a", "b", "a"], "must be different texts; got 'a' twice"),
        (byte_pairs, "tokens", ["a"], "merges|token_type"),
        (byte_pairs, "bos_token_id", 300, r"must be a whole number in 0\.\.299; got 300"),
        (sentence_pieces, "scores", [0.0], "must be 300, one for each token; got 1"),
        (sentence_pieces, "scores", 1.0, "must be a list of finite numbers"),
        (sentence_pieces, "unknown_token_id", 300, r"must be a whole number in 0\.\.299"),
    ],
)
def test_what_is_wrong_with_a_tokenizer_is_named(tokenizer, key, value, expected, tmp_path):
    path = tmp_path / "model.gguf"
    more = replaced(tokenizer, **{f"tokenizer__ggml__{key}": value})
    write_gguf(path, "llama", tensors_of(CONFIGS["llama"]), more=more)
    with pytest.raises(CheckpointError, match=rf"{path}: tokenizer\.ggml\..*{expected}"):
        jaxemb.load(path)


def test_what_the_file_says_of_pooling_and_what_it_lacks(tmp_path, caplog):
    path, tensors = tmp_path / "model.gguf", tensors_of(CONFIGS["llama"])

    def found(**entries):
        caplog.clear()
        write_gguf(path, "llama", tensors, more=replaced(byte_pairs, **entries))
        return jaxemb.load(path).model.pooling

    assert isinstance(found(llama__pooling_type=1), Mean) and not caplog.messages
    assert isinstance(found(llama__pooling_type=0), LastToken)
    assert "pooling_type says that states are not pooled" in caplog.text
    assert isinstance(found(llama__pooling_type=-1, tokenizer__ggml__token_type=None), LastToken)
    assert "nothing says how" in caplog.text and "no tokenizer.ggml.token_type" in caplog.text
    for wrong in (True, "mean", [1], 4):
        with pytest.raises(CheckpointError, match=rf"{path}: llama.pooling_type must be a whole number in -1..3"):
            found(llama__pooling_type=wrong)


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("model.embed_tokens.weight", np.ravel, r"'token_embd.weight' must have two axes; its shape is \(9600,\)"),
        ("model.norm.weight", lambda t: t.astype(np.int8), "'output_norm.weight' is of the type I8"),
        ("lm_head.weight", lambda t: t.astype(np.float64), "'output.weight' is of the type F64"),
    ],
)
def test_tensors_that_are_not_read_are_named(name, change, expected, tmp_path):
    path, tensors = tmp_path / "model.gguf", tensors_of(CONFIGS["llama"])
    write_gguf(path, "llama", tensors | {name: change(tensors[name])}, more=byte_pairs)
    with pytest.raises(CheckpointError, match=rf"{path}: tensor {expected}"):
        jaxemb.load(path)


def test_names_and_rows_that_do_not_fit_are_named(tmp_path):
    path, tensors = tmp_path / "model.gguf", tensors_of(CONFIGS["llama"])
    write_gguf(path, "llama", tensors, more=lambda w: w.add_tensor("foo", np.ones(3, "f")))
    with pytest.raises(CheckpointError, match=rf"{path}: tensors must be called .*; got 'foo'"):
        jaxemb.load(path)
    del tensors["model.layers.0.self_attn.q_proj.weight"]
    write_gguf(path, "llama", tensors, more=lambda w: w.add_tensor("blk.0.attn_q.weight", np.ones((31, 32), "f")))
    with pytest.raises(CheckpointError, match=rf"{path}: tensor 'blk.0.attn_q.weight' must have pairs .* it has 31"):
        jaxemb.load(path)


@pytest.mark.parametrize(
    ("counts", "rest"),
    [
        ((0, 1), struct.pack("<Q1sIIQ", 1, b"a", 9, 0, 2**60)),  # a list of 2^60 bytes
        ((0, 1), struct.pack("<Q1sIIQ", 1, b"a", 9, 8, 2**60)),  # of texts
        ((0, 1), struct.pack("<Q1sIQ", 1, b"a", 8, 2**60)),  # a text
        ((0, 2**60), b""),
        ((2**60, 0), b""),
        ((1, 0), struct.pack("<Q1sI", 1, b"a", 2**32 - 1)),  # axes
    ],
)
def test_lengths_are_those_of_the_file(counts, rest, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, *counts) + rest)
    with pytest.raises(CheckpointError, match=r"not a complete GGUF file \(\d+ bytes are to follow byte \d+"):
        jaxemb.load(path)
