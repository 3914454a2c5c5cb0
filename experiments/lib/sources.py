"""Which code measures: hashes of the experiments' and the library's sources, as texts."""

import functools
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

import jaxemb

_AFTER = {f"experiments.lib.{name}" for name in ("report", "reproductions", "statistics", "suite")}  # all is measured


def experiments() -> dict[str, str]:
    """By name, hashes of the modules of `experiments` that are imported, that which is run as `__main__` among them.

    Those that see only finished values are left out, so that a table may be written anew without measuring again.
    """
    specs = [getattr(module, "__spec__", None) for module in list(sys.modules.values())]
    files = {spec.name: spec.origin for spec in specs if spec and spec.name.partition(".")[0] == "experiments"}
    measuring = sorted((name, file) for name, file in files.items() if file and name not in _AFTER)
    return {name: _hash({name: Path(file).read_bytes()}) for name, file in measuring}


@functools.cache  # as it was when it was imported, or soon after
def library(folder: Path = Path(jaxemb.__file__).parent) -> str:
    """A hash of all Python files of the library."""
    return _hash({path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.py")})


def _hash(texts: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, text in sorted(texts.items()):
        digest.update(hashlib.sha256(name.encode()).digest() + hashlib.sha256(text).digest())
    return digest.hexdigest()[:16]
