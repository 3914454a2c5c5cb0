"""Model directories of sentence-transformers, read and written; a plain Hugging Face directory is read too."""

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxemb.checkpoints.tensors import CheckpointError, read_tensors, write_tensors
from jaxemb.checkpoints.weights import CheckpointFormat, load_weights, save_weights
from jaxemb.encoders.families import family_of
from jaxemb.encoders.transformer import Transformer

# ("dense", kernel [in, out], bias [out] or None, activation) | ("layer_norm", weight, bias, eps) | ("normalize",)
Head = tuple[Any, ...]

# Pooling modes by their names in the files, in the order in which the older flags concatenate.
_POOLING = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_length",
    "weightedmean": "weighted_mean",
    "lasttoken": "last_token",
}
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_length",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last_token",
}
_ACTIVATIONS = {
    "identity": "torch.nn.modules.linear.Identity",
    "tanh": "torch.nn.modules.activation.Tanh",
    "relu": "torch.nn.modules.activation.ReLU",
    "gelu": "torch.nn.modules.activation.GELU",
    "sigmoid": "torch.nn.modules.activation.Sigmoid",
    "silu": "torch.nn.modules.activation.SiLU",
}
_ACTIVATION_CLASSES = {path.rpartition(".")[2]: name for name, path in _ACTIVATIONS.items()}
_LAYER_NORM_EPS = 1e-5  # sentence-transformers' LayerNorm has torch's default and no option for it
_SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
_SENTENCE_CONFIGS = tuple(
    f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "camembert", "xlm-roberta")
)
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)


@dataclasses.dataclass(frozen=True)
class Directory:
    """What a model directory holds. `write(path, read(path))` gives the same model.

    Attributes:
      encoder: the transformer, f32.
      format: how its checkpoint was stored.
      pooling: names of functions in `jaxemb.pooling`, whose results are concatenated.
      heads: what follows the pooling, in order; see `Head`. Arrays are f32.
      head_dtype: the dtype in which the heads' tensors are stored.
      tokenizer_files: the tokenizer's files by name, as they are.
      prompts: texts to put in front, by name.
      default_prompt_name: the prompt of a text for which none is asked.
      similarity_fn_name: "cosine", "dot", "euclidean" or "manhattan".
      max_seq_length: longest text in tokens, special tokens included; never more than the encoder reads.
      do_lower_case: whether texts are lower-cased before the tokenizer, whatever that does itself.
    """

    encoder: Transformer
    format: CheckpointFormat
    pooling: tuple[str, ...]
    heads: tuple[Head, ...]
    tokenizer_files: Mapping[str, bytes]
    max_seq_length: int
    head_dtype: str = "float32"
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity_fn_name: str = "cosine"
    do_lower_case: bool = False


def read(path: str | Path, **overrides: Any) -> Directory:
    """Reads a model directory.

    A directory without `modules.json` is a bare encoder and gets mean pooling, as in sentence-transformers.

    Args:
      path: the directory.
      **overrides: fields of `TransformerConfig` to set, such as `dtype="bfloat16"` or `remat=True`.

    Raises:
      CheckpointError: if a file is missing or damaged, or tensors do not fit the configuration; all are named.
      ValueError: if the directory asks for what jaxemb does not have: a model type, a module, an activation.
    """
    root = Path(path)
    modules = _modules(root)
    config = _json(root / "config_sentence_transformers.json", {})
    encoder_path = root / modules[0]["path"]
    encoder, format = load_encoder(encoder_path, **overrides)
    sentence_config = next((c for name in _SENTENCE_CONFIGS if (c := _json(encoder_path / name, {}))), {})
    heads, dtypes = [], []
    for module in modules[2:]:
        head, dtype = _read_head(module["type"], root / module["path"])
        heads.append(head)
        dtypes += [dtype] if dtype else []
    similarity = config.get("similarity_fn_name") or "cosine"
    if similarity not in _SIMILARITIES:
        raise ValueError(f"{root}: similarity_fn_name {similarity!r} is not known; expected one of {_SIMILARITIES}")
    return Directory(
        encoder=encoder,
        format=format,
        pooling=_read_pooling(root / modules[1]["path"]) if len(modules) > 1 else ("mean",),
        heads=tuple(heads),
        head_dtype=dtypes[0] if dtypes else "float32",
        tokenizer_files={n: (encoder_path / n).read_bytes() for n in _TOKENIZER_FILES if (encoder_path / n).is_file()},
        max_seq_length=_max_length(encoder, encoder_path, sentence_config),
        prompts={name: prompt for name, prompt in (config.get("prompts") or {}).items() if prompt is not None},
        default_prompt_name=config.get("default_prompt_name"),
        similarity_fn_name=similarity,
        do_lower_case=bool(sentence_config.get("do_lower_case", False)),
    )


