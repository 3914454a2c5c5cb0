"""The base of all modules: a frozen pytree."""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import jax
from flax import nnx


class Module(nnx.Module):
    """An `nnx.Module` whose attributes are set once, by its `__init__`. Subclasses are made with `@nnx.dataclass`.

    Assigning to or deleting an attribute raises `dataclasses.FrozenInstanceError`.

        embedder = dataclasses.replace(embedder, pooling=Cls())  # a copy that shares all else
    """

    def __repr__(self) -> str:
        """One line: the parts, each with how many numbers it has."""
        parts = [f"{field.name}={_summary(getattr(self, field.name))}" for field in dataclasses.fields(self)]  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(parts)})"

    __str__ = __repr__

    if not TYPE_CHECKING:  # so that an assignment is an error for type checkers, too

        def __setattr__(self, name: str, value: Any) -> None:
            if name in vars(self) or name not in self.__dataclass_fields__:
                raise self._frozen("assign to", name)
            super().__setattr__(name, value)

        def __delattr__(self, name: str) -> None:
            raise self._frozen("delete", name)

        def _frozen(self, verb: str, name: str) -> dataclasses.FrozenInstanceError:
            return dataclasses.FrozenInstanceError(
                f"cannot {verb} {type(self).__name__}.{name}: modules are frozen; "
                "make a changed copy with dataclasses.replace(module, name=value)"
            )


def _summary(value: Any) -> str:
    if isinstance(value, Module):
        return f"{type(value).__name__}({_numbers(value)})"
    if isinstance(value, tuple | list) and any(isinstance(part, Module) for part in value):
        return f"[{', '.join(map(_summary, value))}]"
    if dataclasses.is_dataclass(value):
        return f"{type(value).__name__}(...)"
    return f"{value.dtype}{list(value.shape)}" if hasattr(value, "shape") else repr(value)


def _numbers(module: Module) -> str:
    count = sum(math.prod(getattr(leaf, "shape", ())) for leaf in jax.tree.leaves(module))
    return f"{count:,} numbers" if count else ""
