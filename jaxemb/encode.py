"""Encoding many texts: tokenise ahead, batch without waste, keep the device busy, keep the order.

Texts are taken in windows. In a window, short texts are packed several to a row (first fit decreasing, nearly no
padding, one program for all of them) and the others are sorted by length and cut into batches of about `batch_tokens`
tokens whose row length is rounded up to a bucket, so that few programs are compiled. The next window is tokenised in
a thread while the device computes, and results are fetched a few batches late, so that neither waits for the other.
"""

import contextlib
import functools
import logging
import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxemb import parallel
from jaxemb.checks import encodable, one_of, size
from jaxemb.data.packing import FINE, bucket, marked, pack, pad
from jaxemb.data.tokenizer import Encoded
from jaxemb.embedder import Embedder
from jaxemb.files import mapped_array, replaced_file
from jaxemb.nn import unit
from jaxemb.progress import progress_bar
from jaxemb.types import Tokens

_PACKED_ROW = 64  # tokens of a row of several texts; longer rows waste attention, shorter ones leave gaps
_LONGEST_PACKED = _PACKED_ROW // 2
_LEAST_WINDOW = 4096  # texts tokenised and sorted together
_IN_FLIGHT = 3  # batches given to the device before the oldest result is fetched

logger = logging.getLogger(__name__)


class Reader(Protocol):
    """What makes token ids of texts: a `Tokenizer`, or what writes each text into a template."""

    def encode(self, texts: Sequence[str], max_length: int | None = None) -> Encoded:
        """The ids of each text; `prompt_lengths` where they differ from text to text."""
        ...

    def prompt_length(self, prompt: str) -> int:
        """How many tokens of a text are of this prompt in front of it."""
        ...


class Batch(NamedTuple):
    """`tokens` of some texts and where they belong: text `indices[i]` is in slot `slots[i]`."""

    indices: np.ndarray
    tokens: Tokens
    slots: np.ndarray


