"""Columns: what a field of the records is, how its values are checked, and how a batch is made of them.

`Text`, `TextPair`, `Number` and `Vector` are here; another kind of column (images, sounds) is any class with the three
methods of `Column`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxemb.checks import check_types, described, encodable, instance, whole
from jaxemb.data import fixed_rows, packing
from jaxemb.data.tokenizer import Encoded, Tokenizer
from jaxemb.types import Tokens


@dataclasses.dataclass(frozen=True)
class Layout:
    """How values of the columns become arrays: what all columns of some batches have in common.

    Attributes:
      tokenizer: texts to ids; None where no column is of texts.
      max_length: longest text in tokens, where a column has no limit of its own.
      row_length: length of packed rows; None puts one text into a row.
      buckets: row lengths that padded columns may have, ascending.
      row_multiple: the number of packed rows is a multiple of this.
    """

    tokenizer: Tokenizer | None
    max_length: int
    row_length: int | None = None
    buckets: Sequence[int] = packing.COARSE
    row_multiple: int = 1

    @property
    def texts_to_ids(self) -> Tokenizer:
        """The tokenizer. Raises ValueError where there is none."""
        if self.tokenizer is None:
            raise ValueError("tokenizer must be a Tokenizer where a column is of texts; got None")
        return self.tokenizer


@runtime_checkable
class Column(Protocol):
    """What `batches` asks of a column. If it has `fields`, a value is the list of these fields of the record."""

    def complete(self, value: Any) -> "Column":
        """The column with what it leaves open taken from the value of a source's first record."""
        ...

    def check(self, value: Any) -> None:
        """Raises a ValueError, "expected ...; got ...", for a value that is none of this (completed) column's."""
        ...

    def collate(self, values: Sequence[Any], layout: Layout) -> Any:
        """The batch of N checked values: a pytree of NumPy arrays, such as a batch type of `jaxemb.types`."""
        ...


