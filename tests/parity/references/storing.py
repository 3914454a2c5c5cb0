"""Shared by the scripts that freeze what other libraries say: they run where those are installed."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np


def files(directory: Path, prefix: str = "") -> dict[str, np.ndarray]:
    """The bytes of all files below a directory, as arrays by `files/PREFIX/path`."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    named = lambda path: "/".join(part for part in ("files", prefix, path.relative_to(directory).as_posix()) if part)
    return {named(path): np.frombuffer(path.read_bytes(), np.uint8) for path in paths}


def store(script: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes make_NAME.py's NAME.npz."""
    path = Path(script)
    np.savez_compressed(path.with_name(f"{path.stem.removeprefix('make_')}.npz"), **arrays)
