"""What sizes cost: training many of them at once, encoding with fewer layers, searching with fewer dimensions.

No peer; all-MiniLM-L6-v2 of six layers and 384 dimensions. Variants take turns in one process.

- "train": a step on 64 pairs of STS-B sentences with InfoNCE, plain and with six (layers, dim) pairs of `starbucks`,
  which share one forward pass. At most 1.35 times the plain step is the aim.
- "encode": texts/s of `SentenceEmbedder.truncate(layers=)`; half of the layers should be at least 1.8 times as fast.
- "search": queries/s of exact search over 200,000 random vectors of `dim` dimensions.
"""

import functools
import os
import statistics
import time
from collections.abc import Callable, Mapping

from benchmarks import harness
from benchmarks.workloads import minilm_directory, stsb_file, stsb_rows, stsb_sentences

CASES = ("train", "encode", "search")
SIZES = ((1, 32), (2, 64), (3, 128), (4, 192), (5, 256), (6, 384))
BATCH, STEPS, TEXTS, VECTORS, QUERIES = 64, 4, 1_000, 200_000, 64


def train(model: str) -> Mapping[str, Callable[[], object]]:
    """Steps, plain and with the sizes."""
    import dataclasses

    import jax

    import jaxemb
    from jaxemb import data, losses, objectives
    from jaxemb.train import adamw, init_state, make_train_step
    from jaxemb.transforms import identity

    embedder = jaxemb.load(model, unroll=6)
    plain = objectives.on_columns(losses.info_nce, "first", "second")
    source = data.from_list([{"first": a, "second": b} for a, b, _ in stsb_rows("train")[: BATCH * STEPS]])
    columns = ("first", "second")
    batches = list(
        data.batches(source, embedder.tokenizer, columns, batch_size=BATCH, max_length=64, epochs=1, pack=True)
    )

    def runner(objective) -> Callable[[], object]:
        optimizer = adamw(2e-5, 10_000)
        # Without normalisation, as Starbucks trains; a copy, since the state is donated.
        bare = dataclasses.replace(jax.tree.map(jax.numpy.copy, embedder.model), heads=())
        state = init_state(jax.random.key(0), bare, optimizer, identity())
        step = jax.jit(make_train_step(objective, optimizer), donate_argnums=0)

        def run() -> None:
            nonlocal state
            for batch in batches:
                state, _ = step(state, batch)
            jax.block_until_ready(state)

        return run

    return {"plain": runner(plain), "sizes": runner(objectives.starbucks(plain, SIZES))}


def encode(model: str) -> Mapping[str, Callable[[], object]]:
    """Encoding a thousand sentences, by layers."""
    import jaxemb

    embedder, texts = jaxemb.load(model), stsb_sentences("dev")[:TEXTS]
    small = {layers: embedder.truncate(layers=layers) for layers, _ in SIZES}
    return {str(layers): functools.partial(e.encode, texts) for layers, e in small.items()}


def search(model: str) -> Mapping[str, Callable[[], object]]:
    """Searching for the nearest ten, by dimensions."""
    import numpy as np

    from jaxemb.retrieval import topk_search

    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((VECTORS + QUERIES, SIZES[-1][1]), np.float32)
    known = {dim: np.ascontiguousarray(vectors[:VECTORS, :dim]) for _, dim in SIZES}
    return {str(dim): functools.partial(topk_search, vectors[VECTORS:, :dim], x, k=10) for dim, x in known.items()}


def main() -> None:
    """Runs the cases and writes the result."""
    args = harness.arguments(__doc__, CASES, files=[stsb_file("train"), stsb_file("dev")])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    from jaxemb.compilation import enable_persistent_cache

    enable_persistent_cache()
    model = args.model or minilm_directory()
    result = {"threads": args.threads, "load_average": os.getloadavg(), "sizes": SIZES, "cases": {}}
    for case in [args.case] if args.case else CASES:
        runs = {"train": train, "encode": encode, "search": search}[case](model)
        for run in runs.values():
            run(), run()
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(args.rounds):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
        base = list(seconds)[0 if case == "train" else -1]
        ratios = {name: [a / b for a, b in zip(values, seconds[base], strict=True)] for name, values in seconds.items()}
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        relative = {name: statistics.median(values) for name, values in ratios.items()}
        result["cases"][case] = {
            "median_seconds": medians, "relative": relative, "base": base, "seconds": seconds,
            "relative_range": {name: [min(values), max(values)] for name, values in ratios.items()},
        }  # fmt: skip
        print(
            f"{case}: " + ", ".join(f"{n} {1e3 * s:.1f} ms ({relative[n]:.2f} of {base})" for n, s in medians.items())
        )
    harness.save("sizes", result)


if __name__ == "__main__":
    main()
