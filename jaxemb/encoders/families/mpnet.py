"""MPNet: BERT with RoBERTa's positions, no token types and T5's relative bias, shared by all layers.

Song et al. 2020 (arXiv:2004.09297). The relative bias has 32 buckets up to distance 128.
"""

from jaxemb.encoders.families.family import TASK_HEADS, Family, HfConfig, activation, array, linear, norm, pooler
from jaxemb.encoders.families.roberta import LM_HEAD
from jaxemb.encoders.transformer import TransformerConfig

_POSITION_OFFSET = 2  # the published implementation fixes the padding id at 1, whatever the configuration says


def mpnet_config(c: HfConfig) -> TransformerConfig:
    """The transformer that a MPNet `config.json` describes."""
    rows = c.get("max_position_embeddings", 512)
    return TransformerConfig(
        vocab_size=c["vocab_size"],
        dim=c["hidden_size"],
        layers=c["num_hidden_layers"],
        heads=c["num_attention_heads"],
        mlp_dim=c["intermediate_size"],
        activation=activation(c.get("hidden_act", "gelu")),
        max_positions=rows - _POSITION_OFFSET,
        position_table=rows,
        position_offset=_POSITION_OFFSET,
        relative_buckets=c.get("relative_attention_num_buckets", 32),
        relative_max_distance=128,
        norm_eps=c.get("layer_norm_eps", 1e-12),
        dropout=c.get("hidden_dropout_prob", 0.1),
        attention_dropout=c.get("attention_probs_dropout_prob", 0.1),
        initializer_range=c.get("initializer_range", 0.02),
    )


FAMILY = Family(
    model_types={"mpnet": "MPNetModel"},
    config=mpnet_config,
    tables=(
        (
            *array("embeddings.word_embeddings.weight", "embeddings.tokens"),
            *array("embeddings.position_embeddings.weight", "embeddings.positions"),
            *norm("embeddings.LayerNorm", "embeddings.norm"),
            *array("encoder.relative_attention_bias.weight", "relative_bias"),
            *linear("encoder.layer.{}.attention.attn.q", "layers.attention.query"),
            *linear("encoder.layer.{}.attention.attn.k", "layers.attention.key"),
            *linear("encoder.layer.{}.attention.attn.v", "layers.attention.value"),
            *linear("encoder.layer.{}.attention.attn.o", "layers.attention.out"),
            *norm("encoder.layer.{}.attention.LayerNorm", "layers.attention_norm"),
            *linear("encoder.layer.{}.intermediate.dense", "layers.mlp.up"),
            *linear("encoder.layer.{}.output.dense", "layers.mlp.down"),
            *norm("encoder.layer.{}.output.LayerNorm", "layers.mlp_norm"),
        ),
    ),
    prefixes=("mpnet.",),
    heads={"masked_language": LM_HEAD, "pooler": pooler(), **TASK_HEADS},
    buffers=(r"embeddings\.position_ids",),
    pad_id=_POSITION_OFFSET - 1,
)
