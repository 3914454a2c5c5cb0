"""What can be wrong with a file: every key of a JSON file, and the bytes of any."""

import copy
import gzip
import json
import random
from collections.abc import Iterator, Mapping
from typing import Any

#: Values that a key should rarely have, by name.
WRONG: dict[str, Any] = {
    "null": None,
    "a text": "text",
    "an empty text": "",
    "-1": -1,
    "0": 0,
    "1.5": 1.5,
    "2**62": 2**62,
    "1e300": 1e300,
    "NaN": float("nan"),
    "true": True,
    "an empty list": [],
    "a nested list": [[1]],
    "an object": {"a": 1},
    "half an emoji": "\ud83d",
    "a path that leads out": "../../outside",
}
#: And for files that another library reads.
FEW = {name: WRONG[name] for name in ("null", "a text", "-1", "2**62", "an empty list", "an object")}
_SHOWN = 3  # entries of a list or of a vocabulary that are mutated

Path = tuple[str | int, ...]


def keys_of(document: Any, path: Path = (), deepest: int = 99) -> Iterator[Path]:
    """The places of a JSON document; of long lists and vocabularies the first and the last."""
    if isinstance(document, dict):
        entries: list[tuple[str | int, Any]] = list(document.items())
    elif isinstance(document, list):
        entries = list(enumerate(document))
    else:
        return
    if len(entries) > 8 and len({type(value) for _, value in entries}) == 1:
        entries = [*entries[: _SHOWN - 1], entries[-1]]
    for key, value in entries:
        yield (*path, key)
        if len(path) + 1 < deepest:
            yield from keys_of(value, (*path, key), deepest)


def json_mutants(document: Any, wrong: Mapping[str, Any] = WRONG, deepest: int = 99) -> Iterator[tuple[str, Any]]:
    """What is wrong, and the document that has it: every key left out, and with every value of `wrong`."""
    for path in keys_of(document, deepest=deepest):
        where = ".".join(map(str, path))
        yield f"{where} left out", _changed(document, path)
        for name, value in wrong.items():
            if (old := _at(document, path)) != value or type(old) is not type(value):
                yield f"{where} = {name}", _changed(document, path, value)


def json_files(content: bytes, wrong: Mapping[str, Any] = WRONG, deepest: int = 99) -> Iterator[tuple[str, bytes]]:
    """What is wrong, and the bytes of a JSON file that has it; of keys inside of keys as many as `deepest`."""
    for name, document in json_mutants(json.loads(content), wrong, deepest):
        yield name, json.dumps(document).encode()
    whole = {"[]": b"[]", "{}": b"{}", "null": b"null", "a text": b'"text"', "a number": b"7", "[[1]]": b"[[1]]"}
    whole |= {"deep": b"[" * 100_000 + b"]" * 100_000, "a long number": b"9" * 5000}
    whole |= {"a key twice": content.rstrip()[:-1] + b"," + content.strip()[1:]} if content.strip()[:1] == b"{" else {}
    yield from ((f"is {name}", made) for name, made in whole.items())
    yield from byte_files(content, flips=4)


def line_files(content: bytes) -> Iterator[tuple[str, bytes]]:
    """What is wrong, and the bytes of a file of JSON lines that has it; the first line is the one that changes."""
    first, *rest = content.splitlines(keepends=True)
    for name, document in json_mutants(json.loads(first)):
        yield f"line 1: {name}", json.dumps(document).encode() + b"\n" + b"".join(rest)
    lines = {"[]": b"[]", "null": b"null", "half of it": first[: len(first) // 2], "deep": b"[" * 100_000}
    lines |= {"a key twice": first.rstrip()[:-1] + b"," + first.strip()[1:], "a long number": b"9" * 5000}
    yield from ((f"line 1 is {name}", b"".join([line, b"\n", *rest])) for name, line in lines.items())
    yield "a line missing", b"".join(rest)
    yield "lines in another order", b"".join([*rest, first])
    yield from byte_files(content, flips=4)


def byte_files(content: bytes, flips: int = 12, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """What is wrong, and the bytes of any file that has it."""
    rng = random.Random(seed)
    yield "is empty", b""
    for share in (0.1, 0.5, 0.9):
        yield f"cut to {share:.0%}", content[: int(share * len(content))]
    yield "cut by a byte", content[:-1]
    yield "with zeros behind", content + bytes(64)
    yield "zeros throughout", bytes(len(content))
    yield "no UTF-8", b"\xff\xfe" + content
    yield "a byte order mark in front", b"\xef\xbb\xbf" + content
    yield "twice", content + content
    for place in sorted(rng.randrange(8 * len(content)) for _ in range(flips)):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        yield f"bit {place} flipped", bytes(changed)


def few_files(content: bytes) -> Iterator[tuple[str, bytes]]:
    """As `byte_files`, of a file that is one of many alike."""
    yield "with zeros behind", content + bytes(64)
    if content:
        yield "cut by a byte", content[:-1]


def gzip_files(content: bytes) -> Iterator[tuple[str, bytes]]:
    """What is wrong, and the bytes of a gzip file that has it."""
    yield from byte_files(content)
    yield "no gzip", gzip.decompress(content)


def _at(document: Any, path: Path) -> Any:
    for key in path:
        document = document[key]
    return document


def _changed(document: Any, path: Path, *value: Any) -> Any:
    """The document with another value at `path`, or without that key."""
    document = copy.deepcopy(document)
    holder = _at(document, path[:-1])
    if value:
        holder[path[-1]] = value[0]
    else:
        del holder[path[-1]]
    return document
