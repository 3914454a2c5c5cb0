"""Qwen2 and 2.5: Llama with biases of queries, keys and values; layers from some depth on may slide.

Yang et al. 2024 (arXiv:2407.10671). GTE-Qwen2 is one that sees both ways.
"""

from jaxemb.encoders.families.decoder import (
    BUFFERS,
    PREFIXES,
    decoder_config,
    decoder_heads,
    decoder_table,
    kinds_of_layers,
)
from jaxemb.encoders.families.family import Family, HfConfig
from jaxemb.encoders.transformer import TransformerConfig
from jaxemb.settings import flag, layers, size


def qwen2_config(c: HfConfig) -> TransformerConfig:
    """The transformer that a Qwen2 `config.json` describes."""
    return decoder_config(c, kv_heads=32, positions=32_768, kinds=qwen_kinds(c), qkv_bias=True)


def qwen_kinds(c: HfConfig) -> tuple[str, ...]:
    """Layers slide only with `use_sliding_window`: those from `max_window_layers` on, or as `layer_types` says."""
    depth = layers(c, "num_hidden_layers")
    if not flag(c, "use_sliding_window", False):
        return ()
    first = size(c, "max_window_layers", 28, least=0)
    return kinds_of_layers(c, [layer >= first for layer in range(depth)])


FAMILY = Family(
    model_types={"qwen2": "Qwen2Model"},
    config=qwen2_config,
    tables=(decoder_table(),),
    prefixes=PREFIXES,
    heads=decoder_heads(),
    buffers=BUFFERS,
)
