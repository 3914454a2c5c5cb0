"""The persistent compilation cache: a program compiled once on a machine is not compiled again."""

import os
from pathlib import Path

import jax


def enable_persistent_cache(directory: str | Path | None = None) -> Path:
    """Keeps XLA's programs in the folder `xla` of `directory`, by default `$JAXEMB_CACHE` or `~/.cache/jaxemb`."""
    root = Path(directory or os.environ.get("JAXEMB_CACHE") or Path.home() / ".cache" / "jaxemb") / "xla"
    jax.config.update("jax_compilation_cache_dir", str(root))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # small programs are many
    return root
