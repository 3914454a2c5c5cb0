"""From the tensors of a checkpoint to a `Transformer` and back, as a family's weight table says."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jaxemb.checkpoints.tensors import CheckpointError
from jaxemb.encoders.families import Family, Weight
from jaxemb.encoders.transformer import Transformer, TransformerConfig

_DTYPES = tuple(map(np.dtype, (np.float32, np.float16, ml_dtypes.bfloat16)))
_LEGACY_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # of TensorFlow's BERT


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """How the checkpoint stores one row of the weight table."""

    name: str  # in full, as in the file
    weight: Weight
    layer: int | None
    shape: tuple[int, ...]
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class CheckpointFormat:
    """What must be known of a checkpoint, beside the model, to write it back as it was.

    Attributes:
      config: its `config.json`.
      stored: the tensors that the model holds, in the checkpoint's names, shapes and dtypes.
      aside: the tensors that the model does not use (pooler, heads, buffers), by name, as they were.
    """

    config: Mapping[str, Any]
    stored: tuple[StoredTensor, ...]
    aside: Mapping[str, np.ndarray]


def load_weights(
    config: TransformerConfig, tensors: Mapping[str, np.ndarray], family: Family, hf_config: Mapping[str, Any]
) -> tuple[Transformer, CheckpointFormat]:
    """The `Transformer` of `config` with the weights `tensors`, all leaves f32, and the format to save it in again.

    Raises:
      CheckpointError: naming every tensor that is missing, left over, mis-shaped or not f32, f16 or bf16.
    """
    template = jax.eval_shape(lambda key: Transformer.init(key, config), jax.random.key(0))
    leaves, structure = _by_path(template)
    short_names, table = _match(tensors, family)
    expected = {
        name: (weight, layer)
        for weight in table
        if all(leaf in leaves for leaf in weight.leaves)
        for name, layer in _instances(weight, config.layers)
    }

    problems = [f"missing: {name}" for name in expected if name not in short_names]
    aside = {}
    for short, name in short_names.items():
        if short not in expected:
            if any(re.fullmatch(pattern, short) for pattern in family.ignored):
                aside[name] = tensors[name]
            else:
                problems.append(f"not part of the model: {name}")

    arrays = {path: np.ones(leaf.shape, np.float32) for path, leaf in leaves.items()}
    stored = []
    for short, (weight, layer) in expected.items():
        if short not in short_names:
            continue
        name = short_names[short]
        tensor = tensors[name]
        targets = [arrays[leaf] if layer is None else arrays[leaf][layer] for leaf in weight.leaves]
        shape = _stored_shape(weight, [target.shape for target in targets])
        if tensor.shape != shape:
            problems.append(f"wrong shape: {name} is {list(tensor.shape)}, expected {list(shape)}")
        elif tensor.dtype not in _DTYPES:
            problems.append(f"wrong dtype: {name} is {tensor.dtype}, expected float32, float16 or bfloat16")
        else:
            whole = tensor.T if weight.transpose else tensor
            ends = np.cumsum([target.shape[-1] for target in targets])[:-1]
            for target, part in zip(targets, np.split(whole, ends, axis=-1), strict=True):
                target[...] = part
            stored.append(StoredTensor(name, weight, layer, shape, tensor.dtype))
    if problems:
        raise CheckpointError(
            f"the checkpoint does not fit its config.json ({len(problems)} tensors):\n  " + "\n  ".join(problems)
        )
    model = jax.tree.unflatten(structure, [jnp.asarray(arrays[path]) for path in leaves])
    return model, CheckpointFormat(dict(hf_config), tuple(stored), aside)


def save_weights(model: Transformer, format: CheckpointFormat) -> dict[str, np.ndarray]:
    """The tensors of the checkpoint that `model` came from, with its present values; the inverse of `load_weights`.

    An untouched model gives the bytes that were read. A gradient, or any other tree of the model's structure, comes
    out under the checkpoint's names in the same way.

    Raises:
      ValueError: if a leaf's shape is not the one that was read (layers dropped, vocabulary changed).
    """
    leaves = {path: np.asarray(leaf) for path, leaf in _by_path(model)[0].items()}
    tensors = {}
    for t in format.stored:
        parts = [leaves[leaf] for leaf in t.weight.leaves]
        if t.layer is not None:
            parts = [part[t.layer] for part in parts]
        whole = np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
        whole = whole.T if t.weight.transpose else whole
        if whole.shape != t.shape:
            raise ValueError(f"model: {t.name} is now {list(whole.shape)}, but the checkpoint has {list(t.shape)}")
        tensors[t.name] = np.ascontiguousarray(whole, t.dtype)
    return tensors | dict(format.aside)


def _by_path(tree) -> tuple[dict[str, Any], Any]:
    """The leaves by dotted path, and the tree's structure."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}, structure


def _match(tensors: Mapping[str, np.ndarray], family: Family) -> tuple[dict[str, str], tuple[Weight, ...]]:
    """The checkpoint's names by short form (no prefix, no legacy suffix), and the table that knows most of them."""

    def known(candidate) -> int:
        names, table = candidate
        patterns = {weight.name for weight in table}
        return sum(re.sub(r"(?<=\.)\d+(?=\.)", "{}", name) in patterns for name in names)

    readings = [{_short(name, prefix): name for name in tensors} for prefix in ("", *family.prefixes)]
    readings = [names for names in readings if len(names) == len(tensors)]  # else two names became one
    return max(((names, table) for names in readings for table in family.tables), key=known)


def _short(name: str, prefix: str) -> str:
    name = name.removeprefix(prefix)
    for old, new in _LEGACY_NAMES.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _instances(weight: Weight, layers: int) -> list[tuple[str, int | None]]:
    """The names that a row of the table stands for, with their layers."""
    if "{}" not in weight.name:
        return [(weight.name, None)]
    return [(weight.name.format(i), i) for i in range(layers) if i not in weight.absent_in_layers]


def _stored_shape(weight: Weight, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    whole = (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
    return whole[::-1] if weight.transpose else whole
