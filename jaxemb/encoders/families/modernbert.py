"""ModernBERT: pre-norm, rotary positions, gated gelu, no biases, global attention in every third layer.

Warner et al. 2024 (arXiv:2412.13663). Local layers see the keys with |i - j| <= local_attention / 2.
"""

from jaxemb.encoders.families.family import (
    LAYER_KINDS,
    TASK_HEADS,
    Family,
    HfConfig,
    activation,
    array,
    layer_kinds,
    linear,
    masked_language_head,
    norm,
    require,
    rope,
)
from jaxemb.encoders.transformer import TransformerConfig
from jaxemb.settings import flag, inner, layers, number, rate, size, spread


def modernbert_config(c: HfConfig) -> TransformerConfig:
    """The transformer that a ModernBERT `config.json` describes."""
    require(c, rope_scaling=None)
    depth, every = layers(c, "num_hidden_layers"), size(c, "global_attn_every_n_layers", 3)
    kinds = layer_kinds(c, [LAYER_KINDS[i % every > 0] for i in range(depth)])
    is_local = [kind == LAYER_KINDS[1] for kind in kinds]
    window = size(c, "local_attention", 128) // 2
    parameters = inner(c, "rope_parameters")
    heads, positions = size(c, "num_attention_heads"), size(c, "max_position_embeddings", 8192)
    turned = (size(c, "hidden_size") // heads, positions)
    full = rope(inner(parameters, LAYER_KINDS[0]), number(c, "global_rope_theta", 160_000.0, above=0), *turned)
    # An old file that says `local_rope_theta: null` means the global base.
    base = 10_000.0 if "local_rope_theta" not in c else number(c, "local_rope_theta", None, above=0)
    local = rope(inner(parameters, LAYER_KINDS[1]), base or full.base, *turned)
    return TransformerConfig(
        vocab_size=size(c, "vocab_size"),
        dim=size(c, "hidden_size"),
        layers=depth,
        heads=heads,
        mlp_dim=size(c, "intermediate_size"),
        activation=activation(c, "hidden_activation", "gelu"),
        gated=True,
        mlp_bias=flag(c, "mlp_bias", False),
        qkv_bias=flag(c, "attention_bias", False),
        out_bias=flag(c, "attention_bias", False),
        max_positions=positions,
        ropes=(full, local),
        rope_of_layer=tuple(map(int, is_local)),
        windows=tuple(window if local else 0 for local in is_local),
        norm_placement="pre",
        norm_eps=number(c, "norm_eps", 1e-5, above=0),
        norm_bias=flag(c, "norm_bias", False),
        skip_first_attention_norm=True,
        final_norm=True,
        dropout=rate(c, "mlp_dropout", 0.0),
        attention_dropout=rate(c, "attention_dropout", 0.0),
        initializer_range=spread(c, "initializer_range", 0.02),
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
            "head.dense", "head.norm", "decoder.bias", r"(head|decoder)\..*", "gelu", "classifier_activation"
        ),
        **TASK_HEADS,
    },
    buffers=(r".*rotary_emb\.inv_freq",),
)
