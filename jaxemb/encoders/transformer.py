"""The one transformer: every text encoder family is a `TransformerConfig` of it."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from jaxemb.nn import ACTIVATIONS, Linear, Module, Norm
from jaxemb.nn.attention import attention, kept
from jaxemb.parallel.mesh import batch_axes
from jaxemb.types import Tokens

_NAMES = {
    "activation": tuple(sorted(ACTIVATIONS)),
    "norm": ("layer", "rms"),
    "norm_placement": ("post", "pre", "sandwich"),
    "dtype": ("float32", "bfloat16"),
}


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding, rotate-half layout: angle of dimension pair j is `position * frequencies[j]`.

    `base` gives `frequencies[j] = base ** (-2j / head_dim)`. Scaled variants (linear, llama3, yarn, ...) only
    change the frequencies and the factor on cos and sin, so a family computes them and passes them here.
    """

    base: float = 10_000.0
    frequencies: tuple[float, ...] | None = None
    attention_factor: float = 1.0

    def __post_init__(self):
        _check(self, "finite and > 0", lambda x: 0 < x < math.inf, "base", "attention_factor")

    def tables(self, positions: jax.Array, head_dim: int) -> tuple[jax.Array, jax.Array]:
        """cos and sin of the angles in f32, each `[B, T, 1, head_dim]`."""
        frequencies = self.frequencies or tuple(self.base ** (-2 * j / head_dim) for j in range(head_dim // 2))
        angles = positions[..., None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)
        angles = jnp.concatenate([angles, angles], axis=-1)[:, :, None, :]
        return jnp.cos(angles) * self.attention_factor, jnp.sin(angles) * self.attention_factor


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Static description of a transformer encoder or decoder; families map their `config.json` to it.

    Fields that vary from layer to layer (`windows`, `rope_of_layer`) are tuples with one entry per layer,
    empty meaning "the same everywhere", so that a stack with mixed layers still runs in one scan.

    Raises:
      ValueError: naming the field, for a value out of its range, or one that does not go with the others.
    """

    vocab_size: int
    dim: int
    layers: int
    heads: int
    mlp_dim: int
    kv_heads: int | None = None
    head_dim: int | None = None
    # positions
    max_positions: int = 512  # longest text, in tokens, that the model can read
    position_table: int = 0  # rows of the learned position table; 0 = none
    position_offset: int = 0  # row of position 0 (RoBERTa and MPNet: pad id + 1)
    relative_buckets: int = 0  # T5-style bias shared by all layers (MPNet); 0 = none
    relative_max_distance: int = 128
    ropes: tuple[RopeConfig, ...] = ()  # distinct rotary tables; () = none
    rope_of_layer: tuple[int, ...] = ()  # index into `ropes` for each layer
    # attention
    causal: bool = False
    windows: tuple[int, ...] = ()  # per layer: keys with |i - j| <= window are seen; 0 = all
    query_key_norm: bool = False
    attention_scale: float | None = None  # None = head_dim ** -0.5
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
    embedding_norm: bool = True
    embedding_scale: float = 1.0
    skip_first_attention_norm: bool = False  # ModernBERT: the first layer reads the normed embeddings as they are
    final_norm: bool = False
    token_types: int = 0
    # training and numerics
    dropout: float = 0.1
    attention_dropout: float = 0.1
    initializer_range: float = 0.02
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; parameters stay float32
    remat: bool = False  # recompute each layer in the backward pass
    unroll: int = 1  # layers per scan iteration; `layers` unrolls the stack

    def __post_init__(self):
        sizes = ("vocab_size", "dim", "layers", "heads", "mlp_dim", "max_positions", "relative_max_distance", "unroll")
        optional = tuple(name for name in ("kv_heads", "head_dim") if getattr(self, name) is not None)
        _check(self, "an integer >= 1", lambda n: bool(isinstance(n, int | np.integer) and n >= 1), *sizes, *optional)
        counts = ("position_table", "position_offset", "relative_buckets", "token_types")
        _check(self, "an integer >= 0", lambda n: bool(isinstance(n, int | np.integer) and n >= 0), *counts)
        _check(self, "in [0, 1)", lambda rate: 0 <= rate < 1, "dropout", "attention_dropout")
        _check(self, "finite and > 0", lambda x: 0 < x < math.inf, "norm_eps", "embedding_scale")
        _check(self, "finite and >= 0", lambda x: 0 <= x < math.inf, "initializer_range")
        _check(self, "None, or finite and > 0", lambda x: x is None or 0 < x < math.inf, "attention_scale")
        for name, options in _NAMES.items():
            _check(self, f"one of {options}", options.__contains__, name)
        if self.head_dim is None and self.dim % self.heads:
            raise ValueError(f"heads must divide dim unless head_dim is given; got dim={self.dim}, heads={self.heads}")
        if self.heads % self.n_kv_heads:
            raise ValueError(f"kv_heads must divide heads; got heads={self.heads}, kv_heads={self.n_kv_heads}")
        if self.position_table and self.position_table <= self.position_offset:
            expected = f"position_table must be 0 or more than position_offset, {self.position_offset}"
            raise ValueError(f"{expected}; got {self.position_table}")
        exact = self.relative_buckets // 4  # distances with a bucket of their own
        if self.relative_buckets and not (1 <= exact < self.relative_max_distance):
            expected = (
                f"relative_buckets must be 0 or from 4 to 4 x relative_max_distance, {self.relative_max_distance}"
            )
            raise ValueError(f"{expected}; got {self.relative_buckets}")
        for name in ("windows", "rope_of_layer"):
            if (n := len(getattr(self, name))) not in (0, self.layers):
                raise ValueError(f"{name} must have one entry per layer ({self.layers}) or none; got {n}")
        _check(self, "integers >= 0", lambda windows: all(window >= 0 for window in windows), "windows")
        known = range(len(self.ropes))
        expected = f"indices of the {len(known)} ropes"
        _check(self, expected, lambda indices: all(i in known for i in indices), "rope_of_layer")
        if self.ropes and self.head_size % 2:
            raise ValueError(f"the size of a head must be even for rotary positions; got {self.head_size}")
        for rope in self.ropes:
            if rope.frequencies is not None and len(rope.frequencies) != self.head_size // 2:
                expected = f"frequencies must be {self.head_size // 2} numbers, half of the size of a head"
                raise ValueError(f"ropes: {expected}; got {len(rope.frequencies)}")

    @property
    def n_kv_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.dim // self.heads


def _check(config: RopeConfig | TransformerConfig, expected: str, holds: Callable[[Any], bool], *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        try:
            good = holds(value)
        except TypeError:  # it does not compare with numbers, or is no sequence
            good = False
        if not good:
            raise ValueError(f"{name} must be {expected}; got {value!r}")


def make_norm(config: TransformerConfig, dim: int) -> Norm:
    """A new norm of the kind that the configuration names."""
    return Norm.init(
        dim, kind=config.norm, bias=config.norm_bias, eps=config.norm_eps, offset=config.norm_weight_offset
    )


@nnx.dataclass
class Attention(Module):
    """Multi-head attention; query head i reads key/value head `i // (heads / kv_heads)`."""

    query: Linear = nnx.data()
    key: Linear = nnx.data()
    value: Linear = nnx.data()
    out: Linear = nnx.data()
    query_norm: Norm | None = nnx.data(default=None)
    key_norm: Norm | None = nnx.data(default=None)

    @classmethod
    def init(cls, key, c: TransformerConfig) -> "Attention":
        kq, kk, kv, ko = jax.random.split(key, 4)
        q_dim, kv_dim = c.heads * c.head_size, c.n_kv_heads * c.head_size
        norm = make_norm(c, c.head_size) if c.query_key_norm else None
        return cls(
            query=Linear.init(kq, c.dim, q_dim, c.qkv_bias, c.initializer_range),
            key=Linear.init(kk, c.dim, kv_dim, c.qkv_bias, c.initializer_range),
            value=Linear.init(kv, c.dim, kv_dim, c.qkv_bias, c.initializer_range),
            out=Linear.init(ko, q_dim, c.dim, c.out_bias, c.initializer_range),
            query_norm=norm,
            key_norm=norm,
        )

    def __call__(self, x, c: TransformerConfig, segments, window, bias, rope, dropout_key) -> jax.Array:
        *lead, _ = x.shape
        q = self.query(x).reshape(*lead, c.heads, c.head_size)
        k = self.key(x).reshape(*lead, c.n_kv_heads, c.head_size)
        v = self.value(x).reshape(*lead, c.n_kv_heads, c.head_size)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if rope is not None:
            q, k = _rotate(q, rope), _rotate(k, rope)
        y = attention(
            q,
            k,
            v,
            segments,
            causal=c.causal,
            window=window,
            bias=bias,
            scale=c.attention_scale,
            dropout=c.attention_dropout,
            key=dropout_key,
        )
        return self.out(y.reshape(*lead, c.heads * c.head_size))


@nnx.dataclass
class Mlp(Module):
    """`down(act(up(x)))`, or `down(act(gate(x)) * up(x))` when gated."""

    up: Linear = nnx.data()
    down: Linear = nnx.data()
    gate: Linear | None = nnx.data(default=None)

    @classmethod
    def init(cls, key, c: TransformerConfig) -> "Mlp":
        ku, kd, kg = jax.random.split(key, 3)
        return cls(
            up=Linear.init(ku, c.dim, c.mlp_dim, c.mlp_bias, c.initializer_range),
            down=Linear.init(kd, c.mlp_dim, c.dim, c.mlp_bias, c.initializer_range),
            gate=Linear.init(kg, c.dim, c.mlp_dim, c.mlp_bias, c.initializer_range) if c.gated else None,
        )

    def __call__(self, x: jax.Array, c: TransformerConfig) -> jax.Array:
        act = ACTIVATIONS[c.activation]
        return self.down(act(self.up(x)) if self.gate is None else act(self.gate(x)) * self.up(x))


@nnx.dataclass
class Layer(Module):
    """One block. `norm_placement` says where its norms stand:

    post:     x = N1(x + A(x));       x = N2(x + M(x))            (BERT)
    pre:      x = x + A(N1(x));       x = x + M(N2(x))            (ModernBERT, Llama)
    sandwich: x = x + N1'(A(N1(x)));  x = x + N2'(M(N2(x)))       (Gemma 2 and 3)
    """

    attention: Attention = nnx.data()
    attention_norm: Norm = nnx.data()
    mlp: Mlp = nnx.data()
    mlp_norm: Norm = nnx.data()
    attention_out_norm: Norm | None = nnx.data(default=None)
    mlp_out_norm: Norm | None = nnx.data(default=None)

    @classmethod
    def init(cls, key, c: TransformerConfig) -> "Layer":
        ka, km = jax.random.split(key)
        norm = make_norm(c, c.dim)
        out_norm = norm if c.norm_placement == "sandwich" else None
        return cls(
            attention=Attention.init(ka, c),
            attention_norm=norm,
            mlp=Mlp.init(km, c),
            mlp_norm=norm,
            attention_out_norm=out_norm,
            mlp_out_norm=out_norm,
        )

    def __call__(self, x, c: TransformerConfig, *, is_first, segments, window, bias, rope, key) -> jax.Array:
        ka, kb, kc = (None, None, None) if key is None else jax.random.split(key, 3)
        if c.norm_placement == "post":
            x = self.attention_norm(x + _dropout(self.attention(x, c, segments, window, bias, rope, ka), c.dropout, kb))
            return self.mlp_norm(x + _dropout(self.mlp(x, c), c.dropout, kc))
        h = self.attention_norm(x)
        if c.skip_first_attention_norm:
            h = jnp.where(is_first, x, h)
        h = self.attention(h, c, segments, window, bias, rope, ka)
        h = h if self.attention_out_norm is None else self.attention_out_norm(h)
        x = x + _dropout(h, c.dropout, kb)
        h = self.mlp(self.mlp_norm(x), c)
        h = h if self.mlp_out_norm is None else self.mlp_out_norm(h)
        return x + _dropout(h, c.dropout, kc)


@nnx.dataclass
class Embeddings(Module):
    """Sum of token, position and token-type embeddings, then an optional norm."""

    tokens: jax.Array = nnx.data()
    positions: jax.Array | None = nnx.data(default=None)
    types: jax.Array | None = nnx.data(default=None)
    norm: Norm | None = nnx.data(default=None)

    @classmethod
    def init(cls, key, c: TransformerConfig) -> "Embeddings":
        keys = jax.random.split(key, 3)
        table = lambda k, rows: c.initializer_range * jax.random.normal(k, (rows, c.dim)) if rows else None
        return cls(
            tokens=c.initializer_range * jax.random.normal(keys[0], (c.vocab_size, c.dim)),
            positions=table(keys[1], c.position_table),
            types=table(keys[2], c.token_types),
            norm=make_norm(c, c.dim) if c.embedding_norm else None,
        )

    def __call__(self, tokens: Tokens, c: TransformerConfig, key) -> jax.Array:
        x = self.tokens[tokens.ids].astype(jnp.float32) * c.embedding_scale
        if self.types is not None:
            x = x + (self.types[0] if tokens.type_ids is None else self.types[tokens.type_ids])
        if self.positions is not None:
            x = x + self.positions[tokens.positions + c.position_offset]
        x = x if self.norm is None else self.norm(x)
        return _dropout(x, c.dropout, key).astype(c.dtype)


@nnx.dataclass
class Transformer(Module):
    """Token ids to hidden states. `layers` holds all layers stacked on a leading axis `L` and is run by one scan."""

    embeddings: Embeddings = nnx.data()
    layers: Layer = nnx.data()
    final_norm: Norm | None = nnx.data(default=None)
    relative_bias: jax.Array | None = nnx.data(default=None)  # [buckets, heads]
    config: TransformerConfig = nnx.static(kw_only=True)

    @classmethod
    def init(cls, key: jax.Array, config: TransformerConfig) -> "Transformer":
        """A randomly initialised transformer (truncated normal kernels, unit norms)."""
        ke, kl, kr = jax.random.split(key, 3)
        buckets = config.relative_buckets
        return cls(
            embeddings=Embeddings.init(ke, config),
            layers=jax.vmap(lambda k: Layer.init(k, config))(jax.random.split(kl, config.layers)),
            final_norm=make_norm(config, config.dim) if config.final_norm else None,
            relative_bias=config.initializer_range * jax.random.normal(kr, (buckets, config.heads))
            if buckets
            else None,
            config=config,
        )

    @property
    def dim(self) -> int:
        """D, the size of a state."""
        return self.config.dim

    @property
    def depth(self) -> int:
        """L, the number of layers."""
        return self.config.layers

    def __call__(self, tokens: Tokens, *, key: jax.Array | None = None, all_states: bool = False) -> jax.Array:
        """Hidden states of every token.

        Args:
          tokens: the batch, `[B, T]`.
          key: dropout key; None turns dropout off.
          all_states: also return the embeddings and every layer's state.

        Returns:
          Final states `[B, T, D]`, or with `all_states` `[L + 1, B, T, D]`: the embeddings, then the state after
          each layer; the last one includes the final norm, as the final states do.

        Raises:
          ValueError: if T exceeds what the position table can hold.
        """
        embedded, final, states = self._run(tokens, key, (lambda x: x) if all_states else None)
        final = final if self.final_norm is None else self.final_norm(final)
        return jnp.concatenate([embedded[None], states[:-1], final[None]]) if all_states else final

    def at_layers(
        self,
        tokens: Tokens,
        layers: Sequence[int],
        read: Callable[[jax.Array], jax.Array],
        *,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """What `read` makes of the final states `[B, T, D]` of this transformer cut to each of several depths.

        One pass through the deepest of them gives all. Each state is read inside the scan, after the final norm if
        there is one, so that what is kept of a layer is no more than what `read` returns (a pooling: `[B, S, D]`).

        Args:
          tokens: the batch, `[B, T]`.
          layers: numbers of layers, in any order; 0 is the embeddings.
          read: states to anything of one shape.
          key: dropout key; None turns dropout off.

        Returns:
          `[len(layers), ...]`.

        Raises:
          ValueError: if a number of layers is not in 0..L.
        """
        _check_layers(layers, self.config.layers, least=0)
        normed = lambda x: read(x if self.final_norm is None else self.final_norm(x))
        deepest = max(layers)
        if deepest == 0:
            embedded = self.embeddings(tokens, self.config, None if key is None else jax.random.split(key)[0])
            return jnp.stack([normed(embedded)] * len(layers))
        embedded, _, after = self.truncate(deepest)._run(tokens, key, normed)
        return jnp.stack([after[n - 1] if n else normed(embedded) for n in layers])

    def truncate(self, layers: int) -> "Transformer":
        """This transformer without the layers after the first `layers`; the final norm, if any, stays.

        Raises:
          ValueError: if `layers` is not in 1..L.
        """
        c = self.config
        _check_layers([layers], c.layers, least=1)
        return dataclasses.replace(
            self,
            layers=jax.tree.map(lambda leaf: leaf[:layers], self.layers),
            config=dataclasses.replace(
                c, layers=layers, windows=c.windows[:layers], rope_of_layer=c.rope_of_layer[:layers]
            ),
        )

    def _run(self, tokens: Tokens, key: jax.Array | None, read: Callable[[jax.Array], jax.Array] | None):
        """The embeddings, the last layer's state without the final norm, and `read` of every layer's, stacked."""
        c = self.config
        chex.assert_rank([tokens.ids, tokens.segment_ids, tokens.positions], 2)
        length = tokens.ids.shape[1]
        if c.position_table and tokens.texts_per_row == 1 and length > c.position_table - c.position_offset:
            raise ValueError(
                f"tokens: rows of {length} tokens, but the model has {c.position_table - c.position_offset} positions"
            )
        k_embed, k_layers = (None, None) if key is None else jax.random.split(key)

        x = self.embeddings(tokens, c, k_embed)
        bias = None
        if self.relative_bias is not None:
            bias = _relative_bias(self.relative_bias, length, c.relative_max_distance)
        ropes = [r.tables(tokens.positions, c.head_size) for r in c.ropes]

        def step(x, per_layer):
            layer, index, window, rope_index, layer_key = per_layer
            rope = jax.tree.map(lambda *tables: jnp.stack(tables)[rope_index], *ropes) if ropes else None
            seen = {"segments": tokens.segment_ids, "window": window, "bias": bias}
            y = layer(_by_rows(x), c, is_first=index == 0, **seen, rope=rope, key=layer_key)
            return y, None if read is None else read(y)

        windows = np.asarray([w or length for w in c.windows], np.int32) if any(c.windows) else None
        per_layer = (
            self.layers,
            np.arange(c.layers),
            windows,
            np.asarray(c.rope_of_layer or [0] * c.layers, np.int32) if ropes else None,
            None if k_layers is None else jax.random.split(k_layers, c.layers),
        )
        body = jax.checkpoint(step) if c.remat else step
        return x, *jax.lax.scan(body, x, per_layer, unroll=min(c.unroll, c.layers))


def _check_layers(layers: Sequence[int], most: int, least: int) -> None:
    if not layers or not all(least <= n <= most for n in layers):
        raise ValueError(f"layers must be in {least}..{most}, the layers of the transformer; got {tuple(layers)}")


def _by_rows(x: jax.Array) -> jax.Array:
    """`x` `[B, ...]`, its rows split over the mesh in force: where parameters are split, they travel and not `x`."""
    axes = batch_axes()
    if not axes or x.shape[0] % math.prod(axes.values()):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(tuple(axes)))


def _dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    if key is None or rate == 0.0:
        return x
    return jnp.where(kept(key, rate, x.shape), x / (1.0 - rate), 0.0).astype(x.dtype)


def _rotate(x: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary embedding of `x` `[B, T, H, h]`, rotate-half layout, in f32."""
    cos, sin = rope
    y = x.astype(jnp.float32)
    first, second = jnp.split(y, 2, axis=-1)
    return (y * cos + jnp.concatenate([-second, first], axis=-1) * sin).astype(x.dtype)


def _relative_bias(table: jax.Array, length: int, max_distance: int) -> jax.Array:
    """T5's bidirectional bucketed bias, `[1, H, T, T]`, from `table` `[buckets, H]`.

    Half of the buckets for keys after the query; in each half the first half exact, the rest logarithmic.
    """
    half = table.shape[0] // 2
    exact = half // 2
    relative = np.arange(length)[None, :] - np.arange(length)[:, None]  # key minus query
    distance = np.abs(relative)
    scaled = np.log(np.maximum(distance, 1) / exact) / math.log(max_distance / exact) * (half - exact)
    far = np.minimum(exact + scaled.astype(np.int32), half - 1)
    bucket = np.where(relative > 0, half, 0) + np.where(distance < exact, distance, far)
    return table[bucket].transpose(2, 0, 1)[None]
