"""Writes decoders.npz: tiny random models of decoder families, and their states by transformers."""

import numpy as np
import torch
import transformers
from make_families import VOCABULARY, random_model, saved
from storing import store

_SIZES = {"vocab_size": VOCABULARY, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
_SIZES |= {"num_key_value_heads": 1, "intermediate_size": 12, "max_position_embeddings": 32, "pad_token_id": 0}
_LLAMA_3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LONG = {"rope_type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [1.0, 6.0], "rope_theta": 50.0}
CONFIGS = {
    "llama": transformers.LlamaConfig(
        **_SIZES, rope_parameters={**_LLAMA_3, "rope_theta": 50.0, "original_max_position_embeddings": 8}
    ),
    "mistral": transformers.MistralConfig(**_SIZES, sliding_window=3),
    "qwen2": transformers.Qwen2Config(**_SIZES, use_sliding_window=True, sliding_window=3, max_window_layers=1),
    "qwen3": transformers.Qwen3Config(**_SIZES, head_dim=6),
    "gemma2": transformers.Gemma2Config(**_SIZES, head_dim=6, sliding_window=3, attn_logit_softcapping=1.0),
    "gemma3_text": transformers.Gemma3TextConfig(
        **_SIZES, head_dim=6, sliding_window=4, sliding_window_pattern=2, use_bidirectional_attention=True
    ),
    "phi3": transformers.Phi3Config(
        **_SIZES | {"hidden_size": 12},
        partial_rotary_factor=0.67,
        original_max_position_embeddings=8,
        rope_parameters=_LONG,
    ),
}
TEXTS = [np.random.default_rng(0).integers(5, VOCABULARY, n) for n in (1, 4, 7, 12)]


def of_family(name: str) -> dict[str, np.ndarray]:
    """Hidden states after every layer, `[L + 1, n, D]` of each text alone, one after the other."""
    model = random_model(CONFIGS[name])
    with torch.no_grad():
        runs = [model(torch.tensor(text[None]), output_hidden_states=True).hidden_states for text in TEXTS]
    states = [np.stack([state[0].numpy() for state in run]) for run in runs]
    return saved(model, name) | {f"{name}/states": np.concatenate(states, axis=1)}


def values() -> dict[str, np.ndarray]:
    texts = {"ids": np.concatenate(TEXTS), "lengths": np.array(list(map(len, TEXTS)))}
    return texts | {n: a for name in CONFIGS for n, a in of_family(name).items()}


if __name__ == "__main__":
    store(__file__, values())
