import dataclasses
import functools

import hypothesis.strategies as st
import jax
import numpy as np
import optax
import pytest
import tokenizers
from hypothesis import given, settings
from scipy.special import log_softmax
from tiny_run import tiny_model

from jaxemb.data import Tokenizer, pack, pad
from jaxemb.embedder import Embedder
from jaxemb.encoders import Transformer, TransformerConfig
from jaxemb.nn import RopeConfig
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


def autoencoder_of(embedder, layers=None):
    return jax.jit(DenoisingAutoEncoder.init, static_argnames="layers")(jax.random.key(1), embedder, layers=layers)


@functools.cache
def autoencoder(layers=None):
    return autoencoder_of(tiny_model(dropout=0.0, attention_dropout=0.0), layers)


@jax.jit
def decode(model, tokens, embeddings):
    return model.decoder(model.embedder.encoder, tokens, embeddings)


@jax.jit
def decoder_losses(model, tokens, embeddings):
    return model.decoder.losses(model.embedder.encoder, tokens, embeddings)


def larger(model):
    """With larger weights than at initialisation, so that attention is far from uniform."""
    return jax.tree.map(lambda a: np.asarray(5 * a if a.ndim > 1 else a), jax.device_get(model))


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


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        ("bert", None),
        ("modern", 1),
        *(pytest.param(*c, marks=pytest.mark.slow) for c in [("bert", 1), ("modern", None)]),
    ],
)
def test_logits_depend_on_the_embedding_and_on_what_came_before(kind, layers):
    modern = lambda key: Embedder(encoder=Transformer.init(key, MODERN))
    of_kind = lambda: autoencoder_of(jax.jit(modern)(jax.random.key(0)), layers)
    model = larger(autoencoder(layers) if kind == "bert" else of_kind())
    tokens = pad(sentences(8, longest=10, shortest=10), length=12)
    embedding = np.ones((8, 16), np.float32)
    logits = np.asarray(decode(model, tokens, embedding))
    ids = np.array(tokens.ids)
    ids[0, 6] = 49
    later = np.asarray(decode(model, dataclasses.replace(tokens, ids=ids), embedding))
    np.testing.assert_allclose(later[0, :6], logits[0, :6], atol=1e-5)
    assert np.all(np.abs(later - logits)[0, 6:10].max(axis=-1) > 1e-4)
    other = np.asarray(decode(model, tokens, -embedding))
    assert np.all(np.abs(other - logits)[0, :10].max(axis=-1) > 1e-4)


def test_losses_are_cross_entropies_of_the_next_tokens():
    model, texts = autoencoder(), sentences(8)
    tokens = pad(texts, length=12)
    embeddings = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    log_probabilities = log_softmax(np.asarray(decode(model, tokens, embeddings)), axis=-1)
    sums = [-sum(log_probabilities[n, t, ids[t + 1]] for t in range(len(ids) - 1)) for n, ids in enumerate(texts)]
    expected = np.array(sums) * 8 / sum(len(ids) - 1 for ids in texts)
    np.testing.assert_allclose(decoder_losses(model, tokens, embeddings), expected, rtol=1e-5)


def test_packed_texts_have_the_losses_of_texts_of_their_own():
    model, texts = larger(autoencoder()), sentences(8)
    embeddings = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    packed = pack(texts, row_length=24, texts_per_row=4)
    assert len(packed.ids) < 8
    np.testing.assert_allclose(
        decoder_losses(model, packed, embeddings), decoder_losses(model, pad(texts, length=12), embeddings), rtol=1e-4
    )


OBJECTIVE = denoising("text", PIECES)
value_of = jax.jit(OBJECTIVE)


@pytest.fixture(scope="module")
def trained():
    """A tiny autoencoder before and after it has learnt eight sentences, whose words are of few kinds."""
    texts = sentences(8, seed=3, shortest=8)
    batch = {"text": pad(texts, length=12), "id": np.arange(8)}
    start = autoencoder()
    optimizer = optax.adam(1e-2)

    def step(state, key):
        model, opt_state = state
        loss, gradient = jax.value_and_grad(lambda m: OBJECTIVE(m, batch, key)[0].mean())(model)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return (optax.apply_updates(model, updates), opt_state), loss

    train = jax.jit(lambda model, keys: jax.lax.scan(step, (model, optimizer.init(model)), keys))
    (model, _), history = train(start, jax.random.split(jax.random.key(2, impl="rbg"), 400))
    return start, model, batch, history


def test_training_restores_the_sentences(trained):
    start, model, batch, history = (jax.device_get(one) for one in trained)
    before, _ = value_of(start, batch, None)
    after, _ = value_of(model, batch, None)
    assert np.mean(before) > 3.5  # log 50 = 3.9
    assert np.mean(after) < 0.3
    assert history[-20:].mean() < 0.5 * history[0]  # with words deleted, some texts cannot be told apart


def test_the_decoder_reads_the_embedding(trained):
    """Another text's embedding leads it astray, also about the first word, before which all texts are the same."""
    _, model, batch, _ = trained
    _, outputs = value_of(model, batch, None)
    right = np.asarray(outputs["text"])
    wrong = np.roll(right, 1, axis=0)
    losses = lambda e: np.mean(decoder_losses(model, batch["text"], e))
    assert losses(wrong) > losses(right) + 1.0
    logits = lambda e: np.asarray(decode(model, batch["text"], e))
    first = lambda e: log_softmax(logits(e)[:, 0], axis=-1)[np.arange(8), batch["text"].ids[:, 1]]
    assert np.all(first(right) > np.log(0.5))
    assert first(wrong).mean() < first(right).mean() - 1.0


@pytest.mark.parametrize("layers", [None, pytest.param(1, marks=pytest.mark.slow)])
def test_tied_weights_are_trained_by_both_sides(layers):
    model, tokens = autoencoder(layers), pad(sentences(2), length=12)
    # Through the decoder alone: the embedding is held fixed.
    loss = lambda m, e: m.decoder.losses(m.embedder.encoder, tokens, e).mean()
    gradient = jax.jit(jax.grad(loss))(model, np.ones((2, 16), np.float32))
    of_encoder, own = gradient.embedder.encoder, gradient.decoder.layers
    assert np.any(of_encoder.embeddings.tokens)
    assert np.any(of_encoder.layers.mlp.up.kernel) == (layers is None) == (own is None)
    assert own is None or np.any(own.mlp.up.kernel)


def test_keys_decide_what_is_deleted(trained):
    model, _, batch, _ = trained
    first, again, other = (
        np.asarray(value_of(model, batch, jax.random.key(seed, impl="rbg"))[0]) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.all(first != other)
    _, outputs = value_of(model, batch, None)
    np.testing.assert_allclose(outputs["text"], jax.jit(lambda m, t: m(t))(model, batch["text"]), atol=1e-6)


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
