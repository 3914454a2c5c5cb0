"""What arguments must be: checks at the public entrances, that name the argument, what came and what was expected.

`checked` reads the plain part of a function's annotations, so that a wrong type is refused before anything is made of
it; what a type cannot say, such as a range, is a `Check`.
"""

import dataclasses
import functools
import inspect
import json
import math
import os
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar, Union, get_args, get_origin

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.typing import DTypeLike
from numpy.typing import ArrayLike

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
_PART = 1 << 16  # numbers that stay in the processor's cache
Check = Callable[[str, Any], None]
Fits = Callable[[Mapping[str, Any]], None]


def checked(fits: Fits | None = None, /, **checks: Check) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: a call whose arguments are not what annotations and `checks` say raises before it does anything.

    Args:
      fits: what raises an error for arguments, by name, that do not fit together, such as `shapes`; some may be traced.
      checks: of an argument's name, what raises an error if its value is not allowed. What is being traced, what is
        left at its default, and None where the annotation has it, is not asked.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        check = checker(function, checks, fits)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            check(*args, **kwargs)
            return function(*args, **kwargs)

        return call

    return decorate


def checker(
    function: Callable, checks: Mapping[str, Check] | None = None, fits: Fits | None = None
) -> Callable[..., dict[str, Any]]:
    """What checks the arguments of a call of `function`, and gives them by name: types, what `fits`, then `checks`.

    Raises:
      TypeError: `function` has no argument of a name in `checks`.
    """
    signature = inspect.signature(function)
    checks = dict(checks or {})
    if unknown := checks.keys() - signature.parameters.keys():
        raise TypeError(f"{function.__name__} has no argument {', '.join(sorted(unknown))}")
    kinds, implied, with_none, on_device = {}, {}, set(), set()
    for name, parameter in signature.parameters.items():
        several = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if (kind := kind_of(parameter.annotation)) is not None:
            kinds[name] = Kind("several", lambda value: True, parts=kind) if several else kind
        if jax.Array in (parameter.annotation, *get_args(parameter.annotation)):
            on_device.add(name)
        if kind is None and "None" not in str(parameter.annotation):
            with_none.add(name)  # which no kind has refused
        if not several and name not in checks and (found := _implied(name, parameter.annotation)) is not None:
            implied[name] = found

    def check(*args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:  # which names the argument, and not whose it is
            raise TypeError(f"{function.__qualname__}: {error}") from None
        asked = []
        for name, value in given.items():
            if value is signature.parameters[name].default:
                continue
            unmasked(name, value)
            is_plain = (value is not None or name in with_none) and not isinstance(value, jax.core.Tracer)
            if is_plain and name in implied:  # which says more than the kind
                implied[name](name, value)
            elif name in kinds:
                kinds[name].check(name, value)
            if name in on_device:
                in_32_bits(name, value)
                in_native_order(name, value)
            if is_plain and name in checks:
                asked.append(name)
        if fits is not None:
            fits(given)
        for name in asked:
            checks[name](name, given[name])
        return given

    return check


def _implied(name: str, annotation: Any) -> Check | None:
    """The check of what is a seed, a random key, a path or a single number everywhere."""
    if name == "seed" and annotation is int:
        return _seed
    if name == "key" and annotation in (jax.Array, jax.Array | None):
        return random_key
    if annotation in (float, float | None):
        return _no_nan
    if float in get_args(annotation):
        return functools.partial(_not_nan, kind=kind_of(annotation))
    if annotation in (str, str | None):
        return _text
    return path if annotation in (str | Path, str | Path | None) else None


class Kind(NamedTuple):
    """What an annotation asks for, in words, and whether a value is that.

    Attributes:
      expected: in words.
      holds: whether a value is of this kind, but for its parts.
      parts: what the parts of a list or tuple, or the values of a mapping, are, where that is told.
      kinds: those that it is one of.
    """

    expected: str
    holds: Callable[[Any], bool]
    parts: "Kind | None" = None
    kinds: "tuple[Kind, ...]" = ()

    def check(self, name: str, value: Any) -> None:
        """Raises a TypeError unless the value, and each of its parts, is of this kind."""
        if not self.holds(value):
            raise TypeError(f"{name} must be {self.expected}; got {described(value)}")
        wrong = None
        for kind in self.kinds or (self,):
            if kind.holds(value):
                if (found := kind.wrong_part(value)) is None:
                    return
                wrong = wrong or found
        if wrong is not None:
            parts, key, part = wrong
            parts.check(f"{name}[{key!r}]", part)

    def wrong_part(self, value: Any) -> "tuple[Kind, Any, Any] | None":
        """What the parts are, and where the first one is that is something else, and this."""
        if isinstance(value, np.ndarray):  # what its first part is they all are
            value = list(value[:1]) if value.ndim else []
        if self.parts is None or not isinstance(value, list | tuple | Mapping):
            return None
        parts, holds = value.items() if isinstance(value, Mapping) else enumerate(value), self.parts.holds
        return next(((self.parts, key, part) for key, part in parts if not holds(part)), None)


@functools.cache
def kind_of(annotation: Any) -> Kind | None:
    """What an annotation asks for; None where that is not told from a value (a name, a protocol, anything)."""
    if annotation == ArrayLike:
        return Kind("numbers", _is_numbers)
    if annotation == ArrayLike | None:
        return Kind("numbers or None", lambda value: value is None or _is_numbers(value))
    if annotation == DTypeLike:
        return Kind("a type of numbers, such as jnp.float32", _is_dtype)
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        kinds = [kind for kind in map(kind_of, args) if kind is not None]
        if len(kinds) < len(args):
            return None
        expected = dict.fromkeys(kind.expected for kind in kinds)
        in_words = " or ".join(sorted(expected, key="None".__eq__))  # None last
        return Kind(in_words, lambda value: any(kind.holds(value) for kind in kinds), kinds=tuple(kinds))
    if origin is Literal:
        # A name that is none of these is refused by who knows what it is for.
        return Kind(f"one of {args}", lambda value: isinstance(value, str) or any(value is name for name in args))
    base = origin or annotation
    if base in (Sequence, list) and args:
        return _KINDS[base]._replace(expected=f"{_KINDS[base].expected}{_of(args[0])}", parts=kind_of(args[0]))
    if base is Mapping and args:
        return _KINDS[Mapping]._replace(parts=kind_of(args[1]))
    if base is tuple and args:
        return _of_tuple(args)
    if base in _KINDS:
        return _KINDS[base]
    is_told = not getattr(base, "_is_protocol", False) or getattr(base, "_is_runtime_protocol", False)
    if isinstance(base, type) and base not in _UNTOLD and is_told:
        article = "an" if base.__name__[0] in "AEIO" else "a"
        # A text has `encode`, which is no model's, and a class all that its instances have.
        is_text = lambda value: isinstance(value, str) and not issubclass(base, str)
        is_other = lambda value: is_text(value) or (_is_class(value) and not issubclass(base, type))
        return Kind(f"{article} {base.__name__}", lambda value: isinstance(value, base) and not is_other(value))
    return None


def _of_tuple(args: tuple[Any, ...]) -> Kind:
    """What `tuple[args]` asks for: any number of one kind, or these."""
    parts = kind_of(args[0]) if len({*args} - {...}) == 1 else None
    if ... in args:
        return _KINDS[tuple]._replace(expected=f"a tuple{_of(args[0])}", parts=parts)
    is_one = _KINDS[tuple].holds
    expected = f"a tuple of {len(args)}"
    return Kind(expected, lambda value: is_one(value) and len(value) == len(args), parts)


def _of(part: Any) -> str:
    return _PLURALS.get(part, "")


def described(value: Any) -> str:
    """The type of a value and, cut to 60 characters, what it is; of an array its shape and type."""
    if not _is_class(value) and (shape := getattr(value, "shape", None)) is not None and hasattr(value, "dtype"):
        return f"{type(value).__name__} {value.dtype} {tuple(shape)}"
    return f"{type(value).__name__} {value!r:.60}"


def instance(name: str, value: T, annotation: Any) -> T:
    """The value, if it is what the annotation says; else raises a TypeError."""
    if (kind := kind_of(annotation)) is not None:
        kind.check(name, value)
    return value


def whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Raises a TypeError unless the value is a whole number, a ValueError unless it is in `least`..`most`."""
    _KINDS[int].check(name, value)
    if value < least or (most is not None and value > most):
        expected = f"at least {least}" if most is None else f"in {least}..{most}"
        raise ValueError(f"{name} must be {expected}; got {value}")


def at_least(least: int) -> Check:
    """The check that a value is a whole number from `least` on."""
    return functools.partial(whole, least=least)


def size(name: str, value: Any) -> None:
    """Raises unless the value is a whole number that an axis of an array can have."""
    whole(name, value, 1, 2**31 - 1)


def positive(name: str, value: Any) -> None:
    """Raises a ValueError unless the value is a number > 0, as float32 has it: the inverse of 1e-40 is infinite."""
    if not (number := _scalar(name, value)) > 0:
        raise ValueError(f"{name} must be > 0; got {value}")
    if isinstance(value, float) and number < _LEAST:
        raise ValueError(f"{name} must be a number of float32, at least 1.2e-38; got {value}")


def non_negative(name: str, value: Any) -> None:
    """Raises a ValueError unless the value is a number >= 0."""
    if not _scalar(name, value) >= 0:
        raise ValueError(f"{name} must be >= 0; got {value}")


def between(low: float, high: float, ends: Literal["[]", "[)", "()", "(]"] = "[]") -> Check:
    """The check that a value is a number from `low` to `high`; a round bracket leaves that end out."""
    shown = f"{ends[0]}{low}, {high}{ends[1]}"

    def check(name: str, value: Any) -> None:
        number = _scalar(name, value)
        if not (low < number < high or (number == low and ends[0] == "[") or (number == high and ends[1] == "]")):
            raise ValueError(f"{name} must be in {shown}; got {value}")

    return check


def finite(name: str, value: Any) -> None:
    """Raises a ValueError unless the value is a finite number."""
    if not np.isfinite(_scalar(name, value)):
        raise ValueError(f"{name} must be finite; got {value}")


def real(name: str, value: Any) -> float:
    """The number that a value is, NaN and infinities too; raises a TypeError unless it is one real number."""
    if not _is_number(value) and not _KINDS[bool].holds(value):
        raise TypeError(f"{name} must be one number; got {described(value)}")
    return float(value)


def one_of(name: str, value: Any, options: Collection[Any]) -> None:
    """Raises a ValueError unless the value is one of `options`."""
    if not any(value is option or (type(value) is type(option) and value == option) for option in options):
        raise ValueError(f"{name} must be one of {list(options)}; got {value!r}")


def random_key(name: str, value: Any) -> None:
    """Raises a TypeError unless the value is one random key, such as `jax.random.key(0)`."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    typed = dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
    if not isinstance(value, jax.Array) or shape != (() if typed else (2,)) or not (typed or dtype == np.uint32):
        raise TypeError(f"{name} must be a random key, such as jax.random.key(0); got {described(value)}")


def path(name: str, value: Any) -> None:
    """Raises a TypeError unless the value is a path, a ValueError for a text that can be none."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a path; got {described(value)}")
    if not str(value).strip():  # which would mean the current directory
        raise ValueError(f"{name}: expected a path; got {str(value)!r}")
    encodable(name, str(value))


def having(*attributes: str) -> Check:
    """The check that a value is an object with these attributes, as one of several classes has."""

    def check(name: str, value: Any) -> None:
        if absent := [attribute for attribute in attributes if _is_class(value) or not hasattr(value, attribute)]:
            raise TypeError(f"{name} must have {', '.join(absent)}; got {described(value)}")

    return check


def each(check: Check) -> Check:
    """The check of every value of a list, a tuple or a mapping."""

    def check_all(name: str, values: Any) -> None:
        if not isinstance(values, Mapping) and not _is_sequence(values):
            raise TypeError(f"{name} must be a sequence or a mapping; got {described(values)}")
        for key, value in values.items() if isinstance(values, Mapping) else enumerate(values):
            check(f"{name}[{key!r}]", value)

    return check_all


def arrays(name: str, tree: Any) -> None:
    """Raises a TypeError unless the value is a tree of arrays, such as a model or a batch; some may be None."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        raise TypeError(f"{name} must be a tree of arrays; got {described(tree)}, which has none")
    for path, leaf in leaves:
        if not is_array(leaf):
            raise TypeError(f"{name}{jax.tree_util.keystr(path)} must be an array of a tree; got {described(leaf)}")
        unmasked(f"{name}{jax.tree_util.keystr(path)}", leaf)
        in_native_order(f"{name}{jax.tree_util.keystr(path)}", leaf)


def numbers(name: str, tree: Any) -> None:
    """Raises a TypeError unless every leaf of a tree is an array or a number."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not isinstance(leaf, bool | float) and not is_array(leaf):
            whole(f"{name}{jax.tree_util.keystr(path)}", leaf, -(2**31), 2**31 - 1)
        unmasked(f"{name}{jax.tree_util.keystr(path)}", leaf)
        in_native_order(f"{name}{jax.tree_util.keystr(path)}", leaf)


def having_keys(*keys: str) -> Check:
    """The check that a mapping, such as columns by name, has these keys."""

    def check(name: str, value: Any) -> None:
        if absent := [key for key in keys if key not in value]:
            raise ValueError(f"{name} must have {', '.join(map(repr, absent))}; got {list(value)!r:.60}")

    return check


def shapes(**axes: str) -> Fits:
    """The check that arrays have axes of these names: those of one name must be of one length in all of them.

    >>> shapes(queries="N D", negatives="N K D")({"queries": np.ones((2, 8)), "negatives": np.ones((2, 5, 4))})
    Traceback (most recent call last):
    ...
    ValueError: negatives must be [N, K, D] with N = 2, D = 8 as in queries; got (2, 5, 4)

    Args:
      axes: of an argument's name; "..." stands for any axes before the others (those of "...a" need not be those of
        "...b"), and " | " between what is allowed. Who comes first says how long an axis is. What is None or left out
        is not asked.
    """
    allowed = {name: [each.split() for each in text.split("|")] for name, text in axes.items()}

    def check(given: Mapping[str, Any]) -> None:
        lengths: dict[str, Any] = {}
        owners: dict[str, str] = {}  # who says how long
        for name, choices in allowed.items():
            if (value := given.get(name)) is None:
                continue
            fitting = (found for each in choices if (found := _axes(np.shape(value), each, lengths)) is not None)
            if (found := next(fitting, None)) is None:
                expected = " or ".join(f"[{', '.join(each)}]" for each in choices)
                told = dict[str, list[str]]()
                for axis in (axis for axis in lengths if any(axis in each for each in choices)):
                    told.setdefault(owners[axis], []).append(f"{axis} = {lengths[axis]}")
                known = " and ".join(f"{', '.join(axes)} as in {owner}" for owner, axes in told.items())
                raise ValueError(f"{name} must be {expected}{known and f' with {known}'}; got {np.shape(value)}")
            owners |= {axis: name for axis in found.keys() - owners.keys()}
            lengths = found

    return check


def _axes(shape: tuple[int, ...], names: list[str], lengths: Mapping[str, Any]) -> dict[str, Any] | None:
    """The lengths of the axes by name; None if they are others than `lengths` says."""
    sizes: tuple[Any, ...] = shape
    if names[0].startswith("..."):
        first = max(0, len(shape) - len(names) + 1)
        sizes = (shape[:first], *shape[first:])
    if len(sizes) != len(names):
        return None
    found = dict(lengths)
    if all(found.setdefault(name, size) == size for name, size in zip(names, sizes, strict=True)):
        return found
    return None


def encodable(name: str, text: str) -> None:
    """Raises a ValueError for a text that UTF-8 cannot hold: one with half of a surrogate pair, as of a cut emoji."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} has a lone surrogate, half a character, at {error.start}: {text!a:.60}") from None


