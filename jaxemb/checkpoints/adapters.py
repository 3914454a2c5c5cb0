"""Adapter directories of PEFT: LoRA and DoRA, read and written.

adapter = load_adapter("directory or hub id", embedder.format.encoder)
model = merge_lora(embedder.model, adapter.adapters, adapter.scale)
"""

import dataclasses
import logging
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from jaxemb.checkpoints.hub import resolve
from jaxemb.checkpoints.tensors import CheckpointError, Tensors
from jaxemb.checkpoints.weights import CheckpointFormat, names_of_tensors
from jaxemb.checks import checked, is_finite
from jaxemb.encoders.families import Family, Weight, family_of
from jaxemb.files import Contents, read_json, read_whole, replaced_files, write_json
from jaxemb.nn import Adapter, Kernel, LowRank, linear_kernels
from jaxemb.nn.kernels import is_kernel, map_kernels
from jaxemb.nn.low_rank import merged
from jaxemb.settings import Settings, flag, number, read, shown, size, text
from jaxemb.trees import PyTree, by_path

logger = logging.getLogger(__name__)

CONFIG = "adapter_config.json"
_TENSORS = "adapter_model.safetensors"
_CONTENTS = Contents("adapter directory", mark=CONFIG, files=(CONFIG, _TENSORS))
_ROOT = "base_model.model."  # stands before the name of every module in PEFT's wrapper
_BASE = ".base_layer."  # stands before the names of the weights of a module that has an adapter
_PART = re.compile(
    r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(\.default)?(\.weight)?"
)
# What changes the base's own weights, or what an adapter's numbers mean, and has another default than this.
_REFUSED = (
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "alora_invocation_tokens",
)
_INITS = (True, False, "gaussian", "eva", "orthogonal", "lora_ga")  # those that leave the base as it is


@dataclasses.dataclass(frozen=True, eq=False)
class LoraAdapter:
    """What an adapter directory holds, by path in an embedder, such as "encoder.layers.attention.query.kernel".

    Attributes:
      adapters: low-rank changes of arrays, f32; layers that are stacked and have none are 0.
      scale: s of `W + s A B`. What modules have as another one stands in their B.
      replaced: arrays that take the place of the base's, such as biases that were trained.
      base: the name of the model that they are of, as the directory has it.
    """

    adapters: Mapping[str, Adapter]
    scale: float = 1.0
    replaced: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    base: str | None = None


@checked()
def load_adapter(path_or_id: str | Path, format: CheckpointFormat, *, revision: str | None = None) -> LoraAdapter:
    """The adapter of a directory that PEFT wrote, for the encoder whose checkpoint's format is given.

    LoRA, rank-stabilised or not, with a rank and an alpha of each module's own, DoRA, adapters of token tables, biases
    and other arrays of the encoder that were trained with it (`bias`, `modules_to_save`). Of which modules it is, its
    tensors say. What belongs to heads that the encoder does not have is left out, with a warning.

    Args:
      path_or_id: a directory with `adapter_config.json` and `adapter_model.safetensors`, or a hub id.
      format: that of the encoder, `embedder.format.encoder`.
      revision: branch, tag or commit of a hub id.

    Raises:
      FileNotFoundError: if there is no such directory.
      CheckpointError: if a file is missing or damaged, or tensors are not the encoder's; all are named.
      ValueError: naming a kind of adapter, or an option, that is not read.
    """
    path = resolve(path_or_id, revision=revision)
    return read_whole(path, _CONTENTS, lambda: _read(path, format))


@checked()
def save_adapter(
    path: str | Path, adapter: LoraAdapter, format: CheckpointFormat, *, base: str | None = None, prefix: str = ""
) -> None:
    """Writes a directory that PEFT loads; all or nothing.

        adapter = LoraAdapter(state.method_params, scale=2.0)  # of lora(16, alpha=32)
        save_adapter("nli", adapter, embedder.format.encoder, base="HuggingFaceTB/SmolLM2-135M")
        PeftModel.from_pretrained(AutoModel.from_pretrained("HuggingFaceTB/SmolLM2-135M"), "nli")

    Modules that the checkpoint stores fused get one adapter for all their parts: with one A where they share it, else
    with A's side by side.

    Args:
      path: a directory, made if absent; in an adapter directory the files are replaced.
      adapter: of arrays of the encoder.
      format: that of the encoder, `embedder.format.encoder`.
      base: a hub id or directory of the model that the adapter is of, for software that loads both by it; None for what
        `adapter` has.
      prefix: what stands before the encoder's modules in the model that will read the adapter: "model." in a causal
        language model of transformers, nothing in its bare encoder (AutoModel).

    Raises:
      ValueError: naming arrays that are not the encoder's, or of DoRA some parts alone of a fused module.
      FileExistsError: if `path` is a file, or a directory of something else.
    """
    config, tensors = _written(adapter, format, prefix)
    config |= {"base_model_name_or_path": base or adapter.base}
    with replaced_files(path, _CONTENTS) as fresh:
        safetensors.numpy.save_file(tensors, fresh / _TENSORS, {"format": "pt"})
        write_json(fresh / CONFIG, config)


