"""Yi's first release: Llama with other names for its norms, and a larger base of its rotary positions.

01.AI 2024 (arXiv:2403.04652). Later releases say that they are Llama; both namings are read.
"""

from jaxemb.encoders.families.decoder import BUFFERS, PREFIXES, decoder_config, decoder_heads, decoder_table
from jaxemb.encoders.families.family import Family, HfConfig
from jaxemb.encoders.transformer import TransformerConfig


def yi_config(c: HfConfig) -> TransformerConfig:
    """The transformer that a `config.json` of the first release describes."""
    return decoder_config(c, kv_heads=4, positions=4096, eps=1e-5, base=5_000_000.0)


FAMILY = Family(
    model_types={"Yi": "YiModel"},
    config=yi_config,
    tables=(decoder_table("ln1", "ln2"), decoder_table()),
    prefixes=PREFIXES,
    heads=decoder_heads(),
    buffers=BUFFERS,
)