def json_text(name: str, value: Any) -> str:
    """The value as JSON, from which `files.parse_json` makes it again.

    Raises:
      TypeError: beginning with `name`, for what JSON does not have, such as bytes, or a key that is no string.
      ValueError: likewise for a number that it does not have (NaN, infinities), a lone surrogate, endless nesting.
    """
    try:
        _check_keys(value)
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        problem = TypeError if isinstance(error, TypeError) else ValueError
        raise problem(f"{name} is not JSON: {error}") from error
    encodable(name, text)
    return text


def _check_keys(value: Any) -> None:
    """Raises a TypeError for a key that is no string, of which `json` would make one, perhaps one that is there."""
    for key in value if isinstance(value, Mapping) else ():
        if not isinstance(key, str):
            raise TypeError(f"keys must be strings; got {described(key)}")
    if isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            _check_keys(part)


def check_types(config: Any, *names: str) -> None:
    """Raises, as `checked`, for the first field of a dataclass, or of those named, that is not what it says."""
    for field in dataclasses.fields(config):
        if not names or field.name in names:
            value = getattr(config, field.name)
            instance(field.name, value, field.type)
            if value is not None and (check := _implied(field.name, field.type)) is not None:
                check(field.name, value)


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


def check_finite(name: str, array: Any) -> None:
    """Raises a ValueError, but for what is being traced, if a value is not finite."""
    if not isinstance(array, jax.core.Tracer) and not is_finite(np.asarray(array)):
        raise ValueError(f"{name} must be finite")


