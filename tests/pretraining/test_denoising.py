import dataclasses
import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tokenizers
from hypothesis import given, settings
from tiny_run import tiny_model

from jaxemb.data import Tokenizer, pack, pad
from jaxemb.embedder import Embedder
from jaxemb.encoders import RopeConfig, Transformer, TransformerConfig
from jaxemb.pretraining import DenoisingAutoEncoder, delete_words, denoising, word_pieces

SPECIAL, START, CONTINUATION = 0, 1, 2
CLS, SEP = 1, 2
# Of the tiny model's 50 tokens, 0..2 are special, and of the others every third continues a word.
PIECES = np.array([SPECIAL] * 3 + [CONTINUATION if i % 3 == 0 else START for i in range(3, 50)], np.int8)


def sentences(n, seed=0, shortest=4, longest=12):
    rng = np.random.default_rng(seed)
    return [np.array([CLS, *rng.integers(3, 50, rng.integers(shortest, longest + 1) - 2), SEP]) for _ in range(n)]


def words_of(ids):
    """The words of a text, each a tuple of its tokens."""
    words = []
    for i, token in enumerate(ids):
        if PIECES[token] == CONTINUATION and i and PIECES[ids[i - 1]] != SPECIAL:
            words[-1] = (*words[-1], int(token))
        elif PIECES[token] != SPECIAL:
            words.append((int(token),))
    return words


def texts_of(tokens):
    """The ids of each text, and a check that positions and padding are as they must be."""
    ids, segments, positions = (np.asarray(x) for x in (tokens.ids, tokens.segment_ids, tokens.positions))
    slots = np.arange(len(ids)) if tokens.slots is None else np.asarray(tokens.slots)
    texts = []
    for slot in slots:
        row, segment = slot // tokens.texts_per_row, slot % tokens.texts_per_row + 1
        inside = segments[row] == segment
        np.testing.assert_array_equal(positions[row][inside], np.arange(inside.sum()))
        assert np.all(np.diff(np.flatnonzero(inside)) == 1)
        texts.append(ids[row][inside])
    assert not ids[segments == 0].any() and not positions[segments == 0].any()
    return texts


damage = jax.jit(delete_words, static_argnames="ratio")


@given(seed=st.integers(0, 2**31), ratio=st.sampled_from([0.0, 0.6, 1.0]), packed=st.booleans())
@settings(max_examples=20)
def test_whole_words_are_deleted(seed, ratio, packed):
    whole = sentences(5, seed)
    tokens = pack(whole, row_length=26, texts_per_row=3, row_multiple=5) if packed else pad(whole, length=16)
    texts = texts_of(damage(tokens, jax.random.key(seed), PIECES, ratio=ratio))
    for before, after in zip(whole, texts, strict=True):
        assert after[0] == CLS and after[-1] == SEP
        remaining = iter(words_of(before))
        assert all(word in remaining for word in words_of(after))  # whole words, in their order
        assert len(words_of(after)) >= 1
        if ratio == 0:
            np.testing.assert_array_equal(after, before)
        if ratio == 1:
            assert len(words_of(after)) == 1


def test_the_share_of_deleted_words():
    tokens = pad([np.array([CLS, *[4] * 60, SEP])] * 200, length=64)
    texts = texts_of(damage(tokens, jax.random.key(0), PIECES, ratio=0.6))
    np.testing.assert_allclose(np.mean([len(words_of(text)) / 60 for text in texts]), 0.4, atol=0.02)
    assert len({len(text) for text in texts}) > 10


def test_token_types_move_with_their_tokens():
    tokens = pad([np.array([CLS, 4, 5, 7, 8, SEP])], length=6)
    tokens = dataclasses.replace(tokens, type_ids=np.asarray(tokens.ids) % 2)
    damaged = damage(tokens, jax.random.key(3), PIECES, ratio=0.6)
    np.testing.assert_array_equal(damaged.type_ids, np.where(damaged.mask, damaged.ids % 2, 0))


def test_what_is_a_word():
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "token": 3, "##ise": 4, "##r": 5, ",": 6}
    word_piece = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    np.testing.assert_array_equal(
        word_pieces(Tokenizer(word_piece, {"pad": 0, "unk": 1, "cls": 2})),
        [SPECIAL, START, SPECIAL, START, CONTINUATION, CONTINUATION, START],
    )
    for mark in "▁Ġ":
        vocabulary = {"<s>": 0, f"{mark}token": 1, "iser": 2, f"{mark}a": 3, ",": 4}
        bpe = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
        expected = [SPECIAL, START, CONTINUATION, START, CONTINUATION]
        np.testing.assert_array_equal(word_pieces(Tokenizer(bpe, {"bos": 0})), expected)
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    np.testing.assert_array_equal(word_pieces(Tokenizer(plain)), [START, START])


