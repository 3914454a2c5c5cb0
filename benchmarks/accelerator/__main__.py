"""The command, and the two processes that it starts: a part, and a part's peer."""

import argparse
import sys
import time
from pathlib import Path

from benchmarks.accelerator.parts import PARTS
from benchmarks.accelerator.run import run


def main() -> None:
    """Runs the parts and exits with 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accelerator", description="Measures an accelerator.")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, on any device")
    parser.add_argument("--parts", help=f"comma-separated; of {','.join(part.name for part in PARTS)}")
    parser.add_argument("--budget-s", type=float, default=480, help="seconds for all parts (default: 480)")
    parser.add_argument("--out", type=Path, default=Path("runs/accelerator"), help="directory (default: %(default)s)")
    parser.add_argument("--no-peer", action="store_true", help="measure this library only")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # a module: this process is a part,
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--peer", help=argparse.SUPPRESS)  # or a part's peer
    parser.add_argument("--device", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        from benchmarks.accelerator.measure import Bench, write_rows

        bench = Bench(args.part, time.monotonic() + args.seconds, smoke=args.smoke, with_peer=not args.no_peer)
        return write_rows(bench, args.rows)
    if args.peer:
        from benchmarks.accelerator.peers import serve

        return serve(args.peer, args.device)
    chosen = args.parts.split(",") if args.parts else [part.name for part in PARTS]
    if unknown := set(chosen) - {part.name for part in PARTS}:
        parser.error(f"--parts must be among {','.join(part.name for part in PARTS)}; got {','.join(sorted(unknown))}")
    parts = [part for part in PARTS if part.name in chosen]
    sys.exit(not run(parts, args.out, budget=args.budget_s, smoke=args.smoke, with_peer=not args.no_peer))


if __name__ == "__main__":
    main()
