"""The heads that stand beside an encoder in its checkpoint, under the names that its family gives them."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from jaxemb.checkpoints.weights import CheckpointFormat, is_exact
from jaxemb.checks import checked, one_of
from jaxemb.encoders.families import HeadKind, Weight, family_of

_ARCHITECTURES: Mapping[HeadKind, str] = {"masked_language": "ForMaskedLM", "language": "ForCausalLM"}


@checked()
def read_head(format: CheckpointFormat, kind: HeadKind) -> dict[str, np.ndarray]:
    """The leaves of a head, f32 by dotted path; those that the checkpoint lacks are absent, all of them if it has none.

    read_head(embedder.format.encoder, "masked_language")  # {"transform.kernel": [D, D], ...}
    """
    head = family_of(format.config).heads.get(kind)
    names = _short_names(format)
    return {
        weight.leaves[0]: np.asarray(tensor.T if weight.transpose else tensor, np.float32)
        for weight in (head.table if head else ())
        if weight.name in names
        for tensor in [format.unused[names[weight.name]]]
    }


@checked()
def write_head(format: CheckpointFormat, kind: HeadKind, leaves: Mapping[str, np.ndarray]) -> CheckpointFormat:
    """The format with these leaves in place of those that the checkpoint has, each stored as it was, but never rounded.

    Tensors that only repeat what is stored elsewhere are left out: who reads the checkpoint ties them.
    """
    family = family_of(format.config)
    one_of("kind", kind, family.heads)
    rows = {weight.name: weight for weight in family.heads[kind].table}
    unused = {}
    for name, tensor in format.unused.items():
        short = family.short(name)
        if family.head_of(short) != kind:
            unused[name] = tensor
        elif short in rows and rows[short].leaves[0] in leaves:
            unused[name] = _stored(rows[short], leaves, tensor.dtype)
    return dataclasses.replace(format, unused=unused)


def add_head(format: CheckpointFormat, kind: HeadKind, leaves: Mapping[str, np.ndarray]) -> CheckpointFormat:
    """The format of a checkpoint that lacks a head, with this one.

    It is as transformers saves its model with that head: a prefix stands before the names of the encoder. The head
    is of the encoder's type, but never rounded.

    Raises:
      ValueError: if checkpoints of this family have no such head that jaxemb knows.
    """
    family = family_of(format.config)
    table = family.heads[kind].table if kind in family.heads else ()
    rows = {weight.leaves[0]: weight for weight in reversed(table)}  # the first spelling of each
    if kind not in _ARCHITECTURES or not rows:
        raise ValueError(f"checkpoints of {format.config['model_type']} have no head of the kind {kind!r}")
    body = family.model_types[format.config["model_type"]].removesuffix("Model")
    prefix = family.prefixes[0]
    stored = tuple(dataclasses.replace(t, name=prefix + family.short(t.name)) for t in format.stored)
    dtype = format.stored[0].dtype
    head = {row.name: _stored(row, leaves, dtype) for leaf, row in rows.items() if leaf in leaves}
    unused = {
        family.short(name) if family.head_of(family.short(name)) else name: x for name, x in format.unused.items()
    }
    config = {**format.config, "architectures": [body + _ARCHITECTURES[kind]]}
    return dataclasses.replace(format, config=config, stored=stored, unused={**unused, **head})


def _stored(row: Weight, leaves: Mapping[str, np.ndarray], dtype: np.dtype) -> np.ndarray:
    """The tensor of a row, of that type unless it would be rounded."""
    leaf = np.asarray(leaves[row.leaves[0]])
    return np.ascontiguousarray(leaf.T if row.transpose else leaf, dtype if is_exact(leaf, dtype) else leaf.dtype)


def tensors_of(format: CheckpointFormat, *kinds: HeadKind) -> tuple[str, ...]:
    """The names of the checkpoint's tensors that belong to heads of these kinds."""
    family = family_of(format.config)
    return tuple(name for name in format.unused if family.head_of(family.short(name)) in kinds)


def without_heads(format: CheckpointFormat) -> CheckpointFormat:
    """The format of the encoder alone, with the architecture that transformers calls it by."""
    family = family_of(format.config)
    unused = {name: tensor for name, tensor in format.unused.items() if family.head_of(family.short(name)) is None}
    architecture = family.model_types[format.config["model_type"]]
    return dataclasses.replace(format, config={**format.config, "architectures": [architecture]}, unused=unused)


def _short_names(format: CheckpointFormat) -> dict[str, str]:
    family = family_of(format.config)
    return {family.short(name): name for name in format.unused}
