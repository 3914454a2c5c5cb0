"""Mistral: Llama whose layers all see a sliding window of keys, until its version 0.2, which sees all.

Jiang et al. 2023 (arXiv:2310.06825).
"""

from jaxemb.encoders.families.decoder import BUFFERS, PREFIXES, decoder_config, decoder_heads, decoder_table
from jaxemb.encoders.families.family import LAYER_KINDS, Family, HfConfig
from jaxemb.encoders.transformer import TransformerConfig
from jaxemb.settings import layers


def mistral_config(c: HfConfig) -> TransformerConfig:
    """The transformer that a Mistral `config.json` describes."""
    sliding = [LAYER_KINDS[1]] * layers(c, "num_hidden_layers")
    return decoder_config(c, kv_heads=8, positions=131_072, kinds=sliding)


FAMILY = Family(
    model_types={"mistral": "MistralModel"},
    config=mistral_config,
    tables=(decoder_table(),),
    prefixes=PREFIXES,
    heads=decoder_heads(),
    buffers=BUFFERS,
)
