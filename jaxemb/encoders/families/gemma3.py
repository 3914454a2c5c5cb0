"""Gemma 3's texts, and EmbeddingGemma, which sees both ways: Gemma 2 with norms of queries and keys in place of caps.

Five of six layers slide, with a base of rotary positions of their own. Gemma Team 2025 (arXiv:2503.19786); Vera et al.
2025 (arXiv:2509.20354).
"""

import dataclasses

from jaxemb.encoders.families.decoder import (
    BUFFERS,
    PREFIXES,
    decoder_config,
    decoder_heads,
    decoder_rope,
    kinds_of_layers,
)
from jaxemb.encoders.families.family import LAYER_KINDS, Family, HfConfig, require, rope
from jaxemb.encoders.families.gemma2 import SANDWICH_TABLE, sandwich_fields
from jaxemb.encoders.transformer import TransformerConfig
from jaxemb.nn import RopeConfig
from jaxemb.settings import flag, inner, layers, number, read, size


def gemma3_config(c: HfConfig) -> TransformerConfig:
    """The transformer that a `config.json` of Gemma 3's texts describes."""
    require(c, attn_logit_softcapping=None)
    every = size(c, "sliding_window_pattern", 6)
    kinds = kinds_of_layers(c, [(layer + 1) % every > 0 for layer in range(layers(c, "num_hidden_layers"))])
    is_sliding = [kind == LAYER_KINDS[1] for kind in kinds]
    config = decoder_config(
        c,
        kinds=kinds,
        positions=131_072,
        ropes=_ropes(c),
        rope_of_layer=tuple(map(int, is_sliding)),
        query_key_norm=True,
        **sandwich_fields(c),
    )
    if not flag(c, "use_bidirectional_attention", None):
        return config
    read(c, "is_causal", None, "false, as use_bidirectional_attention is true", lambda value: value is False)
    half = size(c, "sliding_window", 4096) // 2  # |i - j| <= half: this key says how wide both sides are together
    windows = tuple(half if sliding else 0 for sliding in is_sliding)
    return dataclasses.replace(config, causal=False, windows=windows)


def _ropes(c: HfConfig) -> tuple[RopeConfig, RopeConfig]:
    """Of full layers, which alone a `rope_scaling` stretches, and of sliding ones."""
    head_dim, positions = size(c, "head_dim", 256), size(c, "max_position_embeddings", 131_072)
    full = decoder_rope(c, 1_000_000.0, head_dim, positions, kind=LAYER_KINDS[0])
    base = number(c, "rope_local_base_freq", 10_000.0, above=0)
    return full, rope(inner(inner(c, "rope_parameters"), LAYER_KINDS[1]), base, head_dim, positions)


FAMILY = Family(
    model_types={"gemma3_text": "Gemma3TextModel"},
    config=gemma3_config,
    tables=(SANDWICH_TABLE,),
    prefixes=PREFIXES,
    heads=decoder_heads(is_tied=True),
    buffers=BUFFERS,
)
