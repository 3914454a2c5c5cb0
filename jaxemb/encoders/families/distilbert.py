"""DistilBERT: BERT without token types, under names of its own. Sanh et al. 2019 (arXiv:1910.01108)."""

from jaxemb.encoders.families.family import (
    TASK_HEADS,
    Family,
    HfConfig,
    activation,
    array,
    linear,
    masked_language_head,
    norm,
)
from jaxemb.encoders.transformer import TransformerConfig
from jaxemb.settings import layers, rate, size, spread


def distilbert_config(c: HfConfig) -> TransformerConfig:
    """The transformer that a DistilBERT `config.json` describes."""
    return TransformerConfig(
        vocab_size=size(c, "vocab_size"),
        dim=size(c, "dim"),
        layers=layers(c, "n_layers"),
        heads=size(c, "n_heads"),
        mlp_dim=size(c, "hidden_dim"),
        activation=activation(c, "activation", "gelu"),
        max_positions=size(c, "max_position_embeddings", 512),
        position_table=size(c, "max_position_embeddings", 512),
        norm_eps=1e-12,
        dropout=rate(c, "dropout", 0.1),
        attention_dropout=rate(c, "attention_dropout", 0.1),
        initializer_range=spread(c, "initializer_range", 0.02),
    )


FAMILY = Family(
    model_types={"distilbert": "DistilBertModel"},
    config=distilbert_config,
    tables=(
        (
            *array("embeddings.word_embeddings.weight", "embeddings.tokens"),
            *array("embeddings.position_embeddings.weight", "embeddings.positions"),
            *norm("embeddings.LayerNorm", "embeddings.norm"),
            *linear("transformer.layer.{}.attention.q_lin", "layers.attention.query"),
            *linear("transformer.layer.{}.attention.k_lin", "layers.attention.key"),
            *linear("transformer.layer.{}.attention.v_lin", "layers.attention.value"),
            *linear("transformer.layer.{}.attention.out_lin", "layers.attention.out"),
            *norm("transformer.layer.{}.sa_layer_norm", "layers.attention_norm"),
            *linear("transformer.layer.{}.ffn.lin1", "layers.mlp.up"),
            *linear("transformer.layer.{}.ffn.lin2", "layers.mlp.down"),
            *norm("transformer.layer.{}.output_layer_norm", "layers.mlp_norm"),
        ),
    ),
    prefixes=("distilbert.",),
    heads={
        "masked_language": masked_language_head(
            "vocab_transform",
            "vocab_layer_norm",
            "vocab_projector.bias",
            tensors=r"vocab_(transform|layer_norm|projector)\..*",
        ),
        **TASK_HEADS,
    },
    buffers=(r"embeddings\.position_ids",),
)
