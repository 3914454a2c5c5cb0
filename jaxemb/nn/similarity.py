"""Similarities of embeddings: every row of one side with every row of the other; larger is more alike.

Each takes `a` `[..., N, D]` and `b` `[..., M, D]`, whose leading axes broadcast, and returns `[..., N, M]`, computed in
f32 at full matmul precision (a TF32 or one-pass bf16 product is off by 1e-3, which a temperature of 0.01 turns into 0.1
nat). Values and gradients are finite for zero vectors, and vectors shorter than 1e-12 count as such. Other shapes are a
ValueError.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxemb.checks import checked, shapes

Similarity = Callable[[jax.Array, jax.Array], jax.Array]

_TINY_NORM = 1e-12  # shorter vectors count as zero
_sides = shapes(a="...a N D", b="...b M D")


def _fit(given: Mapping[str, Any]) -> None:
    """Raises a ValueError unless the sides are of one D, and their leading axes broadcast."""
    _sides(given)
    of_a, of_b = np.shape(given["a"])[:-2], np.shape(given["b"])[:-2]
    if of_a != of_b:
        try:
            np.broadcast_shapes(of_a, of_b)
        except ValueError:
            raise ValueError(f"a and b must have leading axes that broadcast; got {of_a} and {of_b}") from None


@checked(_fit)
@jax.jit
def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Inner products `<a_i, b_j>`."""
    a, b = _at_least_f32(a), _at_least_f32(b)
    return jnp.einsum("...nd,...md->...nm", a, b, precision=jax.lax.Precision.HIGHEST)


@checked(_fit)
@jax.jit
def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """`<a_i, b_j> / (|a_i| |b_j|)`, in -1..1; 0, within 1e-12, where either is shorter than 1e-12; NaN where the
    squares of one overflow (of a length above 1.8e19 in f32)."""
    return dot(unit(a), unit(b))


@checked(_fit)
@jax.jit
def euclidean(a: jax.Array, b: jax.Array) -> jax.Array:
    """Negative distances `-|a_i - b_j|_2`; the gradient is 0 where the two coincide."""
    return -_safe_sqrt(_squared_distances(_at_least_f32(a), _at_least_f32(b)))


@jax.custom_jvp
def _squared_distances(a: jax.Array, b: jax.Array) -> jax.Array:
    """By differences: `|a|² + |b|² - 2 <a, b>` is 0, or anything, for vectors that are nearer than they are long."""
    return jnp.sum(jnp.square(a[..., :, None, :] - b[..., None, :, :]), axis=-1)


@_squared_distances.defjvp
def _squared_distances_jvp(primals, tangents):
    """`2 <a - b, da - db>` by products, since its transpose by differences would hold all of them, `[N, M, D]`."""
    (a, b), (da, db) = primals, tangents
    center = jax.lax.stop_gradient(b.mean(axis=-2, keepdims=True))  # the closer to 0, the smaller the rounding
    x, y = a - center, b - center
    own = jnp.sum(x * da, axis=-1)[..., :, None] + jnp.sum(y * db, axis=-1)[..., None, :]
    return _squared_distances(a, b), 2 * (own - dot(da, y) - dot(x, db))


SIMILARITIES: Mapping[str, Similarity] = {"cosine": cosine, "dot": dot, "euclidean": euclidean}


def similarity_function(similarity: str | Similarity) -> Similarity:
    """The function itself, or the one called so.

    Raises:
      ValueError: for an unknown name.
    """
    if callable(similarity):
        return similarity
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity must be one of {sorted(SIMILARITIES)} or a function; got {similarity!r}")
    return SIMILARITIES[similarity]


@checked(shapes(a="N D", b="N D"))
def paired(similarity: Similarity, a: jax.Array, b: jax.Array) -> jax.Array:
    """The similarity of row i with row i only: `[N, D]` and `[N, D]` to `[N]`."""
    if similarity in (cosine, dot, euclidean):
        return similarity(a[:, None, :], b[:, None, :])[:, 0, 0]
    return jax.vmap(lambda x, y: similarity(x[None], y[None])[0, 0])(a, b)  # others need not know leading axes


def _at_least_f32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _safe_sqrt(x: jax.Array) -> jax.Array:
    """`sqrt(max(x, 0))` with gradient 0 at 0."""
    is_zero = x <= _TINY_NORM**2
    return jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, x)))


@checked(shapes(x="... D"))
@jax.jit
def unit(x: jax.Array) -> jax.Array:
    """`x / |x|` over the last axis.

    Vectors shorter than 1e-12 stay as they are, and pass gradients on unscaled, not times 1e12. Where squares overflow,
    the result is NaN, and not 0.

    >>> unit(jnp.array([[3.0, 4.0], [0.0, 0.0]]))
    Array([[0.6, 0.8],
           [0. , 0. ]], dtype=float32)
    """
    x = _at_least_f32(x)
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    of_unit_length = x / jnp.sqrt(jnp.where(squares <= _TINY_NORM**2, 1.0, squares))
    return jnp.where(jnp.isinf(squares), jnp.nan, of_unit_length)
