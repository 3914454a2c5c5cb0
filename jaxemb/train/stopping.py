"""Being asked to stop: SIGTERM, and Ctrl-C, after which a run saves what it has.

Of several processes JAX takes SIGTERM, tells the others, and finds the step after which all stop. Ctrl-C is handed to
it as a SIGTERM, so that one process that gets it is enough, too.
"""

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
      doing: what is under way, and is finished first.
    """

    received: signal.Signals | None = None
    doing = "step"
    _is_agreed = False

    def __call__(self, step: int) -> bool:
        """Whether to stop after this step, which several processes agree on."""
        if jax.process_count() == 1:
            return self.received is not None
        if multihost_utils.reached_preemption_sync_point(step):  # of this process's signal, or another's
            self.received = self.received or signal.SIGTERM
            self._is_agreed = True
        return self._is_agreed

    @contextlib.contextmanager
    def during(self, doing: str) -> Iterator[None]:
        """Meanwhile this is under way."""
        before, self.doing = self.doing, doing
        try:
            yield
        finally:
            self.doing = before

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
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        with contextlib.suppress(OSError):
            os.write(2, f"\njaxemb: Ctrl-C: saving after this {stop.doing}; once more quits at once\n".encode())

    is_ignored = before in (signal.SIG_IGN, None)  # as in a background job
    with contextlib.nullcontext() if is_ignored else _handled(signal.SIGINT, note):
        yield


def _note(stop: Stop, number: signal.Signals) -> None:
    stop.received = stop.received or number


@contextlib.contextmanager
def _handled(number: signal.Signals, handler) -> Iterator[None]:
    # Of several processes JAX handles SIGTERM; and only the main thread may say what a signal does.
    is_of_jax = jax.process_count() > 1 and number == signal.SIGTERM
    if is_of_jax or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
