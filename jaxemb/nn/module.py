"""The base of all modules: a frozen pytree."""

import dataclasses
from typing import TYPE_CHECKING, Any

from flax import nnx


class Module(nnx.Module):
    """An `nnx.Module` whose attributes are set once, by its `__init__`. Subclasses are made with `@nnx.dataclass`.

    Assigning to or deleting an attribute raises `dataclasses.FrozenInstanceError`.

        embedder = dataclasses.replace(embedder, pooling=Cls())  # a copy that shares all else
    """

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
