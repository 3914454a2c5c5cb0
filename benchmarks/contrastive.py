"""Contrastive training with large batches: against sentence-transformers, and the loss by itself.

`train-B` is a step of MiniLM on B pairs with cached gradients, against `CachedMultipleNegativesRankingLoss` in a bare
PyTorch loop: same pairs (STS-B English, sentences of at most 16 tokens), optimiser, dropout and precision (f32). `loss`
is value and gradient of InfoNCE at D = 768: tiled against dense in time at B = 8,192 and in memory at B = 65,536, and a
run at B = 80,000.
"""

import functools
import itertools
import os
import time

from benchmarks import harness
from benchmarks.workloads import minilm_directory, stsb_file, stsb_rows

BATCHES = {"train-1024": 1024, "train-8192": 8192}
ROUNDS = {"train-1024": 3, "train-8192": 1}  # minutes each
CASES = (*BATCHES, "loss")
MAX_LENGTH = 16
ROWS = 8  # of 64 tokens at a time, as many tokens as the 32 texts of the peer's default mini-batch
DIM = 768


def pairs_of(case: str, model: str) -> list[tuple[str, str]]:
    """B pairs of short sentences, repeated as often as it takes."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(os.path.join(model, "tokenizer.json"))
    tokenizer.no_padding()
    rows = [row[:2] for split in ("train", "dev") for row in stsb_rows(split)]
    short = [row for row in rows if all(len(ids) <= MAX_LENGTH for ids in tokenizer.encode_batch(list(row)))]
    return list(itertools.islice(itertools.cycle(short), BATCHES[case]))


def ours(case: str, model: str) -> None:
    """A step of jaxemb when told."""
    import jax

    import jaxemb
    from jaxemb import data, losses, objectives, train
    from jaxemb.compilation import enable_persistent_cache
    from jaxemb.transforms import identity

    enable_persistent_cache()  # as the command does; compiling takes more memory than the step
    pairs = pairs_of(case, model)
    embedder = jaxemb.load(model)
    objective = objectives.on_columns(losses.info_nce, "first", "second", chunk=ROWS)
    optimizer = train.adamw(2e-5, 10_000)
    state = train.init_state(jax.random.key(0), embedder.model, optimizer, identity())
    source = data.from_list([{"first": a, "second": b} for a, b in pairs])
    make_batches = functools.partial(
        data.batches,
        source,
        embedder.tokenizer,
        ("first", "second"),
        batch_size=len(pairs),
        max_length=MAX_LENGTH,
        epochs=1,
        shuffle=False,
        pack=64,
    )
    batch = lambda: next(iter(make_batches()))
    step = jax.jit(train.make_train_step(objective, optimizer), donate_argnums=0).lower(state, batch()).compile()
    lengths = [len(ids) for row in pairs for ids in embedder.tokenizer(row, MAX_LENGTH)]

    def run():
        nonlocal state
        state, metrics = step(state, batch())
        return {"loss": float(metrics["loss"])}

    harness.serve(run, {"pairs": len(pairs), "lengths": lengths}, warm_up=lambda: None)


def peer(case: str, model: str, threads: int) -> None:
    """A step of sentence-transformers when told."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    torch.set_num_threads(threads)
    embedder = SentenceTransformer(model, device="cpu")
    embedder.max_seq_length = MAX_LENGTH
    embedder.train()
    loss = CachedMultipleNegativesRankingLoss(embedder)
    optimizer = torch.optim.AdamW(embedder.parameters(), lr=2e-5, weight_decay=0.01)
    pairs = pairs_of(case, model)

    def step(pairs):
        columns = zip(*pairs, strict=True)
        value = loss([embedder.preprocess(list(texts)) for texts in columns], None)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(embedder.parameters(), 1.0)
        optimizer.step()
        return {"loss": value.item()}

    harness.serve(lambda: step(pairs), {"pairs": len(pairs)}, warm_up=lambda: step(pairs[:64]))


def loss_alone(rounds: int) -> dict:
    """Time and memory of value and gradient of InfoNCE, tiled and dense, in this process."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxemb.losses import info_nce
    from jaxemb.nn.similarity import dot, unit

    def dense(queries, documents):
        logits = dot(unit(queries), unit(documents)) / 0.05
        return (jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits)).mean()

    functions = {"tiled": lambda queries, documents: info_nce(queries, documents).mean(), "dense": dense}
    functions = {name: jax.jit(jax.value_and_grad(f, argnums=(0, 1))) for name, f in functions.items()}
    memory = {}
    for name, f in functions.items():
        shape = jax.ShapeDtypeStruct((65_536, DIM), jnp.float32)
        memory[name] = f.lower(shape, shape).compile().memory_analysis().temp_size_in_bytes

    def timed(f, size):
        queries, documents = np.random.default_rng(0).normal(size=(2, size, DIM)).astype(np.float32)
        start = time.perf_counter()
        value = float(jax.block_until_ready(f(queries, documents))[0])
        return time.perf_counter() - start, value

    seconds = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, f in functions.items():
            elapsed, _ = timed(f, 8192)
            if turn:  # the first compiles
                seconds[name].append(elapsed)
    run, value = timed(functions["tiled"], 80_000)
    ratio = sorted(b / a for a, b in zip(seconds["tiled"], seconds["dense"], strict=True))
    result = {
        "dim": DIM,
        "temporary_bytes_at_65536": memory,
        "seconds_at_8192": seconds,
        "ratio_at_8192": ratio[len(ratio) // 2],
        "at_80000": {"seconds": run, "loss": value, "flops": 3 * 2 * 80_000**2 * DIM},
    }
    print(f"loss   dense / tiled time at 8,192: {result['ratio_at_8192']:.2f}")
    print(f"       temporary memory at 65,536: {memory['tiled'] / 1e9:.2f} GB against {memory['dense'] / 1e9:.1f} GB")
    print(f"       80,000 pairs: {run:.0f} s with compiling, loss {value:.4f}")
    return result


def main() -> None:
    """Runs the cases and writes the ratios."""
    args = harness.arguments(__doc__, CASES, packages=harness.PEER, files=[stsb_file("train"), stsb_file("dev")])
    model = args.model or minilm_directory()
    if args.worker:
        return ours(args.case, model) if args.worker == "jaxemb" else peer(args.case, model, args.threads)
    peak = harness.matmul_peak(args.threads)
    result = {"threads": args.threads, "matmul_peak_flops": peak, "cases": {}}
    for case in [args.case] if args.case else CASES:
        if case == "loss":
            result["cases"][case] = loss_alone(args.rounds)
            continue
        outcome = harness.compare("benchmarks.contrastive", case, args.threads, min(args.rounds, ROUNDS[case]))
        # Two forward passes, one backward pass.
        flops = 4 * harness.encoder_flops(outcome["jaxemb"].pop("lengths"), layers=6, dim=384, mlp_dim=1536)
        result["cases"][case] = harness.with_rates(outcome, flops, peak, "pairs")
        harness.show(case, outcome, "pairs")
        us, them = (outcome[name]["peak_memory_bytes"] for name in ("jaxemb", "peer"))
        outcome["peak_memory_ratio"] = us / them
        print(f"       peak memory {us / 1e9:.2f} GB against {them / 1e9:.2f} GB: ratio {us / them:.2f}")
    harness.save("contrastive", result)


if __name__ == "__main__":
    main()