@checked()
def with_adapters(
    model: PyTree, adapters: Sequence[LoraAdapter], weights: Sequence[float] | None = None, *, beside: bool = False
) -> PyTree:
    """The model with adapters merged: of several, `W + sum_i w_i (W_i - W)`, W_i what the i-th makes of W alone.

    Kernels keep their types. Those that are quantised, or all with `beside`, keep the adapters beside them.

    Args:
      model: an embedder.
      adapters: one or several.
      weights: w_i; None for 1 each.
      beside: see `nn.merge_lora`.

    Raises:
      ValueError: if `weights` are not as many, an adapter is of arrays that the model does not have, or one of DoRA has
        another weight than 1, or stands with others, where it is kept beside.
    """
    weights = [1.0] * len(adapters) if weights is None else list(weights)
    if len(weights) != len(adapters):
        raise ValueError(f"weights must be {len(adapters)}, one for each adapter; got {len(weights)}")
    known = by_path(model, is_kernel).keys()
    if unknown := sorted({path for a in adapters for path in (*a.adapters, *a.replaced)} - known):
        raise ValueError(f"adapters must be of arrays of the model; it has no {', '.join(unknown[:5])}")
    linear = linear_kernels(model)

    def changed(path: str, leaf: Any) -> Any:
        mine = [(w, a.adapters[path], a.scale) for w, a in zip(weights, adapters, strict=True) if path in a.adapters]
        whole = [(w, a.replaced[path]) for w, a in zip(weights, adapters, strict=True) if path in a.replaced]
        if not mine and not whole:
            return leaf
        if path in linear and not whole and (beside or isinstance(leaf, Kernel)):
            return _beside(path, leaf, mine)
        return _added(leaf, mine, whole)

    return map_kernels(changed, model)


def _beside(path: str, kernel: Any, adapters: Sequence[tuple[float, Adapter, float]]) -> LowRank:
    for weight, adapter, scale in adapters:
        if adapter.magnitude is not None and (len(adapters) > 1 or weight != 1):
            raise ValueError(f"adapters: one of DoRA cannot be weighted beside the kernel {path}, but merged")
        kernel = LowRank(kernel, Adapter(*map(_array, adapter)), weight * scale)
    return kernel


def _added(
    leaf: jax.Array, adapters: Sequence[tuple[float, Adapter, float]], whole: Sequence[tuple[float, Any]]
) -> Any:
    """The array with all changes, in its type and where it lies."""
    made = _sum(leaf, tuple(adapters), tuple(whole))
    return jax.device_put(made, leaf.sharding) if getattr(leaf, "committed", False) else made


@jax.jit
def _sum(leaf: jax.Array, adapters: Any, whole: Any) -> jax.Array:
    found = base = leaf.astype(jnp.float32)
    for weight, adapter, scale in adapters:
        found += weight * (merged(base, adapter, scale) - base)
    for weight, array in whole:
        found += weight * (array - base)
    return found.astype(leaf.dtype)


def _array(part: Any) -> Any:
    return None if part is None else jnp.asarray(part)


# Reading


class _Module(NamedTuple):
    """A module of the checkpoint with an adapter: its row of the weight table, its layer, the parts by PEFT's names."""

    weight: Weight
    layer: int | None
    parts: dict[str, np.ndarray]


