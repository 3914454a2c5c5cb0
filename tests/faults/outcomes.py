"""What becomes of a fault: the one judgement that the suites of this folder share, and its counts.

A fault is used in process. What comes of it is as before (the same numbers), a clear refusal (an exception of a type
that speaks of the input, raised by jaxemb itself, that names the file, key, argument or option), raw (anything else
that is raised, but for what a function of the caller raises for a value that may be anything), silently accepted (other
numbers, or a value that its argument does not allow), or heavy (10 s of a processor or a minute of waiting, or more
memory than 1 GB).
"""

import collections
import contextlib
import dataclasses
import enum
import faulthandler
import gc
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxemb

SECONDS, WAITING, BYTES = 10, 60, 2**30
exhaustive = pytest.mark.skipif(
    os.environ.get("JAXEMB_FAULTS") != "all", reason="takes hours and many gigabytes; JAXEMB_FAULTS=all runs it"
)
_PACKAGE = str(Path(jaxemb.__file__).parent)
_TESTS = str(Path(__file__).parents[1])
_OF_INPUT = (
    *(ValueError, TypeError, ImportError, MemoryError),
    *(FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError),
)


class Outcome(enum.StrEnum):
    AS_BEFORE = "as before"
    CLEAR = "refused clearly"
    RAW = "raw"
    SILENT = "silently accepted"
    HEAVY = "hang or memory"


FAILURES = (Outcome.RAW, Outcome.SILENT, Outcome.HEAVY)


