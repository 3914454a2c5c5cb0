"""Boxes of values, and the table of rules that says how each primitive maps them."""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import source_info_util

Products = Literal["exact", "midpoint"]


class Source(NamedTuple):
    """What made a box, and of what: by it one sees what belongs together, as `x` and `exp(x)` in `x exp(x)`."""

    name: str
    inputs: tuple[Any, ...]
    call: "Call"


@dataclasses.dataclass(frozen=True, eq=False)
class Box:
    """All arrays `x` with `lo <= x <= hi`. Whatever is not a Box is a point: an array known exactly.

    Attributes:
      lo, hi: arrays of one shape and dtype; of booleans, "surely true" and "possibly true".
      nonneg: whether `lo >= 0` is certain when the program is traced.
      source: where the box comes from; lost when it passes through a loop or a branch.
    """

    lo: Any
    hi: Any
    nonneg: bool = False
    source: Source | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.lo.shape

    @property
    def dtype(self):
        return self.lo.dtype

    @property
    def mid(self):
        return 0.5 * self.lo + 0.5 * self.hi

    @property
    def radius(self):
        return 0.5 * self.hi - 0.5 * self.lo


jax.tree_util.register_pytree_node(Box, lambda b: ((b.lo, b.hi), b.nonneg), lambda nonneg, ends: Box(*ends, nonneg))


class CentredBox(NamedTuple):
    """The same by its middle: all x with `|x - centre| <= radius`, arrays of one shape. Small radii stay exact."""

    centre: jax.Array
    radius: jax.Array

    @property
    def lo(self) -> jax.Array:
        return self.centre - self.radius

    @property
    def hi(self) -> jax.Array:
        return self.centre + self.radius


class UnsupportedPrimitiveError(TypeError):
    """A box reaches an operation for which there is no sound rule."""


@dataclasses.dataclass(frozen=True)
class Call:
    """One equation of a traced function, as its rule sees it."""

    eqn: Any
    products: Products

    @property
    def name(self) -> str:
        return self.eqn.primitive.name

    @property
    def params(self) -> dict[str, Any]:
        return self.eqn.params

    def bind(self, *values) -> Any:
        """The primitive itself, of points; one value, or a list if it has several results."""
        primitive = self.eqn.primitive
        return primitive.bind(*values, **primitive.get_bind_params(self.eqn.params))

    def unsupported(self, reason: str) -> UnsupportedPrimitiveError:
        return UnsupportedPrimitiveError(
            f"interval.bound has no rule for the primitive {self.name!r}: {reason}; "
            f"it is called at {source_info_util.summarize(self.eqn.source_info)}"
        )


Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}  # of primitives by name: `rule(call, *values)`, where at least one value is a Box
# Tighter rules for a primitive at the end of a known expression, which return None if it is not that one.
PATTERNS: dict[str, list[Rule]] = collections.defaultdict(list)


def pattern(*names: str) -> Callable[[Rule], Rule]:
    """Registers a tighter rule for expressions that end in one of these primitives; the first that fits is used."""

    def register(function: Rule) -> Rule:
        for name in names:
            PATTERNS[name].append(function)
        return function

    return register


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers the rule of these primitives."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def low(value: Any) -> Any:
    """The lower end; of a point the point."""
    return value.lo if isinstance(value, Box) else value


def high(value: Any) -> Any:
    """The upper end; of a point the point."""
    return value.hi if isinstance(value, Box) else value


def constant(value: Any) -> np.ndarray | None:
    """A point whose value is known when the program is traced, else None."""
    return np.asarray(value) if isinstance(value, np.ndarray | np.generic | float | int) else None


def scalar(value: Any) -> float | None:
    """The value of a point that is known and the same everywhere, else None."""
    known = constant(value)
    return float(known.flat[0]) if known is not None and known.size == 1 and known.dtype != bool else None


def is_nonneg(value: Any) -> bool:
    """Whether no element can be negative, as far as can be told without computing."""
    if isinstance(value, Box):
        return value.nonneg
    known = constant(value)
    return known is not None and bool(np.all(known >= 0))


def hull(values: Sequence[Any]) -> Box:
    """The smallest box around several values."""
    lo, hi = low(values[0]), high(values[0])
    for value in values[1:]:
        lo, hi = jnp.minimum(lo, low(value)), jnp.maximum(hi, high(value))
    return Box(lo, hi, all(map(is_nonneg, values)))
