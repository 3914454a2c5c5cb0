"""Readers against files that nobody thought of: no crash, no hang above 10 s, no memory above 1 GB.

    JAXEMB_FAULTS=all JAXEMB_FUZZ_SECONDS=3600 python -m pytest tests/faults/test_fuzz.py -m slow

Files begin as good ones, so that what is damaged is looked at: bytes are changed, cut out, doubled and put in, and the
keys of JSON files get any value. What comes of a file is judged as everywhere in this folder, but that other content is
other content: a reader may take it.
"""

import collections
import dataclasses
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mutations
import outcomes
import places
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from outcomes import Case

from jaxemb.checkpoints import read_tensors
from jaxemb.data import Tokenizer

SECONDS = float(os.environ.get("JAXEMB_FUZZ_SECONDS", "60"))


@dataclasses.dataclass(frozen=True)
class Reader:
    """What reads the files of a place that match; `use` if it is not all that is done with the place."""

    place: str
    files: str = r"."
    use: Callable[[Path], Any] | None = None


READERS = {
    "safetensors": Reader("model", r"^model.safetensors$", lambda path: dict(read_tensors(path))),
    "tokenizer": Reader(
        "model", r"^tokenizer", lambda path: [ids.tolist() for ids in Tokenizer.from_directory(path)(places.TEXTS)]
    ),
    "model": Reader("model", r"json$"),
    "sharded model": Reader("sharded model", r"index.json$|vocab.txt"),
    "csv": Reader("csv"),
    "csv.gz": Reader("csv.gz"),
    "jsonl": Reader("jsonl"),
    "parquet": Reader("parquet"),
    "dictionary": Reader("dictionary"),
    "retrieval data": Reader("retrieval data"),
    "index": Reader("index"),
    "checkpoint": Reader("run", r"step_00000004|run.json|metrics.jsonl"),
}

_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_edits = st.tuples(
    st.sampled_from(("flip", "cut", "put", "double", "truncate")),
    st.floats(0, 1),
    st.integers(1, 64),
    st.binary(max_size=16),
)


def damaged(content: bytes, edits: list[tuple[str, float, int, bytes]]) -> bytes:
    """The bytes after edits, each at a share of their length."""
    for kind, where, length, new in edits:
        start = int(where * len(content))
        end = start + length
        match kind:
            case "flip":
                content = (
                    content[:start]
                    + bytes(b ^ (1 << length % 8) for b in content[start : start + 1])
                    + content[start + 1 :]
                )
            case "cut":
                content = content[:start] + content[end:]
            case "put":
                content = content[:start] + new + content[start:]
            case "double":
                content = content[:end] + content[start:]
            case "truncate":
                content = content[:start]
    return content


def _changed(content: bytes, changes: list[tuple[int, Any]]) -> bytes:
    """A JSON file, or the first line of several, with other values."""
    first, *rest = content.splitlines(keepends=True) if b"}\n{" in content else (content,)
    document = json.loads(first)
    for number, value in changes:
        if paths := list(mutations.keys_of(document)):
            holder = document
            *outer, last = paths[number % len(paths)]
            for key in outer:
                holder = holder[key]
            holder[last] = value
    return json.dumps(document).encode() + (b"\n" + b"".join(rest) if rest else b"")


@st.composite
def faults(draw, name: str) -> Case:
    """A file of the reader's place, damaged."""
    reader = READERS[name]
    place = places.PLACES[reader.place][0]
    if reader.use is not None:
        place = _with_use(reader.place, reader.use)
    file = draw(st.sampled_from([path for path in place.files() if re.search(reader.files, place.name_of(path))]))
    content = file.read_bytes()
    if file.suffix in (".json", ".jsonl") and draw(st.booleans()):
        content = _changed(content, draw(st.lists(st.tuples(st.integers(0, 999), _values), min_size=1, max_size=3)))
    else:
        content = damaged(content, draw(st.lists(_edits, min_size=1, max_size=4)))
    return dataclasses.replace(place.damaged(file, content), is_lawful=True)


_OTHER_USES: dict[tuple[str, Callable], places.Place] = {}


def _with_use(place: str, use: Callable[[Path], Any]) -> places.Place:
    if (place, use) not in _OTHER_USES:
        _OTHER_USES[place, use] = dataclasses.replace(places.PLACES[place][0], use=use)
    return _OTHER_USES[place, use]


def run(name: str, examples: int, number: int) -> collections.Counter:
    """Judges so many faults of a reader; raises for the first that fails, made small."""
    counts: collections.Counter = collections.Counter()

    @seed(number)
    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=False, suppress_health_check=list(HealthCheck)
    )
    @given(faults(name))
    def judged(case: Case) -> None:
        verdict = outcomes.judge(case)
        counts[verdict.outcome] += 1
        assert verdict.outcome not in outcomes.FAILURES, str(verdict)

    judged()
    return counts


def _record(record: Callable[[str, object], None], counts: collections.Counter) -> None:
    record("faults", {"tried": counts.total(), **{str(outcome): counts[outcome] for outcome in outcomes.Outcome}})


@pytest.mark.parametrize("name", READERS)
def test_a_few(name, record_property):
    _record(record_property, run(name, 2 if name == "checkpoint" else 15, 0))


@outcomes.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_for_long(name, record_property):
    until, counts, number = time.monotonic() + SECONDS / len(READERS), collections.Counter(), int(time.time())
    while time.monotonic() < until:
        number += 1
        counts += run(name, 100, number)
    _record(record_property, counts)
