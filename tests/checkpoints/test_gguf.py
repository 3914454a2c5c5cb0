"""GGUF files are read as the directories that they were made from."""

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
