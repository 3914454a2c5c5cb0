"""A stack of transformer layers, run by one scan: what is between a stem and a readout, whatever is embedded.

stack = Stack.init(key, StackConfig(dim=384, layers=6, heads=12, mlp_dim=1536))
states = stack(x, Layout(segments, positions))
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from jaxemb.nn.attention import Windows
from jaxemb.nn.dropout import dropout
from jaxemb.nn.mlp import Mlp
from jaxemb.nn.module import Module
from jaxemb.nn.norm import Norm
from jaxemb.nn.rope import text_lengths
from jaxemb.nn.self_attention import SelfAttention, View
from jaxemb.nn.stack_config import StackConfig, make_norm
from jaxemb.parallel.mesh import batch_axes

Read = Callable[[jax.Array], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Layout:
    """How the rows of a batch are laid out. Causality and windows are the stack's.

    Attributes:
      segments: which text (or image, ...) of its row a token belongs to, 0 = padding, int32 `[B, T]`; tokens of
        different ones do not see each other.
      positions: of a token within its own text, for rotary embeddings, int32 `[B, T]`.
      prompt: which tokens are of a prompt, that all of their text see with `StackConfig.prefix_attention`, bool
        `[B, T]`; None is none.
    """

    segments: jax.Array
    positions: jax.Array
    prompt: jax.Array | None = None


@nnx.dataclass
class Layer(Module):
    """One block. `norm_placement` says where its norms stand:

    post:     x = N1(x + A(x));       x = N2(x + M(x))            (BERT)
    pre:      x = x + A(N1(x));       x = x + M(N2(x))            (ModernBERT, Llama)
    sandwich: x = x + N1'(A(N1(x)));  x = x + N2'(M(N2(x)))       (Gemma 2 and 3)
    """

    attention: SelfAttention = nnx.data()
    attention_norm: Norm = nnx.data()
    mlp: Mlp = nnx.data()
    mlp_norm: Norm = nnx.data()
    attention_out_norm: Norm | None = nnx.data(default=None)
    mlp_out_norm: Norm | None = nnx.data(default=None)

    @classmethod
    def init(cls, key: jax.Array, c: StackConfig) -> "Layer":
        ka, km = jax.random.split(key)
        norm = make_norm(c, c.dim)
        out_norm = norm if c.norm_placement == "sandwich" else None
        return cls(
            attention=SelfAttention.init(ka, c),
            attention_norm=norm,
            mlp=Mlp.init(km, c),
            mlp_norm=norm,
            attention_out_norm=out_norm,
            mlp_out_norm=out_norm,
        )

    @classmethod
    def init_stacked(cls, key: jax.Array, c: StackConfig, layers: int) -> "Layer":
        """So many new layers as one, every array with a leading axis `[layers]`."""
        return jax.vmap(lambda k: cls.init(k, c))(jax.random.split(key, layers))

    def __call__(self, x, c: StackConfig, view: View, *, is_first: jax.Array, key: jax.Array | None) -> jax.Array:
        ka, kb, kc = (None, None, None) if key is None else jax.random.split(key, 3)
        if c.norm_placement == "post":
            x = self.attention_norm(x + dropout(self.attention(x, c, view, ka), c.dropout, kb))
            return self.mlp_norm(x + dropout(self.mlp(x, c), c.dropout, kc))
        h = self.attention_norm(x)
        if c.skip_first_attention_norm:
            h = jnp.where(is_first, x, h)
        h = self.attention(h, c, view, ka)
        h = h if self.attention_out_norm is None else self.attention_out_norm(h)
        x = x + dropout(h, c.dropout, kb)
        h = self.mlp(self.mlp_norm(x), c)
        h = h if self.mlp_out_norm is None else self.mlp_out_norm(h)
        return x + dropout(h, c.dropout, kc)


@nnx.dataclass
class Stack(Module):
    """L layers, stacked on a leading axis and run by one scan, and the norm after the last one."""

    layers: Layer = nnx.data()
    final_norm: Norm | None = nnx.data(default=None)
    relative_bias: jax.Array | None = nnx.data(default=None)  # [buckets, heads], of all layers
    config: StackConfig = nnx.static(kw_only=True)

    @classmethod
    def init(cls, key: jax.Array, config: StackConfig) -> "Stack":
        """A randomly initialised stack (truncated normal kernels, unit norms)."""
        kl, kr = jax.random.split(key)
        buckets = (config.relative_buckets, config.heads)
        return cls(
            layers=Layer.init_stacked(kl, config, config.layers),
            final_norm=make_norm(config, config.dim) if config.final_norm else None,
            relative_bias=config.initializer_range * jax.random.normal(kr, buckets) if buckets[0] else None,
            config=config,
        )

    def __call__(
        self,
        x: jax.Array,
        layout: Layout,
        *,
        key: jax.Array | None = None,
        all_states: bool = False,
        before: Read | None = None,
    ) -> jax.Array:
        """Hidden states of every token.

        Args:
          x: what the first layer reads, `[B, T, D]`.
          layout: of the rows, `[B, T]`.
          key: dropout key; None turns dropout off.
          all_states: also return x and every layer's state.
          before: what is done to the states in front of each layer, such as cross-attention: a module whose arrays are
            stacked as the layers are, `[L, ...]`. It is called with `[B, T, D]`, with its own layer's arrays.

        Returns:
          Final states `[B, T, D]`, or with `all_states` `[L + 1, B, T, D]`: x, then the state after each layer; the
          last one includes the final norm, as the final states do.
        """
        x = x.astype(self.config.dtype)
        final, states = self._scan(x, layout, key, (lambda x: x) if all_states else None, before)
        final = self._normed(final)
        return jnp.concatenate([x[None], states[:-1], final[None]]) if all_states else final

    def at_layers(
        self,
        x: jax.Array,
        layout: Layout,
        layers: Sequence[int],
        read: Read,
        *,
        key: jax.Array | None = None,
        raw: bool = False,
    ) -> jax.Array:
        """What `read` makes of the final states `[B, T, D]` of this stack cut to each of several depths.

        One pass through the deepest of them gives all. Each state is read inside the scan, after the final norm if
        there is one, so that what is kept of a layer is no more than what `read` returns (a pooling: `[B, S, D]`).

        Args:
          x: what the first layer reads, `[B, T, D]`.
          layout: of the rows, `[B, T]`.
          layers: numbers of layers, in any order; 0 is x.
          read: states to anything of one shape.
          key: dropout key; None turns dropout off.
          raw: read states as the next layer does, without the final norm, which only those after all L layers have:
            what a call with `all_states` gives.

        Returns:
          `[len(layers), ...]`.

        Raises:
          ValueError: if a number of layers is not in 0..L.
        """
        most = self.config.layers
        if not layers or not all(0 <= n <= most for n in layers):
            raise ValueError(f"layers must be in 0..{most}, the layers of the transformer; got {tuple(layers)}")
        x = x.astype(self.config.dtype)
        normed = lambda x: read(self._normed(x))
        between = read if raw else normed
        if (deepest := max(layers)) == 0:
            return jnp.stack([between(x)] * len(layers))
        final, after = self.truncate(deepest)._scan(x, layout, key, between, None)
        last = {most: normed(final)} if raw and deepest == most else {}
        return jnp.stack([last[n] if n in last else after[n - 1] if n else between(x) for n in layers])

    def truncate(self, layers: int) -> "Stack":
        """This stack without the layers after the first `layers`; the final norm, if any, stays.

        Raises:
          ValueError: if `layers` is not in 1..L.
        """
        config = self.config.truncate(layers)
        return dataclasses.replace(self, layers=jax.tree.map(lambda leaf: leaf[:layers], self.layers), config=config)

    def _normed(self, x: jax.Array) -> jax.Array:
        return x if self.final_norm is None else self.final_norm(x)

    def _scan(self, x: jax.Array, layout: Layout, key: jax.Array | None, read: Read | None, before: Read | None):
        """The last layer's state without the final norm, and `read` of every layer's, stacked."""
        c = self.config
        chex.assert_rank([x, layout.segments, layout.positions], [3, 2, 2])
        bias = None
        if self.relative_bias is not None:
            bias = relative_position_bias(self.relative_bias, x.shape[1], c.relative_max_distance)
        windows, window_of_layer = _distinct([w or None for w in c.windows] or [None] * c.layers)
        by_length = any(rope.trained_length is not None for rope in c.ropes)
        lengths = text_lengths(layout.segments, layout.positions) if by_length else None
        ropes = [rope.tables(layout.positions, c.head_size, lengths) for rope in c.ropes]
        rotations = jax.tree.map(lambda *tables: jnp.stack(tables), *ropes) if ropes else None

        def step(x, per_layer):
            layer, before, number, window, rope, layer_key = per_layer
            x = _by_rows(x)
            x = x if before is None else before(x)
            view = View(
                segments=layout.segments,
                window=windows[0] if len(windows) == 1 else Windows(windows, window),
                bias=bias,
                rope=jax.tree.map(lambda table: table[rope], rotations),
                prefix=layout.prompt if c.prefix_attention else None,
            )
            x = layer(x, c, view, is_first=number == 0, key=layer_key)
            return x, None if read is None else read(x)

        body = step
        if c.remat != "none":
            # Between two loops XLA cannot merge what is computed again with what was computed at first.
            is_loop = min(c.unroll, c.layers) < c.layers
            body = jax.checkpoint(step, policy=_KEPT[c.remat], prevent_cse=not is_loop)
        rope_of_layer = np.asarray(c.rope_of_layer or [0] * c.layers)
        keys = None if key is None else jax.random.split(key, c.layers)
        per_layer = (self.layers, before, np.arange(c.layers), window_of_layer, rope_of_layer, keys)
        return jax.lax.scan(body, x, per_layer, unroll=min(c.unroll, c.layers))


_KEPT = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


def relative_position_bias(table: jax.Array, length: int, max_distance: int) -> jax.Array:
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


def _distinct(values: Sequence[int | None]) -> tuple[tuple[int | None, ...], np.ndarray]:
    """The different ones of the layers' values, and which of them each layer has."""
    choices = tuple(dict.fromkeys(values))
    return choices, np.asarray([choices.index(value) for value in values], np.int32)


def _by_rows(x: jax.Array) -> jax.Array:
    """`x` `[B, ...]`, its rows split over the mesh in force: where parameters are split, they travel and not `x`."""
    axes = batch_axes()
    if not axes or x.shape[0] % math.prod(axes.values()):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(tuple(axes)))
