"""Dictionaries: entries and the texts that define them.

definitions = read_dictionary("dictionary.tsv", names=("word", "definition"))
train, dev, test = definitions.split()
batches(train.source(), tokenizer, ("definition", "entry"), batch_size=32, max_length=150)
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxemb.checks import checked, instance
from jaxemb.data.files import RecordError
from jaxemb.data.records import Source, from_list, read
from jaxemb.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Definitions:
    """A dictionary of V entries and N >= V definitions.

    Attributes:
      entries: the V entries (words or phrases), all different.
      texts: the N definitions.
      entry: which entry each defines, int32 `[N]`; each has one at least.

    Raises:
      ValueError: for an empty entry or definition, entries that are the same, or numbers that do not fit.
    """

    entries: Sequence[str]
    texts: Sequence[str]
    entry: np.ndarray

    def __post_init__(self):
        for name in ("entries", "texts"):
            instance(name, getattr(self, name), Sequence[str])
        if len(self.texts) != len(self.entry):
            raise ValueError(f"entry must have one number per definition; got {len(self.entry)} of {len(self.texts)}")
        if set(np.unique(self.entry).tolist()) != set(range(len(self.entries))):
            raise ValueError(f"entry must have each number in 0..{len(self.entries) - 1}, and no others")
        if len(set(self.entries)) < len(self.entries):
            raise ValueError("entries must be different from each other")
        for text, number in zip(self.texts, self.entry.tolist(), strict=True):
            if not text.strip() or not self.entries[number].strip():
                raise ValueError(f"empty definition or entry: {self.entries[number]!r} is {text!r}")

    def __len__(self) -> int:
        """N, the number of definitions."""
        return len(self.texts)

    @classmethod
    def from_pairs(cls, pairs: Iterable[tuple[str, str]]) -> "Definitions":
        """The dictionary of (entry, definition) pairs, in their order."""
        numbers: dict[str, int] = {}
        texts, entry = [], []
        for name, text in pairs:
            entry.append(numbers.setdefault(name, len(numbers)))
            texts.append(text)
        return cls(tuple(numbers), texts, np.array(entry, np.int32))

    def source(self) -> Source:
        """Records of the columns "definition" and "entry" (its number), one per definition."""
        return from_list(
            [{"definition": text, "entry": int(e)} for text, e in zip(self.texts, self.entry, strict=True)],
            name="definitions",
        )

    def words(self, tokenizer: Tokenizer) -> Source:
        """Those records whose entry is one token of the tokenizer, with that token as the column "word" (DefSent)."""
        encodings = tokenizer.backend.encode_batch_fast(list(self.entries), add_special_tokens=False)
        token = np.array([e.ids[0] if len(e.ids) == 1 else -1 for e in encodings])
        token[token == tokenizer.special_ids.get("unk", -1)] = -1
        records = self.source().map(lambda record: {**record, "word": int(token[record["entry"]])})
        return records.select(np.flatnonzero(token[self.entry] >= 0).tolist())

    def select(self, entries: Sequence[int] | np.ndarray) -> "Definitions":
        """The dictionary of some entries, by their numbers, in that order; they are numbered anew."""
        number = np.full(len(self.entries), -1, np.int32)
        number[np.asarray(entries, int)] = np.arange(len(entries))
        kept = np.flatnonzero(number[self.entry] >= 0).tolist()
        names = [self.entries[int(i)] for i in entries]
        return Definitions(names, [self.texts[i] for i in kept], number[self.entry[kept]])

    def split(self, shares: Sequence[float] = (0.8, 0.1, 0.1), seed: int = 0) -> tuple["Definitions", ...]:
        """Parts with about these shares of the entries, such as train, dev and test; each numbers its entries anew.

        Where an entry goes depends on itself and the seed alone, so it stays there when the dictionary grows. Synonyms
        that have a definition in common may be parted.

        Raises:
          ValueError: unless shares are positive and sum to 1, or if a part gets no entry.
        """
        if min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"shares must be positive and sum to 1; got {tuple(shares)}")
        hashes = [hashlib.sha256(f"{seed}\0{name}".encode()).digest() for name in self.entries]
        uniform = np.array([int.from_bytes(h[:6], "big") for h in hashes]) / 2**48
        part = np.searchsorted(np.cumsum(shares)[:-1], uniform, side="right")
        chosen = [np.flatnonzero(part == i) for i in range(len(shares))]
        if empty := [i for i, entries in enumerate(chosen) if not len(entries)]:
            raise ValueError(f"shares: part {empty[0]} gets none of the {len(self.entries)} entries")
        return tuple(map(self.select, chosen))


@checked()
def read_dictionary(
    path: str | Path,
    *,
    word: str = "word",
    definition: str = "definition",
    names: Sequence[str] | None = None,
    separator: str | None = None,
) -> Definitions:
    """A dictionary from a tsv, csv, jsonl or parquet file with one row per definition, or several in a row.

    Args:
      path: see `read`, which reads the file and raises for what is wrong with it.
      word: the field of the entry.
      definition: the field of its definition, or of a list of them.
      names: the fields of a tsv or csv file without a header line.
      separator: what parts several definitions in one field, such as "<|list_more_def|>" (DefSent+'s files).

    Raises:
      RecordError: naming file and row of an entry or definition that is no text, or empty.
    """
    source = read(path, columns={"word": word, "definition": definition}, names=names)
    pairs = []
    for number, record in enumerate(source.__getitems__(range(len(source)))):
        found = record["definition"]
        parted = found.split(separator) if separator and isinstance(found, str) else found
        (entry,) = _texts([record["word"]], word, f"{path}: row {number}")
        pairs += [(entry, text) for text in _texts(parted, definition, f"{path}: row {number}")]
    return Definitions.from_pairs(pairs)


@checked()
def read_wordnet(path: str | Path) -> Definitions:
    """A dictionary from a jsonl file of WordNet's synsets, with lists "words" and "definitions": each of the words is
    an entry that each of the definitions defines, so that synonyms share them. Raises as `read_dictionary` does."""
    source = read(path, columns=("words", "definitions"))
    return Definitions.from_pairs(
        (word, text)
        for number, synset in enumerate(source.__getitems__(range(len(source))))
        for word in _texts(synset["words"], "words", f"{path}: row {number}")
        for text in _texts(synset["definitions"], "definitions", f"{path}: row {number}")
    )


def _texts(found: Any, field: str, where: str) -> list[str]:
    """The texts of a field of one or of a list, without white space around them."""
    texts = found if isinstance(found, list) else [found]
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise RecordError(
                f"{where}: {field!r} must be a text that is not empty, or a list of them; got {text!r:.60}"
            )
    return [text.strip() for text in texts]
