"""The loss over a box of weights, that of its middle and of the worst case in it, and the regulariser of old boxes."""

import jax
import jax.numpy as jnp

from jaxemb.interval import CentredBox, bound, worst_case_logits
from jaxemb.nn.classes import class_cross_entropy
from jaxemb.objectives.classification import competing
from jaxemb.transforms.base import Context
from jaxemb.transforms.continual import hypernetwork as hyper
from jaxemb.transforms.continual.hyper_interval.boxes import all_weights, task_boxes, weight_boxes
from jaxemb.transforms.continual.hyper_interval.config import (
    HyperIntervalConfig,
    HyperIntervalParams,
    HyperIntervalState,
)
from jaxemb.trees import PyTree


@jax.jit
def interval_cross_entropy(
    lower: jax.Array,
    middle: jax.Array,
    upper: jax.Array,
    labels: jax.Array,
    kappa: jax.Array | float,
    classes: jax.Array | None = None,
) -> jax.Array:
    """`kappa CE(middle) + (1 - kappa) CE(worst case)` of logits `[N, C]`, f32 `[N]`."""
    worst = cross_entropy(worst_case_logits(lower, upper, labels), labels, classes)
    return kappa * cross_entropy(middle, labels, classes) + (1 - kappa) * worst


def cross_entropy(logits: jax.Array, labels: jax.Array, classes: jax.Array | None) -> jax.Array:
    """Cross-entropy among the classes that compete, f32 `[N]`."""
    return class_cross_entropy(competing(logits, classes), labels)


def box_losses(
    config: HyperIntervalConfig,
    model: PyTree,
    stored: PyTree,
    weights: CentredBox,
    batch: PyTree,
    kappa: jax.Array | float,
    key: jax.Array | None = None,
    middle: jax.Array | None = None,
) -> jax.Array:
    """`interval_cross_entropy` of a batch over a box of weights, f32 `[N]`.

    Args:
      config: that of the method.
      model, stored: the applied model, whose generated weights are replaced, and the stored one.
      weights: the box, `[P]`.
      batch: inputs, labels, and classes if only some compete.
      kappa: weight of the middle.
      key: of the forward pass.
      middle: the middle's logits if they are known, `[N, C]`.
    """
    if middle is None:
        middle = hyper.put(config, model, weights.centre, stored)(batch[config.input], key=key)
    logits = interval_logits(config, model, stored, weights, batch[config.input], key, middle)
    return interval_cross_entropy(*logits, batch[config.label], kappa, batch.get(config.classes))


def interval_logits(
    config: HyperIntervalConfig,
    model: PyTree,
    stored: PyTree,
    weights: CentredBox,
    inputs: PyTree,
    key: jax.Array | None,
    middle: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Lower, middle and upper logits of the applied model with weights in the box (relaxed: at its two ends)."""
    logits = lambda theta: hyper.put(config, model, theta, stored)(inputs, key=key)
    if config.target == "relaxed":
        return order_relaxed(logits(weights.lo), middle, logits(weights.hi), config.ordering)
    low, high = bound(logits)((weights.lo,), (weights.hi,))
    return jnp.minimum(low, middle), middle, jnp.maximum(high, middle)  # rounding may put the middle outside


def order_relaxed(a: jax.Array, b: jax.Array, c: jax.Array, ordering: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Lower, middle and upper of three logits: "exact", or by the "official" two swaps: of (2, 3, 1), (2, 1, 3)."""
    if ordering == "exact":
        return jnp.minimum(jnp.minimum(a, c), b), b, jnp.maximum(jnp.maximum(a, c), b)
    a, b = jnp.minimum(a, b), jnp.maximum(a, b)
    return a, jnp.minimum(b, c), jnp.maximum(b, c)


def box_regulariser(
    config: HyperIntervalConfig, context: Context, params: HyperIntervalParams, state: HyperIntervalState
) -> jax.Array:
    """beta R, between the weights of the old tasks now and before this task."""
    params = hyper.frozen_embeddings(hyper.ahead(config, context, params, state.candidate))
    params = params._replace(radius_logits=jax.lax.stop_gradient(params.radius_logits))
    stored = context.stored

    def held(params: HyperIntervalParams) -> jax.Array:
        if config.regularises_all:
            return all_weights(config, params, stored)
        # The middles, `[T, P]`, do not need the last layer's radii, half of the work.
        return weight_boxes(config, params, task_boxes(config, params, config.gamma), stored).centre

    if config.targets == "recompute":
        before = held(state.old)
    else:
        before = state.old if config.regularises_all else state.old[:, 1]
    return config.beta * hyper.output_regulariser(config, held(params), jax.lax.stop_gradient(before), state.task)