def _read(path: Path, format: CheckpointFormat) -> LoraAdapter:
    if not (path / CONFIG).is_file():
        raise CheckpointError(f"{path}: {CONFIG} is missing; expected an adapter directory of PEFT")
    config = Settings(read_json(path / CONFIG, dict, error=CheckpointError), str(path / CONFIG))
    _check_kind(config)
    if not (path / _TENSORS).is_file():
        pickle = path / "adapter_model.bin"
        why = f": {pickle.name} is a pickle, which can run any code when it is read" if pickle.is_file() else ""
        raise CheckpointError(f"{path}: {_TENSORS} is missing{why}; save the adapter with a release of PEFT from 0.5")
    tensors, family = Tensors([path / _TENSORS]), family_of(Settings(format.config, "format"))
    modules, others = _modules(path, tensors, family, format)
    layers = next(shape[0] for leaf, shape in format.shapes.items() if leaf.startswith("layers."))
    rank, alpha = size(config, "r"), number(config, "lora_alpha", 8)
    rs = flag(config, "use_rslora", False)
    alphas = dict(read(config, "alpha_pattern", {}, "an object of numbers", lambda v: isinstance(v, dict)) or {})
    scale = alpha / (math.sqrt(rank) if rs else rank)
    parts: dict[str, dict[int | None, Adapter]] = defaultdict(dict)
    for name, module in modules.items():
        own = next((a for pattern, a in alphas.items() if re.match(rf"(.*\.)?({pattern})$", name)), alpha)
        rank = module.parts["A"].shape[0]
        ratio = own / (math.sqrt(rank) if rs else rank) / scale
        for leaf, adapter in _of_leaves(f"{path}: {name}", module, ratio, format):
            parts[leaf][module.layer] = adapter
    adapters = {leaf: _stacked(f"{path}: {leaf}", found, layers) for leaf, found in parts.items()}
    base = text(config, "base_model_name_or_path", None)
    return LoraAdapter(_of_embedder(adapters), scale, _of_embedder(_replaced(path, others, format, layers)), base)


def _of_embedder(leaves: Mapping[str, Any]) -> dict[str, Any]:
    return {f"encoder.{leaf}": value for leaf, value in leaves.items()}


def _check_kind(config: Settings) -> None:
    """Raises a ValueError for what is no LoRA, or has an option that is not read."""
    if (kind := text(config, "peft_type")) != "LORA":
        raise ValueError(f"{config.where}: peft_type must be 'LORA'; got {kind!r}")
    for key in _REFUSED:
        if config.get(key):
            raise ValueError(f"{config.where}: {key} is not supported; got {shown(config[key])}")
    if (init := config.get("init_lora_weights", True)) not in _INITS:
        raise ValueError(
            f"{config.where}: init_lora_weights={init!r} changes the weights of the base, too; save the adapter as a "
            "plain LoRA (of PEFT: save_pretrained(path_initial_model_for_weight_conversion=...)), or merge it there"
        )


def _modules(
    path: Path, tensors: Mapping[str, np.ndarray], family: Family, format: CheckpointFormat
) -> tuple[dict[str, _Module], dict[str, tuple[Weight, int | None, np.ndarray]]]:
    """What the adapter has by module, and the whole arrays beside them."""
    rows = names_of_tensors(family, format)
    modules: dict[str, _Module] = {}
    others: dict[str, tuple[Weight, int | None, np.ndarray]] = {}
    unknown, of_heads = [], set()
    for name, tensor in tensors.items():
        match = _PART.fullmatch(name)
        module = (match[1] if match else name.replace(_BASE, ".")).removeprefix(_ROOT)
        short = family.short(f"{module}.weight" if match else module)
        row = rows.get(short)
        if row is None:
            (of_heads.add(module) if family.leaves_unused(short) else unknown.append(name))
        elif not is_finite(tensor):
            raise CheckpointError(f"{path}: {name}: has values that are not finite")
        elif match is None:
            others[name] = (*row, tensor)
        else:
            part = match[2].removeprefix("lora_").removeprefix("embedding_")
            modules.setdefault(module, _Module(*row, {})).parts[part] = np.asarray(tensor, np.float32)
    if unknown:
        raise CheckpointError(f"{path}: tensors that are no adapter of this encoder: {', '.join(sorted(unknown)[:20])}")
    if of_heads:
        logger.warning("%s: what is of heads, which an encoder does not have, is left out: %s", path, sorted(of_heads))
    return modules, others


