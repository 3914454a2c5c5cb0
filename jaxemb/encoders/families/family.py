"""What a checkpoint family is: a mapping of its `config.json` and tables of its tensors. Nothing more."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax

from jaxemb.encoders.transformer import Transformer, TransformerConfig
from jaxemb.nn import RopeConfig, rope_scaling
from jaxemb.settings import error_of, flag, number, numbers, read, shown, size, text, texts, where

HfConfig = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Weight:
    """One row of a weight table: a tensor of the checkpoint and the leaves of the `Transformer` that it holds.

    Attributes:
      name: the tensor's name without prefix; `{}` stands for the layer number, and the leaves are then stacked on
        a leading layer axis.
      leaves: dotted paths into the `Transformer`. Several leaves mean that the tensor is their concatenation along
        the output axis (a fused `Wqkv`). A row whose leaves the model does not have (a bias, say) does not apply.
      transpose: True where the checkpoint stores `[out, in]`, as PyTorch does, and the leaf is `[in, out]`.
      absent_in_layers: layers without such a tensor, because the model does not use it there; the leaves are 1.
    """

    name: str
    leaves: tuple[str, ...]
    transpose: bool = False
    absent_in_layers: tuple[int, ...] = ()


Table = tuple[Weight, ...]


HeadKind = Literal[
    "masked_language", "next_sentence", "pooler", "language", "classification", "question_answering", "projection"
]


@dataclasses.dataclass(frozen=True)
class StoredHead:
    """A head that checkpoints of a family may hold beside the body.

    Attributes:
      tensors: a regular expression of the names of all its tensors, without prefix, also of those that only repeat
        what is stored elsewhere (an output matrix that is the token embeddings).
      table: the tensors that a module holds and its leaves, such as `MaskedLanguageHead`; () where there is no module.
        Several rows of one leaf are spellings of which a checkpoint has one.
      activation: the one that it applies; None for that of the encoder's layers.
      activation_key: what in `config.json` names another one.
      is_tied: whether its matrix is the token embeddings where `config.json` has no `tie_word_embeddings`.
      soft_cap: that of its logits where `config.json` has no `final_logit_softcapping`.
    """

    tensors: str
    table: Table = ()
    activation: str | None = None
    activation_key: str | None = None
    is_tied: bool = True
    soft_cap: float | None = None

    def activation_in(self, config: HfConfig, of_layers: str) -> str:
        """Our name of the one that the head of a checkpoint applies, whose encoder's layers apply `of_layers`."""
        default = self.activation or of_layers
        return default if self.activation_key is None else activation(config, self.activation_key, default)


@dataclasses.dataclass(frozen=True)
class Family:
    """A checkpoint family.

    Attributes:
      model_types: the values of `model_type` in `config.json` that belong to it, and what transformers calls the
        encoder of each.
      config: maps `config.json` to a `TransformerConfig`; raises ValueError for options it cannot honour.
      tables: the weight tables in use for this family, one per published naming; of a checkpoint, the one that fits
        best is taken, and a new model is written in the first.
      init: from a key and the configuration to an encoder with random weights.
      prefixes: what may stand before every name of the body (`bert.` when saved with a head).
      heads: the heads that its checkpoints may hold, by kind.
      buffers: regular expressions of tensors, without prefix, that hold nothing learned.
      pooler_is_trained: whether pre-training trains the pooler, as BERT's does by predicting the next sentence;
        elsewhere checkpoints hold one that somebody's program added.
      pad_id: the padding id that published code assumes whatever the configuration says; None where it does not.
    """

    model_types: Mapping[str, str]
    config: Callable[[HfConfig], TransformerConfig]
    tables: tuple[Table, ...]
    init: Callable[[jax.Array, TransformerConfig], Transformer] = Transformer.init
    prefixes: tuple[str, ...] = ()
    heads: Mapping[HeadKind, StoredHead] = dataclasses.field(default_factory=dict)
    buffers: tuple[str, ...] = ()
    pooler_is_trained: bool = False
    pad_id: int | None = None

    def short(self, name: str) -> str:
        """The name of a tensor without prefix, and with today's names for those of TensorFlow's BERT."""
        prefix = next((prefix for prefix in self.prefixes if name.startswith(prefix)), "")
        return modern(name.removeprefix(prefix))

    def head_of(self, short: str) -> HeadKind | None:
        """The kind of head that a tensor belongs to, by its short name."""
        return next((kind for kind, head in self.heads.items() if re.fullmatch(head.tensors, short)), None)

    def leaves_unused(self, short: str) -> bool:
        """Whether a tensor is known not to be part of the encoder: that of a head, or a buffer."""
        return self.head_of(short) is not None or any(re.fullmatch(pattern, short) for pattern in self.buffers)


