"""Task vectors, what training added to a model, and weighted sums of them."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxemb.checks import check_finite, checked
from jaxemb.trees import PyTree, Where, by_path, map_with_path, selects

if TYPE_CHECKING:
    from jaxemb.embedder import Embedder
    from jaxemb.sentence_embedder import SentenceEmbedder


@checked()
def stacked_layers(path: str) -> bool:
    """Whether the tensor at `path` is a stack of the tensors of L layers, on its first axis, as in `Transformer`."""
    return re.search(r"(^|\.)layers\.(?!\d)", path) is not None  # a number is that of one layer of a list


@checked()
def task_vector(params: PyTree, base: PyTree, *, include: Where | None = None) -> PyTree:
    """`params - base`, in float32 or wider.

    Methods that train other parameters in its place (LoRA, hypernetworks) are merged by the model they make: take the
    vector of `apply_transform(transform, state)`, so that of LoRA the product B A is merged and not A and B.

    Args:
      params: a model after training.
      base: the model that it began as.
      include: which tensors are merged; None for all. The vector is None at the others.

    Raises:
      ValueError: if the trees do not match, or a tensor that is included is not floating-point.
    """
    match = Match.of((base, params), "model", include)
    return match.build([None if ts is None else wide(ts[1]) - wide(ts[0]) for ts in match.tensors])


@checked()
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
      ValueError: if there are no vectors, the trees do not match, or the coefficients have another shape.
    """
    match = match_vectors(base, vectors)
    coefficients = jnp.asarray(coefficients)
    rows = check_groups(base, groups)
    expected = (len(vectors),) if groups is None else (1 + max(int(np.max(r)) for r in rows), len(vectors))
    if coefficients.shape != expected:
        raise ValueError(f"coefficients must have shape {expected}; got {coefficients.shape}")
    result = []
    for leaf, ts, row in zip(match.originals, match.tensors, rows, strict=True):
        if ts is None:
            result.append(leaf)
            continue
        by_part = coefficients if groups is None else coefficients[row]  # [n] or [L, n]
        by_part = by_part.reshape(by_part.shape[:-1] + (1,) * (leaf.ndim - by_part.ndim + 1) + by_part.shape[-1:])
        total = sum(by_part[..., i] * wide(vector) for i, vector in enumerate(ts[1:]))
        result.append((wide(leaf) + scale * total).astype(leaf.dtype))
    return match.build(result)


@checked()
def tensor_groups(params: PyTree) -> PyTree:
    """A group for every tensor: for coefficients of its own."""
    leaves, structure = jax.tree.flatten(params)
    return jax.tree.unflatten(structure, np.arange(len(leaves)))


@checked()
def layer_groups(params: PyTree, stacked: Where = stacked_layers) -> PyTree:
    """Group l for layer l of the stacked tensors, and one more group, the last, for all other tensors.

    Raises:
      ValueError: if no tensor is stacked, or they have different numbers of layers.
    """
    is_stacked = selects(stacked)
    depths = {leaf.shape[0] for path, leaf in by_path(params).items() if is_stacked(path)}
    if len(depths) != 1:
        raise ValueError(f"stacked tensors must have one number of layers; got {sorted(depths)}")
    (depth,) = depths
    return map_with_path(lambda path, leaf: np.arange(depth) if is_stacked(path) else np.int64(depth), params)


@checked()
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
    def of(cls, trees: Sequence[PyTree], what: str, include: Where | None = None) -> "Match":
        """Flattens `trees` together; `what` one of them is, for the messages.

        Raises:
          ValueError: if there is none, or they differ in structure or shapes, or integers would be merged.
        """
        if not trees:
            raise ValueError(f"{what}s must be at least one; got 0")
        structure = _structure(trees[0])
        named = [by_path(tree, _is_none) for tree in trees]
        for i, tree in enumerate(trees):
            if _structure(tree) != structure:
                different = sorted(named[0].keys() ^ named[i].keys())
                where = f"only one of them has {different[0]}" if different else "their static configurations differ"
                raise ValueError(f"{what} {i} must have the structure of {what} 0; {where}")
        is_included = selects("" if include is None else include)
        tensors = tuple(
            _checked(path, column, what) if is_included(path) else None
            for path, *column in zip(named[0], *(leaves.values() for leaves in named), strict=True)
        )
        return cls(tuple(named[0]), tensors, tuple(named[0].values()), structure)

    def build(self, leaves: Iterable[Any]) -> PyTree:
        """A tree of this structure."""
        return self.structure.unflatten(leaves)

    def map(self, function: Callable[..., jax.Array]) -> PyTree:
        """The tree of `function(path, *arrays)`, with the first tree's dtypes, and its arrays where none is merged."""
        triples = zip(self.paths, self.originals, self.tensors, strict=True)
        return self.build(
            leaf if ts is None else function(path, *map(wide, ts)).astype(leaf.dtype) for path, leaf, ts in triples
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
            raise ValueError(f"vector {i} must have the tensors of vector 0; differs at {sorted(paths ^ kept[0])[0]}")
    return Match.of((base, *vectors), "vector", include=lambda path: path in kept[0])


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


def _structure(tree: PyTree) -> Any:
    return jax.tree.structure(tree, is_leaf=_is_none)


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _checked(path: str, column: Sequence[Any], what: str) -> tuple[Any, ...] | None:
    """The arrays at one path; None where the trees have none."""
    missing = [leaf is None for leaf in column]
    if all(missing):
        return None
    if any(missing):
        raise ValueError(f"{what}s must all have a tensor at {path}, or none; {what} {missing.index(True)} has none")
    for i, leaf in enumerate(column):
        if jnp.shape(leaf) != jnp.shape(column[0]):
            raise ValueError(
                f"{what} {i}: {path} must have shape {jnp.shape(column[0])}, as {what} 0; got {jnp.shape(leaf)}"
            )
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"{what} {i}: {path} is {jnp.result_type(leaf)}, and only floating-point tensors can be merged; "
                "leave it out with include"
            )
        check_finite(f"{what} {i}: {path}", leaf)
    return tuple(map(jnp.asarray, column))
