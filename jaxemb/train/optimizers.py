"""The usual optimiser of embedding models. Anything else is optax's, used as it is."""

import re
from collections.abc import Callable
from typing import Literal

import optax

from jaxemb.checks import arrays, at_least, between, checked, non_negative, positive
from jaxemb.trees import PyTree, map_with_path


@checked(tree=arrays)
def decayed(tree: PyTree) -> PyTree:
    """True for the arrays that weight decay is for: kernels and embedding tables, not biases and norms."""
    return map_with_path(lambda name, leaf: leaf.ndim >= 2 and not re.search(r"(?i)bias|norm", name), tree)


@checked(
    learning_rate=non_negative,
    steps=at_least(1),
    warmup=between(0, 1, "[)"),
    weight_decay=non_negative,
    max_grad_norm=positive,
    b1=between(0, 1, "[)"),
    b2=between(0, 1, "[)"),
    eps=positive,
)
def adamw(
    learning_rate: float,
    steps: int,
    *,
    warmup: float = 0.1,
    schedule: Literal["linear", "cosine", "constant"] = "linear",
    weight_decay: float = 0.01,
    max_grad_norm: float | None = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    mask: Callable[[PyTree], PyTree] = decayed,
) -> optax.GradientTransformation:
    """AdamW after global-norm clipping, with warm-up and decay of the learning rate to 0.

    Args:
      learning_rate: >= 0; the highest one, reached after the warm-up.
      steps: number of optimiser steps of the run.
      warmup: share of the steps, in [0, 1), in which the rate rises linearly from 0.
      schedule: how it falls to 0 after the warm-up; `constant` does not.
      weight_decay: >= 0; decoupled weight decay, of the arrays that `mask` says.
      max_grad_norm: > 0; gradients of a larger global norm are scaled down to it; None for no clipping.
      b1, b2, eps: Adam's; b1 and b2 in [0, 1), eps > 0.
      mask: tree of parameters -> tree of bools.

    Raises:
      ValueError: if an argument is out of its range.
    """
    up = round(warmup * steps)
    down = {
        "linear": optax.linear_schedule(learning_rate, 0.0, steps - up),
        "cosine": optax.cosine_decay_schedule(learning_rate, steps - up),
        "constant": optax.constant_schedule(learning_rate),
    }
    if schedule not in down:
        raise ValueError(f"schedule must be one of {sorted(down)}; got {schedule!r}")
    # The first step, too, has a rate above 0.
    rise = optax.linear_schedule(learning_rate / max(up, 1), learning_rate, max(up - 1, 1))
    parts, starts = [rise, down[schedule]], [up]
    if schedule != "constant":  # of which rounding would leave a little, above 0 or below
        parts, starts = [*parts, optax.constant_schedule(0.0)], [up, steps]
    rate = optax.join_schedules(parts, starts)
    make = lambda learning_rate: optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=mask)
    adam = optax.inject_hyperparams(make)(learning_rate=rate)
    return adam if max_grad_norm is None else optax.chain(optax.clip_by_global_norm(max_grad_norm), adam)
