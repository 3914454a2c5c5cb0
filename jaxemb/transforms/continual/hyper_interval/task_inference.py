"""Which task a record is of, where that is unknown."""

import functools

import jax
import jax.numpy as jnp

from jaxemb.objectives.classification import competing


@functools.partial(jax.jit, static_argnames="weighted")
def infer_task_by_entropy(
    logits: jax.Array, weighted: bool = False, classes: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """For records whose task is unknown: the task whose softmax has the least entropy, and its most probable class.

    Args:
      logits: of every task, lower, middle and upper, `[T, N, 3, C]`.
      weighted: whether the entropy's terms are divided by `0.001 + upper - lower`.
      classes: those of each task, bool `[T, C]`; None for all.

    Returns:
      Tasks and classes, int32 `[N]`.

    References:
      `entropy.py` of github.com/gmum/HyperInterval; von Oswald et al. 2020, HNET+ENT.
    """
    lower, middle, upper = jnp.moveaxis(logits, 2, 0)
    middle = middle if classes is None else jax.vmap(competing)(middle, classes)
    log_p = jax.nn.log_softmax(middle)
    terms = -jnp.where(jnp.isfinite(log_p), jnp.exp(log_p) * log_p, 0)
    if weighted:
        terms /= 0.001 + jnp.abs(upper - lower)
    tasks = jnp.argmin(terms.sum(axis=-1), axis=0)
    found = jnp.argmax(middle, axis=-1)
    return tasks, jnp.take_along_axis(found, tasks[None], axis=0)[0]
