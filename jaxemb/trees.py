"""Arrays of a tree by their paths."""

import re
from collections.abc import Callable
from typing import Any

import jax

PyTree = Any

Where = str | Callable[[str], bool]


def chosen(tree: PyTree, where: Where) -> dict[str, jax.Array]:
    """The arrays of `tree` that `where` chooses, by path.

    Paths are `jax.tree_util.keystr(path, simple=True, separator=".")`, such as "encoder.layers.attention.query.kernel".

    Args:
      tree: a model.
      where: a regular expression that is searched for in the path ("" chooses everything), or a function of the path.

    Raises:
      ValueError: if it chooses nothing.
    """
    picks = _predicate(where)
    leaves = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    found = {name: leaf for name, leaf in leaves.items() if picks(name)}
    if not found:
        some = ", ".join(list(leaves)[:8])
        raise ValueError(f"where must choose at least one array; {where!r} chooses none of {some}, ...")
    return found


def replaced(tree: PyTree, where: Where, replace: Callable[[str, jax.Array], jax.Array]) -> PyTree:
    """`tree` with `replace(path, leaf)` for the leaves that `where` chooses."""
    picks = _predicate(where)

    def one(path, leaf):
        name = _name(path)
        return replace(name, leaf) if picks(name) else leaf

    return jax.tree_util.tree_map_with_path(one, tree)


def _predicate(where: Where) -> Callable[[str], bool]:
    return where if callable(where) else lambda path: re.search(where, path) is not None


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