def _of_leaves(where: str, module: _Module, ratio: float, format: CheckpointFormat) -> list[tuple[str, Adapter]]:
    """The adapters of a module's leaves, B times `ratio`: of a fused one, each has the A of all and its part of B."""
    if not {"A", "B"} <= module.parts.keys():
        raise CheckpointError(f"{where}: has {sorted(module.parts)}; expected lora_A and lora_B")
    down, up = module.parts["A"].T, module.parts["B"].T * np.float32(ratio)
    magnitude = module.parts.get("magnitude_vector")
    if magnitude is not None and not module.weight.transpose:
        raise ValueError(f"{where}: DoRA of a token table is not supported; expected LoRA")
    shapes = [format.shapes[leaf][module.layer is not None :] for leaf in module.weight.leaves]
    outputs = [shape[-1] for shape in shapes]
    expected = {"A": (shapes[0][0], down.shape[-1]), "B": (down.shape[-1], sum(outputs))}
    got = {"A": down.shape, "B": up.shape}
    if got != expected or (magnitude is not None and magnitude.size != sum(outputs)):
        raise CheckpointError(f"{where}: A^T and B^T must have the shapes {expected}; got {got}")
    found, start = [], 0
    for leaf, n in zip(module.weight.leaves, outputs, strict=True):
        some = slice(start, start := start + n)
        length = None if magnitude is None else magnitude.reshape(1, -1)[:, some]
        found.append((leaf, Adapter(down, up[:, some], length)))  # type: ignore[arg-type]
    return found


def _stacked(where: str, found: Mapping[int | None, Adapter], layers: int) -> Adapter:
    """The adapters of the layers as one, with the largest rank: what is added to the others is 0."""
    if None in found:
        return found[None]
    with_magnitude = [adapter.magnitude is not None for adapter in found.values()]
    if any(with_magnitude) and not (all(with_magnitude) and len(found) == layers):
        raise ValueError(f"{where}: DoRA of some layers alone is not supported: {sorted(found)} of {layers} layers")  # type: ignore[type-var]
    like = next(iter(found.values()))
    rank = max(adapter.down.shape[-1] for adapter in found.values())
    down = np.zeros((layers, like.down.shape[0], rank), np.float32)
    up = np.zeros((layers, rank, like.up.shape[1]), np.float32)
    for layer, adapter in found.items():
        down[layer, :, : adapter.down.shape[-1]] = adapter.down
        up[layer, : adapter.up.shape[0]] = adapter.up
    magnitude = np.stack([np.asarray(found[i].magnitude) for i in range(layers)]) if all(with_magnitude) else None
    return Adapter(down, up, magnitude)  # type: ignore[arg-type]


def _replaced(
    path: Path, others: Mapping[str, tuple[Weight, int | None, np.ndarray]], format: CheckpointFormat, layers: int
) -> dict[str, np.ndarray]:
    """The arrays that take the place of the base's."""
    found: dict[str, dict[int | None, np.ndarray]] = defaultdict(dict)
    for name, (weight, layer, tensor) in others.items():
        whole = np.asarray(tensor.T if weight.transpose else tensor, np.float32)
        shapes = [format.shapes[leaf][layer is not None :] for leaf in weight.leaves]
        if whole.shape != (expected := (*shapes[0][:-1], sum(shape[-1] for shape in shapes))):
            raise CheckpointError(f"{path}: {name} must have the shape {list(expected)}; got {list(whole.shape)}")
        starts = np.cumsum([shape[-1] for shape in shapes])[:-1]
        for leaf, part in zip(weight.leaves, np.split(whole, starts, -1), strict=True):
            found[leaf][layer] = part
    if some := [leaf for leaf, parts in found.items() if None not in parts and len(parts) < layers]:
        raise ValueError(f"{path}: arrays of some layers alone are not read: {', '.join(some)}")
    return {
        leaf: parts[None] if None in parts else np.stack([parts[i] for i in range(layers)])
        for leaf, parts in found.items()
    }


# Writing


