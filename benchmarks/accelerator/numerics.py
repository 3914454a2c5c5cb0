"""Whether the device computes what the library says: each check is a number and the limit that it must not exceed.

References are computed in f64 by NumPy, or by the same program on the CPU.
"""

import functools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator import attention, loss, shapes, train
from benchmarks.accelerator.measure import Bench, Row, normal, short
from jaxemb.data.packing import pack, pad
from jaxemb.nn import dot
from jaxemb.retrieval import topk_search

#: What is measured, and its limit; None: it is only shown.
Check = tuple[str, Callable[[], float], float | None]


def rows(bench: Bench) -> Iterator[Row]:
    """A row for each check; one that raises has failed, and says how, and so has a group that cannot be set up."""
    for group in (_products, _info_nce, _encoder, _attention, _search, _training):
        try:
            for name, measured, limit in group(bench.smoke):
                yield _row(bench, name, measured, limit)
        except Exception as error:
            yield {"check": group.__name__, "measured": None, "limit": None, "passed": False, "error": short(error)}


def _row(bench: Bench, name: str, measured: Callable[[], float], limit: float | None) -> Row:
    row: Row = {"check": name, "measured": None, "limit": limit, "passed": True}
    if bench.left <= 0:
        return row | {"skipped": "no time left"}
    try:
        value = measured()
    except Exception as error:
        return row | {"passed": False, "error": short(error)}
    return row | {"measured": value, "passed": limit is None or value <= limit}


def _distance(a, b) -> float:
    """The largest difference relative to the largest value."""
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    return float(np.abs(a - b).max() / np.abs(b).max())


def _products(smoke: bool) -> Iterator[Check]:
    a, b = np.random.default_rng(0).standard_normal((2, 64 if smoke else 4096, 256), np.float32)
    exact = a.astype(np.float64) @ b.astype(np.float64).T
    yield "similarities of the losses are f32 products: error", lambda: _distance(jax.jit(dot)(a, b), exact), 2e-6
    plain = jax.jit(lambda a, b: a @ b.T)
    yield "a product at JAX's default precision: error", lambda: _distance(plain(a, b), exact), None


def _info_nce(smoke: bool) -> Iterator[Check]:
    n, dim = (24, 8) if smoke else (2048, 256)
    queries, documents = np.random.default_rng(1).standard_normal((2, n, dim), np.float32)
    exact = _info_nce_exactly(queries.astype(np.float64), documents.astype(np.float64))
    for f in (loss.tiled, loss.dense):
        compute = jax.jit(jax.value_and_grad(f))
        for i, what in enumerate(("value", "gradient")):
            error = lambda compute=compute, i=i: _distance(compute(queries, documents)[i], exact[i])
            yield f"InfoNCE, {f.__name__}: error of the {what}", error, 1e-5


def _info_nce_exactly(queries: np.ndarray, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean over i of `log sum_j exp(z_ij) - z_ii`, z = cosines / 0.05, and its gradient in the queries."""
    norm = np.linalg.norm(queries, axis=1, keepdims=True)
    q, d = queries / norm, documents / np.linalg.norm(documents, axis=1, keepdims=True)
    z = q @ d.T / 0.05
    largest = z.max(axis=1, keepdims=True)
    weights = np.exp(z - largest)
    total = weights.sum(axis=1, keepdims=True)
    value = np.mean(np.log(total) + largest - np.diag(z)[:, None])
    by_q = (weights / total - np.eye(len(z))) @ d / 0.05 / len(z)
    return value, (by_q - q * (q * by_q).sum(axis=1, keepdims=True)) / norm


def _encoder(smoke: bool) -> Iterator[Check]:
    shape, length = (shapes.TINY, 16) if smoke else (shapes.SHAPES["MiniLM"], 128)
    rng = np.random.default_rng(2)
    texts = [rng.integers(0, shape.vocabulary, n) for n in rng.integers(1, length + 1, 16)]
    tokens = pad(texts, length=length)
    model, low = (shapes.embedder(shape, compute=dtype) for dtype in ("float32", "bfloat16"))
    embed = jax.jit(lambda model, tokens: model(tokens))

    def exactly(model, tokens):
        with jax.default_matmul_precision("highest"):
            return embed(model, tokens)

    reference = exactly(*jax.device_put((model, tokens), jax.devices("cpu")[0]))
    apart = lambda vectors: float(np.linalg.norm(np.asarray(vectors) - np.asarray(reference), axis=1).max())
    yield "encoder in f32: distance to the CPU's vectors", lambda: apart(exactly(model, tokens)), 1e-4
    yield "encoder in f32, products at JAX's default: distance", lambda: apart(embed(model, tokens)), 1e-2
    yield "encoder in bf16: distance", lambda: apart(embed(low, tokens)), 5e-2
    packed = pack(texts, row_length=length, texts_per_row=8)
    yield "encoder in f32, several texts to a row: distance", lambda: apart(exactly(model, packed)), 1e-4


def _attention(smoke: bool) -> Iterator[Check]:
    length = 16 if smoke else 512
    inputs = [np.asarray(normal(seed, (2, length, 2, 64))) for seed in range(4)]
    bias = np.where(np.tri(length, dtype=bool), 0.0, -1e30)[None, None]

    @functools.partial(jax.jit, static_argnames=("name", "dtype"))
    def run(name: str, dtype: str) -> tuple[jax.Array, ...]:
        """Value and gradients."""
        q, k, v, cotangent = (jnp.asarray(x, dtype) for x in inputs)
        attend = lambda q, k, v: attention.IMPLEMENTATIONS[name](q, k, v, jnp.asarray(bias, dtype))
        with jax.default_matmul_precision("highest"):
            value, pull = jax.vjp(attend, q, k, v)
            return value, *pull(cotangent)

    exact = run("dense", "float32")
    error = lambda name, dtype: max(map(_distance, run(name, dtype), exact))
    what = "value and gradients"
    yield f"attention, XLA, f32: distance to dense, {what}", lambda: error("XLA", "float32"), 1e-5
    for name in attention.implementations():
        yield f"attention, {name}, bf16: error of {what}", lambda name=name: error(name, "bfloat16"), 3e-2


def _search(smoke: bool) -> Iterator[Check]:
    n, dim = (600, 8) if smoke else (100_000, 384)
    rng = np.random.default_rng(3)
    corpus, queries = rng.standard_normal((n, dim), np.float32), rng.standard_normal((64, dim), np.float32)
    scale = lambda x: x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    exact = scale(queries) @ scale(corpus).T
    for k in (10, 100):
        expected = -np.sort(-np.partition(exact, n - k, axis=1)[:, n - k :], axis=1)

        def error(k=k, expected=expected) -> float:
            _, ids = topk_search(queries, corpus, k)
            return float(np.abs(np.take_along_axis(exact, ids, axis=1) - expected).max())

        yield f"exact search, k = {k}: largest similarity missed", error, 1e-6


def _training(smoke: bool) -> Iterator[Check]:
    case = train.Case(shapes.TINY, 8, 8) if smoke else train.Case(shapes.SHAPES["MiniLM"], 64, 32)

    def descent() -> float:
        step = train.step(case, rate=1e-3 if smoke else 1e-4)
        losses = [float(step()[1]["loss"]) for _ in range(20)]
        return losses[-1] / losses[0] if all(map(math.isfinite, losses)) else math.inf

    yield "last loss / first loss of 20 steps on one batch", descent, 0.9