def is_finite(array: np.ndarray) -> bool:
    """Whether all values are; without a copy, as the array may be large."""
    if array.dtype == ml_dtypes.bfloat16:
        bits = array.reshape(-1).view(np.uint16)  # NumPy itself is slow with this type
        parts = (bits[start : start + _PART] for start in range(0, len(bits), _PART))
        return all((part << 1).max() < 0xFF00 for part in parts)  # without the sign; the exponent is all ones
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(array.sum()) or np.isfinite(array).all())


def filled(name: str, array: Any) -> None:
    """Raises a ValueError for an array without elements."""
    if 0 in (shape := np.shape(array)):
        raise ValueError(f"{name} must not be empty; got an array of shape {shape}")


def unmasked(name: str, value: Any) -> None:
    """Raises a TypeError for an array with a mask, as what is computed of it would not heed that."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must be an array without a mask; got {described(value)}: leave out what is masked")


def in_native_order(name: str, value: Any) -> None:
    """Raises a TypeError for numbers in the order of bytes of other machines, which devices do not take."""
    if isinstance(value, np.ndarray | np.generic) and not value.dtype.isnative:
        native = value.dtype.newbyteorder("=")
        raise TypeError(
            f"{name} must be in this machine's order of bytes; got {value.dtype}: use astype({str(native)!r})"
        )


def in_32_bits(name: str, value: Any) -> None:
    """Raises a ValueError for whole numbers beyond 32 bits, which devices would make others of."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.dtype.itemsize > 4 and value.size:
        extremes: tuple[Any, ...] = (value.min(), value.max())
    else:
        extremes = (value,) if isinstance(value, int) else ()
    for extreme in extremes:
        if not -(2**31) <= extreme < 2**31:
            raise ValueError(f"{name} must be whole numbers of 32 bits; got {extreme}")


