"""From a path or a Hugging Face id to a local directory."""

import contextlib
import re
from pathlib import Path

_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
_NOT_FILES = ["onnx/*", "openvino/*"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def resolve(path_or_id: str | Path, *, revision: str | None = None, fetch: bool = True) -> Path:
    """The local directory of a checkpoint.

    Args:
      path_or_id: a directory, or as text a hub id `owner/name`, which is downloaded to the hub's cache. As in
        sentence-transformers, a name without owner is looked up under `sentence-transformers/`. What begins with "." or
        "/", and a `Path`, is never looked up there.
      revision: branch, tag or commit of a hub id.
      fetch: ask the hub; if False, only what is in its cache is found.

    Raises:
      FileNotFoundError: if there is neither such a directory nor such a model on the hub, or the hub is out of reach.
    """
    if (path := Path(path_or_id).expanduser()).is_dir():
        return path
    name = str(path_or_id)
    if isinstance(path_or_id, Path) or not _HUB_ID.fullmatch(name):
        raise FileNotFoundError(f"{name!r} is not a directory, nor can it be a hub id (expected 'owner/name')")
    repository = name if "/" in name else f"sentence-transformers/{name}"

    import huggingface_hub

    if not fetch:
        with contextlib.suppress(ValueError):  # no repository can have that name
            config = huggingface_hub.try_to_load_from_cache(repository, "config.json", revision=revision)
            if isinstance(config, str):
                return Path(config).parent
        raise FileNotFoundError(f"{name!r} is not a directory, and {repository!r} is not in the hub's cache")
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=_FILES, ignore_patterns=_NOT_FILES
            )
        )
    except Exception as error:  # whatever stands between us and the hub: no network, no such model, no permission
        raise FileNotFoundError(
            f"{name!r} is not a directory, and {repository!r} could not be fetched from the hub: {error}"
        ) from error
