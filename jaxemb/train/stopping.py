"""Being asked to stop: SIGTERM, and Ctrl-C, after which a run saves what it has."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils


class Stopped(SystemExit):
    """The program ends because it was asked to, having saved what it has."""


class Stop:
    """Whether the run is to stop, asked after every step.

    Attributes:
      received: the signal that has come, if any.
    """

    received: signal.Signals | None = None

    def __call__(self, step: int) -> bool:
        """Whether to stop after this step, which several processes agree on."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.received = signal.SIGTERM  # JAX has taken it, of this process or of any of the others
        return self.received is not None

    @property
    def name(self) -> str:
        """Of the signal, as people call it."""
        return "Ctrl-C" if self.received == signal.SIGINT else "SIGTERM"

    def leave(self, what: str) -> None:
        """Ends the program as the signal asks, `what` having been done: SIGTERM with code 0."""
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt(what)
        raise Stopped(0)


@contextlib.contextmanager
def stopping() -> Iterator[Stop]:
    """From here on SIGTERM is noted and kills no more; `interruptible` does the same with Ctrl-C."""
    stop = Stop()
    with _handled(signal.SIGTERM, lambda number, frame: _note(stop, signal.SIGTERM)):
        yield stop


@contextlib.contextmanager
def interruptible(stop: Stop) -> Iterator[None]:
    """Meanwhile the first Ctrl-C is noted, and the second quits at once."""

    before = signal.getsignal(signal.SIGINT)

    def note(number, frame):
        _note(stop, signal.SIGINT)
        signal.signal(signal.SIGINT, before)
        with contextlib.suppress(OSError):
            os.write(2, b"\njaxemb: Ctrl-C: saving after this step; once more quits at once\n")

    is_ignored = before in (signal.SIG_IGN, None)  # as in a background job
    with contextlib.nullcontext() if is_ignored else _handled(signal.SIGINT, note):
        yield


def _note(stop: Stop, number: signal.Signals) -> None:
    stop.received = stop.received or number


@contextlib.contextmanager
def _handled(number: signal.Signals, handler) -> Iterator[None]:
    # Of several processes JAX handles the signal; and only the main thread may say what one does.
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
