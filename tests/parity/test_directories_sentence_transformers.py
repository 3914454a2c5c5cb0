"""Model directories go both ways between jaxemb and sentence-transformers, with equal vectors."""

import numpy as np
import pytest

from jaxemb.data import pad
from jaxemb.sentence_embedder import load

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer
base = pytest.importorskip("sentence_transformers.base.modules")
modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
Dense, Normalize, Transformer = base.Dense, base.Normalize, base.Transformer

pytestmark = pytest.mark.slow

TEXTS = ["a", "b c a d", "e f", "c c c a b e f d e a b c"]
_WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdef")


def _embed(path, texts=TEXTS) -> np.ndarray:
    embedder = load(path)
    return np.asarray(embedder.model(pad(embedder.tokenizer(texts, embedder.max_length))))


@pytest.fixture
def encoder(tmp_path) -> Transformer:
    torch.manual_seed(0)
    path = tmp_path / "bert"
    config = transformers.BertConfig(
        vocab_size=len(_WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    transformers.BertModel(config).save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(_WORDS) + "\n")
    transformers.BertTokenizer(str(path / "vocab.txt")).save_pretrained(path)
    return Transformer(str(path), max_seq_length=10)


@pytest.mark.parametrize(
    "pooling",
    ["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", ("cls", "mean"), ("mean", "cls")],
)
def test_every_pooling_goes_both_ways(encoder, pooling, tmp_path):
    theirs = SentenceTransformer(modules=[encoder, modules.Pooling(16, pooling)], device="cpu")
    theirs.save(str(tmp_path / "theirs"), create_model_card=False)
    expected = theirs.encode(TEXTS)
    np.testing.assert_allclose(_embed(tmp_path / "theirs"), expected, atol=1e-5)
    load(tmp_path / "theirs").save(tmp_path / "ours")
    again = SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    np.testing.assert_array_equal(again.encode(TEXTS), expected)


@pytest.mark.parametrize("pooling", ["mean", ("cls", "weightedmean")])
def test_prompts_that_are_not_pooled_go_both_ways(encoder, pooling, tmp_path):
    theirs = SentenceTransformer(modules=[encoder, modules.Pooling(16, pooling, include_prompt=False)], device="cpu")
    theirs.save(str(tmp_path / "theirs"), create_model_card=False)
    expected = theirs.encode(TEXTS, prompt="a b ")
    ours = load(tmp_path / "theirs")
    np.testing.assert_allclose(ours.encode(TEXTS, prompt="a b "), expected, atol=1e-5)
    assert np.abs(ours.encode(TEXTS) - expected).max() > 1e-3
    ours.save(tmp_path / "ours")
    again = SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    np.testing.assert_array_equal(again.encode(TEXTS, prompt="a b "), expected)


@pytest.mark.parametrize("activation", [torch.nn.Tanh(), torch.nn.Identity(), torch.nn.GELU(), torch.nn.Sigmoid()])
def test_heads_prompts_and_similarity_go_both_ways(encoder, activation, tmp_path):
    norm = modules.LayerNorm(8)
    with torch.no_grad():
        norm.norm.weight.normal_()
        norm.norm.bias.normal_()
    heads = [
        Dense(16, 8, activation_function=activation),
        norm,
        Dense(8, 6, bias=False, activation_function=activation),
    ]
    theirs = SentenceTransformer(
        modules=[encoder, modules.Pooling(16), *heads, Normalize()],
        prompts={"query": "a b ", "document": ""},
        default_prompt_name="document",
        similarity_fn_name="dot",
        device="cpu",
    )
    theirs.save(str(tmp_path / "theirs"), create_model_card=False)
    expected = theirs.encode(TEXTS)
    np.testing.assert_allclose(_embed(tmp_path / "theirs"), expected, atol=1e-5)

    ours = load(tmp_path / "theirs")
    assert (ours.prompts, ours.default_prompt_name) == ({"query": "a b ", "document": ""}, "document")
    ours.save(tmp_path / "ours")
    again = SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    np.testing.assert_array_equal(again.encode(TEXTS), expected)
    assert (again.prompts, again.default_prompt_name) == (theirs.prompts, theirs.default_prompt_name)
    assert again.similarity_fn_name == ours.similarity_fn_name == "dot"
    assert again.max_seq_length == theirs.max_seq_length == ours.max_length == 10


def test_a_bare_encoder_gives_the_same_vectors(encoder, tmp_path):
    expected = SentenceTransformer(str(tmp_path / "bert"), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(_embed(tmp_path / "bert"), expected, atol=1e-5)


def test_minilm_saved_here_gives_the_same_vectors_there(minilm, tmp_path):
    load(minilm).save(tmp_path / "ours")
    texts = ["The cat sat on the mat.", "Ein Satz auf Deutsch", ""]
    expected = SentenceTransformer(str(minilm), device="cpu").encode(texts)
    np.testing.assert_allclose(_embed(tmp_path / "ours", texts), expected, atol=1e-5)
    again = SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    np.testing.assert_array_equal(again.encode(texts), expected)
    assert again.similarity_fn_name == "cosine"
