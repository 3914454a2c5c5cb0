"""Exact nearest-neighbour search: the corpus is streamed through the device in chunks, the best k are kept."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxemb import parallel
from jaxemb.checks import at_least, checked, one_of

_BLOCK = 128  # corpus rows whose maximum is taken first; see `_top_k`


@checked(k=at_least(1), corpus_chunk=at_least(1), query_chunk=at_least(1))
def topk_search(
    queries: np.ndarray,
    corpus: np.ndarray | jax.Array,
    k: int,
    *,
    metric: str = "cosine",
    corpus_chunk: int = 32_768,
    query_chunk: int = 256,
    mesh: Mesh | None = None,
    corpus_axis: str | Sequence[str] | None = None,
    exclude_ids: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k corpus rows most similar to each query, best first.

    Equal scores go to the lower id. The result depends neither on the chunks nor on the number of devices (but for
    the rounding of the scores, 1e-7 relative). Products are computed in f32.

    >>> scores, rows = topk_search(np.eye(3)[:1], np.eye(3) + 0.1, 2)
    >>> rows
    array([[0, 1]], dtype=int32)

    Args:
      queries: `[Q, D]`, any float type.
      corpus: `[N, D]`, any float type; may be a memory-mapped array larger than memory, which is read once.
        What is on the device already stays there.
      k: number of results; of more than there are rows, N are given.
      metric: "cosine" <q,x>/(|q||x|), 0 for a vector of zeros, "dot" <q,x>, or "euclidean" -|q - x|_2.
      corpus_chunk: most corpus rows on the device at a time.
      query_chunk: most queries compared with a chunk at a time; `query_chunk * corpus_chunk` scores exist at once.
      mesh: split every chunk over the devices of this mesh; each finds its own best k, and these are merged. By default
        that in force (`jax.set_mesh`), if any. Where it has devices of several processes, each calls with the same
        arguments and gets the whole result.
      corpus_axis: the mesh axes to split over; None means all.
      exclude_ids: ids that are no result of query q, such as q itself, `[Q, E]`; -1 excludes nothing.

    Returns:
      Scores f32 and ids int32, `[Q, min(k, N)]` each. Where `exclude_ids` leaves fewer: score -inf and id -1.

    Raises:
      ValueError: for shapes that do not fit, an empty corpus, k < 1, chunks < 1, an unknown metric, values or scores
        that are not finite.
    """
    queries, exclude = _check(queries, corpus, metric, exclude_ids)
    k = min(k, len(corpus))
    mesh = parallel.mesh_in_force() if mesh is None else mesh
    axes = _axes(mesh, corpus_axis)
    shards = math.prod(mesh.shape[axis] for axis in axes) if mesh else 1
    n_queries, n = len(queries), len(corpus)
    if not n_queries:
        return np.zeros((0, k), np.float32), np.zeros((0, k), np.int32)

    query_rows = _even_size(n_queries, query_chunk, 1)
    rows = _even_size(n, corpus_chunk, shards)
    everywhere = NamedSharding(mesh, PartitionSpec()) if mesh else None
    split = NamedSharding(mesh, PartitionSpec(axes)) if mesh else None
    blocks = [
        parallel.put(
            (_padded(queries[i : i + query_rows], query_rows), _padded(exclude[i : i + query_rows], query_rows)),
            everywhere,
        )
        for i in range(0, n_queries, query_rows)
    ]
    empty = np.full((query_rows, k), -np.inf, np.float32), np.full((query_rows, k), -1, np.int32)
    best = [parallel.put(empty, everywhere) for _ in blocks]
    first_bad = []
    for start in range(0, n, rows):
        previous = best
        chunk = _chunk(corpus, start, rows, split)
        best = []
        for (query_block, exclude_block), running in zip(blocks, previous, strict=True):
            *merged, bad = _merge(
                running,
                query_block,
                exclude_block,
                chunk,
                start,
                min(n - start, rows),
                k=k,
                metric=metric,
                mesh=mesh,
                axes=axes,
            )
            best.append(tuple(merged))
        first_bad.append(bad)
        jax.block_until_ready(previous)  # at most two chunks are under way
    if (bad := min(int(i) for i in first_bad)) < n:
        raise ValueError(f"corpus row {bad} holds values that are not finite, or too large to compare")
    scores, ids = (np.concatenate(parts)[:n_queries] for parts in zip(*jax.device_get(best), strict=True))
    return scores, ids


