"""Models from scratch, and their directories."""

import re

import jax
import numpy as np
import pytest
import tokenizers

import jaxemb
from jaxemb.checkpoints import CheckpointError
from jaxemb.data import SPECIAL_TOKENS, Tokenizer
from jaxemb.embedder import Normalize
from jaxemb.parallel import make_mesh
from jaxemb.pooling import Cls

WORDS = (*SPECIAL_TOKENS, *"abcdef", "##a", "##b")
SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
TEXTS = ["a b c", "d", "ab c d e f a b c d e f"]


def new(family="bert", config=SIZES, tokenizer=None, **options):
    return jaxemb.new(family, config, tokenizer or Tokenizer.word_piece(WORDS), key=jax.random.key(0), **options)


@pytest.fixture(scope="module")
def embedder():
    return new(config=SIZES | {"max_position_embeddings": 9}, heads=(Normalize(),), pooling=Cls())


def test_what_is_saved_is_what_is_loaded(embedder, tmp_path):
    embedder.save(tmp_path / "model")
    again = jaxemb.load(tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, again.model, embedder.model)
    assert jax.tree.structure(again.model) == jax.tree.structure(embedder.model)
    assert again.max_length == embedder.max_length == 9
    for ours, theirs in zip(embedder.tokenizer(TEXTS, 9), again.tokenizer(TEXTS, 9), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert embedder.tokenizer.special_ids == again.tokenizer.special_ids
    again.save(tmp_path / "again")
    for file in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "modules.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "model" / file).read_bytes(), file


def test_weights_follow_the_key_and_the_configuration(embedder):
    config = SIZES | {"max_position_embeddings": 9, "initializer_range": 0.3}
    other = jaxemb.new("bert", config, embedder.tokenizer, key=jax.random.key(1), dtype="bfloat16")
    assert other.model.encoder.config.dtype == "bfloat16" and embedder.model.encoder.config.dtype == "float32"
    for model, std in ((embedder.model, 0.02), (other.model, 0.3)):
        np.testing.assert_allclose(np.std(model.encoder.embeddings.tokens), std, rtol=0.2)
    assert other.format.encoder.config["pad_token_id"] == 0 and other.format.encoder.config["vocab_size"] == len(WORDS)


def test_weights_are_made_on_the_devices_that_share_them(embedder):
    mesh = make_mesh(data=2, fsdp=4)
    config = SIZES | {"max_position_embeddings": 12, "vocab_size": 16}
    make = lambda **options: new(config=config, **options).model.encoder
    sharded, whole = make(mesh=mesh, param_dtype="bfloat16"), make()
    kernel = sharded.layers.mlp.up.kernel
    assert kernel.dtype == "bfloat16" and not kernel.sharding.is_fully_replicated
    close = lambda a, b: np.testing.assert_allclose(np.asarray(a, np.float32), b, atol=1e-3)
    jax.tree.map(close, sharded, whole)


def test_a_smaller_size_is_saved(embedder, tmp_path):
    embedder.truncate(layers=1, dim=3).save(tmp_path / "small")
    small = jaxemb.load(tmp_path / "small")
    assert (small.model.depth, small.model.dim) == (1, 3)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"family": "t5"}, ValueError, "model_type must be one of ['Yi', 'bert', 'camembert'"),
        ({"config": {"hidden_size": 8}}, CheckpointError, "config: key 'num_hidden_layers' is missing"),
        ({"config": SIZES | {"vocab_size": 5}}, CheckpointError, "the tokenizer has ids up to 12 ('##b'), but"),
        ({"config": SIZES | {"pad_token_id": 3}}, ValueError, "pad_token_id must be 0, the tokenizer's; got 3"),
        ({"config": SIZES | {"hidden_act": "mish"}}, ValueError, "hidden_act must be one of"),
        ({"family": "mpnet"}, ValueError, "the padding of mpnet must have the id 1; it has 0"),
        (
            {"config": SIZES | {"model_type": "mpnet"}},
            ValueError,
            "model_type must be 'bert', the family's; got 'mpnet'",
        ),
        ({"norm_eps": 1e-5}, ValueError, "what else there is, `config` says, which is saved; got norm_eps"),
        ({"max_length": 513}, ValueError, "max_length must be in 1..512, the positions of the model; got 513"),
        ({"pooling": "mean"}, TypeError, "pooling must be a Pooling or None; got str 'mean'"),
    ],
)
def test_names_what_is_wrong(changes, error, message):
    with pytest.raises(error, match=re.escape(message)):
        new(**changes)


def test_a_tokenizer_without_padding_is_refused():
    words = Tokenizer.word_piece(WORDS)
    with pytest.raises(ValueError, match=r"tokenizer must have a padding token.*Tokenizer\.of\(backend\)"):
        new(tokenizer=Tokenizer(words.backend))


def test_a_tokenizer_that_the_tokenizers_library_trained(tmp_path):
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    backend = tokenizers.ByteLevelBPETokenizer()
    backend.train_from_iterator(["a cat sat", "a mat"] * 9, 300, special_tokens=tokens, show_progress=False)
    backend.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer = Tokenizer.of(backend)
    assert tokenizer.special_ids == {"cls": 0, "pad": 1, "sep": 2, "unk": 3, "mask": 4}
    assert tokenizer(["a cat"])[0].tolist() == backend.encode("a cat").ids and tokenizer.special_tokens == 2
    made = new("roberta", tokenizer=tokenizer)
    made.save(tmp_path / "model")
    again = jaxemb.load(tmp_path / "model")
    assert (
        again.tokenizer.special_ids["pad"] == 1
        and again.tokenizer(["cat"])[0].tolist() == tokenizer(["cat"])[0].tolist()
    )
    with pytest.raises(TypeError, match=r"backend must be a tokenizers.Tokenizer; got int 3"):
        Tokenizer.of(3)
