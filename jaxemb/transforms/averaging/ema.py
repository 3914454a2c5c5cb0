"""Exponential moving average of the weights."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxemb.checks import checked
from jaxemb.transforms.base import Transform, Variables, find_state
from jaxemb.trees import PyTree


class EmaState(NamedTuple):
    """The average of the model, and the number of steps in it (int32 scalar)."""

    average: PyTree
    steps: jax.Array


@checked()
def ema(decay: float = 0.999, *, start: Literal["warmup", "debias", "constant"] = "warmup") -> Transform:
    """Keeps the exponential moving average of the model; training itself is left unchanged.

    After step t = 1, 2, ...: `average <- average + (1 - d_t) (model - average)`, beginning at the initial model, where
    `d_t` depends on `start`:

      warmup    `min(decay, t / (9 + t))`: young averages forget fast
      debias    `decay (1 - decay^(t-1)) / (1 - decay^t)`: the average that starts at zero, divided by the sum of its
                weights, as Adam does; the initial model has no weight
      constant  `decay`

    The model that is averaged is the one that the forward pass uses, so in a chain place `ema` after the
    transforms that change the model. Arrays that are not floating-point are kept as they are now.

    Args:
      decay: in [0, 1).
      start: see above.

    Raises:
      ValueError: if `decay` or `start` is something else.

    Source: Polyak and Juditsky 1992; warm-up as in TensorFlow's ExponentialMovingAverage.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1); got {decay}")
    rates = {
        "warmup": lambda t: jnp.maximum(1 - decay, 9 / (9 + t)),
        "debias": lambda t: (1 - decay) / (1 - decay**t),
        "constant": lambda t: 1 - decay,
    }
    if start not in rates:
        raise ValueError(f"start must be one of {sorted(rates)}; got {start!r}")

    def init(key, model):
        return Variables(state=EmaState(model, jnp.zeros((), jnp.int32)))

    def after_step(context, params, state):
        steps = state.steps + 1
        rate = jnp.asarray(rates[start](steps.astype(jnp.float32)))
        model = context.apply(context.trained)
        return EmaState(jax.tree.map(lambda average, now: _towards(average, now, rate), state.average, model), steps)

    return Transform(init=init, after_step=after_step)


@checked()
def ema_model(state: PyTree) -> PyTree:
    """The averaged model inside `state`: a train state, or anything that contains the state of one `ema`.

    Raises:
      ValueError: if `state` has no `ema`, or several.
    """
    return find_state(state, EmaState).average


def _towards(average: jax.Array, now: jax.Array, rate: jax.Array) -> jax.Array:
    if not jnp.issubdtype(now.dtype, jnp.floating):
        return now
    return average + rate.astype(average.dtype) * (now - average)
