"""NomicBERT: BERT with rotary positions, a gated silu feed-forward and no linear biases.

Nussbaum et al. 2024 (arXiv:2402.01613). Its configuration and tensors exist under two namings: that of the
published checkpoints (GPT-2's keys, fused `Wqkv`, `fc11` the value and `fc12` the gate) and that of transformers.
"""

from jaxemb.encoders.families.family import (
    TASK_HEADS,
    Family,
    HfConfig,
    StoredHead,
    Table,
    activation,
    array,
    linear,
    norm,
    pooler,
    require,
    rope,
)
from jaxemb.encoders.transformer import TransformerConfig
from jaxemb.nn import RopeConfig
from jaxemb.settings import inner, layers, number, rate, size, spread


def nomic_bert_config(c: HfConfig) -> TransformerConfig:
    """The transformer that a NomicBERT `config.json` describes."""
    return _published(c) if "n_embd" in c else _transformers(c)


def _published(c: HfConfig) -> TransformerConfig:
    require(
        c,
        activation_function="swiglu",
        prenorm=False,
        use_rms_norm=False,
        causal=False,
        parallel_block=False,
        rotary_emb_fraction=1.0,
        rotary_emb_interleaved=False,
        rotary_emb_scale_base=None,
        qkv_proj_bias=False,
        mlp_fc1_bias=False,
        mlp_fc2_bias=False,
    )
    # With a scaling factor the base grows on texts longer than the trained length; up to there nothing is scaled.
    is_scaled = number(c, "rotary_scaling_factor", None) is not None
    multiple = size(c, "pad_vocab_size_multiple", 1)
    return _config(
        vocab_size=-(-size(c, "vocab_size") // multiple) * multiple,
        dim=size(c, "n_embd"),
        layers=layers(c, "n_layer"),
        heads=size(c, "n_head"),
        mlp_dim=size(c, "n_inner", None) or 4 * size(c, "n_embd"),
        max_positions=size(c, "max_trained_positions", 2048) if is_scaled else size(c, "n_positions"),
        token_types=size(c, "type_vocab_size", 2, least=0),
        ropes=(RopeConfig(number(c, "rotary_emb_base", 1000.0, above=0)),),
        norm_eps=number(c, "layer_norm_epsilon", 1e-12, above=0),
        dropout=rate(c, "resid_pdrop", 0.0),
        attention_dropout=rate(c, "attn_pdrop", 0.0),
        initializer_range=spread(c, "initializer_range", 0.02),
    )


def _transformers(c: HfConfig) -> TransformerConfig:
    scaling = inner(c, "rope_parameters") or inner(c, "rope_scaling")
    dim, heads, head_dim = size(c, "hidden_size"), size(c, "num_attention_heads"), size(c, "head_dim", None)
    positions = size(c, "max_position_embeddings", 2048)
    return _config(
        vocab_size=size(c, "vocab_size"),
        dim=dim,
        layers=layers(c, "num_hidden_layers"),
        heads=heads,
        head_dim=head_dim,
        mlp_dim=size(c, "intermediate_size"),
        activation=activation(c, "hidden_act", "silu"),
        max_positions=positions,
        token_types=size(c, "type_vocab_size", 2, least=0),
        ropes=(rope(scaling, number(c, "rope_theta", 1000.0, above=0), head_dim or dim // heads, positions),),
        norm_eps=number(c, "layer_norm_eps", 1e-12, above=0),
        dropout=rate(c, "hidden_dropout_prob", 0.0),
        attention_dropout=rate(c, "attention_probs_dropout_prob", 0.0),
        initializer_range=spread(c, "initializer_range", 0.02),
    )


def _config(*, activation="silu", **fields) -> TransformerConfig:
    return TransformerConfig(
        activation=activation, gated=True, qkv_bias=False, out_bias=False, mlp_bias=False, **fields
    )


_EMBEDDINGS: Table = (
    *array("embeddings.word_embeddings.weight", "embeddings.tokens"),
    *array("embeddings.token_type_embeddings.weight", "embeddings.types"),
)

_PUBLISHED: Table = (
    *_EMBEDDINGS,
    *norm("emb_ln", "embeddings.norm"),
    *linear("encoder.layers.{}.attn.Wqkv", "layers.attention.query", "layers.attention.key", "layers.attention.value"),
    *linear("encoder.layers.{}.attn.out_proj", "layers.attention.out"),
    *norm("encoder.layers.{}.norm1", "layers.attention_norm"),
    *linear("encoder.layers.{}.mlp.fc11", "layers.mlp.up"),
    *linear("encoder.layers.{}.mlp.fc12", "layers.mlp.gate"),
    *linear("encoder.layers.{}.mlp.fc2", "layers.mlp.down"),
    *norm("encoder.layers.{}.norm2", "layers.mlp_norm"),
)

_TRANSFORMERS: Table = (
    *_EMBEDDINGS,
    *norm("embeddings.LayerNorm", "embeddings.norm"),
    *linear("layers.{}.self_attn.q_proj", "layers.attention.query"),
    *linear("layers.{}.self_attn.k_proj", "layers.attention.key"),
    *linear("layers.{}.self_attn.v_proj", "layers.attention.value"),
    *linear("layers.{}.self_attn.o_proj", "layers.attention.out"),
    *norm("layers.{}.post_attention_layernorm", "layers.attention_norm"),
    *linear("layers.{}.mlp.gate_proj", "layers.mlp.gate"),
    *linear("layers.{}.mlp.up_proj", "layers.mlp.up"),
    *linear("layers.{}.mlp.down_proj", "layers.mlp.down"),
    *norm("layers.{}.post_mlp_layernorm", "layers.mlp_norm"),
)

FAMILY = Family(
    model_types={"nomic_bert": "NomicBertModel"},
    config=nomic_bert_config,
    tables=(_TRANSFORMERS, _PUBLISHED),
    prefixes=("nomic_bert.", "bert."),  # in transformers, and before
    heads={
        "masked_language": StoredHead(
            r"cls\.predictions\..*",
            (
                *linear("cls.predictions.transform.dense", "transform"),
                *norm("cls.predictions.transform.layer_norm", "norm"),
                *norm("cls.predictions.transform.LayerNorm", "norm"),
                *array("cls.predictions.bias", "bias"),
            ),
        ),
        "next_sentence": StoredHead(r"cls\.seq_relationship\..*"),
        "pooler": pooler(),
        **TASK_HEADS,
    },
    buffers=(r".*rotary_emb\.inv_freq",),
)
