"""Similarities of vectors on the host, in NumPy: what is encoded is compared with. Larger is more alike.

Losses compare on the device: see `jaxemb.nn.similarity`.
"""

from collections.abc import Callable, Mapping

import numpy as np
from scipy.spatial.distance import cdist

from jaxemb.checks import check_finite, checked, is_finite, one_of, shapes

Paired = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _checked(kind: str, function: Paired) -> Paired:
    """In floats, as differences and sums of 8-bit embeddings do not fit into 8 bits; refuses what overflows."""

    def paired(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = (np.asarray(x, np.result_type(x, np.float32)) for x in (a, b))  # those of 16-bit floats are not exact
        with np.errstate(over="ignore", invalid="ignore"):
            found = function(a, b)
        if not is_finite(found):
            check_finite("a", a)
            check_finite("b", b)
            raise ValueError(_too_large(kind, found.dtype))
        return found

    return paired


def _euclidean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    scale = np.maximum(magnitude(a, axis=1), magnitude(b, axis=1))  # squares overflow before numbers do
    return -np.linalg.norm(a / scale - b / scale, axis=1) * scale[:, 0]


def _too_large(kind: str, dtype: np.dtype) -> str:
    return f"a and b must not be too large to compare in {dtype}; their {kind} similarities overflow"


_PAIRED: Mapping[str, Paired] = {
    "cosine": lambda a, b: np.einsum("nd,nd->n", unit_rows(a), unit_rows(b)),
    "dot": lambda a, b: np.einsum("nd,nd->n", a, b),
    "euclidean": _euclidean,
    "manhattan": lambda a, b: -np.abs(a - b).sum(axis=1),
}
#: Of row i of `a` with row i of `b`: `[N, D]`, `[N, D]` to `[N]`. Raises a ValueError for what is not finite, or
#: overflows.
PAIRED: Mapping[str, Paired] = {kind: _checked(kind, function) for kind, function in _PAIRED.items()}


def unit_rows(x: np.ndarray) -> np.ndarray:
    """`x / |x|` of every row of `[N, D]`, however short or long; zeros stay zeros."""
    with np.errstate(over="ignore", invalid="ignore"):
        x = x / magnitude(x, axis=-1)  # squares overflow, and vanish, before numbers do
        norms = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(norms == 0, 1, norms)


@checked(shapes(a="N D | D", b="M D | D"))
def similarity(a: np.ndarray, b: np.ndarray, kind: str = "cosine") -> np.ndarray:
    """Of every row of `a` `[N, D]` with every row of `b` `[M, D]`, f32 `[N, M]`; one vector `[D]` is one row.

    Kinds: `cosine` <a,b>/(|a||b|), 0 for a vector of zeros, `dot` <a,b>, `euclidean` -|a - b|_2, `manhattan`
    -|a - b|_1.

    Raises:
      ValueError: for an unknown kind, vectors of different dimension, and values or similarities that are not finite in
        float32.
    """
    one_of("kind", kind, list(PAIRED))
    with np.errstate(over="ignore", invalid="ignore"):
        a, b = (np.atleast_2d(np.asarray(x, np.float32)) for x in (a, b))
        check_finite("a", a)
        check_finite("b", b)
        match kind:
            case "cosine":
                return unit_rows(a) @ unit_rows(b).T
            case "dot":
                found = a @ b.T
            case _:
                metric = "euclidean" if kind == "euclidean" else "cityblock"
                found = -cdist(a, b, metric).astype(np.float32)
    if not is_finite(found):
        raise ValueError(_too_large(kind, found.dtype))
    return found


def magnitude(x: np.ndarray, axis: int | None = None) -> np.ndarray:
    """The power of two that brings the largest magnitude to 0.5..2, of all, or along an axis that is kept; 1 for zeros.

    What is divided by it, in the floats of `x`, loses no digit, and the squares of the largest fit.
    """
    largest = np.abs(x).max(axis=axis, keepdims=axis is not None, initial=0)
    exponent = np.minimum(np.frexp(largest)[1], np.finfo(x.dtype).maxexp - 1)
    return np.ldexp(np.ones((), x.dtype), exponent)
