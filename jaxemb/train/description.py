"""What a function, a method or an optimiser is, as JSON: what is made alike is described alike, in any process.

A function is described by its name and the values that it closes over, as what makes an optimiser or an objective is
in its closures (`adamw(1e-3, 100)`, `functools.partial(info_nce, temperature=0.05)`); one that is no library's also by
its code and the globals that it uses. Data of many items and long texts are described by a hash. Of an object that is
no function only its class is known, and what its own `repr` says: what it holds may be a cache.
"""

import dataclasses
import dis
import enum
import functools
import hashlib
import inspect
import itertools
import json
import re
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_MANY = 32  # items of a container that are described one by one
_LONG = 256  # characters of a text that are kept
_SMALL = 1 << 16  # numbers of an array on devices that are looked at: larger ones are weights, which checkpoints hold
_LARGE = 1 << 22  # of larger arrays of the host some rows are looked at
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_LIBRARIES = tuple(
    str(path)
    for path in {Path(__file__).parents[1], *(sysconfig.get_path(n) for n in ("stdlib", "purelib", "platlib"))}
)
_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME")  # what else is in `co_names` are names of attributes
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"  # its bytecode is its own


class Change(NamedTuple):
    """A value in which two descriptions differ.

    Attributes:
      name: how messages call it.
      path: the names of all that it is in, from the outside.
    """

    name: str
    path: tuple[str, ...]
    before: Any
    after: Any


def describe(value: Any) -> Any:
    """The description, of dicts, lists, texts and numbers."""
    try:
        return _described(value, ())
    except RecursionError:  # an object that makes objects, such as a mock, when it is looked at
        return {"class": _name(type(value))}


def changes(before: Any, after: Any, name: str = "") -> Iterator[Change]:
    """The innermost values that two descriptions differ in, each name and pair once."""
    found: dict[tuple[str, ...], Change] = {}
    for path, old, new in _changes(before, after, (name,)):
        found.setdefault((path[0], path[-1], str(old), str(new)), Change(_readable(path), path, old, new))
    return iter(found.values())


def _changes(before: Any, after: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    if isinstance(before, dict) and isinstance(after, dict):
        if before != after and "sha256" in before and "sha256" in after:
            old, new = (f"{side['length']} items of SHA-256 {side['sha256'][:12]}" for side in (before, after))
            yield path, old, new
            return
        if before.keys() >= {"code", "python"} <= after.keys() and before["python"] != after["python"]:
            before, after = ({**side, "code": None, "python": None} for side in (before, after))
        for key in sorted(before.keys() | after.keys()):
            yield from _changes(before.get(key), after.get(key), (*path, key))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, pair in enumerate(zip(before, after, strict=True)):
            yield from _changes(*pair, (*path, str(number)))
    elif before != after:
        yield path, before, after


def _readable(path: tuple[str, ...]) -> str:
    """The field, and the names of the values on the way."""
    shown = [part for part in path[1:] if not part.isdigit() and part not in _PARTS]
    return ".".join((path[0], *shown[-2:]))


_PARTS = frozenset({"function", "closure", "globals", "partial", "arguments", "defaults", "fields", "method", "of"})


def _described(value: Any, within: tuple[int, ...]) -> Any:
    if id(value) in within:
        return "..."
    inner = functools.partial(_described, within=(*within, id(value)))
    match value:
        case None | bool():
            return value
        case enum.Enum() | np.dtype() | type():
            return _name(value) if isinstance(value, type) else str(value)
        case int():
            return int(value)
        case float():
            return float(value) if np.isfinite(value) else repr(float(value))
        case str():
            return str(value) if len(value) <= _LONG else _hashed(value.encode("utf-8", "surrogatepass"), len(value))
        case bytes() | bytearray():
            return _hashed(value, len(value))
        case Path() | re.Pattern():
            return str(value)
        case np.ndarray() | np.generic() | jax.Array():
            return _array(value)
        case functools.partial():
            return {"partial": inner(value.func), "arguments": inner([*value.args, value.keywords])}
        case types.MethodType():
            return {"method": inner(value.__func__), "of": inner(value.__self__)}
        case types.FunctionType():
            return _function(value, inner)
        case _ if callable(getattr(value, "__wrapped__", None)):  # jit, functools.cache
            return inner(value.__wrapped__)
        case tuple() if hasattr(value, "_fields"):
            return {"class": _name(type(value)), **{name: inner(getattr(value, name)) for name in value._fields}}
        case _ if dataclasses.is_dataclass(value):
            fields = {f.name: inner(getattr(value, f.name, "unset")) for f in dataclasses.fields(value) if f.compare}
            return {"class": _name(type(value)), **fields}
        case Mapping() | Set() | list() | tuple():
            return _container(value, inner)
        case _ if hasattr(value, "__qualname__"):
            return _name(value)
        case _ if repr(value) == object.__repr__(value):
            return {"class": _name(type(value)), **(inner(getattr(value, "__dict__", {})) if callable(value) else {})}
        case _:
            return inner(_ADDRESS.sub("", repr(value)))


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _hashed(data: bytes | bytearray, size: int) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "length": size}