def test_words_of_the_real_tokenizer(minilm):
    tokenizer = Tokenizer.from_directory(minilm)
    pieces = word_pieces(tokenizer)
    assert len(pieces) == tokenizer.vocab_size
    encoded = tokenizer.backend.encode("An unbelievably small tokeniser, isn't it?")
    continues = [token.startswith("##") for token in encoded.tokens]
    assert any(continues) and [piece == CONTINUATION for piece in pieces[encoded.ids]] == continues
    np.testing.assert_array_equal(pieces[encoded.ids] == SPECIAL, encoded.special_tokens_mask)


@functools.cache
def autoencoder(layers=None, **changes):
    return DenoisingAutoEncoder.init(jax.random.key(1), tiny_model(**changes), layers=layers)


def decode(model, tokens, embeddings):
    return model.decoder(model.embedder.encoder, tokens, embeddings)


MODERN = TransformerConfig(
    vocab_size=50,
    dim=16,
    layers=2,
    heads=2,
    mlp_dim=32,
    ropes=(RopeConfig(100.0), RopeConfig(10.0)),
    rope_of_layer=(0, 1),
    windows=(0, 3),
    norm_placement="pre",
    final_norm=True,
    skip_first_attention_norm=True,
)


@pytest.mark.parametrize("layers", [None, 1])
@pytest.mark.parametrize("kind", ["bert", "modern"])
def test_logits_depend_on_the_embedding_and_on_what_came_before(kind, layers):
    embedder = tiny_model() if kind == "bert" else Embedder(encoder=Transformer.init(jax.random.key(0), MODERN))
    model = DenoisingAutoEncoder.init(jax.random.key(1), embedder, layers=layers)
    model = jax.tree.map(lambda a: 5 * a if a.ndim > 1 else a, model)
    tokens = pad(sentences(1, longest=10, shortest=10), length=12)
    embedding = jnp.ones((1, 16))
    logits = jax.jit(decode)(model, tokens, embedding)
    ids = np.array(tokens.ids)
    ids[0, 6] = 49
    later = jax.jit(decode)(model, dataclasses.replace(tokens, ids=ids), embedding)
    np.testing.assert_allclose(later[0, :6], logits[0, :6], atol=1e-5)
    assert np.all(np.abs(later - logits)[0, 6:10].max(axis=-1) > 1e-4)
    other = jax.jit(decode)(model, tokens, -embedding)
    assert np.all(np.abs(other - logits)[0, :10].max(axis=-1) > 1e-4)


def test_losses_are_cross_entropies_of_the_next_tokens():
    model, texts = autoencoder(), sentences(3)
    tokens = pad(texts, length=16)
    embeddings = jax.random.normal(jax.random.key(0), (3, 16))
    losses = jax.jit(lambda m, t, e: m.decoder.losses(m.embedder.encoder, t, e))(model, tokens, embeddings)
    log_probabilities = np.asarray(jax.nn.log_softmax(jax.jit(decode)(model, tokens, embeddings)))
    sums = [-sum(log_probabilities[n, t, ids[t + 1]] for t in range(len(ids) - 1)) for n, ids in enumerate(texts)]
    np.testing.assert_allclose(losses, np.array(sums) * 3 / sum(len(ids) - 1 for ids in texts), rtol=1e-5)


def test_packed_texts_have_the_losses_of_texts_of_their_own():
    model, texts = autoencoder(), sentences(5)
    model = jax.tree.map(lambda a: 5 * a if a.ndim > 1 else a, model)
    embeddings = jax.random.normal(jax.random.key(0), (5, 16))
    losses = jax.jit(lambda m, t, e: m.decoder.losses(m.embedder.encoder, t, e))
    packed = pack(texts, row_length=24, texts_per_row=4)
    assert len(packed.ids) < 5
    np.testing.assert_allclose(
        losses(model, packed, embeddings), losses(model, pad(texts, length=16), embeddings), rtol=1e-4
    )


