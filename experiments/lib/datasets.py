"""The data sets and models that experiments share: whole splits, or random samples of a stated size and seed.

They are looked for in `$JAXEMB_DATA` and `$JAXEMB_MODELS`; what is absent is an `AbsentError` that says where it was
looked for. A sample is drawn at random, as files may be in any order: the STS-Benchmark is in that of its sources.
"""

import dataclasses
import gzip
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxemb.files import replaced_file

REPOSITORY = Path(__file__).resolve().parents[2]


class AbsentError(FileNotFoundError):
    """A data set or a model that is not on this machine."""


def data_dir(*parts: str) -> Path:
    """A path in the directory of the data sets: `$JAXEMB_DATA`, or `../shared/data` beside the repository.

    Raises:
      AbsentError: if it is not there.
    """
    path = Path(os.environ.get("JAXEMB_DATA") or REPOSITORY.parent / "shared" / "data", *parts)
    if not path.exists():
        raise AbsentError(f"the data set {path} is absent; JAXEMB_DATA says where data sets are")
    return path


def model_dir(name: str) -> Path:
    """The directory of a pretrained model: that of its name in `$JAXEMB_MODELS`, or in `~/.cache/jaxemb/models`.

    Raises:
      AbsentError: if it is not there.
    """
    path = Path(os.environ.get("JAXEMB_MODELS") or Path.home() / ".cache" / "jaxemb" / "models", name)
    if not (path / "config.json").exists():
        raise AbsentError(f"the model {path} is absent; JAXEMB_MODELS says where models are")
    return path


def sample(count: int, size: int | None, seed: int = 0) -> np.ndarray:
    """Which of `count` records are taken, in order: `size` of them at random, or all."""
    if size is None or size >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, size, replace=False))


def per_class(labels: np.ndarray, sizes: Sequence[int | None], seed: int) -> list[np.ndarray]:
    """Rows of disjoint random samples: of every class so many for each, as far as there are any; None for the rest."""
    mixed = np.random.default_rng(seed).permutation(len(labels))
    rank = np.zeros(len(labels), int)  # of a record in its class
    for label in np.unique(labels):
        rank[mixed[labels[mixed] == label]] = np.arange(np.sum(labels == label))
    ends = np.cumsum([len(labels) if size is None else size for size in sizes])
    return [np.flatnonzero((rank >= start) & (rank < end)) for start, end in zip([0, *ends], ends, strict=False)]


def pairs(labels: np.ndarray, anchors: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The anchors (rows of `labels`), and for each a random other row of its label; those without another go."""
    order = np.argsort(labels, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    first, size = np.searchsorted(labels[order], np.arange(labels.max() + 1)), np.bincount(labels)
    anchors = anchors[size[labels[anchors]] > 1]
    first, size = first[labels[anchors]], size[labels[anchors]]
    other = (place[anchors] - first + rng.integers(1, size)) % size
    return anchors, order[first + other]


def intents(name: str, split: str, per_intent: int | None = None, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Sentences and the numbers of their intents, int32, in alphabetical order of the intents.

    Args:
      name: "banking77" (train, test), "clinc150" (train, val, test), "hwu64", "snips" or "atis" (train, valid, test).
      split: see above.
      per_intent: so many of each intent, drawn at random; None for all.
      seed: of the sample.
    """
    from jaxemb.data import read

    source = read(data_dir("intents", f"{name}.{split}.tsv.gz"), names=("text", "label"))
    records = source.__getitems__(range(len(source)))
    _, labels = np.unique([record["label"] for record in records], return_inverse=True)
    (kept,) = per_class(labels, [per_intent], seed)
    return [records[i]["text"] for i in kept], labels[kept].astype(np.int32)


def multi30k(language: str, size: int | None = None, seed: int = 0) -> list[str]:
    """Captions of Multi30k's training set in "de" or "en", all or a sample; line i of both has the same meaning."""
    with gzip.open(data_dir("multi30k", "task1_raw", f"train.{language}.gz"), "rt", encoding="utf-8") as file:
        lines = [line.rstrip("\n") for line in file]
    return [lines[i] for i in sample(len(lines), size, seed)]


def vectors(texts: Sequence[str], model: str | Path | None = None) -> np.ndarray:
    """Embeddings of the texts, `[N, D]`, of unit length; kept under `runs/experiments`.

    They are found again by the texts and the model's name: remove them if its weights, or what encodes, are others.

    Args:
      texts: N texts.
      model: directory or hub id; None for MiniLM.
    """
    import jaxemb
    from jaxemb.recipes.offline_model import default_model

    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
    name = "minilm" if model is None else re.sub(r"\W+", "-", str(model)).strip("-")
    path = REPOSITORY / "runs" / "experiments" / f"{name}-{digest}.npy"
    if not path.exists():
        embeddings = jaxemb.load(model or default_model().path).encode(list(texts), normalize=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(path) as fresh, open(fresh, "wb") as file:
            np.save(file, embeddings)
    return np.load(path)


@dataclasses.dataclass(frozen=True)
class WithColumns:
    """Adds columns to a batch: of each of these arrays the rows of the batch's records."""

    arrays: Mapping[str, np.ndarray]

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return {**batch, **{name: array[batch["id"]] for name, array in self.arrays.items()}}
