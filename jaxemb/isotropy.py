"""Transforms that make embeddings isotropic (whitening, ICA), and measures of how isotropic they are.

    transform = whiten(embedder.encode(texts))
    vectors = transform(embedder.encode(others))

Embeddings of language models crowd in a narrow cone: all cosines are large, and little of them is about the texts.
Every transform is an affine map that is fitted once, on the host, and then applied to any vectors, in float32: what it
is fitted to must be of a scale that float32 can hold, or is refused with a ValueError.
"""

import dataclasses
import warnings

import numpy as np
import scipy.linalg
import scipy.special

from jaxemb.checks import at_least, check_finite, checked, non_negative
from jaxemb.similarity import magnitude, unit_rows


@dataclasses.dataclass(frozen=True)
class AffineTransform:
    """`y = (x - mean) W`.

    Attributes:
      mean: `[D]`.
      matrix: W, `[D, k]`.
    """

    mean: np.ndarray
    matrix: np.ndarray

    def __call__(self, x):
        """f32 `[..., k]` from `[..., D]`, NumPy or JAX."""
        return (x - self.mean.astype(np.float32)) @ self.matrix.astype(np.float32)

    def scaled(self, factor: float) -> "AffineTransform":
        """The same map times `factor`."""
        return dataclasses.replace(self, matrix=self.matrix * factor)


@checked()
def center(x: np.ndarray) -> AffineTransform:
    """Subtracts the mean of `x` `[N, D]`."""
    x = _checked(x, least=1)
    return _affine(_mean(x), np.eye(x.shape[1]))


@checked()
def standardize(x: np.ndarray) -> AffineTransform:
    """Gives each component of `x` `[N, D]` mean 0 and variance 1; a constant component stays 0."""
    x = _checked(x, least=1)
    scale = magnitude(x, axis=0)[0]
    deviation = (x / scale).std(axis=0)
    with np.errstate(over="ignore"):
        return _affine(_mean(x), np.diag(np.where(deviation > 0, 1 / np.where(deviation > 0, deviation, 1) / scale, 1)))


@checked()
def whiten(x: np.ndarray, dim: int | None = None, *, zca: bool = False) -> AffineTransform:
    """Whitening: the components of the result are uncorrelated, of mean 0 and variance 1.

        C = (X - mean)^T (X - mean) / N = U diag(s) U^T,    W = U diag(s^{-1/2})

    Args:
      x: `[N, D]`.
      dim: keep the components of the k largest variances; None keeps all.
      zca: rotate back, `W = U diag(s^{-1/2}) U^T`: of all whitenings, that whose result is nearest to `x`.

    Raises:
      ValueError: for a `dim` not in 1..D, or less than D with `zca`; no more rows than components that are kept, values
        that are not finite, or components without variance.

    References:
      Su et al. 2021, https://arxiv.org/abs/2103.15316; Kessy et al. 2018, https://arxiv.org/abs/1512.00809 (ZCA).
    """
    x = _checked(x, least=2)
    n, full = x.shape
    k = full if dim is None else dim
    if not 1 <= k <= full or (zca and k < full):
        raise ValueError(f"dim must be in 1..{full}, and {full} or None with zca; got {dim}")
    if n <= k:
        raise ValueError(f"x must have more rows than the {k} components that are kept; got {n}")
    scale = magnitude(x)
    variances, vectors = scipy.linalg.eigh(np.cov(x / scale, rowvar=False, bias=True).reshape(full, full))
    variances, vectors = variances[::-1][:k], vectors[:, ::-1][:, :k]
    if variances[-1] <= variances[0] * 1e-10:
        rank = int((variances > variances[0] * 1e-10).sum())
        raise ValueError(f"x varies in {rank} directions only; whiten at most that many, dim <= {rank}; got {dim}")
    matrix = vectors / np.sqrt(variances)
    with np.errstate(over="ignore"):
        return _affine(_mean(x), (matrix @ vectors.T if zca else matrix) / scale)