def load_encoder(path: str | Path, **overrides: Any) -> tuple[Transformer, CheckpointFormat]:
    """The encoder of a Hugging Face directory (`config.json`, safetensors) and the format to save it in again.

    `overrides` are fields of `TransformerConfig`. Raises as `read` does.
    """
    path = Path(path)
    if (hf_config := _json(path / "config.json", None)) is None:
        raise CheckpointError(f"{path}: config.json is missing; expected a Hugging Face model directory")
    family = family_of(hf_config)
    try:
        config = dataclasses.replace(family.config(hf_config), **overrides)
    except KeyError as error:
        raise CheckpointError(f"{path / 'config.json'}: key {error} is missing") from error
    return load_weights(config, read_tensors(path), family, hf_config)


def write(path: str | Path, directory: Directory) -> None:
    """Writes a directory that sentence-transformers (2 and later), transformers and text-embeddings-inference load.

    The directory appears at once or not at all: it is written beside `path` and renamed. A model directory at `path`
    is replaced.

    Raises:
      FileExistsError: if `path` is a file, or a non-empty directory without `modules.json`.
    """
    path = Path(path)
    if path.exists() and not (path / "modules.json").is_file() and (path.is_file() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is no model directory; give another path")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as temporary:
        fresh = Path(temporary) / "new"
        fresh.mkdir()
        _write_files(fresh, directory)
        if path.exists():
            os.rename(path, Path(temporary) / "old")
        os.rename(fresh, path)


def _write_files(root: Path, directory: Directory) -> None:
    dim = directory.encoder.config.dim
    write_tensors(root, save_weights(directory.encoder, directory.format))
    _write_json(root / "config.json", directory.format.config)
    _write_json(
        root / "sentence_bert_config.json",
        {"max_seq_length": directory.max_seq_length, "do_lower_case": directory.do_lower_case},
    )
    _write_json(
        root / "config_sentence_transformers.json",
        {
            "model_type": "SentenceTransformer",
            "prompts": dict(directory.prompts),
            "default_prompt_name": directory.default_prompt_name,
            "similarity_fn_name": directory.similarity_fn_name,
        },
    )
    for name, content in directory.tokenizer_files.items():
        (root / name).write_bytes(content)
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    (root / "1_Pooling").mkdir()
    _write_json(root / "1_Pooling" / "config.json", _pooling_config(dim, directory.pooling))
    for number, head in enumerate(directory.heads, start=2):
        kind = {"dense": "Dense", "layer_norm": "LayerNorm", "normalize": "Normalize"}[head[0]]
        modules.append((kind, f"{number}_{kind}"))
        (root / f"{number}_{kind}").mkdir()
        _write_head(root / f"{number}_{kind}", head, directory.head_dtype)
    # Releases from 5.4 on know these classes under longer paths too, but only these are known everywhere.
    _write_json(
        root / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, path) in enumerate(modules)
        ],
    )


