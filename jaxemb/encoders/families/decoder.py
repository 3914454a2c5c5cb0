"""What decoders of Llama's kind share: their keys of `config.json`, their tensors, their head.

Pre-norm with RMSNorm, rotary positions, grouped queries, a gated feed-forward, no biases.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxemb.encoders.families.family import (
    LAYER_KINDS,
    TASK_HEADS,
    HeadKind,
    HfConfig,
    StoredHead,
    Table,
    activation,
    array,
    layer_kinds,
    linear,
    norm,
    rope,
)
from jaxemb.encoders.transformer import TransformerConfig
from jaxemb.nn import RopeConfig
from jaxemb.settings import Settings, error_of, flag, inner, layers, number, rate, size, spread, where


def decoder_config(
    c: HfConfig,
    *,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    positions: int = 2048,
    eps: float = 1e-6,
    base: float = 10_000.0,
    act: tuple[str, str] = ("hidden_act", "silu"),
    kinds: Sequence[str] = (),
    ropes: tuple[RopeConfig, ...] | None = None,
    **fields: Any,
) -> TransformerConfig:
    """The transformer that a decoder's `config.json` describes in the keys that all of them have.

    Args:
      c: the `config.json`. Its `is_causal: false` makes attention bidirectional, as in transformers.
      kv_heads, head_dim, positions, eps, base: what an absent key means.
      act: the key of the activation, and what it means if it is absent.
      kinds: of each layer, one of `LAYER_KINDS`; () is full attention everywhere.
      ropes: rotary embeddings; None for the one that `decoder_rope` reads.
      **fields: what the family has otherwise.
    """
    dim, heads, causal = size(c, "hidden_size"), size(c, "num_attention_heads"), flag(c, "is_causal", True)
    head_dim, positions = size(c, "head_dim", head_dim), size(c, "max_position_embeddings", positions)
    plain = {"mlp_bias": False, "qkv_bias": False, "out_bias": False, "norm_placement": "pre", "dropout": 0.0}
    return TransformerConfig(
        vocab_size=size(c, "vocab_size"),
        dim=dim,
        layers=layers(c, "num_hidden_layers"),
        heads=heads,
        kv_heads=size(c, "num_key_value_heads", kv_heads),
        head_dim=head_dim,
        mlp_dim=size(c, "intermediate_size"),
        activation=activation(c, *act),
        gated=True,
        causal=causal,
        windows=sliding_windows(c, kinds, causal),
        ropes=ropes or (decoder_rope(c, base, head_dim or dim // heads, positions),),
        max_positions=_longest(c, positions),
        norm="rms",
        norm_bias=False,
        norm_eps=number(c, "rms_norm_eps", eps, above=0),
        embedding_norm=False,
        final_norm=True,
        attention_dropout=rate(c, "attention_dropout", 0.0),
        initializer_range=spread(c, "initializer_range", 0.02),
        **{**plain, **fields},
    )


def decoder_rope(
    c: HfConfig,
    base: float,
    head_dim: int,
    positions: int,
    *,
    kind: str = "",
    scaling: str | None = None,
    trained: int | None = None,
) -> RopeConfig:
    """The rotary embedding that a `config.json` describes.

    Args:
      c: the `config.json`, with `rope_scaling` (old files) or `rope_parameters` (new ones).
      base, head_dim, positions, scaling: see `rope`.
      kind: that of layers of this kind, where `rope_parameters` says it for several.
      trained: the length that the model was trained on, where the file has no `original_max_position_embeddings`.
    """
    parameters = inner(c, "rope_scaling") or inner(c, "rope_parameters")
    parameters = inner(parameters, kind) if kind in parameters else parameters
    beside = {key: c.get(key) for key in ("rope_theta", "partial_rotary_factor")}  # in old files
    length = {"original_max_position_embeddings": c.get("original_max_position_embeddings", trained)}
    said = lambda of: {key: value for key, value in of.items() if value is not None}
    both = Settings({**said(beside), **parameters, **said(length)}, where(parameters), error_of(c))
    return rope(both, base, head_dim, positions, scaling)


def _longest(c: HfConfig, positions: int) -> int:
    """The longest text, in tokens: where a scaling begins as the positions end, it is as much longer."""
    parameters = inner(c, "rope_scaling") or inner(c, "rope_parameters")
    factor, scaling = number(parameters, "factor", None), parameters.get("rope_type") or parameters.get("type")
    if factor is None or scaling not in ("dynamic", "yarn"):
        return positions
    trained = size(parameters, "original_max_position_embeddings", positions) if scaling == "yarn" else positions
    return max(positions, int(factor * trained))


def kinds_of_layers(c: HfConfig, is_sliding: Sequence[bool]) -> tuple[str, ...]:
    """Those that `layer_types` says, or else `is_sliding` of each layer."""
    return layer_kinds(c, [LAYER_KINDS[sliding] for sliding in is_sliding])


def sliding_windows(c: HfConfig, kinds: Sequence[str], causal: bool) -> tuple[int, ...]:
    """The window of each layer, 0 = all: of W keys, `i - W < j <= i`, if `causal`, else `|i - j| <= W`."""
    width = size(c, "sliding_window", None, least=2) if LAYER_KINDS[1] in kinds else None
    if width is None:
        return ()
    return tuple((width - 1 if causal else width) if kind == LAYER_KINDS[1] else 0 for kind in kinds)


def decoder_table(attention_norm: str = "input_layernorm", mlp_norm: str = "post_attention_layernorm") -> Table:
    """Llama's tensors, and those that only some of its kind have."""
    return (
        *array("embed_tokens.weight", "embeddings.tokens"),
        *norm(f"layers.{{}}.{attention_norm}", "layers.attention_norm"),
        *linear("layers.{}.self_attn.q_proj", "layers.attention.query"),
        *linear("layers.{}.self_attn.k_proj", "layers.attention.key"),
        *linear("layers.{}.self_attn.v_proj", "layers.attention.value"),
        *linear("layers.{}.self_attn.o_proj", "layers.attention.out"),
        *norm("layers.{}.self_attn.q_norm", "layers.attention.query_norm"),
        *norm("layers.{}.self_attn.k_norm", "layers.attention.key_norm"),
        *norm(f"layers.{{}}.{mlp_norm}", "layers.mlp_norm"),
        *linear("layers.{}.mlp.gate_proj", "layers.mlp.gate"),
        *linear("layers.{}.mlp.up_proj", "layers.mlp.up"),
        *linear("layers.{}.mlp.down_proj", "layers.mlp.down"),
        *norm("norm", "final_norm"),
    )


def decoder_heads(*, is_tied: bool = False, soft_cap: float | None = None) -> Mapping[HeadKind, StoredHead]:
    """The head that predicts the next token, and those of fine-tuned models."""
    language = StoredHead(r"lm_head\..*", array("lm_head.weight", "table"), is_tied=is_tied, soft_cap=soft_cap)
    return {**TASK_HEADS, "language": language, "classification": StoredHead(r"score\..*")}


PREFIXES = ("model.",)
BUFFERS = (r".*rotary_emb\.inv_freq",)
