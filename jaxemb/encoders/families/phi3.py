"""Phi-3 and Phi-4-mini: Llama with fused projections; the long ones have LongRoPE, some turn a part of each head only.

Abdin et al. 2024 (arXiv:2404.14219).
"""

from jaxemb.encoders.families.decoder import BUFFERS, PREFIXES, decoder_config, decoder_heads, decoder_rope
from jaxemb.encoders.families.family import LAYER_KINDS, Family, HfConfig, array, linear, norm
from jaxemb.encoders.transformer import TransformerConfig
from jaxemb.nn import RopeConfig
from jaxemb.settings import inner, layers, rate, size, text


def phi3_config(c: HfConfig) -> TransformerConfig:
    """The transformer that a Phi-3 `config.json` describes."""
    sliding = [LAYER_KINDS[1]] * layers(c, "num_hidden_layers")
    dropout = rate(c, "resid_pdrop", 0.0)
    return decoder_config(c, positions=4096, eps=1e-5, kinds=sliding, ropes=(_rope(c),), dropout=dropout)


def _rope(c: HfConfig) -> RopeConfig:
    """LongRoPE from the trained length beside it, which some files call "yarn"."""
    stated = inner(c, "rope_scaling") or inner(c, "rope_parameters")
    name = text(stated, "rope_type" if "rope_type" in stated else "type", "default")
    head_dim = size(c, "head_dim", None) or size(c, "hidden_size") // size(c, "num_attention_heads")
    positions, scaling = size(c, "max_position_embeddings", 4096), "longrope" if name == "yarn" else None
    return decoder_rope(c, 10_000.0, head_dim, positions, scaling=scaling, trained=4096)


FAMILY = Family(
    model_types={"phi3": "Phi3Model"},
    config=phi3_config,
    tables=(
        (
            *array("embed_tokens.weight", "embeddings.tokens"),
            *norm("layers.{}.input_layernorm", "layers.attention_norm"),
            *linear(
                "layers.{}.self_attn.qkv_proj",
                *("layers.attention.query", "layers.attention.key", "layers.attention.value"),
            ),
            *linear("layers.{}.self_attn.o_proj", "layers.attention.out"),
            *norm("layers.{}.post_attention_layernorm", "layers.mlp_norm"),
            *linear("layers.{}.mlp.gate_up_proj", "layers.mlp.gate", "layers.mlp.up"),
            *linear("layers.{}.mlp.down_proj", "layers.mlp.down"),
            *norm("norm", "final_norm"),
        ),
    ),
    prefixes=PREFIXES,
    heads=decoder_heads(),
    buffers=BUFFERS,
)
