"""The persistent compilation cache: a program compiled once on a machine is not compiled again."""

import functools
import logging
import os
import re
import warnings
from pathlib import Path

import jax

_log = logging.getLogger(__name__)
_UNREADABLE = re.compile(r"Error (reading|writing) persistent compilation cache entry for '(\w+)'")  # JAX's warnings


def enable_persistent_cache(directory: str | Path | None = None) -> Path:
    """Keeps XLA's programs in the folder `xla` of `directory`, by default `$JAXEMB_CACHE` or `~/.cache/jaxemb`.

    A program that was written in part, as on a full disk, is removed and compiled again: JAX would keep it, and warn
    of it in every process.
    """
    root = Path(directory or os.environ.get("JAXEMB_CACHE") or Path.home() / ".cache" / "jaxemb") / "xla"
    jax.config.update("jax_compilation_cache_dir", str(root))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # small programs are many
    _watch(root)
    return root


@functools.cache
def _watch(root: Path) -> None:
    """Removes what a warning of JAX says cannot be read, or was not written whole."""
    show = warnings.showwarning

    def heal(message, *args, **kwargs):
        found = _UNREADABLE.match(str(message))
        for entry in root.glob(f"{found[2]}-*-cache") if found else ():  # JAX says the program's name alone
            entry.unlink(missing_ok=True)
        if found and found[1] == "reading":
            return _log.info("%s; it is compiled again", message)
        return show(message, *args, **kwargs)

    warnings.showwarning = heal
