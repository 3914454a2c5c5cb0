"""The time plan: one process after another, each with a limit, whatever becomes of the one before."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.accelerator import report
from benchmarks.accelerator.parts import Part

_LEAST = 10.0  # seconds without which a part is not begun
_RESERVE = 0.85  # of its time a part begins nothing new after this share


def run(parts: Sequence[Part], out: Path, *, budget: float, smoke: bool, with_peer: bool) -> bool:
    """Runs the parts within `budget` seconds, and writes the summary after each; whether all that ran were well.

    A part may take what earlier ones left of their time, but not what later ones are due. It ends up as "done",
    "failed: why", "stopped after N s" or "not run: no time left"; its rows up to then count in any case.
    """
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + budget
    outcomes: list[dict[str, Any]] = []
    for i, part in enumerate(parts):
        left = end - time.monotonic()
        limit = min(left, max(part.seconds, left - sum(later.seconds for later in parts[i + 1 :])))
        file = out / f"{part.name}.jsonl"
        file.unlink(missing_ok=True)
        start = time.monotonic()
        status = "not run: no time left"
        if limit >= min(_LEAST, part.seconds):
            print(f"{part.name}: at most {limit:.0f} s", flush=True)
            status = _run_part(part, file, out / f"{part.name}.log", limit, smoke, with_peer)
        outcome = {"name": part.name, "title": part.title, "status": status, "seconds": time.monotonic() - start}
        outcomes.append(outcome | {"rows": _read(file)})
        print(f"{part.name}: {status}, {len(outcomes[-1]['rows'])} rows in {outcome['seconds']:.0f} s", flush=True)
        try:
            report.write(out, outcomes)
        except Exception:  # the rows are on disk; the next parts matter more than their summary
            traceback.print_exc()
    print(f"written: {out / 'summary.md'}")
    return all(_is_well(outcome) for outcome in outcomes)


def _is_well(outcome: dict[str, Any]) -> bool:
    fine = outcome["status"] == "done" or outcome["status"].startswith("not run")
    return fine and all(row.get("passed", True) for row in outcome["rows"])


def _run_part(part: Part, file: Path, log: Path, limit: float, smoke: bool, with_peer: bool) -> str:
    """How the part's process ended."""
    command = [sys.executable, "-m", "benchmarks.accelerator", "--part", part.module]
    command += ["--seconds", str(_RESERVE * limit), "--rows", str(file)]
    command += ["--smoke"] * smoke + ["--no-peer"] * (not with_peer)
    # Two libraries share the device, so neither may take all of its memory at the start.
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "HF_HUB_OFFLINE": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"stopped after {limit:.0f} s"
        finally:
            _end_group(process)
    if code == 0:
        return "done"
    lines = log.read_text(errors="replace").strip().splitlines()
    return f"failed: exit code {code}; {lines[-1] if lines else 'nothing in its log'}"


def _end_group(process: subprocess.Popen) -> None:
    """Ends what is left of the part: itself, and its peer's process."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read(file: Path) -> list[dict[str, Any]]:
    """The rows written so far; a line that the end of its process cut off does not count."""
    rows = []
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
