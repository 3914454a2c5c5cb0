"""BERT, and what is built exactly like it: MiniLM, BGE, E5, the first GTE, mBERT.

Devlin et al. 2018 (arXiv:1810.04805): post-norm, learned positions, token types, exact gelu.
"""

from jaxemb.encoders.families.family import (
    TASK_HEADS,
    Family,
    HfConfig,
    StoredHead,
    activation,
    array,
    linear,
    masked_language_head,
    norm,
    pooler,
    require,
)
from jaxemb.encoders.transformer import TransformerConfig
from jaxemb.settings import layers, number, rate, size, spread


def bert_config(c: HfConfig) -> TransformerConfig:
    """The transformer that a BERT `config.json` describes."""
    require(c, position_embedding_type="absolute", is_decoder=False)
    return TransformerConfig(
        vocab_size=size(c, "vocab_size"),
        dim=size(c, "hidden_size"),
        layers=layers(c, "num_hidden_layers"),
        heads=size(c, "num_attention_heads"),
        mlp_dim=size(c, "intermediate_size"),
        activation=activation(c, "hidden_act", "gelu"),
        max_positions=size(c, "max_position_embeddings", 512),
        position_table=size(c, "max_position_embeddings", 512),
        token_types=size(c, "type_vocab_size", 2, least=0),
        norm_eps=number(c, "layer_norm_eps", 1e-12, above=0),
        dropout=rate(c, "hidden_dropout_prob", 0.1),
        attention_dropout=rate(c, "attention_probs_dropout_prob", 0.1),
        initializer_range=spread(c, "initializer_range", 0.02),
    )


BERT_TABLE = (
    *array("embeddings.word_embeddings.weight", "embeddings.tokens"),
    *array("embeddings.position_embeddings.weight", "embeddings.positions"),
    *array("embeddings.token_type_embeddings.weight", "embeddings.types"),
    *norm("embeddings.LayerNorm", "embeddings.norm"),
    *linear("encoder.layer.{}.attention.self.query", "layers.attention.query"),
    *linear("encoder.layer.{}.attention.self.key", "layers.attention.key"),
    *linear("encoder.layer.{}.attention.self.value", "layers.attention.value"),
    *linear("encoder.layer.{}.attention.output.dense", "layers.attention.out"),
    *norm("encoder.layer.{}.attention.output.LayerNorm", "layers.attention_norm"),
    *linear("encoder.layer.{}.intermediate.dense", "layers.mlp.up"),
    *linear("encoder.layer.{}.output.dense", "layers.mlp.down"),
    *norm("encoder.layer.{}.output.LayerNorm", "layers.mlp_norm"),
)

FAMILY = Family(
    model_types={"bert": "BertModel"},
    config=bert_config,
    tables=(BERT_TABLE,),
    prefixes=("bert.",),
    heads={
        "masked_language": masked_language_head(
            "cls.predictions.transform.dense",
            "cls.predictions.transform.LayerNorm",
            "cls.predictions.bias",
            tensors=r"cls\.predictions\..*",
        ),
        "next_sentence": StoredHead(r"cls\.seq_relationship\..*"),
        "pooler": pooler(),
        **TASK_HEADS,
    },
    buffers=(r"embeddings\.(position_ids|token_type_ids)",),
    pooler_is_trained=True,
)