@functools.partial(jax.jit, static_argnames=("k", "metric", "mesh", "axes"))
def _merge(running, queries, exclude, chunk, start, n_valid, *, k, metric, mesh, axes):
    """The best k of `running` (scores and ids `[q, k]`) and a chunk `[c, D]` whose first `n_valid` rows are real.

    Also gives the lowest id of a row with a score that is not finite, or the largest int32.
    """

    def search(queries, exclude, rows, start, n_valid):
        offset = jax.lax.axis_index(axes) * rows.shape[0] if axes else 0
        scores, ids, bad = _search_rows(queries, exclude - start - offset, rows, n_valid - offset, k, metric)
        ids = jnp.where(ids >= 0, ids + start + offset, -1)
        bad = jnp.where(bad < rows.shape[0], bad + start + offset, np.iinfo(np.int32).max)
        if axes:  # in the order of the shards, so that lower ids come first
            scores, ids = (jax.lax.all_gather(x, axes, axis=1, tiled=True) for x in (scores, ids))
            bad = jax.lax.pmin(bad, axes)
        return scores, ids, bad

    if axes:
        whole, split = PartitionSpec(), PartitionSpec(axes)
        # Every device ends up with the same lists, which shard_map cannot see through all_gather.
        search = jax.shard_map(
            search, mesh=mesh, in_specs=(whole, whole, split, whole, whole), out_specs=whole, check_vma=False
        )
    scores, ids, bad = search(queries, exclude, chunk, start, n_valid)
    scores = jnp.concatenate([running[0], scores], axis=1)
    ids = jnp.concatenate([running[1], ids], axis=1)
    scores, position = jax.lax.top_k(scores, k)
    return scores, jnp.take_along_axis(ids, position, axis=1), bad


def _search_rows(queries, exclude, rows, n_valid, k, metric):
    """Best scores and row numbers (-1: none) `[q, min(k, c)]`, and the first row (else c) that is not finite."""
    scores = _scores(queries, rows.astype(jnp.float32), metric)
    valid = jnp.arange(rows.shape[0]) < n_valid
    # One query is enough: a nan or infinity in a row spoils its product with any finite query.
    finite = jnp.isfinite(scores[0])
    if metric == "cosine":  # 1 / sqrt(inf) is 0, which would make a similarity of 0
        finite &= jnp.isfinite(_squares(rows.astype(jnp.float32)))
    bad = jnp.argmax(jnp.append(valid & ~finite, True))
    scores = jnp.where(valid, scores, -jnp.inf)
    inside = (exclude >= 0) & (exclude < rows.shape[0])
    target = jnp.where(inside, exclude, rows.shape[0])  # outside is dropped; a negative index would wrap around
    scores = scores.at[jnp.arange(len(queries))[:, None], target].set(-jnp.inf, mode="drop")
    k = min(k, rows.shape[0])
    if metric == "euclidean":
        scores, ids = _nearest(queries, rows.astype(jnp.float32), scores, k)
    else:
        scores, ids = _top_k(scores, k)
    return scores, jnp.where(scores == -jnp.inf, -1, ids), bad


