"""What JSON files say, read by key: a value that is absent or of the wrong kind is an error that names file and key.

    c = Settings(read_json(path, dict), str(path))
    dim, dropout = size(c, "hidden_size"), rate(c, "hidden_dropout_prob", 0.1)

A plain mapping does as well; errors then speak of `config.json`.
"""

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

REQUIRED: Any = object()
"""The default of a key that must be there."""

MOST = 2**31 - 1  # sizes are 32-bit numbers
MOST_LAYERS = 4096  # each layer has tensors of its own, which are listed by name


class CheckpointError(ValueError):
    """A checkpoint that cannot be read: a file is missing, damaged or refused, or its tensors do not fit the model."""


class Settings(Mapping[str, Any]):
    """The object of a JSON file.

    Attributes:
      plain: the object as JSON has it.
      where: what errors begin with: the file, and the key of an object inside of it.
      error: the type of these errors.
      asked: the keys that were asked for.
    """

    def __init__(self, plain: Mapping[str, Any], where: str, error: type[ValueError] = CheckpointError):
        self.plain, self.where, self.error = plain, where, error
        self.asked: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        if key not in self.plain:
            raise self.error(f"{self.where}: key {key!r} is missing")
        return self.plain[key]

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or `default` where the key is absent."""
        self.asked.add(key)
        return self.plain.get(key, default)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return key in self.plain

    def __iter__(self) -> Iterator[str]:
        return iter(self.plain)

    def __len__(self) -> int:
        return len(self.plain)


def size(c: Mapping[str, Any], key: str, default: Any = REQUIRED, *, least: int = 1, most: int = MOST) -> Any:
    """A whole number in `least`..`most`; null is for keys whose default is None alone, here and below."""
    is_size = lambda value: _is(value, int) and least <= value <= most
    is_open = most == MOST and not (_is(c.get(key), int) and c[key] > most)
    expected = f"a whole number of at least {least}" if is_open else f"a whole number in {least}..{most}"
    return read(c, key, default, expected, is_size)


def layers(c: Mapping[str, Any], key: str, default: Any = REQUIRED) -> int:
    """A number of layers."""
    return size(c, key, default, most=MOST_LAYERS)


def number(c: Mapping[str, Any], key: str, default: Any = REQUIRED, *, above: float = -math.inf) -> Any:
    """A finite number > `above`, as a float."""
    expected = "a finite number" if above == -math.inf else f"a finite number > {above:g}"
    value = read(c, key, default, expected, lambda value: _is_number(value) and value > above)
    return None if value is None else float(value)


def numbers(c: Mapping[str, Any], key: str, default: Any = REQUIRED, *, above: float = -math.inf) -> Any:
    """A list of finite numbers > `above`."""
    expected = "a list of finite numbers" + ("" if above == -math.inf else f" > {above:g}")
    is_list = lambda value: isinstance(value, list) and all(_is_number(part) and part > above for part in value)
    return read(c, key, default, expected, is_list)


def rate(c: Mapping[str, Any], key: str, default: Any = REQUIRED) -> float:
    """A number in [0, 1), such as the share that is dropped."""
    return float(read(c, key, default, "a number in [0, 1)", lambda value: _is_number(value) and 0 <= value < 1))


def spread(c: Mapping[str, Any], key: str, default: Any = REQUIRED) -> float:
    """A number >= 0, such as the standard deviation of new weights."""
    return float(read(c, key, default, "a finite number >= 0", lambda value: _is_number(value) and value >= 0))


def flag(c: Mapping[str, Any], key: str, default: Any = REQUIRED) -> bool:
    """true or false."""
    return read(c, key, default, "true or false", lambda value: isinstance(value, bool))


def text(c: Mapping[str, Any], key: str, default: Any = REQUIRED, options: Collection[str] | None = None) -> Any:
    """A string without half characters, one of `options` if they are given."""
    names = sorted(options or ())
    expected = "a string" if options is None else f"one of {names}" if len(names) != 1 else f"{names[0]!r}"
    is_text = lambda value: _is_string(value) and (options is None or value in options)
    return read(c, key, default, expected, is_text)


def texts(c: Mapping[str, Any], key: str, default: Any = REQUIRED) -> Any:
    """A list of strings."""
    is_texts = lambda value: isinstance(value, list) and all(isinstance(part, str) for part in value)
    return read(c, key, default, "a list of strings", is_texts)


def inner(c: Mapping[str, Any], key: str, default: Any = None) -> Settings:
    """An object inside of the object; {} where it is absent or null, unless it is REQUIRED."""
    value = read(c, key, default, "an object", lambda value: isinstance(value, Mapping)) or {}
    return Settings(value, f"{where(c)}: {key}", error_of(c))


def read(c: Mapping[str, Any], key: str, default: Any, expected: str, holds: Callable[[Any], bool]) -> Any:
    """The value of `key`, or `default`; raises an error that says what is `expected` where `holds` does not."""
    if default is REQUIRED and key not in c:
        raise error_of(c)(f"{where(c)}: key {key!r} is missing; expected {expected}")
    value = c.get(key, default)
    if value is default or holds(value):
        return value
    raise error_of(c)(f"{where(c)}: {key} must be {expected}; got {shown(value)}")


def where(c: Mapping[str, Any]) -> str:
    """What errors about `c` begin with."""
    return getattr(c, "where", "config.json")


def error_of(c: Mapping[str, Any]) -> type[ValueError]:
    """The type of errors about `c`."""
    return getattr(c, "error", ValueError)


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_string(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _is_number(value: Any) -> bool:
    return _is(value, int | float) and abs(value) < 1e300


def shown(value: Any) -> str:
    """A value as JSON has it, cut to 60 characters."""
    if isinstance(value, str):
        return f"{value!r:.60}"
    try:
        return f"{json.dumps(value):.60}"
    except (TypeError, ValueError, RecursionError):
        return f"{value!r:.60}"
