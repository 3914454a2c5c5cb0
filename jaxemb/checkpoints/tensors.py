"""Reading and writing tensor files: safetensors, single or sharded. Pickles are refused."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from jaxemb.checks import at_least, checked
from jaxemb.files import Contents, inside, read_json, read_whole, replaced_files, write_json
from jaxemb.settings import REQUIRED, CheckpointError, Settings, inner, text

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
TENSOR_FILES = (_SINGLE, _INDEX, "model-?????-of-?????.safetensors")
_CONTENTS = Contents("directory of tensors", mark="", files=TENSOR_FILES)
_MAX_SHARD_BYTES = 5 * 10**9
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_DTYPES = {
    "BOOL": "bool",
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}
_DTYPES |= {
    f"{code}{bits}": f"{kind}{bits}" for code, kind in {"I": "int", "U": "uint"}.items() for bits in (8, 16, 32, 64)
}
_DTYPES |= {f"F{bits}": f"float{bits}" for bits in (16, 32, 64)}


class TensorParts:
    """A tensor in a safetensors file: `parts[index]` reads the part that `index`, slices with a step of 1, says.

    Attributes:
      shape, dtype: those of the whole tensor.
    """

    def __init__(self, opened: Any, name: str):
        self._slice = opened.get_slice(name)
        self.shape = tuple(self._slice.get_shape())
        code = self._slice.get_dtype()
        if code not in _DTYPES:
            raise CheckpointError(f"{name}: tensors of {code} are not read; expected one of {sorted(_DTYPES)}")
        self.dtype = np.dtype(_DTYPES[code])

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        return self._slice[index]


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of one or several safetensors files by name, each read from its file when asked for."""

    def __init__(self, files: Iterable[Path]):
        self._file_of: dict[str, Any] = {}
        for file in files:
            opened = _open(file)
            self._file_of |= dict.fromkeys(opened.keys(), opened)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._file_of[name].get_tensor(name)

    def parts(self, name: str) -> TensorParts:
        """The tensor, of which only what is indexed is read."""
        return TensorParts(self._file_of[name], name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


@checked()
def read_tensors(directory: str | Path) -> Tensors:
    """The tensors of `model.safetensors`, or of the shards that `model.safetensors.index.json` lists.

    bfloat16 comes as the numpy type of `ml_dtypes`.

    Raises:
      CheckpointError: if there are only pickles, no tensors at all, or a file is missing or damaged.
    """
    return read_whole(directory, _CONTENTS, lambda: _read(Path(directory)))


def _read(directory: Path) -> Tensors:
    if (single := directory / _SINGLE).is_file():
        return Tensors([single])
    if (index := directory / _INDEX).is_file():
        weight_map = inner(Settings(read_json(index, dict, error=CheckpointError), str(index)), "weight_map", REQUIRED)
        shard_of = {name: text(weight_map, name) for name in weight_map}
        for shard in shard_of.values():
            inside(directory, shard, where=f"{index}: weight_map", error=CheckpointError)
        shards = sorted(set(shard_of.values()))
        if missing := [shard for shard in shards if not (directory / shard).is_file()]:
            raise CheckpointError(f"{index}: shards are missing: {', '.join(missing)}")
        tensors = Tensors(directory / shard for shard in shards)
        if absent := sorted(set(shard_of) - set(tensors)):
            raise CheckpointError(f"{index}: no shard has the tensors {', '.join(absent)}")
        return tensors
    if pickles := [name for name in _PICKLES if (directory / name).is_file()]:
        raise CheckpointError(
            f"{directory}: has only {pickles[0]}, a pickle, which can run any code when it is read, so jaxemb refuses "
            f"it. Convert it once, where torch and transformers are installed:\n  {_conversion(directory, pickles[0])}"
        )
    raise CheckpointError(
        f"{directory}: expected {_SINGLE} or {_INDEX}, found neither (pickles such as pytorch_model.bin are not read)"
    )


@checked(max_bytes=at_least(1))
def write_tensors(
    directory: str | Path, tensors: Mapping[str, np.ndarray], *, max_bytes: int = _MAX_SHARD_BYTES
) -> None:
    """Writes `model.safetensors`; with more than `max_bytes` of data, shards of at most that and their index.

    All or nothing, instead of what tensors `directory` has; it is made if absent.

    Raises:
      ValueError: for `max_bytes` < 1.
    """
    with replaced_files(directory, _CONTENTS) as fresh:
        _write(fresh, tensors, max_bytes)


def _write(directory: Path, tensors: Mapping[str, np.ndarray], max_bytes: int) -> None:
    shards: list[dict[str, np.ndarray]] = [{}]
    free = max_bytes
    for name, tensor in tensors.items():
        if shards[-1] and tensor.nbytes > free:
            shards.append({})
            free = max_bytes
        shards[-1][name] = np.asarray(tensor, order="C")  # `ascontiguousarray` would give a scalar an axis
        free -= tensor.nbytes
    metadata = {"format": "pt"}  # transformers reads no file without it
    if len(shards) == 1:
        _save_file(shards[0], directory / _SINGLE, metadata)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _save_file(shard, directory / file, metadata)
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    write_json(directory / _INDEX, index, indent=2)


def _save_file(tensors: dict[str, np.ndarray], path: Path, metadata: dict[str, str]) -> None:
    try:
        safetensors.numpy.save_file(tensors, path, metadata=metadata)
    except safetensors.SafetensorError as error:
        if (code := re.search(r"\(os error (\d+)\)", str(error))) is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error


def _open(path: Path):
    try:
        return safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a complete safetensors file ({error}); fetch or write it again") from error


def _conversion(directory: Path, pickle: str) -> str:
    """The command that turns the pickle into safetensors; only transformers puts a sharded one together again."""
    if pickle.endswith(".json"):
        code = (
            f"from transformers import AutoModel as M; M.from_pretrained('{directory}').save_pretrained('{directory}')"
        )
    else:
        code = (
            "import torch, safetensors.torch as s; "
            f"t = torch.load('{directory / pickle}', map_location='cpu', weights_only=True); "
            f"s.save_file({{k: v.clone() for k, v in t.items()}}, '{directory / _SINGLE}', {{'format': 'pt'}})"
        )
    return f'python -c "{code}"'
