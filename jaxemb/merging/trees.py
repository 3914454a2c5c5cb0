"""Task vectors, what training added to a model, and weighted sums of them."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxemb.checks import arrays, check_finite, checked, described, each, finite, having, is_finite
from jaxemb.trees import PyTree, Where, by_path, map_with_path, selects

if TYPE_CHECKING:
    from jaxemb.embedder import Embedder
    from jaxemb.sentence_embedder import SentenceEmbedder


@checked()
def stacked_layers(path: str) -> bool:
    """Whether the tensor at `path` is a stack of the tensors of L layers, on its first axis, as in `Transformer`."""
    return re.search(r"(^|\.)layers\.(?!\d)", path) is not None  # a number is that of one layer of a list


@checked(params=arrays, base=arrays)
def task_vector(params: PyTree, base: PyTree, *, include: Where | None = None) -> PyTree:
    """`params - base`, in float32 or wider.

    Methods that train other parameters in its place (LoRA, hypernetworks) are merged by the model they make: take the
    vector of `apply_transform(transform, state)`, so that of LoRA the product B A is merged and not A and B.

    Args:
      params: a model after training.
      base: the model that it began as.
      include: which tensors are merged; None for all. The vector is None at the others.

    Raises:
      ValueError: if the trees do not match, a tensor that is included is not floating-point, or a difference overflows.
    """
    match = Match.of({"base": base, "params": params}, include)
    differences = [None if ts is None else wide(ts[1]) - wide(ts[0]) for ts in match.tensors]
    for path, x in zip(match.paths, differences, strict=True):
        if x is not None:
            _held(path, x, x.dtype)
    return match.build(differences)


@checked(base=arrays, vectors=each(arrays), scale=finite)
def apply_task_vectors(
    base: PyTree,
    vectors: Sequence[PyTree],
    coefficients: jax.Array | Sequence[Any] | np.ndarray,
    scale: float | jax.Array = 1.0,
    groups: PyTree | None = None,
) -> PyTree:
    """`base + scale * sum_i coefficients_i vectors_i`, summed in float32 or wider and rounded once.

    Linear in the coefficients and differentiable. Every tensor keeps its dtype and its sharding; one at which the
    vectors are None is that of the base.

    Args:
      base: the model that all vectors begin at.
      vectors: n of `task_vector`.
      coefficients: `[n]`; with groups `[G, n]`.
      scale: a scalar.
      groups: the row of the coefficients that each tensor takes, a tree like `base`: see `tensor_groups` and
        `layer_groups`. An array of groups is of the first axes of its tensor.

    Raises:
      TypeError: for coefficients that are no real numbers.
      ValueError: if there are no vectors, the trees do not match, the coefficients have another shape or are not
        finite, or a tensor's dtype cannot hold the result.
    """
    match = match_vectors(base, vectors)
    coefficients = _coefficients(coefficients)
    rows = check_groups(base, groups)
    expected = (len(vectors),) if groups is None else (1 + max(int(np.max(r)) for r in rows), len(vectors))
    if coefficients.shape != expected:
        raise ValueError(f"coefficients must have shape {expected}; got {coefficients.shape}")
    result = []
    for path, leaf, ts, row in zip(match.paths, match.originals, match.tensors, rows, strict=True):
        if ts is None:
            result.append(leaf)
            continue
        by_part = coefficients if groups is None else coefficients[row]  # [n] or [L, n]
        by_part = by_part.reshape(by_part.shape[:-1] + (1,) * (leaf.ndim - by_part.ndim + 1) + by_part.shape[-1:])
        total = sum(by_part[..., i] * wide(vector) for i, vector in enumerate(ts[1:]))
        result.append(_held(path, wide(leaf) + scale * total, leaf.dtype))
    return match.build(result)


@checked(params=arrays)
def tensor_groups(params: PyTree) -> PyTree:
    """A group for every tensor: for coefficients of its own."""
    leaves, structure = jax.tree.flatten(params)
    return jax.tree.unflatten(structure, np.arange(len(leaves)))


@checked(params=arrays)
def layer_groups(params: PyTree, stacked: Where = stacked_layers) -> PyTree:
    """Group l for layer l of the stacked tensors, and one more group, the last, for all other tensors.

    Raises:
      ValueError: if no tensor is stacked, or they have different numbers of layers.
    """
    is_stacked = selects(stacked)
    depths = {leaf.shape[0] for path, leaf in by_path(params).items() if is_stacked(path)}
    if len(depths) != 1:
        raise ValueError(f"the stacked tensors of params must have one number of layers; got {sorted(depths)}")
    (depth,) = depths
    return map_with_path(lambda path, leaf: np.arange(depth) if is_stacked(path) else np.int64(depth), params)


@checked(embedders=each(having("model", "tokenizer")))
def models_of(embedders: "Sequence[SentenceEmbedder]") -> "list[Embedder]":
    """The models of embedders that may be merged: those that number texts alike.

    Raises:
      ValueError: if there are no embedders, or their tokenizers differ.
    """
    if not embedders:
        raise ValueError("embedders must be at least one; got 0")
    first = embedders[0].tokenizer
    for i, embedder in enumerate(embedders):
        sizes = embedder.tokenizer.vocab_size, first.vocab_size
        if sizes[0] != sizes[1] or embedder.tokenizer.backend.to_str() != first.backend.to_str():
            raise ValueError(f"embedders must have one tokenizer; that of number {i} differs from number 0's "
                             f"(vocabularies of {sizes[0]} and {sizes[1]} tokens)")  # fmt: skip
    return [embedder.model for embedder in embedders]


@dataclasses.dataclass(frozen=True)
class Match:
    """Trees of one structure, tensor by tensor.

    Attributes:
      paths: of the tensors.
      tensors: at each path one array of every tree, or None where nothing is merged.
      originals: the arrays of the first tree.
      structure: of the trees, with None as a leaf.
    """

    paths: tuple[str, ...]
    tensors: tuple[tuple[Any, ...] | None, ...]
    originals: tuple[Any, ...]
    structure: Any

    @classmethod
    def of(cls, trees: Mapping[str, PyTree], include: Where | None = None) -> "Match":
        """Flattens trees, by what they are called, together.

        Raises:
          ValueError: if they differ in structure or shapes, or integers would be merged.
        """
        (first, tree), *others = trees.items()
        leaves = {name: by_path(tree, _is_none) for name, tree in trees.items()}
        for name, other in others:
            if _structure(other) != _structure(tree):
                different = sorted(leaves[first].keys() ^ leaves[name].keys())
                where = f"only one of them has {different[0]!r}" if different else "their static configurations differ"
                raise ValueError(f"{name} must have the structure of {first}; {where}")
        is_included = selects("" if include is None else include)
        tensors = tuple(
            _checked(path, {name: leaves[name][path] for name in trees}) if is_included(path) else None
            for path in leaves[first]
        )
        return cls(tuple(leaves[first]), tensors, tuple(leaves[first].values()), _structure(tree))

    def build(self, leaves: Iterable[Any]) -> PyTree:
        """A tree of this structure."""
        return self.structure.unflatten(leaves)

    def map(self, function: Callable[..., jax.Array]) -> PyTree:
        """The tree of `function(path, *arrays)`, with the first tree's dtypes, and its arrays where none is merged.

        Raises:
          ValueError: if a result is not finite in its dtype.
        """
        triples = zip(self.paths, self.originals, self.tensors, strict=True)
        return self.build(
            leaf if ts is None else _held(path, function(path, *map(wide, ts)), leaf.dtype)
            for path, leaf, ts in triples
        )


def match_vectors(base: PyTree, vectors: Sequence[PyTree]) -> Match:
    """The base and its task vectors together, without the tensors at which the vectors are None.

    Raises:
      ValueError: as `Match.of`, or if no vector is given.
    """
    if not vectors:
        raise ValueError("vectors must be at least one; got 0")
    kept = [set(by_path(vector)) for vector in vectors]
    for i, paths in enumerate(kept):
        if paths != kept[0]:
            different = sorted(paths ^ kept[0])[0]
            raise ValueError(f"vectors[{i}] must have the tensors of vectors[0]; differs at {different}")
    return Match.of({"base": base} | numbered("vectors", vectors), include=lambda path: path in kept[0])


def numbered(name: str, trees: Sequence[PyTree]) -> dict[str, PyTree]:
    """The trees by what they are called in messages; raises a ValueError if there is none."""
    if not trees:
        raise ValueError(f"{name} must be at least one; got 0")
    return {f"{name}[{i}]": tree for i, tree in enumerate(trees)}


def check_groups(base: PyTree, groups: PyTree | None) -> list[Any]:
    """The groups of each tensor of `base` (None where it has none), as `apply_task_vectors` takes them.

    Raises:
      ValueError: if they have another structure, or are not of the first axes of a tensor.
    """
    leaves = by_path(base, _is_none)
    if groups is None:
        return [None] * len(leaves)
    if _structure(groups) != _structure(base):
        raise ValueError("groups must have the structure of the base; see tensor_groups and layer_groups")
    given = iter(jax.tree.leaves(groups))
    rows = []
    for path, leaf in leaves.items():
        row = np.asarray(0 if leaf is None else next(given))
        if leaf is not None and row.shape != leaf.shape[: row.ndim]:
            raise ValueError(f"groups of {path} must be of the first axes of {leaf.shape}; got shape {row.shape}")
        rows.append(row)
    return rows


def wide(x: jax.Array) -> jax.Array:
    """`x` in float32, or in its own dtype if that is wider."""
    return jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))


def _held(path: str, x: jax.Array, dtype: Any) -> jax.Array:
    """What is made of the tensors at `path`, in `dtype`; raises a ValueError if it is not finite."""
    held = x.astype(dtype)
    if not isinstance(held, jax.core.Tracer) and not is_finite(np.asarray(held)):
        raise ValueError(
            f"{path} must be finite after merging; it overflows in {held.dtype}: what is merged, or its weights, scale "
            "or floor, is too large"
        )
    return held


def _coefficients(given: Any) -> jax.Array:
    try:
        coefficients = jnp.asarray(given)
    except (TypeError, ValueError):  # texts, or rows of several lengths
        raise TypeError(f"coefficients must be numbers; got {described(given)}") from None
    if jnp.issubdtype(coefficients.dtype, jnp.complexfloating):
        raise TypeError(f"coefficients must be real numbers; got {described(coefficients)}")
    check_finite("coefficients", coefficients)
    return coefficients


def _structure(tree: PyTree) -> Any:
    return jax.tree.structure(tree, is_leaf=_is_none)


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _checked(path: str, column: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """The arrays of the trees, by their names, at one path; None where they have none."""
    missing = [name for name, leaf in column.items() if leaf is None]
    if len(missing) == len(column):
        return None
    if missing:
        raise ValueError(f"{', '.join(column)} must all have a tensor at {path}, or none; {missing[0]} has none")
    first = next(iter(column))
    for name, leaf in column.items():
        if jnp.shape(leaf) != (shape := jnp.shape(column[first])):
            raise ValueError(f"{name}: {path} must have shape {shape}, as {first}; got {jnp.shape(leaf)}")
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"{name}: {path} is {jnp.result_type(leaf)}, and only floating-point tensors can be merged; "
                "leave it out with include"
            )
        check_finite(f"{name}: {path}", leaf)
    return tuple(map(jnp.asarray, column.values()))
