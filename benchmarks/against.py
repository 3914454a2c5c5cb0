"""This checkout against another one of jaxemb, such as the last release: the same work, in turns.

    git worktree add ../before REVISION
    python -m benchmarks.against ../before

A ratio above 1 says that this checkout is faster; a memory below 1, that it needs less.
"""

import argparse
import json
from pathlib import Path

from benchmarks import contrastive, encode, harness, train

CASES = {
    "encode": encode.CASES,
    "train": train.CASES,
    "contrastive": [case for case in contrastive.CASES if case != "loss"],
}


def main() -> None:
    """Runs the cases and prints the ratios, a line of JSON each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="root of the other checkout")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=CASES, help="one benchmark's cases alone")
    args = parser.parse_args()
    if not (args.checkout / "benchmarks").is_dir():
        parser.error(f"{args.checkout} is no checkout of jaxemb: it has no directory benchmarks")
    for name in [args.only] if args.only else CASES:
        for case in CASES[name]:
            module = f"benchmarks.{name}"
            rounds = min(args.rounds, contrastive.ROUNDS[case]) if name == "contrastive" else args.rounds
            trees = {"here": harness.CHECKOUT, "there": args.checkout.resolve()}
            workers = {tree: harness.Worker(module, "jaxemb", case, args.threads, path) for tree, path in trees.items()}
            outcome = harness.alternate(workers, rounds)
            memory = outcome["here"]["peak_memory_bytes"] / outcome["there"]["peak_memory_bytes"]
            ratio, between = outcome["ratio"], outcome["ratio_range"]
            print(
                json.dumps({"case": f"{name} {case}", "ratio": ratio, "between": between, "memory": memory}), flush=True
            )


if __name__ == "__main__":
    main()
