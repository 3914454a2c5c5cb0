"""MPNet: BERT with RoBERTa's positions, no token types and T5's relative bias, shared by all layers.

Song et al. 2020 (arXiv:2004.09297). The relative bias has 32 buckets up to distance 128.
"""

from jaxemb.encoders.families.family import TASK_HEADS, Family, HfConfig, activation, array, linear, norm, pooler
from jaxemb.encoders.families.roberta import LM_HEAD
from jaxemb.encoders.transformer import TransformerConfig
from jaxemb.settings import layers, number, rate, size, spread

_POSITION_OFFSET = 2  # the published implementation fixes the padding id at 1, whatever the configuration says
_DISTANCE = 128


def mpnet_config(c: HfConfig) -> TransformerConfig:
    """The transformer that a MPNet `config.json` describes."""
    rows = size(c, "max_position_embeddings", 512, least=_POSITION_OFFSET + 1)
    return TransformerConfig(
        vocab_size=size(c, "vocab_size"),
        dim=size(c, "hidden_size"),
        layers=layers(c, "num_hidden_layers"),
        heads=size(c, "num_attention_heads"),
        mlp_dim=size(c, "intermediate_size"),
        activation=activation(c, "hidden_act", "gelu"),
        max_positions=rows - _POSITION_OFFSET,
        position_table=rows,
        position_offset=_POSITION_OFFSET,
        relative_buckets=size(c, "relative_attention_num_buckets", 32, least=4, most=4 * _DISTANCE - 1),
        relative_max_distance=_DISTANCE,
        norm_eps=number(c, "layer_norm_eps", 1e-12, above=0),
        dropout=rate(c, "hidden_dropout_prob", 0.1),
        attention_dropout=rate(c, "attention_probs_dropout_prob", 0.1),
        initializer_range=spread(c, "initializer_range", 0.02),
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
