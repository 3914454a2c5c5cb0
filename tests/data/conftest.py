from pathlib import Path

import pytest

from jaxemb.data import Tokenizer, python_code


@pytest.fixture(scope="session")
def standard_library() -> list[dict]:
    """All pairs of the standard library, read once."""
    return python_code.pairs()


WORDS = ("alpha", "beta", "gamma", "delta", "query", ":", "num", *(f"w{i}" for i in range(64)))


@pytest.fixture(scope="session")
def vocabulary_directory(tmp_path_factory) -> Path:
    """A checkpoint directory with nothing but a small `vocab.txt`."""
    directory = tmp_path_factory.mktemp("vocabulary")
    (directory / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    return directory


@pytest.fixture(scope="session")
def tokenizer(vocabulary_directory) -> Tokenizer:
    return Tokenizer.from_directory(vocabulary_directory)
