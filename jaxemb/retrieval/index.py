"""A search index on disk: vectors, the records they stand for, and which model made them.

manifest.json  format, model, dim, count, dtype, similarity, text, fingerprint, sha256
vectors.npy    [count, dim], opened memory-mapped
records.jsonl  one JSON object per vector, in order
"""

import base64
import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxemb.checks import at_least, checked, having, json_text, whole
from jaxemb.encoders.transformer import Transformer
from jaxemb.files import Contents, mapped_array, parse_json, read_json, read_whole, replaced_files, sha256, write_json
from jaxemb.retrieval.exact import topk_search
from jaxemb.settings import Settings, inner, size
from jaxemb.settings import text as string

if TYPE_CHECKING:
    from jaxemb.sentence_embedder import SentenceEmbedder

_FORMAT = 3
logger = logging.getLogger(__name__)

_MANIFEST, _VECTORS, _RECORDS = "manifest.json", "vectors.npy", "records.jsonl"

_PROBE = "The quick brown fox jumps over the lazy dog."  # whose vector a model is known by
_SAME = 0.002  # of its length; what another device or order of sums may change
_ALIKE = 0.05  # and what another precision or type of the weights may

CONTENTS = Contents("search index", mark=_MANIFEST, files=(_MANIFEST, _VECTORS, _RECORDS))


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says.

    Attributes:
      model: directory or hub id of the model, for `jaxemb.load`.
      dim: dimension of the vectors.
      count: number of vectors and records.
      dtype: of the vectors, "float32" or "float16".
      similarity: "cosine", "dot" or "euclidean".
      text: the records' field that was encoded.
      fingerprint: the model's vector of a text that is always the same, float32, as base64.
      sha256: of the other files, and under "manifest.json" of what is here, but for `model` and `text`, which may
        change.
      format: version of this layout.
    """

    model: str
    dim: int
    count: int
    dtype: str
    similarity: str
    text: str
    fingerprint: str
    sha256: Mapping[str, str]
    format: int = _FORMAT


@dataclasses.dataclass(frozen=True)
class Hit:
    """A result: the record, its number in the index, and its similarity to the query (larger is better)."""

    score: float
    id: int
    record: dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class SearchIndex:
    """An opened index; `open_index` makes one. Vectors stay on disk, and records stay unparsed, until needed."""

    path: Path
    manifest: Manifest
    vectors: np.ndarray
    lines: Sequence[bytes]
    _known: list[Any] = dataclasses.field(
        default_factory=list, repr=False, compare=False
    )  # the model that was seen last

    def __len__(self) -> int:
        return self.manifest.count

    def __repr__(self) -> str:
        of, size = self.manifest, f"{len(self):,} x {self.manifest.dim} {self.manifest.dtype}"
        return f"SearchIndex({str(self.path)!r}, {size}, {of.similarity}, model={of.model!r})"

    @checked()
    def record(self, id: int) -> dict[str, Any]:
        """The record number `id`.

        Raises:
          ValueError: if there is no such record, or its line in the file is no JSON object with the field of the text.
        """
        whole("id", id, 0, len(self) - 1)
        try:
            record = parse_json(self.lines[id], dict, finite=False)
            if (text := self.manifest.text) not in record:
                raise ValueError(f"expected the field {text!r}, which {_MANIFEST} calls text; got {list(record)}")
        except ValueError as error:
            raise ValueError(f"{self.path / _RECORDS}:{id + 1}: {error}") from error
        return record

    @checked(k=at_least(1), embedder=having("encode", "model", "prompts"))
    def search(
        self,
        queries: Sequence[str],
        embedder: "SentenceEmbedder",
        k: int = 10,
        *,
        prompt_name: str | None = None,
    ) -> list[list[Hit]]:
        """The k records most similar to each query, best first; exact.

        Args:
          queries: the texts.
          embedder: the model that the index was built with; its vector of one text is compared with that model's.
          k: number of hits; fewer where the index is smaller.
          prompt_name: a prompt of the model; None takes the one called "query" where there is one.

        Raises:
          ValueError: if the index was built with another model, whose vector of one text is more than 5 % of the
            length away, or k < 1. Of one that is nearer, and not the same, a warning tells.
        """
        self._check_model(embedder)
        if prompt_name is None and "query" in embedder.prompts:
            prompt_name = "query"
        vectors = embedder.encode(list(queries), prompt_name=prompt_name)
        scores, ids = topk_search(vectors, self.vectors, k, metric=self.manifest.similarity)
        return [
            [Hit(score, id, self.record(id)) for score, id in zip(*row, strict=True)]
            for row in zip(scores.tolist(), ids.tolist(), strict=True)
        ]

    def _check_model(self, embedder: "SentenceEmbedder") -> None:
        if any(model is embedder.model for model in self._known):
            return
        made = f"{self.path} holds vectors of dimension {self.manifest.dim}, made by {self.manifest.model}"
        if embedder.model.dim != self.manifest.dim:
            raise ValueError(f"{made}; this model's have {embedder.model.dim}")
        theirs = np.frombuffer(base64.b64decode(self.manifest.fingerprint), np.float32)
        distance, length = np.linalg.norm(_probe(embedder) - theirs), np.linalg.norm(theirs)
        away = f"{distance / length:.1%}"
        if not distance <= _ALIKE * length:
            raise ValueError(
                f"{made}; this is another model: its vector of one text is {away} of the length away. "
                "Search with that model, or build the index anew with this one"
            )
        if distance > _SAME * length:
            logger.warning(
                "%s; this is that model in another precision, or one trained on from it: its vector of one text is %s "
                "of the length away. If it was trained on, build the index anew",
                made,
                away,
            )
        self._known[:] = [embedder.model]  # not all of them, which would stay in memory


@checked(embedder=having("encode", "model", "similarity_fn_name", "prompts"))
def build_index(
    path: str | Path,
    records: Sequence[str | Mapping[str, Any]],
    embedder: "SentenceEmbedder",
    *,
    model: str,
    text: str = "text",
    prompt_name: str | None = None,
    vectors: np.ndarray | None = None,
    dtype: str = "float32",
    show_progress: bool = False,
) -> SearchIndex:
    """Encodes the records' texts and writes an index directory, all or nothing.

    Args:
      path: the directory; an index that is there is replaced, what else is there stays.
      records: texts, or JSON objects with the text in one field.
      embedder: the model.
      model: how `jaxemb.load` finds that model again.
      text: the field of the text; a record that is just a text becomes `{text: ...}`.
      prompt_name: a prompt of the model; None takes "document", "passage" or "corpus" where there is one.
      vectors: the records' embeddings `[N, D]`, if they are at hand; None encodes the texts.
      dtype: of the vectors on disk, "float32" or "float16".
      show_progress: show a bar with texts/s and the time left.

    Raises:
      FileExistsError: if `path` is something other than an index.
      ValueError: if there are no records, a record lacks the field, has a lone surrogate or a number that JSON does not
        have (NaN, infinities), `vectors` do not fit, an embedding is not finite, or the model compares vectors in a way
        that cannot be searched.
      TypeError: naming the record whose text is no string, or that JSON cannot hold, such as a key that is no string.
    """
    path = Path(path)
    if not len(records):
        raise ValueError("records must not be empty")
    if vectors is not None and np.shape(vectors) != (len(records), embedder.model.dim):
        raise ValueError(
            f"vectors must be {(len(records), embedder.model.dim)}, as the records; got {np.shape(vectors)}"
        )
    if embedder.similarity_fn_name not in ("cosine", "dot", "euclidean"):
        raise ValueError(f"an index compares by cosine, dot or euclidean; the model by {embedder.similarity_fn_name!r}")
    objects = [{text: record} if isinstance(record, str) else dict(record) for record in records]
    texts = [_text(record, text, number) for number, record in enumerate(objects)]
    stored = (name for name in ("document", "passage", "corpus") if name in embedder.prompts)
    with replaced_files(path, CONTENTS) as fresh:
        with open(fresh / _RECORDS, "w", encoding="utf-8", newline="\n") as file:
            for number, record in enumerate(objects):
                file.write(json_text(f"record {number}", record) + "\n")
        if vectors is None:
            vectors = embedder.encode(
                texts,
                prompt_name=next(stored, None) if prompt_name is None else prompt_name,
                dtype=dtype,
                out=fresh / _VECTORS,
                show_progress=show_progress,
            )
        else:
            given, mapped = vectors, mapped_array(fresh / _VECTORS, np.shape(vectors), dtype)
            with np.errstate(over="ignore", under="ignore"):  # what becomes infinite or zero is named
                vectors = mapped[:] = np.asarray(given, dtype)
            mapped.flush()
            _check_not_tiny(given, dtype)
        _check_finite(vectors)
        manifest = Manifest(
            model=model,
            dim=vectors.shape[1],
            count=len(vectors),
            dtype=dtype,
            similarity=embedder.similarity_fn_name,
            text=text,
            fingerprint=base64.b64encode(_probe(embedder).tobytes()).decode("ascii"),
            sha256={name: sha256(fresh / name) for name in (_VECTORS, _RECORDS)},
        )
        manifest = dataclasses.replace(manifest, sha256={**manifest.sha256, _MANIFEST: _seal(manifest)})
        write_json(fresh / _MANIFEST, dataclasses.asdict(manifest), indent=2)
    return open_index(path, verify=False)


@checked()
def open_index(path: str | Path, *, verify: bool = True) -> SearchIndex:
    """Opens an index directory, checking that its files belong together.

    Args:
      path: the directory.
      verify: whether to read all of it and compare with the SHA-256 that it was written with, about 1.5 GB/s.

    Raises:
      FileNotFoundError: naming the file that is missing.
      ValueError: for a manifest that cannot be read, and files that are damaged or do not match it.
    """
    path = Path(path)
    return read_whole(path, CONTENTS, lambda: _open(path, verify))


def _open(path: Path, verify: bool) -> SearchIndex:
    for name in (_MANIFEST, _VECTORS, _RECORDS):
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path} is no complete search index: {name} is missing")
    manifest = _read_manifest(path / _MANIFEST)
    try:
        vectors = np.load(path / _VECTORS, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a header is Python, and what NumPy raises for one is of many types
        raise ValueError(f"{path / _VECTORS} is damaged or cut off: {error}") from error
    expected = (manifest.count, manifest.dim), manifest.dtype
    if (vectors.shape, str(vectors.dtype)) != expected:
        raise ValueError(
            f"{path / _VECTORS}: manifest says {manifest.dtype} {expected[0]}; got {vectors.dtype} {vectors.shape}"
        )
    lines = (path / _RECORDS).read_bytes().split(b"\n")[:-1]
    if len(lines) != manifest.count:
        raise ValueError(f"{path / _RECORDS}: manifest says {manifest.count} records; got {len(lines)} whole lines")
    for name in (_VECTORS, _RECORDS) if verify else ():
        if sha256(path / name) != manifest.sha256[name]:
            raise ValueError(f"{path / name} was changed after the index was built; build it anew")
    index = SearchIndex(path, manifest, vectors, lines)
    index.record(0)  # which has the field of the text
    return index


def _read_manifest(path: Path) -> Manifest:
    c = Settings(read_json(path, dict), str(path), ValueError)
    if (version := c.get("format")) != _FORMAT:
        raise ValueError(f"{path}: format must be {_FORMAT}; got {version!r:.60}; build the index anew")
    hashes = inner(c, "sha256")
    manifest = Manifest(
        **{key: string(c, key) for key in ("model", "text", "fingerprint")},
        **{key: size(c, key) for key in ("dim", "count")},
        dtype=string(c, "dtype", options=("float32", "float16")),
        similarity=string(c, "similarity", options=("cosine", "dot", "euclidean")),
        sha256={name: string(hashes, name) for name in (_VECTORS, _RECORDS, _MANIFEST)},
    )
    try:
        length = len(base64.b64decode(manifest.fingerprint, validate=True))
    except ValueError:
        length = -1
    if length != 4 * manifest.dim:
        raise ValueError(f"{path}: fingerprint must be base64 of {manifest.dim} numbers, as dim says; build it anew")
    if manifest.sha256[_MANIFEST] != _seal(manifest):
        raise ValueError(f"{path} was changed after the index was built; build it anew")
    return manifest


def _seal(manifest: Manifest) -> str:
    """SHA-256 of what a manifest says, but for the names, which may change: models move."""
    said = dataclasses.asdict(manifest) | {"sha256": [manifest.sha256[name] for name in (_VECTORS, _RECORDS)]}
    said = {name: value for name, value in said.items() if name not in ("model", "text")}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _probe(embedder: "SentenceEmbedder") -> np.ndarray:
    """The model's vector of a text, all of it: how much of texts the embedder reads does not make another model."""
    if isinstance(encoder := getattr(embedder.model, "encoder", None), Transformer):
        needed = min(len(embedder.tokenizer([_PROBE])[0]), encoder.config.max_positions)
        embedder = embedder.replace(max_length=max(embedder.max_length, needed))
    return np.asarray(embedder.encode([_PROBE])[0], np.float32)


def _text(record: Mapping[str, Any], field: str, number: int) -> str:
    if field not in record:
        raise ValueError(f"record {number} has no field {field!r}; it has {sorted(record)}")
    if not isinstance(record[field], str):
        raise TypeError(f"record {number}: {field!r} must be a str; got {type(record[field]).__name__}")
    return record[field]


def _check_finite(vectors: np.ndarray, chunk: int = 65_536) -> None:
    for start in range(0, len(vectors), chunk):
        finite = np.isfinite(vectors[start : start + chunk]).all(axis=1)
        if not finite.all():
            raise ValueError(f"the embedding of record {start + int(np.argmin(finite))} is not finite")


def _check_not_tiny(vectors: Any, dtype: str, chunk: int = 65_536) -> None:
    """Raises a ValueError, naming the record, if a vector has no digits left in `dtype`, and is not zero."""
    for start in range(0, len(vectors), chunk):
        largest = np.abs(np.asarray(vectors[start : start + chunk])).max(axis=1)
        if (tiny := (largest > 0) & (largest < np.finfo(dtype).tiny)).any():
            raise ValueError(f"the embedding of record {start + int(np.argmax(tiny))} is too small for {dtype}")