@dataclasses.dataclass(frozen=True)
class Case:
    """A fault.

    Attributes:
      name: what is wrong, such as "config.json: hidden_size = -1".
      use: does what a user would do with it, and returns numbers or text.
      names: of these a refusal must name one.
      expected: what `use` gives without the fault.
      is_lawful: whether to accept it is right, whatever comes of it: the fault is one that cannot be known, or none.
      gives_nan: whether to accept it is right if a NaN comes of it.
    """

    name: str
    use: Callable[[], Any]
    names: tuple[str, ...]
    expected: Any = None
    is_lawful: bool = False
    gives_nan: bool = False

    def outcome(self) -> tuple[Outcome, str]:
        """What came of it, and what was said or given."""
        try:
            result = self.use()
        except (KeyboardInterrupt, Hangs):
            raise
        except BaseException as error:  # a panic of Rust code is no Exception
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]
            if self.is_lawful and _is_of_caller(error):
                return Outcome.AS_BEFORE, said
            return (
                (Outcome.CLEAR, said)
                if _is_clear(error, self.names)
                else (Outcome.RAW, f"{said} [{_innermost(error)}]")
            )
        is_lawful = self.is_lawful or (self.gives_nan and has_nan(result))
        if is_lawful or (self.expected is not None and same(result, self.expected)):
            return Outcome.AS_BEFORE, ""
        return Outcome.SILENT, _shown(result)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What came of a case, and what was said or given."""

    case: str
    outcome: Outcome
    said: str = ""

    def __str__(self) -> str:
        return f"{self.outcome:<18} {self.case}: {self.said}"


class Hangs(BaseException):
    """A case has not ended after a minute."""


def judge(case: Case) -> Verdict:
    """Uses the fault and says what came of it."""
    start = time.process_time()  # of all threads, and not by the clock: the machine may be busy with something else
    with _measured() as peak:
        outcome, said = Outcome.HEAVY, ""
        with contextlib.suppress(Hangs), _ended_after(WAITING) as hung_at:
            outcome, said = case.outcome()
        if hung_at:  # whatever was made of the exception
            outcome, said = Outcome.HEAVY, f"waits at {hung_at[0]}; {said}"
    if (seconds := time.process_time() - start) > SECONDS:
        outcome, said = Outcome.HEAVY, f"{seconds:.0f} s; {said}"
    if peak() > BYTES:
        outcome, said = Outcome.HEAVY, f"{peak() / 2**30:.1f} GB; {said}"
    return Verdict(case.name, outcome, said.encode("ascii", "backslashreplace").decode())


def survey(cases: Iterable[Case], record: Callable[[str, object], None]) -> list[Verdict]:
    """Judges all, counts them for the summary, and fails with those that end in neither of the first two outcomes.

    Args:
      cases: the faults.
      record: pytest's `record_property`.
    """
    verdicts = [judge(case) for case in cases]
    counts = collections.Counter(verdict.outcome for verdict in verdicts)
    record("faults", {"tried": len(verdicts), **{str(outcome): counts[outcome] for outcome in Outcome}})
    failed = [str(verdict) for verdict in verdicts if verdict.outcome in FAILURES]
    if failed:
        pytest.fail(f"{len(failed)} of {len(verdicts)}:\n" + "\n".join(failed), pytrace=False)
    return verdicts


def sample(cases: Sequence[Case], count: int, seed: int = 0) -> list[Case]:
    """Some of the cases, always the same."""
    chosen = np.random.default_rng(seed).permutation(len(cases))[:count]
    return [cases[i] for i in sorted(chosen)]


def same(a: Any, b: Any) -> bool:
    """Whether two results are equal, numbers up to rounding."""
    try:
        leaves, structure = jax.tree.flatten(a)
        others, of_other = jax.tree.flatten(b)
        return structure == of_other and all(map(_equal, leaves, others))
    except (TypeError, ValueError):  # what cannot be compared
        return False


def has_nan(result: Any) -> bool:
    """Whether a number of the result is NaN."""
    floats = (x for x in jax.tree.leaves(result) if jnp.issubdtype(getattr(x, "dtype", type(x)), jnp.inexact))
    return any(bool(np.isnan(np.asarray(x, np.float64)).any()) for x in floats)


def _equal(x: Any, y: Any) -> bool:
    if isinstance(x, str) or isinstance(y, str):
        return x == y
    x, y = np.asarray(x), np.asarray(y)
    if x.dtype == object or y.dtype == object:
        return bool(np.array_equal(x, y))
    return x.shape == y.shape and bool(np.allclose(x, y, rtol=1e-5, atol=1e-6, equal_nan=True))


def _shown(result: Any) -> str:
    try:
        return f"{result!r:.100}".replace("\n", " ")
    except Exception:  # what was made of the fault cannot even be shown
        return type(result).__name__


def _innermost(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return _place(frame.filename, frame.lineno)


def _place(file: str, line: int | None) -> str:
    return f"{'/'.join(Path(file).parts[-2:])}:{line}"


@contextlib.contextmanager
def _ended_after(seconds: float) -> Iterator[list[str]]:
    """Raises Hangs after so long by the clock, and gives where; what never comes back to Python ends the process."""
    hung_at: list[str] = []

    def end(number, frame):
        hung_at.append(_place(frame.f_code.co_filename, frame.f_lineno))
        raise Hangs

    if threading.current_thread() is not threading.main_thread():
        yield hung_at
        return
    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(3 * seconds, exit=True, file=sys.__stderr__)
    try:
        yield hung_at
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _is_clear(error: BaseException, names: Sequence[str]) -> bool:
    kind = type(error)
    if kind not in _OF_INPUT and not kind.__module__.startswith("jaxemb"):
        return False
    last = traceback.extract_tb(error.__traceback__)[-1]
    return last.filename.startswith(_PACKAGE) and mentions(str(error), names)


def _is_of_caller(error: BaseException) -> bool:
    """Whether it comes from a function that the caller gave, such as an objective: jaxemb passes it on as it is."""
    frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    own = [name for name in frames if name.startswith((_PACKAGE, _TESTS))]
    return own[-1].startswith(_TESTS) and any(name.startswith(_PACKAGE) for name in own)


def mentions(text: str, names: Sequence[str]) -> bool:
    """Whether one of the names stands in the text as a word."""
    return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) for name in names)


@contextlib.contextmanager
def _measured() -> Iterator[Callable[[], int]]:
    """Gives how far the memory rose above where it was, in bytes; nothing is logged meanwhile."""
    gc.collect(0)
    before = _reset_peak()
    logging.disable(logging.CRITICAL)
    highest: list[int] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield lambda: highest[0] - before
    finally:
        logging.disable(logging.NOTSET)
        highest.append(_status("VmHWM"))


def _reset_peak() -> int:
    """Lets the kernel measure the peak from now on; the memory in use."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    try:
        found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0