@checked(max_iterations=at_least(1), tolerance=non_negative)
def ica(x: np.ndarray, *, seed: int = 42, max_iterations: int = 1000, tolerance: float = 1e-4) -> AffineTransform:
    """Independent components: a whitening and the rotation after which components are as independent as can be.

    FastICA, symmetric, with the contrast log cosh: with w the rows of a rotation R of the whitened z and g = tanh,

        R <- decorrelate(E[g(R z) z^T] - diag(E[g'(R z)]) R),    decorrelate(A) = (A A^T)^{-1/2} A

    until `max_i | |<R_i, R_i before>| - 1 | < tolerance`. Components have mean 0 and variance 1; their order and signs
    mean nothing. DefSent+ takes it times 100, `ica(x).scaled(100)` (standardising `x` before, as it does, changes no
    more than order and signs).

    Args:
      x: `[N, D]`.
      seed: of the rotation that it starts from.
      max_iterations: after these it stops, with a warning.
      tolerance: see above.

    Raises:
      ValueError: as `whiten`.

    References:
      Hyvärinen 1999, "Fast and robust fixed-point algorithms for independent component analysis".
    """
    whitening = whiten(x)
    z = (_checked(x, least=2) - whitening.mean) @ whitening.matrix  # [N, D]
    decorrelated = lambda a: scipy.linalg.polar(a)[0]
    rotation = decorrelated(np.random.default_rng(seed).normal(size=(z.shape[1],) * 2))
    for _ in range(max_iterations):
        g = np.tanh(z @ rotation.T)
        updated = decorrelated(g.T @ z / len(z) - (1 - g**2).mean(axis=0)[:, None] * rotation)
        change = np.abs(np.abs((updated * rotation).sum(axis=1)) - 1).max()
        rotation = updated
        if change < tolerance:
            break
    else:
        warnings.warn(f"ica did not converge in {max_iterations} iterations; last change {change:.2g}", stacklevel=3)
    return AffineTransform(whitening.mean, whitening.matrix @ rotation.T)


@checked()
def mean_cosine(x: np.ndarray) -> float:
    """The mean cosine of two different rows of `x` `[N, D]`, in -1..1; near 0 for isotropic vectors.

    Raises ValueError for fewer than two rows or values that are not finite.

    >>> round(mean_cosine(np.eye(3) + 1), 3)
    0.833
    """
    x = _checked(x, least=2)
    unit = unit_rows(x / magnitude(x, axis=1))
    own = np.square(unit).sum()
    return float((np.square(unit.sum(axis=0)).sum() - own) / (len(x) * (len(x) - 1)))


@checked()
def partition_isotropy(x: np.ndarray) -> float:
    """`min_c Z(c) / max_c Z(c)` with `Z(c) = sum_i exp(c^T x_i)`, c the eigenvectors of `X^T X` and their negatives.

    In 0..1; 1 for isotropic vectors. Depends on the scale of `x` `[N, D]`. Raises ValueError as `mean_cosine`.

    References:
      Mu and Viswanath 2018, https://arxiv.org/abs/1702.01417, eq. 2 and appendix A.
    """
    x = _checked(x, least=2)
    scale = magnitude(x)
    vectors = scipy.linalg.eigh((x / scale).T @ (x / scale))[1]
    with np.errstate(over="ignore", invalid="ignore"):
        projections = x @ vectors
        logs = scipy.special.logsumexp(np.concatenate([projections, -projections], axis=1), axis=0)
    if not np.isfinite(logs).all():
        raise ValueError(f"x must not be so large that its projections overflow; its largest magnitude is {scale:.1e}")
    return float(np.exp(logs.min() - logs.max()))


@checked()
def effective_rank(x: np.ndarray) -> float:
    """`exp(-sum_i p_i ln p_i)`, p the variances along the principal axes as shares of their sum; in 1..D.

    Raises ValueError as `mean_cosine`, or if all rows of `x` `[N, D]` are the same.

    References:
      Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality" (there of singular values).

    >>> round(effective_rank(np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])), 3)
    2.0
    """
    x = _checked(x, least=2)
    x = x / magnitude(x)
    variances = np.square(scipy.linalg.svdvals(x - x.mean(axis=0)))
    if not variances.sum() > 0:
        raise ValueError("x must have rows that differ")
    return float(np.exp(scipy.special.entr(variances / variances.sum()).sum()))


def _checked(x: np.ndarray, least: int) -> np.ndarray:
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or len(x) < least or not x.shape[1]:
        raise ValueError(f"x must be [N, D] with N >= {least} and D >= 1; got {x.shape}")
    check_finite("x", x)
    return x


def _mean(x: np.ndarray) -> np.ndarray:
    scale = magnitude(x)
    return (x / scale).mean(axis=0) * scale


def _affine(mean: np.ndarray, matrix: np.ndarray) -> AffineTransform:
    """The transform, if float32, in which it is applied, can hold it; else raises a ValueError."""
    largest = np.abs(matrix).max(axis=0)
    held = np.finfo(np.float32)
    if np.abs(mean).max() > held.max or largest.max() > held.max or largest.min() < held.tiny:
        raise ValueError(
            f"x must be neither too large nor too small for a transform in float32; means are up to "
            f"{np.abs(mean).max():.1e}, and its matrix would be of {largest.min():.1e} to {largest.max():.1e}"
        )
    return AffineTransform(mean, matrix)