def _nearest(queries, rows, scores, k):
    """The k nearest rows by `-|q - x|`; `scores` are `-|q - x|²` by products, which round away what vectors share.

    Differences do not. They are taken of the rows that are nearest by products, some more than k: if the last of these
    is farther than the k-th by more than rounding, the rows after it are too. Otherwise, as where many rows crowd
    together far from the queries' mean, they are taken of all.
    """
    few = min(2 * k + 64, rows.shape[0])
    ids = jnp.sort(_top_k(scores, few)[1])  # of equal ones, the lower first
    by_products = jnp.take_along_axis(scores, ids, axis=1)
    squares = jax.lax.map(lambda pair: _squares(rows[pair[1]] - pair[0]), (queries, ids))
    negative, position = jax.lax.top_k(jnp.where(by_products == -jnp.inf, -jnp.inf, -squares), k)
    center = queries.mean(axis=0)
    lengths = _squares(queries - center) + _squares(rows - center).max()
    rounding = rows.shape[1] * jnp.finfo(jnp.float32).eps * lengths
    is_certain = (few == rows.shape[0]) | jnp.all(negative[:, -1] >= by_products.min(axis=1) + rounding)

    def of_all():
        every = jax.lax.map(lambda query: -_squares(rows - query), queries)
        return tuple(_top_k(jnp.where(scores == -jnp.inf, -jnp.inf, every), k))

    found = negative, jnp.take_along_axis(ids, position, axis=1)
    negative, ids = jax.lax.cond(is_certain, lambda: found, of_all)
    return -jnp.sqrt(-negative), ids


def _squares(x):
    return jnp.sum(jnp.square(x), axis=-1)


def _scores(queries, rows, metric):
    """Similarities `[q, c]` in f32; of "euclidean" the squares of the distances."""
    if metric == "cosine":
        shortest = jnp.minimum(_squares(queries).min(), _squares(rows).min())
        scaled = lambda q, x: _cosines(q / _magnitudes(q), x / _magnitudes(x))
        return jax.lax.cond(shortest < 1e-24, scaled, _cosines, queries, rows)
    if metric == "euclidean":  # the nearer to 0, the smaller the rounding
        center = queries.mean(axis=0)
        queries, rows = queries - center, rows - center
    products = _products(queries, rows)
    return products if metric == "dot" else 2 * products - _squares(queries)[:, None] - _squares(rows)


def _products(queries, rows):
    # Full precision, as TF32 or bf16 products would reorder near neighbours.
    return jnp.einsum("qd,cd->qc", queries, rows, precision=jax.lax.Precision.HIGHEST)


def _cosines(queries, rows):
    return _products(queries, rows) * _inverse_norms(queries)[:, None] * _inverse_norms(rows)


def _inverse_norms(x):
    """`1 / |x|`; 1 of zeros."""
    squares = _squares(x)
    return jax.lax.rsqrt(jnp.where(squares == 0, 1.0, squares))


def _magnitudes(x):
    """By rows, the power of two of the largest magnitude; 1 for zeros. What is divided by it loses no digit."""
    largest = jnp.abs(x).max(axis=-1, keepdims=True)
    exponent = jax.lax.bitcast_convert_type(largest, jnp.int32) & 0x7F800000
    return jnp.where(exponent == 0, 1.0, jax.lax.bitcast_convert_type(exponent, jnp.float32))


