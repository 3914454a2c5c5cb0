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

    Arrays, floats and lists of numbers, also inside of masks and other trees, are data of the program. All else decides
    which program it is: strings, functions, flags, whole numbers, the structure of trees, and the mesh in force
    (`jax.set_mesh`).

    Arguments that are annotated as `jax.Array` and have no default must not be None, those annotated as `int` must be
    whole numbers: else the call raises a TypeError.

    Args:
      checks: of an argument's name, what raises an error if its value, known before anything is compiled, is not
        allowed. What is being traced, and what is left at None or at its default, is not checked.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        if unknown := checks.keys() - signature.parameters.keys():
            raise TypeError(f"{function.__name__} has no argument {', '.join(sorted(unknown))}")
        parameters = signature.parameters.values()
        single = [p for p in parameters if p.kind is not p.VAR_POSITIONAL]
        arrays = [p.name for p in single if p.annotation is jax.Array and p.default is p.empty]
        integers = [p.name for p in parameters if p.annotation is int]

        def of_leaves(static, data):
            structure, leaves = static
            data = iter(data)
            args, kwargs = structure.unflatten([next(data) if leaf is _DATA else leaf for leaf in leaves])
            return function(*args, **kwargs)

        of_leaves.__name__ = function.__name__  # the program's name in profiles
        program = jax.jit(of_leaves, static_argnums=0)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            given = signature.bind(*args, **kwargs).arguments
            for name in arrays:
                if given[name] is None:
                    raise TypeError(f"{name} must be an array; got None")
            for name in integers:
                if name in given and not isinstance(given[name], int | np.integer):
                    raise TypeError(f"{name} must be a whole number; got {given[name]!r}")
            for name, check in checks.items():
                if given.get(name) is not None and not isinstance(given[name], jax.core.Tracer):
                    check(name, given[name])
            args, kwargs = jax.tree.map(_as_array, (args, kwargs), is_leaf=_is_numbers)
            leaves, structure = jax.tree.flatten((args, kwargs))
            static = structure, tuple(_DATA if _is_data(leaf) else leaf for leaf in leaves)
            return program(static, [leaf for leaf in leaves if _is_data(leaf)])

        return call

    return decorate


_DATA = object()


def _is_data(leaf) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.inexact, float))


def _is_numbers(x) -> bool:
    """Whether it is a list, or a list of lists, of numbers."""
    return isinstance(x, list) and bool(x) and (isinstance(x[0], float | int | np.number) or _is_numbers(x[0]))


def _as_array(x):
    return np.asarray(x) if isinstance(x, list) else x


def positive(name: str, value) -> None:
    """Raises a ValueError unless the value is > 0."""
    if not _scalar(name, value) > 0:
        raise ValueError(f"{name} must be > 0; got {value}")


def non_negative(name: str, value) -> None:
    """Raises a ValueError unless the value is >= 0."""
    if not _scalar(name, value) >= 0:
        raise ValueError(f"{name} must be >= 0; got {value}")


def finite(name: str, value) -> None:
    """Raises a ValueError unless the value is finite."""
    if not np.isfinite(_scalar(name, value)):
        raise ValueError(f"{name} must be finite; got {value}")


def _scalar(name: str, value) -> np.ndarray:
    value = np.asarray(value)
    if value.ndim:
        raise ValueError(f"{name} must be one number; got an array of shape {value.shape}")
    return value