@pytest.fixture(scope="module")
def trained():
    """A tiny autoencoder before and after it has learnt eight sentences, whose words are of few kinds."""
    texts = sentences(8, seed=3, shortest=8)
    batch = {"text": pad(texts, length=12), "id": np.arange(8)}
    start = DenoisingAutoEncoder.init(jax.random.key(1), tiny_model(dropout=0.0, attention_dropout=0.0))
    objective, optimizer = denoising("text", PIECES), optax.adam(1e-2)

    def step(state, key):
        model, opt_state = state
        loss, gradient = jax.value_and_grad(lambda m: objective(m, batch, key)[0].mean())(model)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return (optax.apply_updates(model, updates), opt_state), loss

    train = jax.jit(lambda model, keys: jax.lax.scan(step, (model, optimizer.init(model)), keys))
    (model, _), history = train(start, jax.random.split(jax.random.key(2), 400))
    return start, model, batch, history


def test_training_restores_the_sentences(trained):
    start, model, batch, history = trained
    objective = jax.jit(denoising("text", PIECES))
    before, _ = objective(start, batch, None)
    after, _ = objective(model, batch, None)
    assert before.mean() > 3.5  # log 50 = 3.9
    assert after.mean() < 0.3
    assert history[-20:].mean() < 0.5 * history[0]  # with words deleted, some texts cannot be told apart


def test_the_decoder_reads_the_embedding(trained):
    """Another text's embedding leads it astray, also about the first word, before which all texts are the same."""
    _, model, batch, _ = trained
    embeddings = model.embedder(batch["text"])
    losses = jax.jit(lambda e: model.decoder.losses(model.embedder.encoder, batch["text"], e).mean())
    assert losses(jnp.roll(embeddings, 1, axis=0)) > losses(embeddings) + 1.0
    first = lambda e: jax.nn.log_softmax(decode(model, batch["text"], e)[:, 0])[np.arange(8), batch["text"].ids[:, 1]]
    assert jnp.all(first(embeddings) > jnp.log(0.5))
    assert first(jnp.roll(embeddings, 1, axis=0)).mean() < first(embeddings).mean() - 1.0


def test_tied_weights_are_trained_by_both_sides():
    model = autoencoder()
    assert model.decoder.layers is None
    batch = {"text": pad(sentences(2), length=12), "id": np.arange(2)}
    losses = lambda m, e: m.decoder.losses(m.embedder.encoder, batch["text"], e).mean()
    # Through the decoder alone: the embedding is held fixed.
    gradient = jax.jit(jax.grad(losses))(model, jnp.ones((2, 16))).embedder.encoder
    assert jnp.abs(gradient.layers.mlp.up.kernel).max() > 0 and jnp.abs(gradient.embeddings.tokens).max() > 0
    own = jax.jit(jax.grad(losses))(autoencoder(layers=1), jnp.ones((2, 16)))
    assert not jnp.any(own.embedder.encoder.layers.mlp.up.kernel)
    assert jnp.abs(own.decoder.layers.mlp.up.kernel).max() > 0


def test_keys_decide_what_is_deleted():
    model, batch = autoencoder(dropout=0.0, attention_dropout=0.0), {"text": pad(sentences(4), length=12)}
    batch["id"] = np.arange(4)
    objective = jax.jit(denoising("text", PIECES))
    (first, again, other), (_, outputs) = (
        [objective(model, batch, jax.random.key(seed))[0] for seed in (0, 0, 1)],
        objective(model, batch, None),
    )
    np.testing.assert_array_equal(first, again)
    assert np.all(first != other)
    np.testing.assert_allclose(outputs["text"], model(batch["text"]), atol=1e-6)


def test_bad_arguments_are_named():
    batch = {"text": pad(sentences(4), length=12), "id": np.arange(2)}
    with pytest.raises(ValueError, match=r"ratio must be in \[0, 1\]; got 60"):
        denoising("text", PIECES, ratio=60)
    with pytest.raises(ValueError, match=r"ratio must be in \[0, 1\]; got -1"):
        delete_words(batch["text"], jax.random.key(0), PIECES, ratio=-1)
    with pytest.raises(ValueError, match="the batch has no title; it has id, text"):
        denoising("title", PIECES)(autoencoder(), batch, None)
    with pytest.raises(ValueError, match="column 'text' must have one text per record; got 4, 2"):
        denoising("text", PIECES)(autoencoder(), batch, None)
    with pytest.raises(TypeError, match="denoising trains a DenoisingAutoEncoder; got Embedder"):
        denoising("text", PIECES)(tiny_model(), batch, None)
    with pytest.raises(ValueError, match=r"layers must be in 1..2 or None; got 3"):
        autoencoder(layers=3)
