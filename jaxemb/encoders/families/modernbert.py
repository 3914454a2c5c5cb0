"""ModernBERT: pre-norm, rotary positions, gated gelu, no biases, global attention in every third layer.

Warner et al. 2024 (arXiv:2412.13663). Local layers see the keys with |i - j| <= local_attention / 2.
"""

from jaxemb.encoders.families.family import (
    TASK_HEADS,
    Family,
    HfConfig,
    activation,
    array,
    linear,
    masked_language_head,
    norm,
    require,
    rope,
)
from jaxemb.encoders.transformer import TransformerConfig


def modernbert_config(c: HfConfig) -> TransformerConfig:
    """The transformer that a ModernBERT `config.json` describes."""
    require(c, rope_scaling=None)
    every = c.get("global_attn_every_n_layers", 3)
    kinds = c.get("layer_types") or [
        "sliding_attention" if i % every else "full_attention" for i in range(c["num_hidden_layers"])
    ]
    parameters = c.get("rope_parameters") or {}
    full = rope(parameters.get("full_attention") or {}, c.get("global_rope_theta", 160_000.0))
    # An old file that says `local_rope_theta: null` means the global base.
    local = rope(parameters.get("sliding_attention") or {}, c.get("local_rope_theta", 10_000.0) or full.base)
    is_local = [kind == "sliding_attention" for kind in kinds]
    return TransformerConfig(
        vocab_size=c["vocab_size"],
        dim=c["hidden_size"],
        layers=c["num_hidden_layers"],
        heads=c["num_attention_heads"],
        mlp_dim=c["intermediate_size"],
        activation=activation(c.get("hidden_activation", "gelu")),
        gated=True,
        mlp_bias=c.get("mlp_bias", False),
        qkv_bias=c.get("attention_bias", False),
        out_bias=c.get("attention_bias", False),
        max_positions=c.get("max_position_embeddings", 8192),
        ropes=(full, local),
        rope_of_layer=tuple(map(int, is_local)),
        windows=tuple(c.get("local_attention", 128) // 2 if local else 0 for local in is_local),
        norm_placement="pre",
        norm_eps=c.get("norm_eps", 1e-5),
        norm_bias=c.get("norm_bias", False),
        skip_first_attention_norm=True,
        final_norm=True,
        dropout=c.get("mlp_dropout", 0.0),
        attention_dropout=c.get("attention_dropout", 0.0),
        initializer_range=c.get("initializer_range", 0.02),
    )


FAMILY = Family(
    model_types={"modernbert": "ModernBertModel"},
    config=modernbert_config,
    tables=(
        (
            *array("embeddings.tok_embeddings.weight", "embeddings.tokens"),
            *norm("embeddings.norm", "embeddings.norm"),
            *norm("layers.{}.attn_norm", "layers.attention_norm", absent_in_layers=(0,)),
            *linear("layers.{}.attn.Wqkv", "layers.attention.query", "layers.attention.key", "layers.attention.value"),
            *linear("layers.{}.attn.Wo", "layers.attention.out"),
            *norm("layers.{}.mlp_norm", "layers.mlp_norm"),
            *linear("layers.{}.mlp.Wi", "layers.mlp.gate", "layers.mlp.up"),
            *linear("layers.{}.mlp.Wo", "layers.mlp.down"),
            *norm("final_norm", "final_norm"),
        ),
    ),
    prefixes=("model.",),
    heads={
        # Classifiers have a `head` of these names as well, before their `classifier`.
        "masked_language": masked_language_head(
            "head.dense", "head.norm", "decoder.bias", r"(head|decoder)\..*", "gelu"
        ),
        **TASK_HEADS,
    },
    buffers=(r".*rotary_emb\.inv_freq",),
)
