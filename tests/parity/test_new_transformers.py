"""Models from scratch load in transformers and sentence-transformers, and give what they give here, trained or not."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

import jaxemb
from jaxemb.data import SPECIAL_TOKENS, Tokenizer, pad
from jaxemb.embedder import Dense, Normalize
from jaxemb.losses import info_nce
from jaxemb.nn import Linear
from jaxemb.objectives import on_columns
from jaxemb.pooling import Cls, Concatenation, Mean
from jaxemb.pretraining import MaskedLanguageModel
from jaxemb.sentence_embedder import SentenceEmbedder

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")
SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer

pytestmark = pytest.mark.slow

TEXTS = ["a", "b c a d", "e f", "c c c a b e f d e a b c"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
POSITIONS = {"max_position_embeddings": 24}
CONFIGS = {
    "bert": SIZES | POSITIONS,
    "roberta": SIZES | POSITIONS,
    "xlm-roberta": SIZES | POSITIONS | {"type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "camembert": SIZES | POSITIONS,
    "distilbert": {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24} | POSITIONS,
    "mpnet": SIZES | POSITIONS,
    "modernbert": SIZES | POSITIONS | {"local_attention": 4, "classifier_activation": "relu"},
    "nomic_bert": SIZES | POSITIONS,
}
_GROUPED = SIZES | POSITIONS | {"num_key_value_heads": 1}
DECODERS = {
    "llama": _GROUPED,
    "mistral": _GROUPED | {"sliding_window": 4},
    "qwen2": _GROUPED,
    "qwen3": _GROUPED | {"head_dim": 6},
    "gemma2": _GROUPED | {"head_dim": 6, "sliding_window": 4},
    "gemma3_text": _GROUPED | {"head_dim": 6, "sliding_window": 4},
    "phi3": _GROUPED,
}


def trained(embedder: SentenceEmbedder) -> SentenceEmbedder:
    """After a few large steps, so that no parameter is what it was."""
    texts = {"query": TEXTS, "document": TEXTS[::-1]}
    batch = {column: pad(embedder.tokenizer(t, 16)) for column, t in texts.items()} | {"id": np.arange(4)}
    objective, optimizer = on_columns(info_nce, "query", "document"), optax.adam(0.05)

    def step(carry, _):
        gradient = jax.grad(lambda model: objective(model, batch, None)[0].mean())(carry[0])
        updates, state = optimizer.update(gradient, carry[1])
        return (optax.apply_updates(carry[0], updates), state), None

    run = jax.jit(lambda model: jax.lax.scan(step, (model, optimizer.init(model)), None, 5)[0][0])
    return embedder.replace(model=run(embedder.model))


@pytest.mark.parametrize("family", [*CONFIGS, *DECODERS])
def test_a_new_model_is_trained_and_loads_everywhere(family, tmp_path):
    words = [*SPECIAL_TOKENS, *"abcdef"]
    words[:2] = words[1::-1] if family == "mpnet" else words[:2]
    tokenizer = Tokenizer.word_piece(words)
    config = {**CONFIGS, **DECODERS}[family]
    embedder = trained(jaxemb.new(family, config, tokenizer, key=jax.random.key(0), heads=(Normalize(),)))
    embedder.save(tmp_path / "model")
    ours = embedder.encode(TEXTS)
    np.testing.assert_array_equal(jaxemb.load(tmp_path / "model").encode(TEXTS), ours)
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert theirs.max_seq_length == embedder.max_length
    np.testing.assert_allclose(ours, theirs.encode(TEXTS), atol=1e-5)

    body, report = transformers.AutoModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    assert all(name.startswith("pooler.") for name in report["missing_keys"])
    assert type(body).__name__ == embedder.format.encoder.config["architectures"][0]
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")(TEXTS, padding=True, return_tensors="pt")
    tokens = pad(tokenizer(TEXTS), length=ids["input_ids"].shape[1])
    real = ids["attention_mask"].numpy() == 1
    np.testing.assert_array_equal(ids["input_ids"].numpy()[real], tokens.ids[real])
    states = np.asarray(jax.jit(lambda model: model.encoder(tokens))(embedder.model))
    with torch.no_grad():
        expected = body.eval()(**ids).last_hidden_state.numpy()
    np.testing.assert_allclose(states[real], expected[real], atol=1e-4)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_new_model_keeps_its_masked_language_head(family, tmp_path):
    words = [*SPECIAL_TOKENS, *"abcdef"]
    words[:2] = words[1::-1] if family == "mpnet" else words[:2]
    embedder = jaxemb.new(family, CONFIGS[family], Tokenizer.word_piece(words), key=jax.random.key(0))
    model = MaskedLanguageModel.of(embedder, jax.random.key(1))
    spread = lambda i, leaf: leaf + 0.1 * jax.random.normal(jax.random.key(i), leaf.shape)
    leaves, structure = jax.tree.flatten(model.head)
    head = jax.tree.unflatten(structure, [spread(i, leaf) for i, leaf in enumerate(leaves)])
    model = dataclasses.replace(model, head=head)
    model.into(embedder, with_head=True).save(tmp_path / "model")

    again = jaxemb.load(tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, MaskedLanguageModel.of(again, jax.random.key(2)), model)
    theirs, report = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert type(theirs).__name__ == again.format.encoder.config["architectures"][0]
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")(TEXTS, padding=True, return_tensors="pt")
    tokens = pad(embedder.tokenizer(TEXTS), length=ids["input_ids"].shape[1])
    real = ids["attention_mask"].numpy() == 1
    logits = jax.jit(lambda m: m.head(m.embedder.encoder(tokens), m.embedder.encoder.embeddings.tokens))(model)
    with torch.no_grad():
        expected = theirs.eval()(**ids).logits.numpy()
    np.testing.assert_allclose(np.asarray(logits)[real], expected[real], atol=2e-4)
    sizes = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    np.testing.assert_allclose(again.encode(TEXTS), sizes.encode(TEXTS), atol=1e-4)


def test_poolings_heads_and_prompts_of_a_new_model(tmp_path):
    draw = lambda *shape: np.random.default_rng(0).normal(size=shape).astype(np.float32)
    heads = (Dense(Linear(draw(32, 6), draw(6)), activation="tanh"), Normalize())
    embedder = jaxemb.new(
        "bert",
        CONFIGS["bert"] | {"initializer_range": 0.3},
        Tokenizer.train(TEXTS, 60),
        key=jax.random.key(0),
        pooling=Concatenation((Mean(), Cls())),
        heads=heads,
        max_length=10,
    )
    embedder = dataclasses.replace(embedder, prompts={"query": "a b "})
    embedder.save(tmp_path / "model")
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert theirs.max_seq_length == 10
    np.testing.assert_allclose(
        embedder.encode(TEXTS, prompt_name="query"), theirs.encode(TEXTS, prompt_name="query"), atol=1e-5
    )