def plan(sequences: Sequence[np.ndarray], batch_tokens: int, max_length: int, shards: int = 1) -> Iterator[Batch]:
    """Cuts tokenised texts into batches of about `batch_tokens` tokens, longest texts first.

    A batch has a power of two of rows, or as many as fit, and always a multiple of `shards`.
    """
    lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
    order = np.argsort(-lengths, kind="stable")
    n_long = int((lengths > _LONGEST_PACKED).sum())

    start = 0
    while start < n_long:
        length = min(bucket(int(lengths[order[start]]), FINE), max_length)
        indices = order[start : min(start + _most_rows(batch_tokens, length, shards), n_long)]
        start += len(indices)
        tokens = pad([sequences[i] for i in indices], length=length)
        yield Batch(indices, _fill(tokens, batch_tokens, shards), np.arange(len(indices)))

    short = order[n_long:]
    if len(short):
        total = int(lengths[short].sum())
        length = min(_PACKED_ROW, bucket(max(total, int(lengths[short[0]])), FINE), max_length)
        packed = pack([sequences[i] for i in short], row_length=length, texts_per_row=_PACKED_ROW // 4)
        per_row, step = packed.texts_per_row, _most_rows(batch_tokens, length, shards)
        slots = np.asarray(packed.slots)
        row_of_text = slots // per_row
        for first in range(0, int(row_of_text.max()) + 1, step):
            here = np.flatnonzero(row_of_text // step == first // step)
            rows = slice(first, min(first + step, int(row_of_text.max()) + 1))
            tokens = Tokens(packed.ids[rows], packed.segment_ids[rows], packed.positions[rows], texts_per_row=per_row)
            yield Batch(short[here], _fill(tokens, batch_tokens, shards), slots[here] - first * per_row)


def _most_rows(batch_tokens: int, length: int, shards: int) -> int:
    return max(1, batch_tokens // (length * shards)) * shards


def _fill(tokens: Tokens, batch_tokens: int, shards: int) -> Tokens:
    """Adds empty rows up to the number that programs are compiled for."""
    rows, length = tokens.ids.shape
    per_shard = 1 << (-(-rows // shards) - 1).bit_length()
    wanted = min(per_shard * shards, _most_rows(batch_tokens, length, shards))
    return jax.tree.map(lambda a: np.pad(a, ((0, wanted - rows), (0, 0))), tokens)


@functools.partial(jax.jit, static_argnames=("dim", "normalize", "dtype", "sharding"))
def _embed(model, tokens: Tokens, *, dim: int | None, normalize: bool, dtype: str, sharding=None) -> jax.Array:
    x = model(tokens, dim=dim)
    x = (unit(x) if normalize else x).astype(dtype)
    return x if sharding is None else jax.lax.with_sharding_constraint(x, sharding)


def encode(
    model: Embedder,
    tokenizer: Reader,
    max_length: int,
    texts: Sequence[str],
    *,
    prompt: str = "",
    dim: int | None = None,
    normalize: bool = False,
    batch_tokens: int | None = None,
    dtype: str = "float32",
    out: str | Path | None = None,
    mesh: Mesh | None = None,
    show_progress: bool = False,
) -> np.ndarray:
    """Embeddings of `texts`, `[N, D]`; see `SentenceEmbedder.encode`."""
    _check(texts, batch_tokens, dtype, dim, model.dim)
    mesh = parallel.mesh_in_force() if mesh is None else mesh
    model, axes, splits = _spread(model, mesh)
    shards = math.prod(mesh.shape[axis] for axis in axes) if mesh else 1
    # A process can read only what its own devices hold.
    gathered = parallel.replicated(mesh) if mesh and mesh.is_multi_process else None
    rows = NamedSharding(mesh, PartitionSpec(axes)) if mesh else None
    batch_tokens = batch_tokens or (1024 if jax.default_backend() == "cpu" else 32_768)

    asked = _prompt_length(model, tokenizer, prompt)
    window = max(_LEAST_WINDOW, batch_tokens * shards // 8)
    tokenise = lambda start: _encoded(tokenizer, prompt, texts[start : start + window], start, max_length, asked)
    in_flight: deque[tuple[np.ndarray, np.ndarray, jax.Array]] = deque()
    truncated = 0

    def fetch(advance) -> None:
        indices, slots, result = in_flight.popleft()
        rows = _finite(np.asarray(result)[slots], indices, texts)
        if vectors is not None:
            vectors[indices] = rows
        advance(len(indices))

    reads = gathered is not None and jax.process_index() > 0  # the file that process 0 writes
    with (
        _vectors(out, (len(texts), dim or model.dim), dtype, reads=reads) as vectors,
        ThreadPoolExecutor(1) as thread,
        progress_bar(len(texts), "texts", enabled=show_progress) as advance,
    ):
        ahead = thread.submit(tokenise, 0)
        for start in range(0, len(texts), window):
            encoding = ahead.result()
            truncated += encoding.truncated
            ahead = thread.submit(tokenise, start + window) if start + window < len(texts) else ahead
            for batch in plan(encoding.ids, batch_tokens * shards, max_length, shards):
                tokens = _prompted(batch, encoding.prompt_lengths)
                tokens = tokens if rows is None else parallel.put(tokens, rows)
                with parallel.in_force(splits):
                    result = _embed(model, tokens, dim=dim, normalize=normalize, dtype=dtype, sharding=gathered)
                in_flight.append((start + batch.indices, batch.slots, result))
                if len(in_flight) > _IN_FLIGHT:
                    fetch(advance)
        while in_flight:
            fetch(advance)
    _warn_of_cut(truncated, len(texts), max_length)
    if out is None:
        return vectors
    if gathered is not None:
        multihost_utils.sync_global_devices("encoded")
    return np.load(out, mmap_mode="r+")


@functools.cache  # evaluations of one run cut the same texts again and again
def _warn_of_cut(truncated: int, texts: int, max_length: int) -> None:
    if truncated:
        logger.warning("%d of %d texts were cut to max_length = %d tokens", truncated, texts, max_length)


def _encoded(
    tokenizer: Reader, prompt: str, texts: Sequence[str], start: int, max_length: int, of_prompt: int
) -> Encoded:
    """Token ids of the texts number `start` and following, each after the prompt; each must have some."""
    encoded = tokenizer.encode([prompt + text for text in texts], max_length)
    for i, ids in enumerate(encoded.ids):
        if not len(ids):
            raise ValueError(f"texts[{start + i}] must have tokens, of which a vector is made; got {texts[i]!r:.60}")
    if of_prompt and encoded.prompt_lengths is None:
        encoded = encoded._replace(prompt_lengths=np.full(len(texts), of_prompt, np.int32))
    return encoded


def _prompt_length(model: Embedder, tokenizer: Reader, prompt: str) -> int:
    """How many tokens of each text are of the prompt, which only some encoders and poolings ask; 0 for the others."""
    encoder_asks = getattr(getattr(getattr(model, "encoder", None), "config", None), "prefix_attention", False)
    asks = encoder_asks or getattr(getattr(model, "pooling", None), "reads_prompt", False)
    return tokenizer.prompt_length(prompt) if asks and prompt else 0


def _prompted(batch: Batch, lengths: np.ndarray | None) -> Tokens:
    """The tokens of a batch, the first so many of each text being of its prompt."""
    if lengths is None:
        return batch.tokens
    by_slot = np.zeros(batch.tokens.count, np.int32)
    by_slot[batch.slots] = lengths[batch.indices]
    return marked(batch.tokens, by_slot)


def _spread(model: Embedder, mesh: Mesh | None) -> tuple[Embedder, tuple[str, ...], Mesh | None]:
    """The model on the devices of `mesh`, the axes that split a batch, and the mesh to have in force.

    A model that lies on that mesh, whole or split, stays as it is; any other is copied to every device.
    """
    if mesh is None:
        return model, (), None
    if not parallel.lies_on(model, mesh):
        return parallel.place(model, mesh, parallel.REPLICATED), mesh.axis_names, None
    if all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(model)):
        return model, mesh.axis_names, None
    return model, tuple(axis for axis in parallel.BATCH_AXES if axis in mesh.axis_names), mesh


@contextlib.contextmanager
def _vectors(out: str | Path | None, shape: tuple[int, int], dtype: str, *, reads: bool) -> Iterator[Any]:
    """Where the vectors go: into memory, or a file that becomes `out` at the end; None if another process writes it."""
    if out is None:
        yield np.empty(shape, dtype)
    elif reads:
        yield None
    else:
        with replaced_file(out) as fresh:
            vectors = mapped_array(fresh, shape, dtype)
            yield vectors
            vectors.flush()


def _finite(rows: np.ndarray, indices: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """The rows. Raises a ValueError that names the texts, `indices`, of those that are not finite."""
    if not np.isfinite(rows).all():  # of texts in one row, one spoils the others: 0 * nan is nan
        bad = np.sort(indices[~np.isfinite(rows).all(axis=1)])
        which = f"texts[{bad[0]}] {texts[bad[0]]!r:.60}" + (f" and {len(bad) - 1} others" if len(bad) > 1 else "")
        raise ValueError(f"no finite embedding in {rows.dtype} of {which}; weights or their products are not finite")
    return rows


def _check(texts: Sequence[str], batch_tokens: int | None, dtype: str, dim: int | None, full: int) -> None:
    one_of("dtype", dtype, ("float32", "float16"))
    if batch_tokens is not None:
        size("batch_tokens", batch_tokens)
    if dim is not None and not 1 <= dim <= full:
        raise ValueError(f"dim must be in 1..{full}, the dimension of the embeddings; got {dim}")
    if isinstance(texts, bytes) or not isinstance(texts, Sequence | np.ndarray) or getattr(texts, "shape", None) == ():
        raise TypeError(f"texts must be a string or a sequence of strings; got {type(texts).__name__}")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{i}] must be a string; got {type(text).__name__} {text!r:.60}")
        encodable(f"texts[{i}]", text)