def _array(value: Any) -> dict[str, Any]:
    kind = {"dtype": str(value.dtype), "shape": list(value.shape)}
    if isinstance(value, jax.core.Tracer) or (isinstance(value, jax.Array) and value.size > _SMALL):
        return kind
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    if value.size > _LARGE:  # it may be a file that is mapped to memory
        value = value[:: -(-value.size // _LARGE)]
    numbers = np.ascontiguousarray(value)
    if numbers.dtype == object:
        return {**kind, **_hashed(_ADDRESS.sub("", repr(numbers.tolist())).encode(), numbers.size)}
    if numbers.size == 1:
        return {**kind, "value": repr(numbers.item())}
    return {**kind, **_hashed(numbers.tobytes(), numbers.size)}


def _container(value: Any, inner: Any) -> Any:
    if isinstance(value, Set):
        return sorted(map(inner, value), key=str)
    if len(value) > _MANY:
        try:
            text = json.dumps(value, default=inner)
        except (TypeError, ValueError):  # keys that are no texts, a container that holds itself
            text = json.dumps([[str(key), inner(item)] for key, item in _items(value)])
        return _hashed(text.encode(), len(value))
    described = {str(key): inner(item) for key, item in _items(value)}
    return described if isinstance(value, Mapping) else list(described.values())


def _items(value: Any) -> Any:
    return value.items() if isinstance(value, Mapping) else enumerate(value)


def _function(function: types.FunctionType, inner: Any) -> dict[str, Any]:
    described: dict[str, Any] = {"function": _name(function)}
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    closure = {name: inner(cell.cell_contents) for name, cell in cells if _is_filled(cell)}
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    described |= {"closure": closure} if closure else {}
    described |= {"defaults": inner(defaults)} if defaults else {}
    if not function.__code__.co_filename.startswith(_LIBRARIES):
        codes = list(_codes(function.__code__))
        loads = (load for code in codes for load in dis.get_instructions(code) if load.opname in _GLOBAL)
        names = sorted({load.argval for load in loads} & function.__globals__.keys())
        used = {name: function.__globals__[name] for name in names}
        described["globals"] = {n: inner(v) for n, v in used.items() if not inspect.ismodule(v)}
        constants = [c for code in codes for c in code.co_consts if not inspect.iscode(c)]
        text = repr([[code.co_code.hex(), code.co_names] for code in codes]) + json.dumps(inner(constants))
        described |= {"code": hashlib.sha256(text.encode()).hexdigest()[:16], "python": _PYTHON}
    return described


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    inside = (_codes(constant) for constant in code.co_consts if inspect.iscode(constant))
    return itertools.chain([code], *inside)