def _top_k(scores, k):
    """`jax.lax.top_k(scores, k)`, several times faster where the rows are long.

    The k blocks with the largest maxima hold the k largest elements: fewer than k elements come before one of those, so
    fewer than k blocks come before its own, ties (lower index first) included. Only these blocks are ranked.
    """
    q, n = scores.shape
    blocks, rest = divmod(n, _BLOCK)
    if rest or blocks < 4 * k:
        return jax.lax.top_k(scores, k)
    scores = scores.reshape(q, blocks, _BLOCK)
    _, chosen = jax.lax.top_k(scores.max(axis=2), k)
    chosen = jnp.sort(chosen, axis=1)  # the order of the elements decides ties
    candidates = jnp.take_along_axis(scores, chosen[:, :, None], axis=1).reshape(q, k * _BLOCK)
    top, position = jax.lax.top_k(candidates, k)
    block = jnp.take_along_axis(chosen, position // _BLOCK, axis=1)
    return top, block * _BLOCK + position % _BLOCK


def _check(queries, corpus, metric, exclude_ids) -> tuple[np.ndarray, np.ndarray]:
    """The queries in f32 and the excluded ids `[Q, E]`."""
    one_of("metric", metric, ("cosine", "dot", "euclidean"))
    if np.ndim(queries) != 2 or np.ndim(corpus) != 2 or queries.shape[1] != corpus.shape[1]:
        raise ValueError(
            f"queries and corpus must be [Q, D] and [N, D] of one D; got {np.shape(queries)} and {np.shape(corpus)}"
        )
    if not len(corpus):
        raise ValueError("corpus must not be empty")
    for name, array in (("queries", queries), ("corpus", corpus)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name} must be of a float type; got {array.dtype}")
    queries = np.asarray(queries, np.float32)
    with np.errstate(over="ignore"):
        finite = np.isfinite(queries).all(axis=1)
        if metric == "cosine":
            finite &= np.isfinite(np.square(queries).sum(axis=1))
    if not finite.all():
        raise ValueError(f"queries must be finite, and not too large to compare; row {int(np.argmin(finite))} is not")
    exclude = np.full((len(queries), 0), -1, np.int32) if exclude_ids is None else np.asarray(exclude_ids)
    if exclude.ndim != 2 or len(exclude) != len(queries) or not np.issubdtype(exclude.dtype, np.integer):
        raise ValueError(
            f"exclude_ids must be integers [Q, E] with Q = {len(queries)}; got {exclude.dtype} {exclude.shape}"
        )
    # What is no row excludes none, also where 32 bits would make another number of it.
    return queries, np.where((exclude < 0) | (exclude >= len(corpus)), -1, exclude).astype(np.int32)


def _axes(mesh: Mesh | None, corpus_axis: str | Sequence[str] | None) -> tuple[str, ...]:
    if mesh is None:
        if corpus_axis is not None:
            raise ValueError(f"corpus_axis needs a mesh; got {corpus_axis!r}")
        return ()
    axes = mesh.axis_names if corpus_axis is None else (corpus_axis,) if isinstance(corpus_axis, str) else corpus_axis
    if unknown := set(axes) - set(mesh.axis_names):
        raise ValueError(f"corpus_axis must be among the mesh's axes {mesh.axis_names}; got {sorted(unknown)}")
    return tuple(axes)


def _even_size(n: int, largest: int, shards: int) -> int:
    """Rows per chunk: as few chunks as `largest` allows, of about the same size; of whole blocks per shard if large."""
    rows = math.ceil(n / math.ceil(n / largest))
    unit = shards * _BLOCK if rows >= 4 * shards * _BLOCK else shards
    return math.ceil(rows / unit) * unit


def _chunk(corpus: np.ndarray | jax.Array, start: int, rows: int, sharding: NamedSharding | None) -> jax.Array:
    """Rows `start` to `start + rows`, on the device; rows after the last are of no account."""
    if not isinstance(corpus, jax.Array) or not (sharding is None or sharding.is_fully_addressable):
        return parallel.put(_padded(np.asarray(corpus[start : start + rows]), rows), sharding)
    chunk = corpus if rows == len(corpus) else _rows(corpus, start, rows)
    return chunk if sharding is None else jax.device_put(chunk, sharding)


@functools.partial(jax.jit, static_argnames="rows")
def _rows(corpus, start, rows):
    return jnp.take(corpus, start + jnp.arange(rows), axis=0, mode="clip")


def _padded(array: np.ndarray, rows: int) -> np.ndarray:
    """With the last row again: zeros, far from all others, would make distances look uncertain (see `_nearest`)."""
    return array if len(array) == rows else np.pad(array, ((0, rows - len(array)), (0, 0)), mode="edge")
