"""What a HyperInterval bounds: logits, the accuracy in the worst case, and whether its arithmetic is sound."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxemb.checks import arrays, checked, each, filled, non_negative, whole
from jaxemb.interval import CentredBox, worst_case_logits
from jaxemb.transforms.base import Transform, find_state
from jaxemb.transforms.continual.hyper_interval.boxes import present_weights
from jaxemb.transforms.continual.hyper_interval.config import (
    HyperIntervalConfig,
    HyperIntervalParams,
    HyperIntervalState,
)
from jaxemb.transforms.continual.hyper_interval.losses import interval_logits
from jaxemb.transforms.continual.hyper_interval.universal import TRAINED, at_box, boxes_of, generated_weights
from jaxemb.transforms.continual.hypernetwork import at_task, put
from jaxemb.trees import PyTree


def make_interval_logits(config: HyperIntervalConfig, transform: Transform) -> Callable:
    """Makes `(train_state, inputs) -> logits [3, N, C]`, lower, middle and upper, of the state's weight box, jitted.

    Args:
      config: that of the method; its `target` says how the logits are bounded.
      transform: the method, or a chain with it.
    """

    @jax.jit
    def logits(state, inputs):
        model = transform.model(state.model, state.method_params, state.method_state)
        found = find_state(state.method_state, HyperIntervalState)
        params = find_state(state.method_params, HyperIntervalParams)
        weights = present_weights(config, params, found, state.model)
        return jnp.stack(interval_logits(config, model, state.model, weights, inputs, None, model(inputs)))

    return logits


@checked()
def worst_case_accuracy(config: HyperIntervalConfig, transform: Transform) -> Callable:
    """An evaluator of `continual.run_stream`: how often the label's logit is the largest for all weights of the box.

    Args:
      config, transform: as for `make_interval_logits`.
    """
    logits = make_interval_logits(config, transform)

    def evaluate(state, experience, number: int, seen: np.ndarray | None) -> float:
        labels = experience.test[config.label]
        lower, _, upper = logits(at_task(state, number), experience.test[config.input])
        return float(np.mean(np.argmax(worst_case_logits(lower, upper, labels), axis=1) == labels))

    return evaluate


@checked(
    state=TRAINED,
    inputs=each(arrays),
    samples=functools.partial(whole, least=1, most=100_000),
    tolerance=non_negative,
)
def broken_bounds(
    config: HyperIntervalConfig,
    transform: Transform,
    state: PyTree,
    inputs: Sequence[Any],
    samples: int = 100,
    tolerance: float = 1e-4,
) -> tuple[int, int]:
    """The soundness of the arithmetic: how many weights and logits are outside of their bounds, and of how many.

    Of every task's box, embeddings are drawn, whose weights are to be in the box of weights; and of that box weights,
    corners included, whose logits are to be within theirs. It compares bounds and points of one hypernetwork, so that
    it says nothing about forgetting; `promise_report` does.

    Args:
      config: that of the method, all weights of whose model are generated.
      transform: the method.
      state: the train state.
      inputs: of every task, those whose logits are looked at.
      samples: of every box.
      tolerance: of float32.

    Raises:
      ValueError: for no inputs, those of a task that has not begun or that do not fit the model, and numbers out of
        range.
    """
    filled("inputs", np.zeros(len(inputs)))
    rng = np.random.default_rng(0)
    outside = looked_at = 0
    logits_in = make_interval_logits(config, transform)
    apply = lambda state: transform.model(state.model, state.method_params, state.method_state)
    weights_at = jax.jit(lambda state: jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(apply(state))]))
    logits_of = jax.jit(lambda model, theta, inputs: put(config, model, theta)(inputs))
    for number, rows in enumerate(inputs):
        embedding, weights = (
            jax.tree.map(lambda x: np.asarray(x[0]), of(config, state, [number]))
            for of in (boxes_of, generated_weights)
        )
        lower, _, upper = np.asarray(logits_in(at_task(state, number), rows))
        for i in range(samples):
            draw = lambda n, i=i: np.asarray(rng.uniform(-1, 1, n) if i % 2 else rng.choice([-1, 1], n), np.float32)
            point = embedding.centre + draw(len(embedding.centre)) * embedding.radius
            made = np.asarray(weights_at(at_box(state, CentredBox(jnp.asarray(point), jnp.zeros_like(point)))))
            outside += int((np.abs(made - weights.centre) > weights.radius + tolerance).sum())
            theta = weights.centre + draw(len(weights.centre)) * weights.radius
            logits = np.asarray(logits_of(state.model, theta, rows))
            outside += int(((logits < lower - tolerance) | (logits > upper + tolerance)).sum())
            looked_at += made.size + logits.size
    return outside, looked_at
