"""What the layers of a transformer are."""

import dataclasses
import math
from typing import Literal, Self

import numpy as np

from jaxemb.checks import check_fields, check_types, checked, size
from jaxemb.nn.activations import ACTIVATIONS
from jaxemb.nn.attention import IMPLEMENTATIONS, Implementation
from jaxemb.nn.norm import Norm
from jaxemb.nn.rope import RopeConfig

_NAMES = {
    "activation": tuple(sorted(ACTIVATIONS)),
    "norm": ("layer", "rms"),
    "norm_placement": ("post", "pre", "sandwich"),
    "dtype": ("float32", "bfloat16"),
    "remat": ("none", "full", "dots"),
    "attention_implementation": (None, *IMPLEMENTATIONS),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackConfig:
    """Static description of a stack of transformer layers; an encoder's configuration inherits from it.

    Fields that vary from layer to layer (`windows`, `rope_of_layer`) are tuples with one entry per layer,
    empty meaning "the same everywhere", so that a stack with mixed layers still runs in one scan.

    `remat` says what of a layer is kept for the backward pass; the rest is computed again from it:

        none  all that the gradient needs
        full  nothing but what the layer reads
        dots  that, and the products with weights

    Raises:
      ValueError: naming the field, for a value out of its range, or one that does not go with the others.
    """

    dim: int
    layers: int
    heads: int
    mlp_dim: int
    kv_heads: int | None = None
    head_dim: int | None = None
    # positions
    relative_buckets: int = 0  # T5-style bias shared by all layers (MPNet); 0 = none
    relative_max_distance: int = 128
    ropes: tuple[RopeConfig, ...] = ()  # distinct rotary tables; () = none
    rope_of_layer: tuple[int, ...] = ()  # index into `ropes` for each layer
    # attention
    causal: bool = False
    prefix_attention: bool = False  # causal, but all tokens of a text see its prompt (`Layout.prompt`) as a whole
    windows: tuple[int, ...] = ()  # per layer: keys with |i - j| <= window are seen; 0 = all
    query_key_norm: bool = False
    attention_scale: float | None = None  # None = head_dim ** -0.5
    attention_soft_cap: float | None = None  # c tanh(logits / c) (Gemma 2); None = none
    attention_implementation: Implementation | None = None  # None = by platform and shape, see `attention`
    qkv_bias: bool = True
    out_bias: bool = True
    # feed-forward
    activation: Literal["gelu", "gelu_tanh", "relu", "silu"] = "gelu"
    gated: bool = False  # activation(x W_gate) * (x W_up)
    mlp_bias: bool = True
    # normalisation
    norm: Literal["layer", "rms"] = "layer"
    norm_placement: Literal["post", "pre", "sandwich"] = "post"
    norm_eps: float = 1e-12
    norm_bias: bool = True
    norm_weight_offset: float = 0.0  # Gemma stores weight - 1
    skip_first_attention_norm: bool = False  # ModernBERT: the first layer reads the normed embeddings as they are
    final_norm: bool = False
    # training and numerics
    dropout: float = 0.1
    attention_dropout: float = 0.1
    initializer_range: float = 0.02
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation, whatever the parameters have
    remat: Literal["none", "full", "dots"] = "none"
    unroll: int = 1  # layers per scan iteration; `layers` unrolls the stack

    def __post_init__(self):
        sizes = ("dim", "layers", "heads", "mlp_dim", "relative_max_distance", "unroll")
        optional = tuple(name for name in ("kv_heads", "head_dim") if getattr(self, name) is not None)
        check_fields(self, "an integer >= 1", is_size, *sizes, *optional)
        check_fields(self, "an integer >= 0", is_count, "relative_buckets")
        check_fields(self, "in [0, 1)", lambda rate: 0 <= rate < 1, "dropout", "attention_dropout")
        # What float32 holds: a smaller one is 0, and a larger one is all that is left of a state.
        check_fields(self, "in 1.2e-38..1", lambda x: 1.2e-38 <= x <= 1, "norm_eps")
        check_fields(self, "finite and >= 0", lambda x: 0 <= x < math.inf, "initializer_range")
        check_fields(self, "finite", math.isfinite, "norm_weight_offset")
        optional = ("attention_scale", "attention_soft_cap")
        check_fields(self, "None, or finite and > 0", lambda x: x is None or 0 < x < math.inf, *optional)
        for name, options in _NAMES.items():
            check_fields(self, f"one of {options}", options.__contains__, name)
        if self.head_dim is None and self.dim % self.heads:
            raise ValueError(f"heads must divide dim unless head_dim is given; got dim={self.dim}, heads={self.heads}")
        if self.heads % self.n_kv_heads:
            raise ValueError(f"kv_heads must divide heads; got heads={self.heads}, kv_heads={self.n_kv_heads}")
        exact = self.relative_buckets // 4  # distances with a bucket of their own
        if self.relative_buckets and not (1 <= exact < self.relative_max_distance):
            expected = (
                f"relative_buckets must be 0 or from 4 to 4 x relative_max_distance, {self.relative_max_distance}"
            )
            raise ValueError(f"{expected}; got {self.relative_buckets}")
        if self.prefix_attention and not self.causal:
            raise ValueError("prefix_attention is for causal attention; got causal=False, which sees all of a text")
        self._check_layers()
        check_types(self)

    def _check_layers(self) -> None:
        check_types(self, "windows", "rope_of_layer", "ropes")
        for name in ("windows", "rope_of_layer"):
            if (n := len(getattr(self, name))) not in (0, self.layers):
                raise ValueError(f"{name} must have one entry per layer ({self.layers}) or none; got {n}")
        check_fields(self, "integers >= 0", lambda windows: all(window >= 0 for window in windows), "windows")
        known = range(len(self.ropes))
        expected = f"indices of the {len(known)} ropes"
        check_fields(self, expected, lambda indices: all(i in known for i in indices), "rope_of_layer")
        if self.ropes and self.head_size % 2:
            raise ValueError(f"the size of a head must be even for rotary positions; got {self.head_size}")
        pairs = {rope.pairs(self.head_size) for rope in self.ropes}
        if pairs and (len(pairs) > 1 or not 1 <= max(pairs) <= self.head_size // 2):
            expected = f"frequencies must be as many for each, and at most {self.head_size // 2}, half of a head"
            raise ValueError(f"ropes: {expected}; got {', '.join(map(str, sorted(pairs)))}")

    @property
    def n_kv_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.dim // self.heads

    def truncate(self, layers: int) -> Self:
        """The configuration of the first `layers` layers.

        Raises:
          ValueError: if `layers` is not in 1..L.
        """
        if not 1 <= layers <= self.layers:
            raise ValueError(f"layers must be in 1..{self.layers}, the layers of the transformer; got {layers}")
        return dataclasses.replace(
            self, layers=layers, windows=self.windows[:layers], rope_of_layer=self.rope_of_layer[:layers]
        )


def is_size(n) -> bool:
    """Whether `n` is an integer >= 1."""
    return bool(isinstance(n, int | np.integer) and n >= 1)


def is_count(n) -> bool:
    """Whether `n` is an integer >= 0."""
    return bool(isinstance(n, int | np.integer) and n >= 0)


@checked(dim=size)
def make_norm(config: StackConfig, dim: int) -> Norm:
    """A new norm of the kind that the configuration names."""
    return Norm.init(
        dim, kind=config.norm, bias=config.norm_bias, eps=config.norm_eps, offset=config.norm_weight_offset
    )
