"""Which words are hidden from encoder and decoder; the losses themselves are compared in the tests of parity."""

import functools

import jax
import numpy as np
import pytest
from tiny_run import pair_batch, tiny_model

from jaxemb.data import pack, pad
from jaxemb.pretraining import MaskedAutoEncoder, MaskedLanguageModel, mask_words, masked_autoencoding
from jaxemb.pretraining.denoising import CONTINUATION, SPECIAL, START

CLS, SEP, MASK = 1, 2, 3
PIECES = np.array([SPECIAL, SPECIAL, SPECIAL, SPECIAL, *[START] * 16, *[CONTINUATION] * 10], np.int8)
hide = jax.jit(functools.partial(mask_words, pieces=PIECES, ratios=(0.2, 0.4)))


@functools.cache
def masked_autoencoder():
    language_model = lambda key, embedder: MaskedAutoEncoder.of(MaskedLanguageModel.init(key, embedder))
    return jax.jit(language_model)(jax.random.key(0), tiny_model())


def sentences(n: int) -> list[np.ndarray]:
    """Some begin with a continuation, as texts cut at any place do."""
    rng = np.random.default_rng(0)
    return [np.array([CLS, *rng.integers(4, 30, rng.integers(1, 18)), SEP]) for _ in range(n)]


def words_of(ids: np.ndarray) -> list[list[int]]:
    words: list[list[int]] = []
    for place, token in enumerate(ids):
        if PIECES[token] == START or (PIECES[token] == CONTINUATION and PIECES[ids[place - 1]] == SPECIAL):
            words.append([place])
        elif PIECES[token] == CONTINUATION:
            words[-1].append(place)
    return words


@pytest.mark.parametrize("packed", [False, True])
def test_words_are_hidden_while_there_is_room(packed):
    texts = sentences(60)
    tokens = pack(texts, row_length=40, texts_per_row=5) if packed else pad(texts, length=20)
    encoder, decoder = (np.asarray(x) for x in hide(tokens, jax.random.key(0)))
    segments = np.asarray(tokens.segment_ids)
    assert not (encoder | decoder)[segments == 0].any()
    hidden = [0, 0]
    slots = range(len(texts)) if tokens.slots is None else np.asarray(tokens.slots)
    for text, slot in zip(texts, slots, strict=True):
        row, place = slot // tokens.texts_per_row, segments[slot // tokens.texts_per_row]
        by_encoder, by_decoder = (x[row][place == slot % tokens.texts_per_row + 1] for x in (encoder, decoder))
        assert not (by_encoder & ~by_decoder).any()
        for i, (which, ratio) in enumerate(((by_encoder, 0.2), (by_decoder, 0.4))):
            assert not which[[0, -1]].any()
            room = max(1, round(ratio * len(text))) - which.sum()
            assert room >= 0
            for word in words_of(text):
                assert len(set(which[word])) == 1  # all of it or nothing
                if i == 1 and not which[word[0]]:
                    assert len(word) > room
            hidden[i] += which.sum()
    assert 0 < hidden[0] < hidden[1]


@pytest.mark.slow
def test_every_size_and_the_decoder_learn():
    """All layers, the decoder and the head get a gradient."""
    model = masked_autoencoder()
    objective = masked_autoencoding("query", np.full(50, START, np.int8), 4, ((1, 4), (2, 16)))
    batch, key = pair_batch(range(4)), jax.random.key(0)
    value, gradient = jax.jit(jax.value_and_grad(lambda model: objective(model, batch, key)[0].mean()))(model)
    assert abs(value - np.log(50)) < 0.5  # of a guess
    for leaf in (gradient.decoder.mlp.up.kernel, gradient.language_model.head.bias):
        assert np.abs(leaf).max() > 0
    assert np.all(np.abs(gradient.language_model.embedder.encoder.layers.mlp.up.kernel).max(axis=(1, 2)) > 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": ((1, 4), (1, 16))}, "both strictly increasing"),
        ({"sizes": ((1, 4),)}, r"the last of sizes must be the full size \(2, 16\)"),
        ({"encoder_ratio": 0.4}, "0 <= encoder < decoder <= 1"),
    ],
)
def test_names_what_is_wrong(options, message):
    model = masked_autoencoder()
    with pytest.raises(ValueError, match=message):
        masked_autoencoding("query", PIECES, MASK, **({"sizes": ((2, 16),)} | options))(model, pair_batch([0]), None)
    with pytest.raises(TypeError, match="trains a MaskedAutoEncoder"):
        masked_autoencoding("query", PIECES, MASK, ((2, 16),))(model.language_model, pair_batch([0]), None)
    with pytest.raises(ValueError, match="ratios must be"):
        mask_words(pair_batch([0])["query"], jax.random.key(0), PIECES, (0.4, 0.2))