_LEGACY_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # of TensorFlow's BERT


def modern(name: str) -> str:
    """The name of a tensor with today's suffixes."""
    for old, new in _LEGACY_NAMES.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def masked_language_head(
    dense: str,
    norm_name: str,
    bias: str,
    tensors: str,
    activation: str | None = None,
    activation_key: str | None = None,
) -> StoredHead:
    """A `MaskedLanguageHead`: a dense layer, a norm and the output's bias; its matrix is the token embeddings."""
    table = (*linear(dense, "transform"), *norm(norm_name, "norm"), *array(bias, "bias"))
    return StoredHead(tensors, table, activation, activation_key)


def pooler() -> StoredHead:
    """BERT's pooler: a `Linear`, called "dense", and tanh after it."""
    return StoredHead(r"pooler\..*", linear("pooler.dense", "dense"))


#: The heads of fine-tuned models of BERT's kind, and the projection of ColBERT's tokens.
TASK_HEADS: Mapping[HeadKind, StoredHead] = {
    "classification": StoredHead(r"(pre_)?classifier\..*"),
    "question_answering": StoredHead(r"qa_outputs\..*"),
    "projection": StoredHead(r"linear\.(weight|bias)"),
}


def array(name: str, leaf: str) -> Table:
    """A tensor that is stored as the leaf is."""
    return (Weight(name, (leaf,)),)


def linear(name: str, *modules: str) -> Table:
    """A `Linear`, or several fused into one along the output axis."""
    return (
        Weight(f"{name}.weight", tuple(f"{m}.kernel" for m in modules), transpose=True),
        Weight(f"{name}.bias", tuple(f"{m}.bias" for m in modules)),
    )


def norm(name: str, module: str, absent_in_layers: tuple[int, ...] = ()) -> Table:
    """A `Norm`."""
    return tuple(
        Weight(f"{name}.{part}", (f"{module}.{part}",), absent_in_layers=absent_in_layers)
        for part in ("weight", "bias")
    )


_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def activation(c: HfConfig, key: str, default: str) -> Any:
    """Our name of the activation that the configuration names under `key`."""
    return _ACTIVATIONS[text(c, key, default, _ACTIVATIONS)]


_PLAIN_ROPE = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")  # no scaling's own


