"""Training speed against sentence-transformers: same model, pairs, batch, loss, optimiser, dropout, precision (f32).

A run is an epoch over the pairs with in-batch negatives, tokenising included. The peer runs in a bare PyTorch loop,
which is faster than its Trainer. Short pairs are STS-B English train, long ones those joined twelve at a time.
"""

import os

from benchmarks import harness
from benchmarks.workloads import minilm_directory, stsb_file, stsb_rows

CASES = ("short", "long")
BATCH = {"short": 64, "long": 16}
STEPS = {"short": 10, "long": 6}
MAX_LENGTH = {"short": 64, "long": 256}


def pairs_of(case: str) -> list[tuple[str, str]]:
    """The pairs of a case, as many as the steps of a run take."""
    pairs = [row[:2] for row in stsb_rows("train")]
    if case == "long":
        groups = [pairs[i : i + 12] for i in range(0, len(pairs) - 11, 12)]
        pairs = [tuple(" ".join(texts) for texts in zip(*group, strict=True)) for group in groups]
    return pairs[: BATCH[case] * STEPS[case]]


def ours(case: str, model: str) -> None:
    """Trains with jaxemb when told."""
    import jax

    import jaxemb
    from jaxemb import data, losses, objectives, train
    from jaxemb.compilation import enable_persistent_cache
    from jaxemb.transforms import identity

    enable_persistent_cache()  # as the command does
    embedder = jaxemb.load(model, unroll=6)
    objective = objectives.on_columns(losses.info_nce, "first", "second")
    optimizer = train.adamw(2e-5, 10_000)
    state = train.init_state(jax.random.key(0), embedder.model, optimizer, identity())
    step = jax.jit(train.make_train_step(objective, optimizer), donate_argnums=0)
    source = data.from_list([{"first": a, "second": b} for a, b in pairs_of(case)])
    lengths = [len(ids) for row in pairs_of(case) for ids in embedder.tokenizer(row, MAX_LENGTH[case])]

    def run():
        nonlocal state
        for batch in data.batches(
            source,
            embedder.tokenizer,
            ("first", "second"),
            batch_size=BATCH[case],
            max_length=MAX_LENGTH[case],
            epochs=1,
            shuffle=False,
            pack=case == "short",
            buckets=(16, 32, 64, *range(80, 257, 16)),
        ):
            state, metrics = step(state, batch)
        return {"loss": float(metrics["loss"])}

    harness.serve(run, {"pairs": BATCH[case] * STEPS[case], "lengths": lengths})


def peer(case: str, model: str, threads: int) -> None:
    """Trains with sentence-transformers when told."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    torch.set_num_threads(threads)
    embedder = SentenceTransformer(model, device="cpu")
    embedder.max_seq_length = MAX_LENGTH[case]
    embedder.train()
    loss = MultipleNegativesRankingLoss(embedder)
    optimizer = torch.optim.AdamW(embedder.parameters(), lr=2e-5, weight_decay=0.01)
    pairs = pairs_of(case)

    def run():
        for start in range(0, len(pairs), BATCH[case]):
            columns = zip(*pairs[start : start + BATCH[case]], strict=True)
            value = loss([embedder.preprocess(list(texts)) for texts in columns], None)
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(embedder.parameters(), 1.0)
            optimizer.step()
        return {"loss": value.item()}

    harness.serve(run, {"pairs": len(pairs)})


def main() -> None:
    """Runs the cases and writes the ratios."""
    args = harness.arguments(__doc__, CASES, packages=harness.PEER, files=[stsb_file("train")])
    model = args.model or minilm_directory()
    if args.worker:
        return ours(args.case, model) if args.worker == "jaxemb" else peer(args.case, model, args.threads)
    peak = harness.matmul_peak(args.threads)
    result = {"threads": args.threads, "matmul_peak_flops": peak, "cases": {}}
    for case in [args.case] if args.case else CASES:
        outcome = harness.compare("benchmarks.train", case, args.threads, args.rounds)
        # The backward pass is twice the forward pass.
        flops = 3 * harness.encoder_flops(outcome["jaxemb"].pop("lengths"), layers=6, dim=384, mlp_dim=1536)
        result["cases"][case] = harness.with_rates(outcome, flops, peak, "pairs")
        harness.show(case, outcome, "pairs")
    harness.save("train", result)


if __name__ == "__main__":
    main()
