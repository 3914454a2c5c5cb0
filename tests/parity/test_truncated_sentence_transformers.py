"""Truncated models of every family, written here and loaded there, give the vectors that they give here."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxemb.embedder import Dense, Normalize
from jaxemb.nn import Linear
from jaxemb.sentence_embedder import load

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer
CONFIGS = pytest.importorskip("test_families_transformers").CONFIGS

pytestmark = pytest.mark.slow

TEXTS = ["a b c a", "d e f"]
_WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdef")


def write(family: str, path):
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(CONFIGS[family])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(_WORDS) + "\n")
    transformers.BertTokenizer(str(path / "vocab.txt")).save_pretrained(path)
    return load(path)


@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_at_a_smaller_size(family, tmp_path):
    whole = write(family, tmp_path / "whole")
    small = whole.truncate(layers=2, dim=5)
    ours = small.encode(TEXTS)
    assert ours.shape == (2, 5) and small.model.depth == 2
    small.save(tmp_path / "small")
    theirs = SentenceTransformer(str(tmp_path / "small"), device="cpu")
    assert theirs.get_embedding_dimension() == 5
    np.testing.assert_allclose(theirs.encode(TEXTS, batch_size=1), ours, atol=1e-5)
    np.testing.assert_allclose(load(tmp_path / "whole", layers=2, dim=5).encode(TEXTS), ours, atol=1e-6)
    np.testing.assert_allclose(load(tmp_path / "small").encode(TEXTS), ours, atol=1e-6)
    read = transformers.AutoModel.from_pretrained(tmp_path / "small")
    assert read.config.num_hidden_layers == 2 and read.num_parameters() < num_parameters(tmp_path / "whole")


def num_parameters(path) -> int:
    return transformers.AutoModel.from_pretrained(path).num_parameters()


@pytest.mark.parametrize("ends", ["normalize", "dense", "dense and normalize"])
def test_heads_are_cut_before_the_vectors_get_unit_length(ends, tmp_path):
    whole = write("bert", tmp_path / "whole")
    dense = Dense(linear=Linear(jnp.cos(jnp.arange(32.0 * 12)).reshape(32, 12), jnp.ones(12)), activation="tanh")
    heads = {"normalize": (Normalize(),), "dense": (dense,), "dense and normalize": (dense, Normalize())}[ends]
    whole = whole.replace(model=dataclasses.replace(whole.model, heads=heads))
    small = whole.truncate(dim=5)
    assert len(small.model.heads) == len(heads) + ("dense" not in ends)
    ours = small.encode(TEXTS)
    np.testing.assert_allclose(ours, whole.encode(TEXTS, dim=5), atol=1e-6)
    small.save(tmp_path / "small")
    np.testing.assert_allclose(
        SentenceTransformer(str(tmp_path / "small"), device="cpu").encode(TEXTS), ours, atol=1e-5
    )
