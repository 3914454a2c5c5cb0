"""Checks of the fields of a configuration."""

from collections.abc import Callable
from typing import Any


def check_fields(config: Any, expected: str, holds: Callable[[Any], bool], *names: str) -> None:
    """Raises ValueError, with the field's name, its value and what was expected, where `holds` does not."""
    for name in names:
        value = getattr(config, name)
        try:
            good = holds(value)
        except TypeError:  # it does not compare with numbers, or is no sequence
            good = False
        if not good:
            raise ValueError(f"{name} must be {expected}; got {value!r}")
