"""One progress bar for everything that takes long: units per second and the time left."""

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

from jaxemb.packages import remedy


class Audience:
    """A stream of whoever watches, who may leave: from then on what is said is dropped, and the work goes on.

    Args:
      stream: such as `sys.stderr`, which is None where it was closed before the process began.

    Attributes:
      lost: why something could not be written that somebody still waits for, as on a full disk.
    """

    def __init__(self, stream: TextIO | None):
        self._stream: Any = _nowhere() if stream is None or stream.closed else stream
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        with self._leaving():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._leaving():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _leaving(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            if isinstance(error, UnicodeError):
                raise
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                self.lost = self.lost or error
            nowhere = _nowhere()
            with contextlib.suppress(OSError, ValueError):  # what is buffered must not fail again
                os.dup2(nowhere.fileno(), self._stream.fileno())
            self._stream = nowhere


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


@contextlib.contextmanager
def progress_bar(total: int, unit: str, *, enabled: bool = True, label: str = "") -> Iterator[Callable[..., None]]:
    """Gives a function `advance(n, label=None)` that moves the bar; nothing is shown when not `enabled`."""
    if not enabled:
        yield lambda n, label=None: None
        return
    with remedy():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=cast(TextIO, Audience(sys.stderr)))) as progress:
        task = progress.add_task(label or unit, total=total, rate="")

        def advance(n: int, label: str | None = None) -> None:
            state = progress.tasks[task]
            progress.update(task, advance=n, description=label or state.description)
            if state.speed:
                progress.update(task, rate=f"{state.speed:,.0f} {unit}/s")

        yield advance