def _modules(root: Path) -> list[dict[str, str]]:
    """The entries of `modules.json`, with `type` reduced to the class name: an encoder, a pooling, then heads."""
    known = ("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize")
    entries = _json(root / "modules.json", None)
    if entries is None:
        return [{"type": "Transformer", "path": ""}]
    modules = []
    for entry in sorted(entries, key=lambda entry: entry["idx"]):
        package, _, kind = entry["type"].rpartition(".")
        if not package.startswith("sentence_transformers.") or kind not in known:
            raise ValueError(
                f"{root / 'modules.json'}: module type {entry['type']!r} is not supported; expected one of "
                f"{', '.join(known)} of sentence_transformers"
            )
        modules.append({"type": kind, "path": entry["path"]})
    kinds = [module["type"] for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or {"Transformer", "Pooling"} & set(kinds[2:]):
        raise ValueError(
            f"{root / 'modules.json'}: modules are {kinds}; expected Transformer, Pooling, then any of "
            "Dense, LayerNorm, Normalize"
        )
    return modules


def _read_pooling(path: Path) -> tuple[str, ...]:
    config = _json(path / "config.json", {})
    if not config.get("include_prompt", True):
        raise ValueError(f"{path / 'config.json'}: include_prompt=false is not supported; expected true")
    if "pooling_mode" in config:
        modes = config["pooling_mode"]
        modes = [modes] if isinstance(modes, str) else modes
        if unknown := [mode for mode in modes if mode not in _POOLING]:
            raise ValueError(
                f"{path / 'config.json'}: unknown pooling modes {unknown}; expected some of {list(_POOLING)}"
            )
        return tuple(_POOLING[mode] for mode in modes)
    return tuple(mode for flag, mode in _POOLING_FLAGS.items() if config.get(flag)) or ("mean",)


def _pooling_config(dim: int, pooling: Sequence[str]) -> dict[str, Any]:
    """The flags that every release reads; the newer key only for an order of concatenation that flags cannot say."""
    in_order = [mode for mode in _POOLING.values() if mode in pooling]
    if in_order == list(pooling):
        flags = {flag: mode in pooling for flag, mode in _POOLING_FLAGS.items()}
        return {"word_embedding_dimension": dim, **flags, "include_prompt": True}
    names = {ours: theirs for theirs, ours in _POOLING.items()}
    return {"embedding_dimension": dim, "pooling_mode": [names[mode] for mode in pooling], "include_prompt": True}


def _read_head(kind: str, path: Path) -> tuple[Head, str | None]:
    """A head, and the dtype of its tensors."""
    config = _json(path / "config.json", {})
    for key in ("module_input_name", "module_output_name"):
        if config.get(key, "sentence_embedding") != "sentence_embedding":
            raise ValueError(f"{path / 'config.json'}: {key}={config[key]!r}; expected 'sentence_embedding'")
    if kind == "Normalize":
        return ("normalize",), None
    if config.get("use_residual"):
        raise ValueError(f"{path / 'config.json'}: use_residual=true is not supported; expected false")
    tensors = read_tensors(path)
    if kind == "LayerNorm":
        weight, bias = _expect(path, tensors, {"norm.weight": 1, "norm.bias": 1})
        return ("layer_norm", _f32(weight), _f32(bias), _LAYER_NORM_EPS), str(weight.dtype)
    activation = config.get("activation_function", _ACTIVATIONS["tanh"])
    name = activation.rpartition(".")[2]
    if not activation.startswith("torch.nn.") or name not in _ACTIVATION_CLASSES:
        raise ValueError(
            f"{path / 'config.json'}: activation_function {activation!r} is not supported; expected one of "
            f"{list(_ACTIVATIONS.values())}"
        )
    names = {"linear.weight": 2, "linear.bias": 1} if config.get("bias", True) else {"linear.weight": 2}
    weight, *bias = _expect(path, tensors, names)
    return ("dense", _f32(weight.T), _f32(bias[0]) if bias else None, _ACTIVATION_CLASSES[name]), str(weight.dtype)


def _write_head(path: Path, head: Head, dtype: str) -> None:
    match head:
        case ("normalize",):
            return  # older releases read no configuration for it
        case ("layer_norm", weight, bias, eps):
            if eps != _LAYER_NORM_EPS:
                raise ValueError(f"layer_norm head: eps={eps} cannot be stored; expected {_LAYER_NORM_EPS}")
            config = {"dimension": len(weight)}
            tensors = {"norm.weight": weight, "norm.bias": bias}
        case ("dense", kernel, bias, activation):
            n_in, n_out = kernel.shape
            config = {
                "in_features": n_in,
                "out_features": n_out,
                "bias": bias is not None,
                "activation_function": _ACTIVATIONS[activation],
            }
            tensors = {"linear.weight": np.asarray(kernel).T}
            if bias is not None:
                tensors["linear.bias"] = bias
    _write_json(path / "config.json", config)
    write_tensors(path, {name: np.asarray(tensor).astype(dtype) for name, tensor in tensors.items()})


def _expect(path: Path, tensors: Mapping[str, np.ndarray], ranks: Mapping[str, int]) -> list[np.ndarray]:
    if set(tensors) != set(ranks) or any(tensors[name].ndim != rank for name, rank in ranks.items()):
        found = {name: list(tensors[name].shape) for name in tensors}
        raise CheckpointError(f"{path}: expected tensors {dict(ranks)} (name: rank); found {found} (name: shape)")
    return [tensors[name] for name in ranks]


def _max_length(encoder: Transformer, path: Path, sentence_config: Mapping[str, Any]) -> int:
    """What the directory says, else what the tokenizer says, but at most what the encoder reads."""
    stated = sentence_config.get("max_seq_length")
    stated = stated or _json(path / "tokenizer_config.json", {}).get("model_max_length")
    return min(int(stated or encoder.config.max_positions), encoder.config.max_positions)


def _f32(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)


def _json(path: Path, default: Any) -> Any:
    if not path.is_file():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
