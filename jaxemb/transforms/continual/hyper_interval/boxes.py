"""Boxes of embeddings, and the boxes of weights that the hypernetwork makes of them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxemb.encoders.mlp import Mlp
from jaxemb.interval import CentredBox
from jaxemb.transforms.continual import hypernetwork as hyper
from jaxemb.transforms.continual.hyper_interval.config import (
    HyperIntervalConfig,
    HyperIntervalParams,
    HyperIntervalState,
)
from jaxemb.trees import PyTree


@functools.partial(jax.jit, static_argnums=0)
def schedules(config: HyperIntervalConfig, step: jax.Array, steps: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Kappa and gamma in step i of the n that a task takes, h = n // 2.

    For i < h: `max(1 - 5e-5 i, kappa)` and `gamma i / (h - 1)`; then `kappa` and `gamma`.
    """
    half = steps // 2
    ramp = step.astype(jnp.float32) / jnp.maximum(half - 1, 1)
    early = step < half
    kappa = jnp.where(early, jnp.maximum(1 - 5e-5 * step, config.kappa), config.kappa)
    return kappa, jnp.where(early, ramp, 1) * config.gamma


@functools.partial(jax.jit, static_argnums=0)
def task_boxes(config: HyperIntervalConfig, params: HyperIntervalParams, gamma: jax.Array | float) -> CentredBox:
    """The boxes of embeddings, `[..., d]` for embeddings `[..., d]`.

    Without nesting: centre `e`, radius `gamma softmax(r)`, which sums to gamma. Nested: centre `gamma / 2d cos(e)` and
    radius `gamma / d`, so that gamma moves the centre too.
    """
    if config.nesting == "cos":
        radius = jnp.full_like(params.embeddings, 1) * gamma / config.embed_dim
        return CentredBox(0.5 * radius * jnp.cos(params.embeddings), radius)
    return CentredBox(params.embeddings, gamma * jax.nn.softmax(params.radius_logits))


@functools.partial(jax.jit, static_argnums=0)
def weight_boxes(
    config: HyperIntervalConfig, params: HyperIntervalParams, box: CentredBox, model: PyTree
) -> CentredBox:
    """The boxes of weights, `[..., P]`, that the hypernetwork makes of boxes of embeddings, `[..., d]`."""
    no_radius = None if params.chunks is None else jnp.zeros_like(params.chunks)
    inputs = CentredBox(hyper.with_chunks(box.centre, params.chunks), hyper.with_chunks(box.radius, no_radius))
    total = hyper.count(config, model)
    made = propagate(params.network, *(x.reshape(-1, x.shape[-1]) for x in inputs))
    flat = lambda x: config.scale * x.reshape(*box.centre.shape[:-1], -1)[..., :total]
    return CentredBox(*map(flat, made))


def propagate(network: Mlp, centre: jax.Array, radius: jax.Array) -> CentredBox:
    """The box `[..., P]` around what a ReLU network makes of a box `[..., d]`.

    Layer by layer `m <- m W + b` and `r <- r |W|`, and, but for the last, `[m - r, m + r]` through the ReLU: the new
    centre is the middle of that, not the ReLU of the old one.
    """
    for number, layer in enumerate(network.layers, 1):
        centre, radius = layer(centre), radius @ jnp.abs(layer.kernel)
        if number < len(network.layers):
            lower, upper = jax.nn.relu(centre - radius), jax.nn.relu(centre + radius)
            centre, radius = (lower + upper) / 2, (upper - lower) / 2
    return CentredBox(centre, radius)


def present_weights(
    config: HyperIntervalConfig, params: HyperIntervalParams, state: HyperIntervalState, model: PyTree
) -> CentredBox:
    """The box of weights, `[P]`, of the present task and gamma, or of the box of embeddings that is given."""
    _, gamma = schedules(config, state.step, state.steps)
    row = params._replace(embeddings=params.embeddings[state.task], radius_logits=params.radius_logits[state.task])
    given, use = state.given
    box = jax.tree.map(lambda a, b: jnp.where(use, a, b), given, task_boxes(config, row, gamma))
    return weight_boxes(config, params, box, model)


def all_weights(config: HyperIntervalConfig, params: HyperIntervalParams, model: PyTree) -> jax.Array:
    """Lower, middle and upper weights of all tasks with the full gamma, `[T, 3, P]`."""
    box = weight_boxes(config, params, task_boxes(config, params, config.gamma), model)
    return jnp.stack([box.lo, box.centre, box.hi], axis=-2)


def old_weights(config: HyperIntervalConfig, params: HyperIntervalParams, model: PyTree) -> Any:
    """`HyperIntervalState.old`."""
    return params if config.targets == "recompute" else all_weights(config, params, model)


@functools.partial(jax.jit, static_argnums=0)  # once for all tasks
def moved(config: HyperIntervalConfig, params: HyperIntervalParams, old: Any, model: PyTree) -> jax.Array:
    """How far the bounds and middles of every task's weights are from the old ones, maximum norm, `[T]`."""
    before = all_weights(config, old, model) if config.targets == "recompute" else old
    return jnp.abs(all_weights(config, params, model) - before).max(axis=(1, 2))
