"""Iterated spherical interpolation of task vectors, which Self Positioning searches and which is a merge by itself."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxemb.checks import arrays, checked, each, finite
from jaxemb.merging.trees import apply_task_vectors, match_vectors, wide
from jaxemb.trees import PyTree

_LEAST_SINE = 1e-3  # below it the interpolation is linear


@checked(base=arrays, vectors=each(arrays), scale=finite)
def merge_slerp_vectors(
    base: PyTree, vectors: Sequence[PyTree], weights: Sequence[float] | None = None, scale: float = 1.0
) -> PyTree:
    """`base + scale * V`, with V the spherical interpolation of the task vectors, one after another:

        V = tau_1;  V <- f(V, tau_k, mean(a_1 .. a_{k-1}), a_k)  for k = 2 .. n
        f(U, V, a, b) = [sin(s omega) U + sin((1 - s) omega) V] / sin(omega),  s = a / (a + b)

    with omega the angle between U and V over the whole flattened model; their lengths stay as they are. Where
    `sin omega < 1e-3`, or a vector is 0, f is `s U + (1 - s) V`. With n > 2 the order of the vectors counts, also when
    the weights are equal. `merge_slerp` interpolates the weights of two models, tensor by tensor, which is another
    method.

    >>> base, vectors = {"w": jnp.zeros(2)}, [{"w": jnp.array([2.0, 0.0])}, {"w": jnp.array([0.0, 1.0])}]
    >>> merge_slerp_vectors(base, vectors)["w"].round(4)
    Array([1.4142, 0.7071], dtype=float32)

    Args:
      base: the model that all vectors begin at.
      vectors: n of `task_vector`.
      weights: a, n positive numbers; None for equal ones.
      scale: of V.

    Raises:
      ValueError: if there are no vectors, the trees do not match, the weights are not n positive finite numbers, or a
        result overflows.

    References:
      Li et al. 2024, arXiv 2410.15035, the direction of Self Positioning, as a reader's published notes quote it.
    """
    gram = gram_of(base, vectors)
    given = np.ones(len(vectors)) if weights is None else np.asarray(weights, float)
    if given.shape != (len(vectors),) or not np.all((given > 0) & np.isfinite(given)):
        raise ValueError(f"weights must be {len(vectors)} positive numbers; got {weights}")
    return apply_task_vectors(base, vectors, slerp_coefficients(given.astype(np.float32), gram), scale)


def gram_of(base: PyTree, vectors: Sequence[PyTree]) -> jax.Array:
    """The inner products of task vectors over the whole model, `[n, n]`."""
    return _gram([ts[1:] for ts in match_vectors(base, vectors).tensors if ts is not None])


@jax.jit
def _gram(tensors: Sequence[Sequence[jax.Array]]) -> jax.Array:
    rows = [jnp.stack([wide(tensor).ravel() for tensor in of_all]) for of_all in tensors]
    return sum((jnp.matmul(x, x.T, precision="highest") for x in rows), start=jnp.zeros(()))


@jax.jit
def slerp_coefficients(weights: jax.Array, gram: jax.Array) -> jax.Array:
    """c, `[n]`, with `sum_i c_i tau_i` the V of `merge_slerp_vectors`; differentiable.

    Args:
      weights: a, `[n]`, positive.
      gram: the inner products of the tau, `[n, n]`, which are all that the angles need.
    """
    eye = jnp.eye(len(gram))
    made = eye[0]
    for k in range(1, len(gram)):
        before = jnp.mean(weights[:k])
        s = before / (before + weights[k])
        product, square = made @ gram[:, k], (made @ gram @ made) * gram[k, k]
        cosine = jnp.where(square > 0, product, 1) / jnp.sqrt(jnp.where(square > 0, square, 1))
        curved = (square > 0) & (1 - cosine**2 > _LEAST_SINE**2)
        omega = jnp.arccos(jnp.where(curved, cosine, 0))  # whose gradient is finite there
        of_first = jnp.where(curved, jnp.sin(s * omega) / jnp.sin(omega), s)
        of_second = jnp.where(curved, jnp.sin((1 - s) * omega) / jnp.sin(omega), 1 - s)
        made = of_first * made + of_second * eye[k]
    return made