class Texts:
    """What columns of texts have in common: ids of every text first, rows of them afterwards."""

    max_length: int | None

    def encode(self, values: Sequence[Any], layout: Layout) -> Encoded:
        """Token ids of the texts of all values, value by value."""
        raise NotImplementedError

    def collate(self, values: Sequence[Any], layout: Layout) -> Tokens:
        return self.arrange(self.encode(values, layout), layout)

    def arrange(
        self,
        encoded: Encoded,
        layout: Layout,
        rows: int | None = None,
        placement: packing.Placement | None = None,
    ) -> Tokens:
        """The texts in rows, one in each or packed; `rows` and `placement` are those of `packing.pack`."""
        if layout.row_length is None:
            longest = max(map(len, encoded.ids))
            length = min(packing.bucket(longest, layout.buckets), self.longest(layout))
            tokens = packing.pad(encoded.ids, length=length, type_ids=encoded.type_ids)
        else:
            tokens = packing.pack(
                encoded.ids,
                row_length=self.row_length(layout),
                rows=rows,
                texts_per_row=self.texts_per_row(layout),
                row_multiple=layout.row_multiple,
                type_ids=encoded.type_ids,
                placement=placement,
            )
        return tokens if encoded.prompt_lengths is None else packing.marked(tokens, encoded.prompt_lengths)

    def packed(self, encoded: Encoded, layout: Layout, records: int, rows: int = 0) -> fixed_rows.Packed:
        """The texts of some records, that are to be packed."""
        lengths = np.fromiter(map(len, encoded.ids), np.int64).reshape(records, -1)
        return fixed_rows.Packed(lengths, self.row_length(layout), self.texts_per_row(layout), rows)

    def longest(self, layout: Layout) -> int:
        """The most tokens of a text."""
        return self.max_length or layout.max_length

    def row_length(self, layout: Layout) -> int:
        """The length of packed rows."""
        return max(layout.row_length or 0, self.longest(layout))

    def texts_per_row(self, layout: Layout) -> int:
        """The text slots of packed rows: eight tokens a text, as shorter ones are rare; fixed, to keep the shape."""
        return -(-self.row_length(layout) // 8)


@dataclasses.dataclass(frozen=True)
class Text(Texts):
    """A column of texts, or of lists of K texts each: `Tokens` of N, or N * K, record-major.

    Attributes:
      max_length: longest text in tokens; None takes that of the batches.
      prompt: text to put in front of each, such as E5's "query: "; its tokens are marked, `Tokens.prompt`, for
        attention and poolings that ask.
      per_record: K; None takes that of the first record. For K = 1 a text need not be in a list.
    """

    max_length: int | None = None
    prompt: str = ""
    per_record: int | None = None

    def __post_init__(self):
        _check_sizes(self)
        instance("prompt", self.prompt, str)

    def complete(self, value: Any) -> "Text":
        if self.per_record is not None:
            return self
        return dataclasses.replace(self, per_record=max(len(value), 1) if _is_list(value) else 1)

    def check(self, value: Any) -> None:
        if isinstance(value, str) and self.per_record == 1:
            return encodable("the text", value)
        if not _is_list(value):
            expected = "a str" if self.per_record == 1 else f"a list of {self.per_record} texts"
            raise ValueError(f"expected {expected}; got {described(value)}")
        if len(value) != self.per_record:
            size = self.per_record if value or self.per_record != 1 else "some"
            raise ValueError(f"expected a list of {size} texts; got {len(value)}")
        for i, text in enumerate(value):
            if not isinstance(text, str):
                raise ValueError(f"expected a list of str; got {described(text)} at {i}")
            encodable(f"text {i}", text)

    def encode(self, values: Sequence[Any], layout: Layout) -> Encoded:
        texts = [text for value in values for text in _listed(value)]
        if not self.prompt:
            return layout.texts_to_ids.encode(texts, self.longest(layout))
        encoded = layout.texts_to_ids.encode([self.prompt + text for text in texts], self.longest(layout))
        lengths = np.full(len(texts), layout.texts_to_ids.prompt_length(self.prompt), np.int32)
        return encoded._replace(prompt_lengths=lengths)


@dataclasses.dataclass(frozen=True)
class TextPair(Texts):
    """Pairs of texts that a model reads as one, as cross-encoders do: `Tokens` with token types.

    A value is a pair `[first, second]`, or `[first, [second_1, ..., second_K]]` for K pairs with one first text. With
    `fields` it is made of two fields of the record: `{"pair": TextPair(fields=("query", "document"))}`.

    Attributes:
      max_length: most tokens of a pair; None takes that of the batches. The longer text is cut first.
      fields: the names of the fields of both texts; None takes the field of the column's own name.
      per_record: K; None takes that of the first record.
    """

    max_length: int | None = None
    fields: tuple[str, str] | None = None
    per_record: int | None = None

    def __post_init__(self):
        _check_sizes(self)
        check_types(self)

    def complete(self, value: Any) -> "TextPair":
        if self.per_record is not None:
            return self
        several = _is_list(value) and len(value) == 2 and _is_list(value[1])
        return dataclasses.replace(self, per_record=max(len(value[1]), 1) if several else 1)

    def check(self, value: Any) -> None:
        if not _is_list(value) or len(value) != 2:
            raise ValueError(f"expected a pair of texts; got {described(value)}")
        first, seconds = value
        if not isinstance(first, str):
            raise ValueError(f"expected a str as the first text of a pair; got {described(first)}")
        encodable("first of a pair", first)
        try:
            Text(per_record=self.per_record).check(seconds)
        except ValueError as error:
            raise ValueError(f"second of a pair: {error}") from None

    def encode(self, values: Sequence[Any], layout: Layout) -> Encoded:
        pairs = [(first, second) for first, seconds in values for second in _listed(seconds)]
        return layout.texts_to_ids.encode_pairs(pairs, self.longest(layout))


@dataclasses.dataclass(frozen=True)
class Number:
    """A column of numbers, scores or labels: an array `[N]`.

    Attributes:
      dtype: of the array; None takes int32 where the first record has an int or a bool, else float32.
    """

    dtype: str | None = None

    def __post_init__(self):
        check_types(self)

    def complete(self, value: Any) -> "Number":
        return self if self.dtype else Number("float32" if isinstance(value, float | np.floating) else "int32")

    def check(self, value: Any) -> None:
        if not _is_number(value) or not _is_finite(value):
            raise ValueError(f"expected a finite number; got {described(value)}")
        if np.issubdtype(self.dtype, np.integer) and value != int(value):
            raise ValueError(f"expected an integer ({self.dtype}); got {described(value)}")
        _check_range(value, self.dtype)

    def collate(self, values: Sequence[Any], layout: Layout) -> np.ndarray:
        return np.asarray(values, self.dtype)


@dataclasses.dataclass(frozen=True)
class Vector:
    """A column of lists of D numbers each, such as a teacher's scores or embeddings: an array `[N, D]`.

    Attributes:
      dtype: of the array; None takes int32 where the first record has ints or bools alone, else float32.
      size: D; None takes that of the first record.
    """

    dtype: str | None = None
    size: int | None = None

    def __post_init__(self):
        check_types(self)
        if self.size is not None:
            whole("size", self.size, 1)

    def complete(self, value: Any) -> "Vector":
        numbers = _vector(value) if _is_vector(value) else np.zeros(1)
        dtype = self.dtype or ("float32" if numbers.dtype.kind == "f" else "int32")
        return Vector(dtype, self.size or max(len(numbers), 1))

    def check(self, value: Any) -> None:
        if not _is_vector(value):
            raise ValueError(f"expected a list of {self.size} numbers; got {described(value)}")
        if len(value) != self.size:
            raise ValueError(f"expected a list of {self.size} numbers; got {len(value)}")
        finite = np.isfinite(value) if isinstance(value, np.ndarray) else np.array([*map(_is_finite, value)])
        if not finite.all():
            i = int(np.argmin(finite))
            raise ValueError(f"expected a list of finite numbers; got {described(value[i])} at {i}")
        numbers = _vector(value)
        if np.issubdtype(self.dtype, np.integer) and (numbers != np.floor(numbers)).any():
            i = int(np.argmax(numbers != np.floor(numbers)))
            raise ValueError(f"expected a list of integers ({self.dtype}); got {described(value[i])} at {i}")
        _check_range(value, self.dtype)

    def collate(self, values: Sequence[Any], layout: Layout) -> np.ndarray:
        return np.asarray(values, self.dtype).reshape(len(values), -1)


def _check_sizes(column: Any) -> None:
    for name in ("max_length", "per_record"):
        if getattr(column, name) is not None:
            whole(name, getattr(column, name), 1)


def _is_finite(number: Any) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an int beyond all floats
        return False


def _check_range(value: Any, dtype: Any) -> None:
    """Raises a ValueError for finite numbers that become others, or infinite, in this type."""
    if np.issubdtype(dtype, np.integer):
        numbers = value if isinstance(value, list | tuple | np.ndarray) else [value]
        fits = all(np.iinfo(dtype).min <= number <= np.iinfo(dtype).max for number in (min(numbers), max(numbers)))
    else:
        with np.errstate(over="ignore"):
            fits = bool(np.isfinite(np.asarray(value, dtype).astype(np.float64)).all())
    if not fits:
        raise ValueError(f"expected numbers in the range of {dtype}; got {described(value)}")


Columns = Sequence[str] | Mapping[str, Column | None]


def tells(value: Any) -> bool:
    """Whether a value alone tells the kind of its column: there may be floats among whole numbers, null among all."""
    return (not _is_missing(value) and not (_is_number(value) or _is_vector(value))) or _is_float(value)


def typical(values: Sequence[Any]) -> Any:
    """Of the first values of a column the one that tells most: the first that is there, or among numbers a float."""
    present = [value for value in values if not _is_missing(value)] or [values[0]]
    return present[0] if tells(present[0]) else next(filter(_is_float, present), present[0])


def kind_of(value: Any) -> Column:
    """The column, completed, that a value seems to be of: text(s) where it is nothing else."""
    if _is_number(value):
        return Number().complete(value)
    if _is_vector(value) and len(value):
        return Vector().complete(value)
    return Text().complete(value)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float | np.floating) and math.isnan(value))


def _is_float(value: Any) -> bool:
    is_numbers = _is_number(value) or _is_vector(value)
    return is_numbers and not _is_missing(value) and np.asarray(value).dtype.kind == "f"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_vector(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim == 1 and value.dtype.kind in "biuf"
    return _is_list(value) and all(map(_is_number, value))


def _vector(value: Any) -> np.ndarray:
    return np.asarray(value)


def _listed(value: Any) -> Sequence:
    return value if _is_list(value) else (value,)
