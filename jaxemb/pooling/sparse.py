"""Pooling over the vocabulary: a weight for each word, most of them 0."""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from jaxemb.checks import at_least, checked, shapes, whole
from jaxemb.pooling.base import of_texts
from jaxemb.types import Tokens

_few = functools.partial(whole, least=1, most=100)


@checked(shapes(states="B T D"), saturations=_few, chunk=at_least(1))
def splade(
    states: jax.Array,
    tokens: Tokens,
    head: Callable[[jax.Array], jax.Array] = lambda logits: logits,
    *,
    reduce: Literal["max", "sum"] = "max",
    saturations: int = 1,
    chunk: int = 32,
) -> jax.Array:
    """SPLADE: the weight of each word of the vocabulary in the text, `max_t log(1 + relu(z_tv))`.

    Logits exist for `chunk` tokens of each row at a time, in the gradient as well (which computes them once more):
    memory is O(B V (chunk + T / chunk)) instead of B V T.

    Args:
      states: `[B, T, D]`.
      tokens: the texts.
      head: from states `[B, C, D]` to logits z `[B, C, V]`, for any C, such as that of a masked language model; by
        default the states are logits.
      reduce: "max" or "sum" over the text's tokens.
      saturations: how often log(1 + x) is taken; 2 gives still sparser weights ("log1p_relu" in sentence-transformers).
      chunk: tokens per step.

    Returns:
      f32 `[N, V]`, >= 0.

    Raises:
      ValueError: for an unknown `reduce`, or saturations or a chunk < 1.

    References:
      Formal et al. 2021 (sum), https://arxiv.org/abs/2107.05720; (max) https://arxiv.org/abs/2109.10086.
    """
    if reduce not in ("max", "sum"):
        raise ValueError(f"reduce must be 'max' or 'sum'; got {reduce!r}")
    if states.shape[:2] != tokens.ids.shape or not states.size:
        raise ValueError(f"states must be [B, T, D] with B, T = {tokens.ids.shape}, not empty; got {states.shape}")
    slots = jnp.arange(1, tokens.texts_per_row + 1)

    def saturated(weights):
        for _ in range(saturations):
            weights = jnp.log1p(weights)
        return weights

    @jax.checkpoint
    def add(pooled, inputs):
        states, segment_ids = inputs
        weights = jax.nn.relu(head(states).astype(jnp.float32))
        weights = saturated(weights) if reduce == "sum" else weights

        def one_slot(slot):
            members = jnp.where((segment_ids == slot)[..., None], weights, 0.0)
            return members.sum(axis=1) if reduce == "sum" else members.max(axis=1)

        new = jax.lax.map(one_slot, slots).swapaxes(0, 1)
        return (pooled + new if reduce == "sum" else jnp.maximum(pooled, new)), None

    def chunks(x):  # [B, T, ...] to [T / chunk, B, chunk, ...]
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), *((0, 0) for _ in x.shape[2:])))
        return x.reshape(x.shape[0], -1, size, *x.shape[2:]).swapaxes(0, 1)

    size = min(chunk, states.shape[1])
    vocabulary = jax.eval_shape(head, states[:, :1]).shape[-1]
    start = jnp.zeros((states.shape[0], len(slots), vocabulary))
    pooled, _ = jax.lax.scan(add, start, (chunks(states), chunks(tokens.segment_ids)))
    # The maximum of saturated weights is the saturated maximum, in value and gradient.
    return of_texts(pooled if reduce == "sum" else saturated(pooled), tokens)
