"""Worst cases of bounded logits."""

import jax
import jax.numpy as jnp

from jaxemb.checks import checked, shapes
from jaxemb.nn.classes import check_labels


@checked(shapes(lo="... C", hi="... C", labels="..."))
def worst_case_logits(lo: jax.Array, hi: jax.Array, labels: jax.Array) -> jax.Array:
    """The logits of the box that are worst for the labels: `lo` at the label, `hi` elsewhere, `[N, C]`.

    Their cross-entropy is the largest in the box, and where their argmax is the label, so is that of the whole box.

    Args:
      lo, hi: the box of the logits, `[N, C]`.
      labels: the classes, int `[N]`.

    Raises:
      ValueError: for shapes that do not fit, and outside of traced code for labels that are not in 0..C-1.
    """
    check_labels(labels, lo.shape[-1])
    return jnp.where(jnp.arange(lo.shape[-1]) == labels[..., None], lo, hi)
