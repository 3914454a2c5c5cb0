"""The real MiniLM against what transformers and sentence-transformers gave, kept by make_minilm.py."""

import numpy as np
import pytest

import jaxemb
from jaxemb.data import Tokenizer


@pytest.fixture(scope="module")
def arrays(frozen):
    return frozen("minilm")[0]


@pytest.fixture(scope="module")
def texts(arrays) -> list[str]:
    return arrays["texts"].tobytes().decode().split("\0")


@pytest.fixture(scope="module")
def tokenizer(minilm) -> Tokenizer:
    return Tokenizer.from_directory(minilm)


def ids_of(arrays, name: str) -> list[list[int]]:
    lengths = arrays[f"{name}/lengths"]
    return [ids.tolist() for ids in np.split(arrays[f"{name}/ids"], np.cumsum(lengths)[:-1])]


def test_token_ids_of_odd_texts_and_eleven_languages(arrays, texts, tokenizer):
    assert len(texts) == 10 + 11 * 20
    assert [ids.tolist() for ids in tokenizer(texts)] == ids_of(arrays, "whole")


@pytest.mark.parametrize("max_length", [3, 4, 16, 512])
def test_texts_are_cut_alike(arrays, texts, tokenizer, max_length):
    encoded = tokenizer.encode(texts[:10], max_length)
    assert [ids.tolist() for ids in encoded.ids] == ids_of(arrays, f"cut at {max_length}")
    assert encoded.truncated == np.sum(arrays["whole/lengths"][:10] > max_length)


def test_a_vocabulary_alone_gives_the_checkpoints_tokenizer(arrays, texts, minilm, tmp_path):
    for name in ("vocab.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((minilm / name).read_bytes())
    assert [ids.tolist() for ids in Tokenizer.from_directory(tmp_path)(texts)] == ids_of(arrays, "whole")


def test_special_ids_and_lengths(arrays, tokenizer):
    roles = ("pad", "unk", "cls", "sep", "mask")
    assert tokenizer.special_ids == dict(zip(roles, arrays["special ids"].tolist(), strict=True))
    assert [tokenizer.model_max_length, tokenizer.vocab_size] == arrays["lengths"][:2].tolist()


def test_embeddings(arrays, texts, minilm):
    embedder = jaxemb.load(minilm)
    assert embedder.max_length == arrays["lengths"][2]
    found = embedder.encode([texts[i] for i in arrays["chosen"]])
    np.testing.assert_allclose(found, arrays["vectors"], rtol=0, atol=1e-5)
