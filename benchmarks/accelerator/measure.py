"""What a part's process has at hand: the time that is left, and a measurement of this library beside its peer."""

import copy
import dataclasses
import functools
import importlib
import importlib.metadata
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from benchmarks.accelerator.peers import Peer, Sampler, short

#: A line of a part's table: a measurement, as `Bench.measure` makes it, or a check, as in `numerics`.
Row = dict[str, Any]

_ROUNDS = 5  # turns of ours and the peer's, of which the median counts
_LONG = 8.0  # seconds of turns after which two of them do
_SAMPLE = 0.1  # seconds of calls in a turn, so that neither the clock nor the host's delay shows


class Program:
    """`f(*args)`, compiled ahead of its first call.

    With `carries`, `f` is a train step `(state, ...) -> (state, ...)`: its first argument is overwritten, and each call
    goes on from the state that the last one returned.
    """

    def __init__(self, f: Callable, *args, carries: bool = False):
        start = time.perf_counter()
        self._run = jax.jit(f, donate_argnums=0 if carries else ()).lower(*args).compile()
        self._args, self._carries = args, carries
        self.about: dict[str, Any] = {"compile_seconds": time.perf_counter() - start, **_account(self._run)}

    def on(self, *args) -> "Program":
        """The same program on other arguments of the same shapes, without compiling it again."""
        other = copy.copy(self)
        other._args, other.about = args, {**self.about, "compile_seconds": 0.0}
        return other

    def __call__(self):
        result = self._run(*self._args)
        if self._carries:
            self._args = (result[0], *self._args[1:])
        return result


def _account(compiled) -> dict[str, float]:
    """XLA's account of a program, as far as the backend gives one."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    parts = ("argument", "output", "temp")
    sizes = [getattr(memory, f"{part}_size_in_bytes", 0) for part in parts] if memory is not None else []
    shared = getattr(memory, "alias_size_in_bytes", 0)  # of arguments that outputs overwrite
    found = {"program_bytes": sum(sizes) - shared} if sizes else {}
    names = {"flops": "xla_flops", "bytes accessed": "xla_bytes"}
    return found | {name: cost[key] for key, name in names.items() if key in cost}


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def normal(seed: int, shape: tuple[int, ...], dtype: str = "float32") -> jax.Array:
    """Random numbers on the device; of zeros, matrix products would take less power and so be faster."""
    return jax.random.normal(jax.random.key(seed), shape, dtype)


@dataclasses.dataclass(frozen=True)
class Bench:
    """The conditions under which a part measures.

    Attributes:
      module: the part's.
      end: `time.monotonic()` after which it begins nothing new.
      smoke: tiny shapes, one call per turn.
      with_peer: whether the peer is asked.
    """

    module: str
    end: float
    smoke: bool = False
    with_peer: bool = True

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    @functools.cached_property
    def _peer(self) -> Peer:
        device = "cpu" if jax.default_backend() == "cpu" else "cuda"
        return Peer(self.module, device)

    def measure(
        self,
        case: str,
        make: Callable[[], Callable[[], Any]],
        *,
        flops: float,
        bytes: float,
        precision: str,
        work: tuple[float, str] | None = None,
        peer: Mapping[str, Any] | str = "none",
    ) -> Row:
        """The row of one case: ours and the peer's seconds per call, in turns; what fails says so in its own column.

        Args:
          case: its name.
          make: gives what is timed, such as a `Program`, which returns arrays.
          flops: of a call, by formula.
          bytes: the least that a call must read and write.
          precision: of the products, as in the part "matmul": "bf16", "tf32" or "f32".
          work: what a call gets done, number and unit: (32768, "tokens").
          peer: what the part's `peer` is given to make the same call; or, as text, why there is none.
        """
        row: Row = {"case": case, "flops": flops, "bytes": bytes, "precision": precision}
        row |= {"work": work, "ours": {}, "peer": {}, "ratio": None}
        if self.left <= 0:
            return row | {"skipped": "no time left"}
        least = 0.0 if self.smoke else _SAMPLE
        ours = _Ours(make, least)
        if not self.with_peer:
            row["peer"] = {"absent": "not asked for"}
        elif isinstance(peer, str):
            row["peer"] = {"absent": peer}
        else:
            row["peer"] = self._peer.prepare(peer, least, max(self.left, 1.0))
        turns: list[tuple[float, float]] = []
        start = time.monotonic()
        for _ in range(2 if self.smoke else _ROUNDS):
            mine, theirs = ours.sample(), math.nan
            if "name" in row["peer"]:
                reply = self._peer.sample(max(self.left, 1.0))
                theirs = reply.get("seconds", math.nan)
                row["peer"] = row["peer"] if "seconds" in reply else reply
            turns.append((mine, theirs))
            if self.left <= 0 or (len(turns) > 1 and time.monotonic() - start > _LONG):
                break
        if "name" in row["peer"]:
            row["peer"] |= _summary([theirs for _, theirs in turns]) | self._peer.finish()
        row["ours"] = ours.about | _summary([mine for mine, _ in turns])
        ratios = [theirs / mine for mine, theirs in turns if mine > 0 and math.isfinite(theirs / mine)]
        row["ratio"] = statistics.median(ratios) if ratios else None
        return row


class _Ours:
    """Samples of what `make` gives, or the reason why there are none."""

    def __init__(self, make: Callable[[], Callable[[], Any]], least: float):
        self.about: dict[str, Any] = {}
        try:
            run = make()
            self._sampler = Sampler(run, jax.block_until_ready, least)
        except Exception as error:
            self._failed(error)
            return
        self.about |= getattr(run, "about", {}) | {"first_call_seconds": self._sampler.first}
        stats = jax.devices()[0].memory_stats() or {}
        # Of the whole process so far: it cannot be reset.
        self.about |= {"process_peak_bytes": stats.get("peak_bytes_in_use")}

    def _failed(self, error: Exception) -> None:
        self.about["error"] = short(error)

    def sample(self) -> float:
        if "error" in self.about:
            return math.nan
        try:
            return self._sampler.sample()
        except Exception as error:
            self._failed(error)
            return math.nan


def _summary(samples: list[float]) -> dict[str, Any]:
    found = [seconds for seconds in samples if math.isfinite(seconds)]
    return {"seconds": statistics.median(found), "samples": found} if found else {}


def machine() -> dict[str, Any]:
    """The device and what drives it."""
    device = jax.devices()[0]
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        driver = None
    versions = {}
    for package in ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers", "peft"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "device": device.device_kind,
        "backend": jax.default_backend(),
        "devices": jax.device_count(),
        "platform_version": device.client.platform_version,
        "nvidia_smi": driver,
        "bytes_limit": (device.memory_stats() or {}).get("bytes_limit"),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": versions,
    }


def write_rows(bench: Bench, file: Path) -> None:
    """Runs a part's `rows` and adds each to `file` as a line of JSON; the first line says what the machine is.

    Raises:
      SystemExit: if there is no accelerator, and no smoke was asked for.
    """
    about = machine()
    if about["backend"] == "cpu" and not bench.smoke:
        raise SystemExit("JAX sees no accelerator; --smoke runs tiny shapes on a CPU")
    jax.config.update("jax_disable_most_optimizations", bench.smoke)  # which compiles in half of the time
    rows: Iterator[Row] = importlib.import_module(bench.module).rows(bench)
    with file.open("a") as lines:
        for row in itertools.chain([{"machine": about}], rows):
            print(json.dumps(row), file=lines, flush=True)
            os.fsync(lines.fileno())