_LARGEST, _LEAST = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)


def in_float32(name: str, value: Any) -> None:
    """Raises a ValueError for a finite number that is infinite as float32, which devices compute with."""
    if isinstance(value, float) and _LARGEST < abs(value) < math.inf:
        raise ValueError(f"{name} must be a number of float32, at most 3.4e38; got {value}")


def is_array(value: Any) -> bool:
    """Whether it is an array of numbers or keys."""
    kind = getattr(getattr(value, "dtype", np.dtype("O")), "kind", "")
    return hasattr(value, "shape") and not _is_class(value) and kind not in ("O", "S", "U")


def _is_class(value: Any) -> bool:
    """Whether it is a class, such as `np.float32`, which has the attributes of its instances, and is none."""
    return isinstance(value, type)


def _is_real(value: Any) -> bool:
    return is_array(value) and not jax.dtypes.issubdtype(value.dtype, np.complexfloating)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    if isinstance(value, int | float):
        return not isinstance(value, bool)
    return getattr(value, "shape", None) == () and getattr(value, "dtype", None) is not None and _is_real(value)


def _is_numbers(value: Any) -> bool:
    try:
        return np.asarray(value).dtype.kind in "biuf" and not isinstance(value, str | bytes)
    except (TypeError, ValueError):  # rows of several lengths, or what NumPy does not know
        return False


