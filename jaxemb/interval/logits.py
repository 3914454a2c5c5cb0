"""Worst cases of bounded logits."""

import chex
import jax
import jax.numpy as jnp

from jaxemb.checks import checked


@checked()
def worst_case_logits(lo: jax.Array, hi: jax.Array, labels: jax.Array) -> jax.Array:
    """The logits of the box that are worst for the labels: `lo` at the label, `hi` elsewhere, `[N, C]`.

    Their cross-entropy is the largest in the box, and where their argmax is the label, so is that of the whole box.

    Args:
      lo, hi: the box of the logits, `[N, C]`.
      labels: the classes, int `[N]`.
    """
    chex.assert_equal_shape([lo, hi])
    chex.assert_shape(labels, lo.shape[:-1])
    return jnp.where(jnp.arange(lo.shape[-1]) == labels[..., None], lo, hi)
