"""The peer's process, and the one way in which both libraries are timed.

It is told by lines of JSON to prepare a case, to take a sample of it, or to finish with it, and answers each by one. If
it dies, hangs or fails, that is the answer, and the next case gets a new process.
"""

import gc
import importlib
import json
import math
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO


def short(error: Exception) -> str:
    """What was raised, in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


class Sampler:
    """Seconds per call of `run`: calls follow each other without waiting, and `wait` waits for the last one's result.

    The first call, which may compile, is timed by itself; the second says how many calls make up `least` seconds.
    """

    def __init__(self, run: Callable[[], Any], wait: Callable[[Any], Any], least: float):
        self._run, self._wait, self._calls = run, wait, 1
        self.first = self.sample()
        if least:
            self._calls = min(max(math.ceil(least / self.sample()), 1), 200)

    def sample(self) -> float:
        start = time.perf_counter()
        for _ in range(self._calls):
            result = self._run()
        self._wait(result)
        return (time.perf_counter() - start) / self._calls


class Peer:
    """A process running `python -m benchmarks.accelerator --peer MODULE`, begun when first needed."""

    def __init__(self, module: str, device: str):
        self._command = [sys.executable, "-m", "benchmarks.accelerator", "--peer", module, "--device", device]
        self._process: subprocess.Popen | None = None
        self._replies: queue.Queue[str | None] = queue.Queue()

    def prepare(self, spec: Mapping[str, Any], least: float, seconds: float) -> dict[str, Any]:
        """Builds a case and warms up: "name" and "first_call_seconds"; or "absent" or "error" with the reason."""
        return self._ask({"prepare": dict(spec), "least": least}, seconds)

    def sample(self, seconds: float) -> dict[str, Any]:
        """The "seconds" per call; or an "error"."""
        return self._ask({"sample": True}, seconds)

    def finish(self) -> dict[str, Any]:
        """Frees the case; its "peak_bytes"."""
        return {} if self._process is None else self._ask({"finish": True}, 5.0)

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._ended("closed")

    def _ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        if self._process is None:
            self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self._replies = queue.Queue()
            threading.Thread(target=_forward, args=(self._process.stdout, self._replies), daemon=True).start()
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            reply = self._replies.get(timeout=seconds)
        except queue.Empty:
            return self._ended(f"no answer within {seconds:.0f} s")
        except BrokenPipeError:
            reply = None
        return self._ended("its process ended") if reply is None else json.loads(reply)

    def _ended(self, why: str) -> dict[str, Any]:
        self._process.kill()
        code = self._process.wait()
        self._process = None
        return {"error": f"{why} (exit code {code})"}


def _forward(lines: TextIO, replies: "queue.Queue[str | None]") -> None:
    for line in lines:
        replies.put(line)
    replies.put(None)


def serve(module: str, device: str) -> None:
    """The peer's side: answers requests until standard input ends.

    `module.peer(spec, device)` gives the peer's name and the call to time. A package that it lacks makes the peer
    "absent", anything else that it raises is an "error".
    """
    replies, sys.stdout = sys.stdout, sys.stderr  # so that nothing that prints gets between the answers
    sampler: Sampler | None = None

    def answer(request: Mapping[str, Any]) -> dict[str, Any]:
        nonlocal sampler
        import torch

        on_gpu = device == "cuda"
        if on_gpu and not torch.cuda.is_available():
            raise ImportError("torch sees no GPU")
        wait = lambda _: torch.cuda.synchronize() if on_gpu else None
        if "prepare" in request:
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            name, run = importlib.import_module(module).peer(request["prepare"], device)
            sampler = Sampler(run, wait, request["least"])
            return {"name": name, "first_call_seconds": sampler.first}
        if "sample" in request:
            return {"seconds": sampler.sample()}
        peak = torch.cuda.max_memory_allocated() if on_gpu else None
        return {"peak_bytes": peak}

    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = answer(request)
        except ImportError as error:
            reply = {"absent": str(error)}
        except Exception as error:
            reply = {"error": short(error)}
        if "finish" in request or ("first_call_seconds" not in reply and "seconds" not in reply):
            sampler = None
            _free(device)
        print(json.dumps(reply), file=replies, flush=True)


def _free(device: str) -> None:
    """Gives the device's memory back, which the other process may need."""
    gc.collect()
    if device == "cuda" and "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()
