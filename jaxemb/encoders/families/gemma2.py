"""Gemma 2: Gemma with norms around both sublayers, capped attention, and every other layer sliding.

Gemma Team 2024 (arXiv:2408.00118).
"""

from typing import Any

from jaxemb.encoders.families.decoder import (
    BUFFERS,
    PREFIXES,
    decoder_config,
    decoder_heads,
    decoder_table,
    kinds_of_layers,
)
from jaxemb.encoders.families.family import Family, HfConfig, norm
from jaxemb.encoders.families.gemma import gemma_fields
from jaxemb.encoders.transformer import TransformerConfig
from jaxemb.settings import layers, number, read


def gemma2_config(c: HfConfig) -> TransformerConfig:
    """The transformer that a Gemma 2 `config.json` describes."""
    read(c, "use_bidirectional_attention", None, "false", lambda value: value is False)
    kinds = kinds_of_layers(c, [layer % 2 == 0 for layer in range(layers(c, "num_hidden_layers"))])
    cap = number(c, "attn_logit_softcapping", 50.0, above=0) if c.get("attn_logit_softcapping", 0) is not None else None
    return decoder_config(c, kinds=kinds, positions=8192, attention_soft_cap=cap, **sandwich_fields(c))


def sandwich_fields(c: HfConfig) -> dict[str, Any]:
    """What Gemma 2 and 3 have."""
    return {
        **gemma_fields(c),
        "kv_heads": 4,
        "act": ("hidden_activation", "gelu_pytorch_tanh"),
        "attention_scale": number(c, "query_pre_attn_scalar", 256, above=0) ** -0.5,
        "norm_placement": "sandwich",
    }


SANDWICH_TABLE = (
    *decoder_table("input_layernorm", "pre_feedforward_layernorm"),
    *norm("layers.{}.post_attention_layernorm", "layers.attention_out_norm"),
    *norm("layers.{}.post_feedforward_layernorm", "layers.mlp_out_norm"),
)

FAMILY = Family(
    model_types={"gemma2": "Gemma2Model"},
    config=gemma2_config,
    tables=(SANDWICH_TABLE,),
    prefixes=PREFIXES,
    heads=decoder_heads(is_tied=True, soft_cap=30.0),
    buffers=BUFFERS,
)
