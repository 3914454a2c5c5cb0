"""What composing costs: the step of a chain of five transforms against its members' own work.

A member's own work is what its step takes beyond that of the base, which is what it works on in the chain: plain
training for the classifier and, as LoRA changes what there is to do for the others, `lora` for the encoder. (Without
LoRA every weight has a gradient; with it XLA drops most of the backward pass, so that LoRA's own work is negative and
that of the others is not what it is alone.) So each member m is measured as `chain(base, m)`, and

    over = step of the chain / (step of the base + sum over m of (step of chain(base, m) - step of the base)) - 1

should be at most 0.1. It is 0 if composing costs nothing: if the chain computes nothing more often than its members do.
The chain has finished a task, so that penalties, teachers and the replay memory are there, and its step is compiled
once for both tasks.

`over` is given for three things. FLOPs and bytes are XLA's account of the compiled step: they have no noise, and see
work that is done twice, but not what the machine makes of it. Time is the CPU time of the process, always on one core
(`--threads` is not used): with more, a member's own work may hide beside that of the base, and what other processes
take of the core does not count. The steps take short turns, one of each after the other, and the lower quartile of a
round's turns is taken. The chain's step goes through the states of all members; where these do not fit in a cache in
which every member's alone does, that is part of `over`, too.
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping

from benchmarks import harness

CASES = ("classifier", "encoder")
TURNS = {"classifier": 30, "encoder": 12}  # of every transform in a round
STEPS = 2  # in a turn


def classifier():
    """Objective, model, batch, base and members of continual classification: 784-400-400-10 units, 128 images."""
    import jax
    import numpy as np

    from jaxemb.classifiers.linear import Classifier
    from jaxemb.encoders import Mlp
    from jaxemb.objectives import classification
    from jaxemb.transforms import ema, ewc, experience_replay, identity, lwf, si

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
    return classification(), model, batch, identity(), members


def encoder():
    """Those of contrastive training: a text encoder of four layers of 128 dimensions, 16 pairs of 16 tokens."""
    import jax
    import numpy as np

    from jaxemb.embedder import Embedder
    from jaxemb.encoders.transformer import Transformer, TransformerConfig
    from jaxemb.losses import info_nce
    from jaxemb.objectives import on_columns
    from jaxemb.transforms import cross_batch_memory, ema, l2, lora, lwf
    from jaxemb.types import Tokens

    rng = np.random.default_rng(0)
    config = TransformerConfig(vocab_size=5000, dim=128, layers=4, heads=4, mlp_dim=512, position_table=16, unroll=4)
    tokens = lambda: Tokens.from_mask(rng.integers(0, 5000, (16, 16)), np.ones((16, 16)))
    batch = {"id": np.arange(16, dtype=np.int32), "query": tokens(), "document": tokens()}
    members = {
        "l2": l2(0.01),
        "lwf": lwf(target="similarities", outputs=("query", "document"), temperature=0.05),
        "ema": ema(),
        "memory": cross_batch_memory(1024, 128),
    }
    model = Embedder(Transformer.init(jax.random.key(0), config))
    return on_columns(info_nce, "query", "document"), model, batch, lora(8), members


def over(cost: Mapping[str, float]) -> float:
    """What the chain costs beyond the base and its members' own work, as a share of these."""
    own = (value - cost["base"] for name, value in cost.items() if name not in ("base", "chain"))
    return cost["chain"] / (cost["base"] + sum(own)) - 1


def measure(case: str, rounds: int) -> dict:
    """`over` of the case in FLOPs, bytes and time, with the cost of a step of each transform."""
    import jax
    import numpy as np

    from jaxemb.train import adamw, begin_task, end_task, init_state, make_train_step
    from jaxemb.transforms import Task, chain

    objective, model, batch, base, members = {"classifier": classifier, "encoder": encoder}[case]()
    transforms = {
        "base": base,
        **{name: chain(base, member) for name, member in members.items()},
        "chain": chain(base, *members.values()),
    }

    def turns_of(step, state) -> Callable[[], float]:
        def turn() -> float:
            nonlocal state
            start = time.process_time()
            for _ in range(STEPS):
                state, _ = step(state, batch)
            jax.block_until_ready(state)
            return (time.process_time() - start) / STEPS

        return turn

    turns, compilations, flops, bytes_accessed = {}, {}, {}, {}
    for name, transform in transforms.items():
        optimizer = adamw(1e-4, 10_000)
        step = jax.jit(make_train_step(objective, optimizer, transform), donate_argnums=0)
        state = init_state(jax.random.key(0), model, optimizer, transform)
        for number in range(2):
            task = Task(number, batches=lambda: [batch], steps=4, classes=np.arange(10) // 5 == number)
            state = begin_task(transform, objective, state, task)
            for _ in range(4):
                state, metrics = step(state, batch)
            if number == 0:
                state = end_task(transform, objective, state, task)
        if not metrics["finite"]:
            raise ArithmeticError(f"the loss of {name} is not finite")
        compilations[name] = step._cache_size()
        cost = step.lower(state, batch).compile().cost_analysis()
        flops[name], bytes_accessed[name] = cost["flops"], cost["bytes accessed"]
        turns[name] = turns_of(step, state)

    seconds: list[dict[str, float]] = []
    for _ in range(rounds):
        taken: dict[str, list[float]] = {name: [] for name in turns}
        for _ in range(TURNS[case]):
            for name, turn in turns.items():
                taken[name].append(turn())
        seconds.append({name: statistics.quantiles(values, n=4)[0] for name, values in taken.items()})
    over_seconds = [over(row) for row in seconds]
    return {
        "over_flops": over(flops),
        "over_bytes": over(bytes_accessed),
        "over_seconds": statistics.median(over_seconds),
        "over_seconds_range": [min(over_seconds), max(over_seconds)],
        "compilations": compilations,
        "flops": flops,
        "bytes": bytes_accessed,
        "seconds": seconds,
    }


def main() -> None:
    """Runs the cases and writes the result."""
    args = harness.arguments(__doc__, CASES)
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])  # before XLA makes its threads
    from jaxemb.compilation import enable_persistent_cache

    enable_persistent_cache()
    result = {"threads": 1, "load_average": os.getloadavg(), "cases": {}}
    for case in [args.case] if args.case else CASES:
        outcome = result["cases"][case] = measure(case, args.rounds)
        flops, moved, seconds = (f"{outcome[f'over_{what}']:+.1%}" for what in ("flops", "bytes", "seconds"))
        low, high = outcome["over_seconds_range"]
        print(f"{case}: the chain takes {flops} FLOPs, {moved} bytes, {seconds} time ({low:+.1%} to {high:+.1%}) over "
              f"its members' work; compiled {outcome['compilations']['chain']} time(s)")  # fmt: skip
        step = {name: statistics.median(row[name] for row in outcome["seconds"]) for name in outcome["flops"]}
        print("  ms per step: " + ", ".join(f"{name} {1e3 * value:.2f}" for name, value in step.items()))
    harness.save("transforms", result)


if __name__ == "__main__":
    main()
