"""What a checkpoint family is: a mapping of its `config.json` and a table of its tensors. Nothing more."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jaxemb.encoders.transformer import RopeConfig, TransformerConfig

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


@dataclasses.dataclass(frozen=True)
class Family:
    """A checkpoint family.

    Attributes:
      model_types: the values of `model_type` in `config.json` that belong to it.
      config: maps `config.json` to a `TransformerConfig`; raises ValueError for options it cannot honour.
      tables: the weight tables in use for this family, one per published naming; the one that fits best is taken.
      prefixes: what may stand before every name of the body (`bert.` when saved with a task head).
      ignored: regular expressions of tensors, without prefix, that the encoder does not use (heads, buffers).
    """

    model_types: tuple[str, ...]
    config: Callable[[HfConfig], TransformerConfig]
    tables: tuple[Table, ...]
    prefixes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


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


def activation(name: str) -> Any:
    """Our name of a Hugging Face activation."""
    if name not in _ACTIVATIONS:
        raise ValueError(f"config.json: activation {name!r} is not supported; expected one of {sorted(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def rope(parameters: Mapping[str, Any], default_base: float) -> RopeConfig:
    """The rotary embedding that one `rope_parameters` entry describes (`rope_type`, `rope_theta`)."""
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind != "default":
        raise ValueError(f"config.json: rope type {kind!r} is not supported in this family; expected 'default'")
    return RopeConfig(base=float(parameters.get("rope_theta", default_base)))


def require(config: HfConfig, **expected: Any) -> None:
    """Raises ValueError where `config` has a key of `expected` with another value."""
    for key, value in expected.items():
        if (got := config.get(key, value)) not in (value, None):
            raise ValueError(f"config.json: {key}={got!r} is not supported; expected {value!r}")
