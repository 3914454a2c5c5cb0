"""Exact search of the nearest k among ten million vectors of 384 dimensions, stored as f16, compared in f32.

"streamed" is `jaxemb.retrieval.topk_search`: the corpus is in the host's memory and goes through the device on every
call. "resident" is that function's inner step on chunks that stay on the device, which shows what the transfers cost.
"""

from collections.abc import Iterator

import jax
import numpy as np

from benchmarks.accelerator.measure import Bench, Row, normal
from jaxemb.retrieval import exact, topk_search

_ROWS, _DIM, _CHUNK = 10_000_000, 384, 400_000  # chunks of whole blocks, see `exact`
_RESIDENT = ((1, 10), (64, 10), (1024, 10), (1, 100), (64, 100), (1024, 100))  # queries and k
_STREAMED = ((1, 10), (1024, 100))


def rows(bench: Bench) -> Iterator[Row]:
    """A row for each way, number of queries and k."""
    n, dim, chunk = (2048, 16, 1024) if bench.smoke else (_ROWS, _DIM, _CHUNK)
    resident = [normal(seed, (chunk, dim), "float16") for seed in range(n // chunk)]
    host = np.empty((n, dim), np.float16)
    for streamed, cases in ((False, _RESIDENT), (True, _STREAMED)):
        if streamed:
            for i, rows_of_chunk in enumerate(resident):
                host[i * chunk : (i + 1) * chunk] = rows_of_chunk
        for number, k in ((2, 3),) if bench.smoke else cases:
            queries = np.random.default_rng(number).standard_normal((number, dim), np.float32)
            make = _streamed if streamed else _resident
            yield bench.measure(
                f"{'streamed' if streamed else 'resident'}, {number:,} queries, k = {k}, {n:,} x {dim}",
                lambda make=make, q=queries, k=k: make(q, host, resident, k, chunk),
                flops=2 * number * n * dim,
                bytes=2 * n * dim,
                precision="f32",
                work=(number, "queries"),
                peer={"queries": number, "k": k, "rows": n, "dim": dim, "chunk": chunk, "streamed": streamed},
            )


def _streamed(queries: np.ndarray, host: np.ndarray, resident: list[jax.Array], k: int, chunk: int):
    return lambda: topk_search(queries, host, k, corpus_chunk=chunk, query_chunk=1024)


def _resident(queries: np.ndarray, host: np.ndarray, resident: list[jax.Array], k: int, chunk: int):
    queries = jax.device_put(queries)
    exclude = jax.device_put(np.full((len(queries), 0), -1, np.int32))
    empty = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int32)
    start = jax.device_put(empty)

    def run():
        best = start
        for i, rows in enumerate(resident):
            *best, _ = exact._merge(
                tuple(best), queries, exclude, rows, i * chunk, chunk, k=k, metric="cosine", mesh=None, axes=()
            )
        return best

    return run


def peer(spec, device):
    """faiss on a GPU if it is there and the corpus is resident; or PyTorch, a product and `topk` a chunk, merged."""
    import torch

    torch.set_float32_matmul_precision("highest")
    shape, k = (spec["chunk"], spec["dim"]), spec["k"]
    chunks = [
        torch.nn.functional.normalize(torch.randn(shape, device=device), dim=-1).half()
        for _ in range(spec["rows"] // spec["chunk"])
    ]
    queries = torch.nn.functional.normalize(torch.randn(spec["queries"], spec["dim"], device=device), dim=-1)
    if device == "cuda" and not spec["streamed"] and (index := _faiss_index(spec["dim"])) is not None:
        for rows in chunks:
            index.add(rows.float().cpu().numpy())
        chunks.clear()
        wanted = queries.cpu().numpy()
        return "faiss, flat, f16", lambda: index.search(wanted, k)
    if spec["streamed"]:
        chunks = [rows.cpu() for rows in chunks]

    @torch.inference_mode()
    def run():
        best = None
        for i, rows in enumerate(chunks):
            scores, ids = (queries @ rows.to(device).float().T).topk(k)
            found = scores, ids + i * len(rows)
            if best is not None:
                scores = torch.cat([best[0], scores], dim=1)
                ids = torch.cat([best[1], found[1]], dim=1)
                top, position = scores.topk(k)
                found = top, ids.gather(1, position)
            best = found
        return best

    return "torch, matmul and topk", run


def _faiss_index(dim: int):
    """An exact index in f16 on the GPU; None without faiss's GPU build."""
    try:
        import faiss
    except ImportError:
        return None
    if not hasattr(faiss, "StandardGpuResources"):
        return None
    options = faiss.GpuIndexFlatConfig()
    options.useFloat16 = True
    return faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), dim, options)