def _is_dtype(value: Any) -> bool:
    try:
        return value is not None and any(jnp.issubdtype(jnp.dtype(value), kind) for kind in (jnp.number, jnp.bool))
    except (TypeError, ValueError, UnicodeError):  # what is called by no name of a type
        return False


def _is_sequence(value: Any) -> bool:
    is_one = hasattr(value, "__len__") and hasattr(value, "__getitem__") and not _is_class(value)
    return is_one and not isinstance(value, str | bytes | Mapping)


def _scalar(name: str, value: Any) -> np.ndarray:
    in_32_bits(name, value)
    in_float32(name, value)
    if not _is_number(value):
        what = f"an array of shape {np.shape(value)}" if is_array(value) else described(value)
        raise (ValueError if is_array(value) else TypeError)(f"{name} must be one number; got {what}")
    return np.asarray(value)


def _no_nan(name: str, value: Any) -> None:
    _KINDS[float].check(name, value)
    in_float32(name, value)
    if np.isnan(value):
        raise ValueError(f"{name} must be a number; got {value}")


def _not_nan(name: str, value: Any, kind: Kind | None) -> None:
    """Raises for NaN where a number is one of several kinds."""
    if kind is not None:
        kind.check(name, value)
    in_float32(name, value)
    if isinstance(value, float) and np.isnan(value):
        raise ValueError(f"{name} must be a number; got {value}")


