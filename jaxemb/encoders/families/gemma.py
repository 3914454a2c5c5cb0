"""Gemma: Llama with embeddings times sqrt(D), norms whose weights are stored less 1, and gated tanh-gelu.

Gemma Team 2024 (arXiv:2403.08295).
"""

import dataclasses
from typing import Any

from jaxemb.encoders.families.decoder import BUFFERS, PREFIXES, decoder_config, decoder_heads, decoder_table
from jaxemb.encoders.families.family import Family, HfConfig
from jaxemb.encoders.transformer import TransformerConfig
from jaxemb.settings import flag, size


def gemma_config(c: HfConfig) -> TransformerConfig:
    """The transformer that a Gemma `config.json` describes."""
    key = "hidden_activation" if c.get("hidden_activation") is not None else "hidden_act"
    config = decoder_config(c, kv_heads=16, positions=8192, act=(key, "gelu_pytorch_tanh"), **gemma_fields(c))
    # The first files say "gelu", but the models were trained with its approximation, as later ones say.
    return dataclasses.replace(config, activation="gelu_tanh") if config.activation == "gelu" else config


def gemma_fields(c: HfConfig) -> dict[str, Any]:
    """What all Gemmas have."""
    bias = flag(c, "attention_bias", False)
    return {
        "head_dim": 256,
        "qkv_bias": bias,
        "out_bias": bias,
        "norm_weight_offset": 1.0,
        "embedding_scale": size(c, "hidden_size") ** 0.5,
    }


FAMILY = Family(
    model_types={"gemma": "GemmaModel"},
    config=gemma_config,
    tables=(decoder_table(),),
    prefixes=PREFIXES,
    heads=decoder_heads(is_tied=True),
    buffers=BUFFERS,
)
