"""How much tasks are at odds: in what they changed, and in where their gradients point."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxemb.checks import arrays, checked, each
from jaxemb.merging.trees import match_vectors, wide
from jaxemb.objectives import Objective
from jaxemb.trees import PyTree


class Interference(NamedTuple):
    """Between n task vectors, pair by pair, f32 `[n, n]` each.

    Attributes:
      cosine: of the flattened vectors.
      sign_conflict: share of the entries at which both are not 0 where their signs differ; 0 if there is none.
      norm_ratio: `|tau_i| / |tau_j|`.
    """

    cosine: np.ndarray
    sign_conflict: np.ndarray
    norm_ratio: np.ndarray


@checked(vectors=each(arrays))
def interference_report(vectors: Sequence[PyTree]) -> Interference:
    """Compares task vectors, over all of their tensors.

    Raises:
      ValueError: if there are no vectors, or they do not match.
    """
    match = match_vectors(vectors[0] if vectors else None, vectors)
    flat = [jnp.stack([jnp.ravel(wide(t)) for t in ts[1:]]) for ts in match.tensors if ts is not None]
    products = _total(x @ x.T for x in flat)
    norms = jnp.sqrt(jnp.diagonal(products))
    # The sum of sign products is (pairs of one sign) - (pairs of different signs); that of their magnitudes is both.
    signs, both = (_total(f(x) @ f(x).T for x in flat) for f in (jnp.sign, lambda x: jnp.abs(jnp.sign(x))))
    conflict = jnp.where(both > 0, (both - signs) / (2 * jnp.maximum(both, 1)), 0)
    ratio = norms[:, None] / norms[None, :]
    return Interference(*map(np.asarray, (_cosines(products), conflict, ratio)))


@checked(model=arrays)
def gradient_conflict(
    objectives: Mapping[str, Objective],
    model: PyTree,
    batches: Mapping[str, PyTree],
    key: jax.Array | None = None,
) -> np.ndarray:
    """Pairwise cosines `[n, n]` of the gradients of the tasks' mean losses at one model, in the order of `objectives`.

    Args:
      objectives: of each task, `(model, batch, key) -> (losses [N], outputs)`.
      model: where the gradients are taken.
      batches: one of each task.
      key: for dropout; None for none.

    Raises:
      ValueError: if there are no tasks, or not one batch for each.
    """
    if not objectives or set(objectives) != set(batches):
        raise ValueError(
            "batches must be one for each task of objectives, and these at least one; "
            f"got {list(batches)} for {list(objectives)}"
        )

    @jax.jit
    def products(model, batches):
        mean_loss = lambda model, name: jnp.mean(objectives[name](model, batches[name], key)[0])
        gradients = [jax.tree.leaves(jax.grad(mean_loss)(model, name)) for name in objectives]
        flat = (jnp.stack([jnp.ravel(wide(g)) for g in column]) for column in zip(*gradients, strict=True))
        return _total(x @ x.T for x in flat)

    return np.asarray(_cosines(products(model, dict(batches))))


def _total(terms: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, terms)


def _cosines(products: jax.Array) -> jax.Array:
    norms = jnp.sqrt(jnp.diagonal(products))
    return products / jnp.maximum(norms[:, None] * norms[None, :], jnp.finfo(products.dtype).tiny)
