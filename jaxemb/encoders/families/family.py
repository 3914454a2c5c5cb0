"""What a checkpoint family is: a mapping of its `config.json` and tables of its tensors. Nothing more."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax

from jaxemb.encoders.transformer import Transformer, TransformerConfig
from jaxemb.nn import RopeConfig
from jaxemb.settings import number, read, shown, text

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
    """

    tensors: str
    table: Table = ()
    activation: str | None = None
    activation_key: str | None = None

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


def rope(parameters: Mapping[str, Any], default_base: float) -> RopeConfig:
    """The rotary embedding that one `rope_parameters` entry describes (`rope_type`, `rope_theta`)."""
    text(parameters, "rope_type" if "rope_type" in parameters else "type", "default", ["default"])
    return RopeConfig(base=number(parameters, "rope_theta", default_base, above=0))


def require(config: HfConfig, **expected: Any) -> None:
    """Raises ValueError where `config` has a key of `expected` with another value."""
    for key, value in expected.items():
        read(config, key, None, shown(value), (value,).__contains__)
