"""Arrays of a tree by their paths: how a leaf is called, and how leaves are chosen, everywhere in the library."""

import re
from collections.abc import Callable
from typing import Any

import jax

PyTree = Any

Where = str | Callable[[str], bool]
"""Which leaves: a regular expression that is searched for in the path ("" chooses all), or a function of the path."""


def path_name(path: tuple[Any, ...]) -> str:
    """How the leaf at a path of `jax.tree_util` is called, such as "encoder.layers.attention.query.kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def by_path(tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """The leaves of a tree by path, in the tree's order.

    Raises:
      ValueError: if two leaves are called the same, as those of `{"a": {"b": x}, "a.b": y}` are.

    >>> by_path({"a": {"b": 1}, "c": 2})
    {'a.b': 1, 'c': 2}
    """
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf):
        if (name := path_name(path)) in leaves:
            raise ValueError(f"two leaves of the tree are called {name!r}; keys must not hold dots that make them so")
        leaves[name] = leaf
    return leaves


def map_with_path(
    function: Callable[[str, Any], Any], tree: PyTree, is_leaf: Callable[[Any], bool] | None = None
) -> PyTree:
    """The tree of `function(path, leaf)`."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(path_name(path), leaf), tree, is_leaf=is_leaf)


def selects(where: Where) -> Callable[[str], bool]:
    """Whether `where` chooses the leaf at a path, as a function of the path."""
    return where if callable(where) else lambda path: re.search(where, path) is not None


def chosen(tree: PyTree, where: Where, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """The arrays of `tree` that `where` chooses, by path, and what else `is_leaf` says is one leaf.

    Raises:
      ValueError: if it chooses nothing.
    """
    picks, leaves = selects(where), by_path(tree, is_leaf)
    found = {name: leaf for name, leaf in leaves.items() if picks(name)}
    if not found:
        some = ", ".join(list(leaves)[:8])
        raise ValueError(f"where must choose at least one array; {where!r} chooses none of {some}, ...")
    return found


def replaced(tree: PyTree, where: Where, replace: Callable[[str, jax.Array], Any]) -> PyTree:
    """`tree` with `replace(path, leaf)` for the leaves that `where` chooses."""
    picks = selects(where)
    return map_with_path(lambda name, leaf: replace(name, leaf) if picks(name) else leaf, tree)


def partition(tree: PyTree, mask: PyTree) -> tuple[PyTree, PyTree]:
    """The tree in two: with None in place of the leaves for which `mask` is False, and of those for which it is True.

    A None is no leaf: `jax.tree.map`, gradients and optimisers pass over it. `combine` is the inverse.

    Args:
      tree: any.
      mask: bools, a tree of the same structure.
    """
    kept = jax.tree.map(lambda leaf, keep: leaf if keep else None, tree, mask)
    return kept, jax.tree.map(lambda leaf, keep: None if keep else leaf, tree, mask)


def combine(tree: PyTree, other: PyTree) -> PyTree:
    """`tree`, where it has None the leaf of `other`, which has None or the leaf there too."""
    is_none = lambda node: node is None
    return jax.tree.map(lambda leaf, rest: rest if leaf is None else leaf, tree, other, is_leaf=is_none)
