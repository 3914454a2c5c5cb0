"""What makes a loss that is called eagerly one program."""

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
import numpy as np

from jaxemb.checks import Check, Fits, checker, filled, in_32_bits

P = ParamSpec("P")
R = TypeVar("R")


def one_program(fits: Fits | None = None, /, **checks: Check) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: the function is one program where it is called eagerly, its backward pass another; inside of other
    programs it becomes a part of them.

    Arrays, floats and lists of numbers, also inside of masks and other trees, are data of the program. All else decides
    which program it is: strings, functions, flags, whole numbers, the structure of trees, and the mesh in force
    (`jax.set_mesh`).

    Arguments are checked as by `jaxemb.checks.checked`, before anything is compiled: a TypeError for what is not as its
    annotation says. Arrays without a default must not be empty, as a mean over no examples is none, and whole numbers
    must fit into 32 bits: a ValueError.

    Args:
      fits: what raises an error for arguments, by name, that do not fit together, such as `shapes`; some may be traced.
      checks: of an argument's name, what raises an error if its value is not allowed. What is being traced, and what is
        left at None or at its default, is not checked.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        check = checker(function, checks, fits)
        single = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_POSITIONAL]
        arrays = [p.name for p in single if p.annotation is jax.Array and p.default is p.empty]

        def of_leaves(static, data):
            structure, leaves = static
            data = iter(data)
            args, kwargs = structure.unflatten([next(data) if leaf is _DATA else leaf for leaf in leaves])
            return function(*args, **kwargs)

        of_leaves.__name__ = function.__name__  # the program's name in profiles
        program = jax.jit(of_leaves, static_argnums=0)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            args, kwargs = jax.tree.map(_as_array, (args, kwargs), is_leaf=_is_numbers)
            given = check(*args, **kwargs)
            for name in arrays:
                filled(name, given.get(name, 1))
            for name, value in given.items():
                in_32_bits(name, value)
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
    try:
        return np.asarray(x) if isinstance(x, list) else x
    except ValueError:  # rows of several lengths
        return x
