"""Writes tiny random decoders as GGUF files, as llama.cpp converts them, and as the directories that they were."""

import json
from pathlib import Path

import numpy as np

from jaxemb.checkpoints import write_tensors
from jaxemb.checkpoints.weights import new_format
from jaxemb.encoders.families import family_of

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES |= {"intermediate_size": 64, "max_position_embeddings": 48, "vocab_size": 300, "rms_norm_eps": 1e-5}
CONFIGS = {
    "llama": SIZES | {"model_type": "llama", "rope_theta": 5000.0, "tie_word_embeddings": False, "head_dim": 8},
    "qwen2": SIZES | {"model_type": "qwen2", "rope_theta": 5000.0, "tie_word_embeddings": True},
    "qwen3": SIZES | {"model_type": "qwen3", "rope_theta": 5000.0, "tie_word_embeddings": True, "head_dim": 16},
    "gemma2": SIZES | {"model_type": "gemma2", "rope_theta": 10_000.0, "head_dim": 16, "sliding_window": 8},
    "gemma3": SIZES | {"model_type": "gemma3_text", "rope_theta": 10_000.0, "head_dim": 16, "sliding_window": 8},
}
_PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OF_GEMMA = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_OUTSIDE = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}


def tensors_of(config: dict) -> dict[str, np.ndarray]:
    """Random ones, under the names of `config.json`'s model."""
    family, rng = family_of(config), np.random.default_rng(0)
    format = new_format(family.config(config), family, config)
    found = {}
    for tensor in format.stored:
        shape = format.shapes[tensor.weight.leaves[0]][tensor.layer is not None :]
        shape = shape[::-1] if tensor.weight.transpose else shape
        found[f"model.{tensor.name}"] = rng.normal(size=shape, scale=0.2).astype(np.float32)
    if not config.get("tie_word_embeddings", family.heads["language"].is_tied):
        found["lm_head.weight"] = rng.normal(size=(config["vocab_size"], config["hidden_size"])).astype(np.float32)
    return found


def write_directory(path: Path, config: dict, tensors: dict[str, np.ndarray]) -> None:
    write_tensors(path, tensors)
    (path / "config.json").write_text(json.dumps(config))


def write_gguf(path: Path, name: str, tensors: dict[str, np.ndarray], quantised=None, more=None) -> None:
    """The model of that name; matrices are `quantised` to a type of `gguf`, and `more(writer)` adds what it likes."""
    import gguf

    config, writer = CONFIGS[name], gguf.GGUFWriter(path, name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
        writer.add_rope_dimension_count(config["head_dim"])
    if "sliding_window" in config:
        writer.add_sliding_window(config["sliding_window"])
    for full, tensor in tensors.items():
        *before, kind = full.removesuffix(".weight").removesuffix(".bias").removeprefix("model.").split(".", 2)
        names = _PARTS | (_OF_GEMMA if name.startswith("gemma") else {})
        theirs = f"blk.{before[1]}.{names[kind]}" if before else _OUTSIDE[kind]
        part = full.rpartition(".")[2]
        if name == "llama" and theirs.endswith(("attn_q", "attn_k")):
            heads = config["num_attention_heads" if theirs.endswith("q") else "num_key_value_heads"]
            halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
            tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
        if name.startswith("gemma") and theirs.endswith("norm"):
            tensor = tensor + 1
        if quantised is not None and tensor.ndim == 2:
            writer.add_tensor(f"{theirs}.{part}", gguf.quantize(tensor, quantised), raw_dtype=quantised)
        else:
            writer.add_tensor(f"{theirs}.{part}", tensor)
    if more is not None:
        more(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def byte_pairs(writer) -> None:
    """A tokenizer of bytes and a few of their pairs."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|end|>", "<|start|>", *alphabet, "Ġa", "at", "cat"]
    tokens += [f"unused{n}" for n in range(300 - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, *[1] * 298])
    writer.add_token_merges(["Ġ a", "a t", "c at"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)
    writer.add_chat_template("{{ bos_token }}{{ messages[0].content }}")


def sentence_pieces(writer) -> None:
    """A tokenizer of scored pieces that falls back to bytes."""
    pieces = {"▁": -1.0, "a": -2.0, "c": -3.0, "t": -4.0, "at": -0.2, "▁c": -0.3, "cat": -0.4, "▁cat": -0.1}
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *pieces]
    rest = 300 - len(tokens)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*tokens, *(f"unused{n}" for n in range(rest))])
    writer.add_token_scores([0.0] * 259 + [*pieces.values()] + [-9.0] * rest)
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * len(pieces), *[5] * rest])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
