"""Writes minilm.npz: all-MiniLM-L6-v2's token ids by transformers and its vectors by sentence-transformers.

JAXEMB_DATA=... python make_minilm.py MODEL_DIRECTORY
"""

import csv
import gzip
import itertools
import os
import sys
from pathlib import Path

import numpy as np
import transformers
from sentence_transformers import SentenceTransformer
from storing import store

LANGUAGES = ("de", "en", "es", "fr", "it", "ja", "nl", "pl", "pt", "ru", "zh")
ODD = [
    "",
    " ",
    "  two  spaces ",
    "tab\tand\nnewline",
    "[MASK] and [SEP] inside",
    "naïve Ⅷ ﬁ",
    "🙂👍🏽",
    "a" * 300,
    "\u200b\ufeff",
]
ODD.append(" ".join(ODD) * 40)


def sentences(language: str, n: int) -> list[str]:
    path = Path(os.environ["JAXEMB_DATA"]) / "stsb_multi" / f"stsb-{language}-dev.csv.gz"
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return [row[0] for row in itertools.islice(csv.reader(file), n)]


def ragged(name: str, ids: list[list[int]]) -> dict[str, np.ndarray]:
    return {f"{name}/ids": np.concatenate(ids).astype(np.int32), f"{name}/lengths": np.array([len(i) for i in ids])}


def values(model: str) -> dict[str, np.ndarray]:
    tokenizer, embedder = transformers.AutoTokenizer.from_pretrained(model), SentenceTransformer(model, device="cpu")
    texts = [*ODD, *(text for language in LANGUAGES for text in sentences(language, 20))]
    result = {"texts": np.frombuffer("\0".join(texts).encode(), np.uint8)}
    result |= ragged("whole", tokenizer(texts)["input_ids"])
    for n in (3, 4, 16, 512):
        result |= ragged(f"cut at {n}", tokenizer(ODD, truncation=True, max_length=n)["input_ids"])
    roles = ("pad", "unk", "cls", "sep", "mask")
    result["special ids"] = np.array([getattr(tokenizer, f"{role}_token_id") for role in roles])
    result["lengths"] = np.array([tokenizer.model_max_length, len(tokenizer), embedder.max_seq_length])
    chosen = [*ODD, *(text for language in LANGUAGES for text in sentences(language, 3))]
    result["chosen"] = np.array([texts.index(text) for text in chosen])
    return result | {"vectors": embedder.encode(chosen, batch_size=1)}


if __name__ == "__main__":
    store(__file__, values(sys.argv[1]))
