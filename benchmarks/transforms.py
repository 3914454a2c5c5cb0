"""What composing costs: the step of a chain of five transforms against plain training plus each member's own work.

Every transform is first timed alone; its own work is what its step takes beyond the plain one. The steps take turns in
one process, a step of each after the other, so that a change in the machine's speed falls on all of them. `over` is

    step of the chain / (plain step + sum of the members' own work) - 1

and should be at most 0.1. The chain has finished a task, so that penalties, teachers and the replay memory are there,
and its step is compiled once for both tasks.
"""

import os
import statistics
import time
from collections.abc import Callable

from benchmarks import harness

CASES = ("classifier", "encoder")
STEPS = 10  # of each transform in a turn


def classifier():
    """Model, objective, batch and transforms of continual classification: a 784-400-400-10 perceptron, 128 images."""
    import jax
    import numpy as np

    from jaxemb.classifier import Classifier
    from jaxemb.encoders import Mlp
    from jaxemb.objectives import classification
    from jaxemb.transforms import ema, ewc, experience_replay, lwf, si

    rng = np.random.default_rng(0)
    batch = {
        "id": np.arange(128, dtype=np.int32),
        "input": rng.normal(size=(128, 784)).astype(np.float32),
        "label": rng.integers(0, 10, 128).astype(np.int32),
    }
    keys = jax.random.split(jax.random.key(0))
    model = Classifier.init(keys[0], Mlp.init(keys[1], (784, 400, 400)), 400, 10)
    members = {
        "ema": ema(),
        "ewc": ewc(1.0),
        "si": si(0.1),
        "lwf": lwf(classes=10),
        "replay": experience_replay(512, 128, batch),
    }
    return model, classification(), batch, members


def encoder():
    """Those of contrastive training: a text encoder of four layers of 128 dimensions, 32 pairs of 32 tokens."""
    import jax
    import numpy as np

    from jaxemb.embedder import Embedder
    from jaxemb.encoders.transformer import Transformer, TransformerConfig
    from jaxemb.losses import info_nce
    from jaxemb.objectives import on_columns
    from jaxemb.transforms import cross_batch_memory, ema, l2, lora, si
    from jaxemb.types import Tokens

    rng = np.random.default_rng(0)
    config = TransformerConfig(vocab_size=5000, dim=128, layers=4, heads=4, mlp_dim=512, position_table=64)
    tokens = lambda: Tokens.from_mask(rng.integers(0, 5000, (32, 32)), np.ones((32, 32)))
    batch = {"id": np.arange(32, dtype=np.int32), "query": tokens(), "document": tokens()}
    members = {
        "lora": lora(8),
        "l2": l2(0.01),
        "si": si(0.1),
        "ema": ema(),
        "memory": cross_batch_memory(1024, 128),
    }
    model = Embedder(Transformer.init(jax.random.key(0), config))
    return model, on_columns(info_nce, "query", "document"), batch, members


def measure(case: str, rounds: int) -> dict:
    """Times plain training, each transform and their chain in turns; seconds per step."""
    import jax
    import numpy as np

    from jaxemb.train import adamw, begin_task, end_task, init_state, make_train_step
    from jaxemb.transforms import Task, chain, identity

    model, objective, batch, members = {"classifier": classifier, "encoder": encoder}[case]()
    transforms = {"plain": identity(), **members, "chain": chain(*members.values())}
    runs: dict[str, Callable[[], float]] = {}
    compiled = {}

    def runner(transform, step, state):
        def run() -> float:
            nonlocal state
            start = time.perf_counter()
            for _ in range(STEPS):
                state, _ = step(state, batch)
            jax.block_until_ready(state)
            return (time.perf_counter() - start) / STEPS

        return run

    for name, transform in transforms.items():
        optimizer = adamw(1e-4, 10_000)
        step = jax.jit(make_train_step(objective, optimizer, transform), donate_argnums=0)
        state = init_state(jax.random.key(0), model, optimizer, transform)
        for number in range(2):
            classes = np.arange(10) // 5 == number
            task = Task(number, batches=lambda: [batch], steps=4, classes=classes)
            state = begin_task(transform, objective, state, task)
            for _ in range(4):
                state, metrics = step(state, batch)
            if number == 0:
                state = end_task(transform, objective, state, task)
        if not metrics["finite"]:
            raise ArithmeticError(f"the loss of {name} is not finite")
        compiled[name] = step._cache_size()
        runs[name] = runner(transform, step, state)

    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(run())
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    own = lambda values: sum(values[name] - values["plain"] for name in members)
    over = [
        row["chain"] / (row["plain"] + own(row)) - 1
        for row in (dict(zip(seconds, values, strict=True)) for values in zip(*seconds.values(), strict=True))
    ]
    return {
        "over": statistics.median(over),
        "over_range": [min(over), max(over)],
        "compilations": compiled,
        "median_seconds": medians,
        "own_work_seconds": {name: medians[name] - medians["plain"] for name in members},
        "seconds": seconds,
    }


def main() -> None:
    """Runs the cases and writes the result."""
    args = harness.arguments(__doc__, CASES)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    from jaxemb.compilation import enable_persistent_cache

    enable_persistent_cache()
    result = {"threads": args.threads, "load_average": os.getloadavg(), "cases": {}}
    for case in [args.case] if args.case else CASES:
        outcome = result["cases"][case] = measure(case, args.rounds)
        low, high = outcome["over_range"]
        milliseconds = {name: 1e3 * value for name, value in outcome["median_seconds"].items()}
        print(f"{case:10s} chain {outcome['over']:+.1%} over its members' work ({low:+.1%} to {high:+.1%}), "
              f"compiled {outcome['compilations']['chain']} time(s)")  # fmt: skip
        print("           ms per step: " + ", ".join(f"{name} {value:.2f}" for name, value in milliseconds.items()))
    harness.save("transforms", result)


if __name__ == "__main__":
    main()
