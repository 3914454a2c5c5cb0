"""What is done to the disk, in order."""

import os
import shutil
from pathlib import Path
from typing import Any

Event = tuple[str, Any]


def recorded(monkeypatch) -> list[Event]:
    """From now on: ("sync", number of the file or directory), and ("rename" or "remove", name)."""
    events: list[Event] = []
    sync, rmtree, unlink = os.fsync, shutil.rmtree, os.unlink

    def rename_by(function):
        def call(source, target, **options):
            function(source, target, **options)
            events.append(("rename", Path(target).name))

        return call

    def removed_by(function):
        def call(path, *args, **options):
            events.append(("remove", Path(path).name))
            return function(path, *args, **options)

        return call

    def synced(number):
        events.append(("sync", os.fstat(number).st_ino))
        sync(number)

    monkeypatch.setattr(os, "fsync", synced)
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, rename_by(getattr(os, name)))
    monkeypatch.setattr(shutil, "rmtree", removed_by(rmtree))
    monkeypatch.setattr(os, "unlink", removed_by(unlink))
    return events


def synced_before(events: list[Event], event: Event) -> set[int]:
    """The numbers of what was on the disk when the (last such) event came."""
    at = len(events) - 1 - events[::-1].index(event)
    return {number for kind, number in events[:at] if kind == "sync"}


def numbers(*paths: Path) -> set[int]:
    return {path.stat().st_ino for path in paths}
