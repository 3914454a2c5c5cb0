"""What makes a loss that is called eagerly one program."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np

P = ParamSpec("P")
R = TypeVar("R")
Check = Callable[[str, Any], None]


def one_program(**checks: Check) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: the function is one program where it is called eagerly, its backward pass another; inside of other
    programs it becomes a part of them.

    Arrays and floats, also inside of masks and other trees, are data of the program. All else decides which program it
    is: strings, functions, flags, whole numbers, the structure of trees, and the mesh in force (`jax.set_mesh`).

    Args:
      checks: of an argument's name, what raises an error if its value, known before anything is compiled, is not
        allowed. What is being traced, and what is left at None or at its default, is not checked.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        def of_leaves(static, data):
            structure, leaves = static
            data = iter(data)
            args, kwargs = structure.unflatten([next(data) if leaf is _DATA else leaf for leaf in leaves])
            return function(*args, **kwargs)

        of_leaves.__name__ = function.__name__  # the program's name in profiles
        program = jax.jit(of_leaves, static_argnums=0)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if checks:
                given = signature.bind(*args, **kwargs).arguments
                for name, check in checks.items():
                    if given.get(name) is not None and not isinstance(given[name], jax.core.Tracer):
                        check(name, given[name])
            leaves, structure = jax.tree.flatten((args, kwargs))
            static = structure, tuple(_DATA if _is_data(leaf) else leaf for leaf in leaves)
            return program(static, [leaf for leaf in leaves if _is_data(leaf)])

        return call

    return decorate


_DATA = object()


def _is_data(leaf) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.inexact, float))


def positive(name: str, value) -> None:
    """Raises a ValueError unless the value is > 0."""
    if not np.asarray(value) > 0:
        raise ValueError(f"{name} must be > 0; got {value}")


def non_negative(name: str, value) -> None:
    """Raises a ValueError unless the value is >= 0."""
    if not np.asarray(value) >= 0:
        raise ValueError(f"{name} must be >= 0; got {value}")


def finite(name: str, value) -> None:
    """Raises a ValueError unless the value is finite."""
    if not np.isfinite(np.asarray(value)):
        raise ValueError(f"{name} must be finite; got {value}")
