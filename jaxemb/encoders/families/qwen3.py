"""Qwen3 and Qwen3-Embedding: Llama with norms of queries and keys, and heads of a size of their own.

Yang et al. 2025 (arXiv:2505.09388); Zhang et al. 2025 (arXiv:2506.05176).
"""

from jaxemb.encoders.families.decoder import BUFFERS, PREFIXES, decoder_config, decoder_heads, decoder_table
from jaxemb.encoders.families.family import Family, HfConfig
from jaxemb.encoders.families.qwen2 import qwen_kinds
from jaxemb.encoders.transformer import TransformerConfig
from jaxemb.settings import flag


def qwen3_config(c: HfConfig) -> TransformerConfig:
    """The transformer that a Qwen3 `config.json` describes."""
    bias = flag(c, "attention_bias", False)
    return decoder_config(
        c,
        kv_heads=32,
        head_dim=128,
        positions=32_768,
        kinds=qwen_kinds(c),
        qkv_bias=bias,
        out_bias=bias,
        query_key_norm=True,
    )


FAMILY = Family(
    model_types={"qwen3": "Qwen3Model"},
    config=qwen3_config,
    tables=(decoder_table(),),
    prefixes=PREFIXES,
    heads=decoder_heads(),
    buffers=BUFFERS,
)
