"""One progress bar for everything that takes long: units per second and the time left."""

import contextlib
from collections.abc import Callable, Iterator

from jaxemb.packages import remedy


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
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label or unit, total=total, rate="")

        def advance(n: int, label: str | None = None) -> None:
            state = progress.tasks[task]
            progress.update(task, advance=n, description=label or state.description)
            if state.speed:
                progress.update(task, rate=f"{state.speed:,.0f} {unit}/s")

        yield advance
