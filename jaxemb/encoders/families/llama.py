"""Llama 2 and 3, and what is built exactly like them: SmolLM, Yi since its second release, Vicuna.

Touvron et al. 2023 (arXiv:2307.09288), Grattafiori et al. 2024 (arXiv:2407.21783).
"""

from jaxemb.encoders.families.decoder import BUFFERS, PREFIXES, decoder_config, decoder_heads, decoder_table
from jaxemb.encoders.families.family import Family, HfConfig
from jaxemb.encoders.transformer import TransformerConfig
from jaxemb.settings import flag


def llama_config(c: HfConfig) -> TransformerConfig:
    """The transformer that a Llama `config.json` describes."""
    bias = flag(c, "attention_bias", False)
    return decoder_config(c, qkv_bias=bias, out_bias=bias, mlp_bias=flag(c, "mlp_bias", False))


FAMILY = Family(
    model_types={"llama": "LlamaModel"},
    config=llama_config,
    tables=(decoder_table(),),
    prefixes=PREFIXES,
    heads=decoder_heads(),
    buffers=BUFFERS,
)
