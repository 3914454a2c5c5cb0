"""A bag of hashed words and character n-grams: the smallest text tower, trained from scratch in a minute.

    matrix = hashed_ngrams(texts)
    vectors = HashedBag.init(key)(Bags.from_csr(matrix[rows]))

The features are made on the host, once; vectors are a function of the features alone.
"""

import dataclasses
import itertools
import re
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxemb.checks import at_least, checked, each, size
from jaxemb.nn import Linear, Module

if TYPE_CHECKING:
    from scipy.sparse import csr_array

BUCKETS = 2**15
_WORD = re.compile(r"\w+")


@checked(buckets=size, sizes=each(at_least(1)))
def hashed_ngrams(texts: Sequence[str], *, buckets: int = BUCKETS, sizes: Sequence[int] = (3, 4)) -> "csr_array":
    """Which features each text has: its lower-cased words and their character n-grams, hashed.

    N-grams are those of `<word>`, so that beginnings and ends of words are features of their own. The hash is CRC-32,
    the same everywhere.

    Args:
      texts: N texts.
      buckets: number of different features, at least 1; what falls into one bucket is one feature.
      sizes: lengths n of the n-grams, at least 1 each.

    Returns:
      Sparse f32 `[N, buckets]`: the share of each feature in the text; rows sum to 1, those without a word to 0.

    Raises:
      ValueError: for buckets or sizes < 1.

    References:
      Weinberger et al. 2009 (hashing); Bojanowski et al. 2017 (n-grams of words).
    """
    from scipy.sparse import csr_array

    known: dict[str, list[int]] = {}

    def features(word: str) -> list[int]:
        if word not in known:
            ends = f"<{word}>"
            grams = [ends[i : i + n] for n in sizes for i in range(len(ends) - n + 1)]
            known[word] = [zlib.crc32(gram.encode()) % buckets for gram in (f"word {word}", *grams)]
        return known[word]

    bags = [[bucket for word in _WORD.findall(text.lower()) for bucket in features(word)] for text in texts]
    ends = np.cumsum([0, *map(len, bags)])
    shares = np.repeat(1 / np.maximum(np.diff(ends), 1), np.diff(ends)).astype(np.float32)
    matrix = csr_array(
        (shares, np.fromiter(itertools.chain.from_iterable(bags), np.int32, ends[-1]), ends), shape=(len(bags), buckets)
    )
    matrix.sum_duplicates()
    return matrix


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bags:
    """The features of `count` texts, one text after another, without padding between them.

    Attributes:
      ids: buckets, int32 `[F]`.
      texts: the text that each belongs to, int32 `[F]`, ascending.
      weights: shares of the text, f32 `[F]`; 0 = padding at the end.
      count: static N.
    """

    ids: jax.Array | np.ndarray
    texts: jax.Array | np.ndarray
    weights: jax.Array | np.ndarray
    count: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def from_csr(cls, matrix: "csr_array", size: int | None = None) -> "Bags":
        """The rows of `matrix` `[N, buckets]`, padded to `size` features: one program then serves many batches.

        Raises:
          ValueError: if there are more than `size` features.
        """
        size = matrix.nnz if size is None else size
        if matrix.nnz > size:
            raise ValueError(f"size must be at least {matrix.nnz}, the number of features; got {size}")
        padding = (0, size - matrix.nnz)
        rows = np.repeat(np.arange(matrix.shape[0], dtype=np.int32), np.diff(matrix.indptr))
        last = max(matrix.shape[0] - 1, 0)
        return cls(
            np.pad(matrix.indices.astype(np.int32), padding),
            np.pad(rows, padding, constant_values=last),
            np.pad(matrix.data.astype(np.float32), padding),
            matrix.shape[0],
        )


@nnx.dataclass
class HashedBag(Module):
    """`y = x + tanh(x W + b)` of the weighted mean x of the features' vectors."""

    table: jax.Array = nnx.data()  # [buckets, D]
    residual: Linear = nnx.data()

    @classmethod
    def init(cls, key: jax.Array, *, buckets: int = BUCKETS, dim: int = 384, std: float = 0.1) -> "HashedBag":
        """A tower with normal vectors of standard deviation `std` and truncated normal weights of `dim ** -0.5`.

        Raises:
          ValueError: for buckets or dim below 1, or a std that is not positive.
        """
        if min(buckets, dim) < 1 or not std > 0:
            raise ValueError(f"buckets and dim must be at least 1 and std > 0; got {buckets}, {dim} and {std}")
        key_table, key_residual = jax.random.split(key)
        table = std * jax.random.normal(key_table, (buckets, dim))
        return cls(table, Linear.init(key_residual, dim, dim, bias=True, std=dim**-0.5))

    def __call__(self, bags: Bags, *, key: jax.Array | None = None) -> jax.Array:
        """Embeddings of the texts, f32 `[N, D]`, not normalised; `key` changes nothing, as there is no dropout."""
        vectors = self.table[bags.ids] * bags.weights[:, None]
        x = jax.ops.segment_sum(vectors, bags.texts, bags.count, indices_are_sorted=True)
        return x + jnp.tanh(self.residual(x))