def _written(
    adapter: LoraAdapter, format: CheckpointFormat, prefix: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The configuration and the tensors of a directory."""
    family = family_of(Settings(format.config, "format"))
    short = {path.removeprefix("encoder."): path for path in (*adapter.adapters, *adapter.replaced)}
    if unknown := sorted(set(short.values()) - {f"encoder.{leaf}" for leaf in format.shapes}):
        raise ValueError(f"adapter must be of arrays of the encoder; it has {', '.join(unknown[:5])}")
    tensors: dict[str, np.ndarray] = {}
    whole_tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    for stored in format.stored:
        leaves = stored.weight.leaves
        name = prefix + family.short(stored.name)
        of_layer = lambda array, layer=stored.layer: np.asarray(array, np.float32)[() if layer is None else layer]
        if any(f"encoder.{leaf}" in adapter.replaced for leaf in leaves):
            if absent := [leaf for leaf in leaves if f"encoder.{leaf}" not in adapter.replaced]:
                raise ValueError(f"adapter: {name} is stored as one, of which {', '.join(absent)} is not replaced")
            whole = np.concatenate([of_layer(adapter.replaced[f"encoder.{leaf}"]) for leaf in leaves], -1)
            whole_tensors[name] = np.ascontiguousarray(whole.T if stored.weight.transpose else whole)
        parts = [adapter.adapters.get(f"encoder.{leaf}") for leaf in leaves]
        if any(part is not None for part in parts):
            module = name.removesuffix(".weight")
            outputs = [format.shapes[leaf][-1] for leaf in leaves]
            one = _fused(module, [None if p is None else jax.tree.map(of_layer, p) for p in parts], outputs)
            ranks[module] = one.down.shape[-1]
            tensors |= _tensors(module, one, is_table=not stored.weight.transpose)
    split = {name: name.rpartition(".") for name in whole_tensors}
    saved = {module for module, _, part in split.values() if part != "bias"}
    with_bias = {module for module, _, part in split.values() if part == "bias"} - saved
    for name, tensor in whole_tensors.items():
        module, _, part = split[name]
        tensors[f"{_ROOT}{module}{_BASE}{part}" if module in with_bias & set(ranks) else _ROOT + name] = tensor
    bias = "none" if not with_bias else "lora_only" if with_bias <= set(ranks) else "all"
    config = _config(adapter, ranks, format, family, prefix)
    return config | {"bias": bias, "modules_to_save": sorted(saved) or None}, tensors


def _fused(module: str, parts: Sequence[Adapter | None], outputs: Sequence[int]) -> Adapter:
    """One adapter of the parts of a module side by side."""
    there = [part for part in parts if part is not None]
    magnitudes = [part.magnitude for part in there if part.magnitude is not None]
    if magnitudes and len(magnitudes) < len(parts):
        raise ValueError(f"adapter: {module} is stored as one, so that DoRA must be of all its parts, or of none")
    magnitude = np.concatenate(magnitudes, -1) if magnitudes else None
    is_shared = len(there) == len(parts) and all(np.array_equal(part.down, there[0].down) for part in there)
    if is_shared:
        return Adapter(there[0].down, np.concatenate([part.up for part in there], -1), magnitude)  # type: ignore[arg-type]
    down = np.concatenate([part.down for part in there], -1)
    up, row = np.zeros((down.shape[-1], sum(outputs)), np.float32), 0
    for part, stop, n in zip(parts, np.cumsum(outputs), outputs, strict=True):
        if part is not None:
            up[row : (row := row + len(part.up)), stop - n : stop] = part.up
    return Adapter(down, up, magnitude)  # type: ignore[arg-type]


def _tensors(module: str, adapter: Adapter, is_table: bool) -> dict[str, np.ndarray]:
    kind, suffix = ("lora_embedding_", "") if is_table else ("lora_", ".weight")
    found = {f"{kind}A{suffix}": adapter.down.T, f"{kind}B{suffix}": adapter.up.T}
    found |= {} if adapter.magnitude is None else {"lora_magnitude_vector": adapter.magnitude.ravel()}
    return {f"{_ROOT}{module}.{name}": np.ascontiguousarray(tensor) for name, tensor in found.items()}


def _config(
    adapter: LoraAdapter,
    ranks: Mapping[str, int],
    format: CheckpointFormat,
    family: Family,
    prefix: str,
) -> dict[str, Any]:
    """The `adapter_config.json`: the rank of most modules, and that of each other one, so that all have one scale."""
    rank = Counter(ranks.values()).most_common(1)[0][0] if ranks else 1
    own = {module: r for module, r in ranks.items() if r != rank}
    plain = lambda x: int(x) if float(x).is_integer() else float(x)
    return {
        "peft_type": "LORA",
        "task_type": None if prefix else "FEATURE_EXTRACTION",
        "inference_mode": True,
        "r": rank,
        "lora_alpha": plain(adapter.scale * rank),
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": any(a.magnitude is not None for a in adapter.adapters.values()),
        "init_lora_weights": True,
        "target_modules": _targets(ranks, format, family, prefix),
        "rank_pattern": own,
        "alpha_pattern": {module: plain(adapter.scale * r) for module, r in own.items()},
    }


def _targets(ranks: Mapping[str, int], format: CheckpointFormat, family: Family, prefix: str) -> list[str]:
    """The modules, by the last part of their names where no others have it."""
    last = lambda name: name.rpartition(".")[2]
    modules = {
        prefix + family.short(t.name).removesuffix(".weight") for t in format.stored if t.name.endswith(".weight")
    }
    names = [*modules, *(family.short(name).rpartition(".")[0] for name in format.unused)]
    short = {last(name) for name in ranks} - {last(name) for name in names if name not in ranks}
    return sorted({last(name) if last(name) in short else name for name in ranks})
