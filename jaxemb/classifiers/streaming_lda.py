"""Streaming linear discriminant analysis: nearest means in the metric of one covariance that all classes share."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxemb.checks import checked, shapes, size
from jaxemb.classifiers.nearest_mean import NMCState, check_logits, check_seen, nmc_init, nmc_means, nmc_update


class SldaState(NamedTuple):
    """The sums and counts of the classes, and the sum of the products `f fᵀ` of all features, f32 `[D, D]`."""

    classes: NMCState
    products: jax.Array


@checked(classes=size, dim=size)
def slda_init(classes: int, dim: int) -> SldaState:
    """No class seen yet; raises as `nmc_init`."""
    return SldaState(nmc_init(classes, dim), jnp.zeros((dim, dim), jnp.float32))


@checked()
def slda_update(state: SldaState, features: jax.Array, labels: jax.Array) -> SldaState:
    """Adds features `[B, D]` of labels int `[B]`, in any order and batches; raises as `nmc_update`."""
    return SldaState(nmc_update(state.classes, features, labels), state.products + _products(features))


@jax.jit
def _products(features: jax.Array) -> jax.Array:
    x = features.astype(jnp.float32)
    return jnp.matmul(x.T, x, precision="highest")


@checked(shapes(features="B D"))
def slda_logits(state: SldaState, features: jax.Array, shrinkage: float = 1e-4) -> jax.Array:
    """`f·w_c - M_c·w_c / 2` with `w_c = S⁻¹ M_c`, f32 `[B, C]`: log-posteriors, classes being equally frequent.

    S is the covariance within classes, `(products - sum_c n_c M_c M_cᵀ) / n`, mixed with the identity:
    `(1 - a) S + a tr(S)/D I`, a the shrinkage. A class without features has -inf.

    Args:
      state: C classes.
      features: `[B, D]`.
      shrinkage: in (0, 1]; at 1 it is the nearest mean.

    Raises:
      ValueError: for a shrinkage outside (0, 1]; outside of `jit` also as long as no class was seen, for features that
        are not finite, or too large for a finite logit, and for classes that do not vary.

    Source: Hayes and Kanan 2020, arXiv 1909.01520; the shrinkage to tr(S)/D is that of Ledoit and Wolf 2004.
    """
    if not 0 < shrinkage <= 1:
        raise ValueError(f"shrinkage must be in (0, 1]; got {shrinkage}")
    if features.shape[1] != (dim := state.products.shape[0]):
        raise ValueError(f"features must be [B, {dim}]; got {features.shape}")
    check_seen(state.classes, features)
    return check_logits(_logits(state, features, shrinkage), state.classes.counts)


@jax.jit
def _logits(state: SldaState, features: jax.Array, shrinkage: float) -> jax.Array:
    means, (_, counts) = nmc_means(state.classes), state.classes
    between = jnp.matmul(means.T * counts, means, precision="highest")
    within = (state.products - between) / jnp.maximum(jnp.sum(counts), 1)
    dim = within.shape[0]
    size = jnp.trace(within) / dim
    shrunk = (1 - shrinkage) * within + shrinkage * size * jnp.eye(dim)
    weights = jax.scipy.linalg.solve(shrunk, means.T, assume_a="pos")
    logits = jnp.matmul(features.astype(jnp.float32), weights, precision="highest")
    return jnp.where(counts > 0, logits - 0.5 * jnp.sum(means.T * weights, axis=0), -jnp.inf)