def rope(
    parameters: Mapping[str, Any], default_base: float, head_dim: int, positions: int, scaling: str | None = None
) -> RopeConfig:
    """The rotary embedding that a `rope_parameters` or `rope_scaling` entry describes.

    Args:
      parameters: the entry: `rope_type` or `type`, and what that scaling needs; {} is a plain one.
      default_base: where it has no `rope_theta`.
      head_dim: the size of a head, of which `partial_rotary_factor` is turned.
      positions: those of the model, and the trained ones where it has no `original_max_position_embeddings`.
      scaling: in place of the one that the entry names.

    Raises:
      ValueError: of the settings' type, for a value that is out of range, or of a scaling that is not named.
    """
    stated = scaling is not None or "rope_type" in parameters or "type" in parameters
    told = [key for key, value in parameters.items() if key not in _PLAIN_ROPE and not isinstance(value, Mapping)]
    if told and not stated:
        raise error_of(parameters)(f"{where(parameters)}: rope_type is missing, which says what {told[0]} is for")
    name = scaling or text(parameters, "rope_type" if "rope_type" in parameters else "type", "default", _SCALINGS)
    base = number(parameters, "rope_theta", default_base, above=0)
    part = number(parameters, "partial_rotary_factor", 1.0, above=0)
    dim = int(head_dim * part)
    if part != 1 and (not 2 <= dim <= head_dim or dim % 2):
        expected = f"must leave an even number in 2..{head_dim} of a head's dimensions"
        raise error_of(parameters)(f"{where(parameters)}: partial_rotary_factor {expected}; got {dim}")
    if name == "default":
        return RopeConfig(base) if dim == head_dim else rope_scaling.plain(base, dim)
    return _SCALINGS[name](parameters, base, dim, positions)


def _linear(p: Mapping[str, Any], base: float, dim: int, positions: int) -> RopeConfig:
    return rope_scaling.linear(base, dim, factor=number(p, "factor", above=0))


def _dynamic(p: Mapping[str, Any], base: float, dim: int, positions: int) -> RopeConfig:
    return rope_scaling.dynamic(base, dim, factor=number(p, "factor", above=0), trained_length=positions)


def _llama3(p: Mapping[str, Any], base: float, dim: int, positions: int) -> RopeConfig:
    low, high = number(p, "low_freq_factor", above=0), number(p, "high_freq_factor", above=0)
    factor, trained = number(p, "factor", above=0), _trained(p, positions)
    return rope_scaling.llama3(base, dim, factor=factor, low_factor=low, high_factor=high, trained_length=trained)


def _yarn(p: Mapping[str, Any], base: float, dim: int, positions: int) -> RopeConfig:
    return rope_scaling.yarn(
        base,
        dim,
        factor=number(p, "factor", above=0),
        trained_length=_trained(p, positions),
        beta_fast=number(p, "beta_fast", None, above=0) or 32.0,
        beta_slow=number(p, "beta_slow", None, above=0) or 1.0,
        attention_factor=number(p, "attention_factor", None, above=0),
        mscale=number(p, "mscale", None),
        mscale_all_dim=number(p, "mscale_all_dim", None),
        truncate=flag(p, "truncate", True),
    )


def _longrope(p: Mapping[str, Any], base: float, dim: int, positions: int) -> RopeConfig:
    trained = _trained(p, positions)
    return rope_scaling.longrope(
        base,
        dim,
        short_factors=numbers(p, "short_factor", above=0),
        long_factors=numbers(p, "long_factor", above=0),
        factor=number(p, "factor", None, above=0) or positions / trained,
        trained_length=trained,
        attention_factor=number(p, "attention_factor", None, above=0),
    )


def _trained(p: Mapping[str, Any], positions: int) -> int:
    return size(p, "original_max_position_embeddings", positions, least=2)


_SCALINGS: Mapping[str, Any] = {
    "default": None,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,  # as the first files of Phi-3 call it
}

LAYER_KINDS = ("full_attention", "sliding_attention")


def layer_kinds(c: HfConfig, default: Sequence[str]) -> tuple[str, ...]:
    """Which of `LAYER_KINDS` each layer is, by `layer_types` or else `default`."""
    kinds = texts(c, "layer_types", None) or list(default)
    if len(kinds) != len(default) or not set(kinds) <= set(LAYER_KINDS):
        expected = f"layer_types must be {len(default)} of {list(LAYER_KINDS)}"
        raise error_of(c)(f"{where(c)}: {expected}; got {len(kinds)}: {kinds!r:.60}")
    return tuple(kinds)


def require(config: HfConfig, **expected: Any) -> None:
    """Raises ValueError where `config` has a key of `expected` with another value."""
    for key, value in expected.items():
        read(config, key, None, shown(value), (value,).__contains__)