def _text(name: str, value: Any) -> None:
    _KINDS[str].check(name, value)
    encodable(name, value)


def _seed(name: str, value: Any) -> None:
    whole(name, value, 0, 2**63 - 1)


_PLURALS: dict[Any, str] = {str: " of strings", int: " of whole numbers", float: " of numbers"}
_UNTOLD = (Any, object, inspect.Parameter.empty)
_KINDS: dict[Any, Kind] = {
    type(None): Kind("None", lambda value: value is None),
    bool: Kind("True or False", lambda value: isinstance(value, bool | np.bool_)),
    int: Kind("a whole number", _is_whole),
    float: Kind("a number", _is_number),
    str: Kind("a string", lambda value: isinstance(value, str)),
    Path: Kind("a path", lambda value: isinstance(value, os.PathLike)),
    np.ndarray: Kind("an array of real numbers", _is_real),
    jax.Array: Kind("an array of real numbers", _is_real),
    Sequence: Kind("a sequence", _is_sequence),
    tuple: Kind("a tuple", lambda value: isinstance(value, tuple | list)),
    list: Kind("a list", lambda value: isinstance(value, tuple | list)),
    Iterable: Kind(
        "an iterable", lambda value: hasattr(value, "__iter__") and not isinstance(value, str | bytes | type)
    ),
    Mapping: Kind("a mapping", lambda value: isinstance(value, Mapping)),
    Callable: Kind("a function", callable),
}
