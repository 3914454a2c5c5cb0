"""Prompting a decoder: what is read of it, against its own states."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

import jaxemb
from jaxemb.data import Tokenizer, pack, pad
from jaxemb.embedder import transformer_of
from jaxemb.evaluate import sts
from jaxemb.prompting import (
    ECHO,
    META_EOL,
    PROMPT_EOL,
    WEIGHTED_MEAN,
    Prepending,
    Prompted,
    PromptTemplate,
    lexical_vectors,
    mean_of_variants,
    states_at,
    top_words,
    words_of,
)

TEXTS = ["a dog runs", "the green field", "one dog", "a field of green", "my neighbour runs over"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.fixture(scope="module")
def decoder():
    backend = tokenizers.ByteLevelBPETokenizer()
    backend.train_from_iterator(TEXTS * 4, 290, special_tokens=["<pad>"], show_progress=False)
    tokenizer = Tokenizer(backend._tokenizer, {"pad": 0})
    return jaxemb.new("llama", {**SIZES, "initializer_range": 0.5}, tokenizer, key=jax.random.key(0))


@pytest.fixture(scope="module")
def states(decoder):
    """`states(ids)`: all states `[L + 1, B, T, D]` of texts of one length per row."""
    run = jax.jit(lambda encoder, tokens: encoder(tokens, all_states=True))
    return lambda sequences: np.asarray(run(decoder.model.encoder, pad(sequences, length=96)))


def test_the_vector_is_the_state_that_the_template_says(decoder, states):
    for template, layer in ((PROMPT_EOL, 3), (dataclasses.replace(PROMPT_EOL, layer=-2), 2)):
        encoder = Prompted(decoder, template)
        ids = encoder.reader(template).encode(TEXTS).ids
        expected = np.stack([states(ids)[layer, i, len(own) - 1] for i, own in enumerate(ids)])
        np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-4)
    unit = encoder.encode(TEXTS, normalize=True)
    np.testing.assert_allclose(unit, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-4)


def test_echo_pools_the_second_copy_alone(decoder, states):
    encoder = Prompted(decoder, ECHO)
    found = encoder.reader(ECHO).encode(TEXTS)
    every = states(found.ids)[-1]
    spans = zip(found.ids, found.prompt_lengths, strict=True)
    expected = np.stack([every[i, start : len(ids)].mean(0) for i, (ids, start) in enumerate(spans)])
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-4)


def test_in_a_causal_model_only_the_second_copy_knows_the_end(decoder, states):
    ids = Prompted(decoder, ECHO).reader(ECHO).encode(["a dog", "a field"], None)
    found, starts = states(ids.ids)[-1], ids.prompt_lengths
    first = [list(own).index(ids.ids[0][starts[0]]) for own in ids.ids]  # of the first word's token, in the first copy
    np.testing.assert_allclose(found[0, first[0]], found[1, first[1]], atol=1e-5)
    assert np.abs(found[0, starts[0]] - found[1, starts[1]]).max() > 1e-3


def test_weighted_mean_and_several_templates(decoder, states):
    ids = Prompted(decoder, WEIGHTED_MEAN).reader(WEIGHTED_MEAN).encode(TEXTS).ids
    every = states(ids)[-1]
    expected = [
        np.average(every[i, : len(own)], axis=0, weights=np.arange(1, len(own) + 1)) for i, own in enumerate(ids)
    ]
    np.testing.assert_allclose(Prompted(decoder, WEIGHTED_MEAN).encode(TEXTS), expected, atol=1e-4)
    two = META_EOL[:2]
    mean = np.mean([Prompted(decoder, template).encode(TEXTS) for template in two], axis=0)
    np.testing.assert_allclose(Prompted(decoder, two).encode(TEXTS), mean, atol=1e-5)


def test_templates_by_name(decoder):
    encoder = Prompted(decoder, {"query": WEIGHTED_MEAN, "document": PROMPT_EOL})
    assert list(encoder.prompts) == ["query", "document"]
    np.testing.assert_array_equal(encoder.encode(TEXTS), encoder.encode(TEXTS, prompt_name="query"))
    plain = Prompted(decoder, PROMPT_EOL).encode(TEXTS)
    np.testing.assert_allclose(encoder.encode(TEXTS, prompt_name="document"), plain, atol=1e-6)
    with pytest.raises(ValueError, match=r"prompt_name must be one of \['document', 'query'\]; got 'corpus'"):
        encoder.encode(TEXTS, prompt_name="corpus")


def test_token_prepending(decoder):
    """Where it replaces, the layer reads the last token's state; elsewhere nothing changes."""
    encoder = Prompted(decoder, PROMPT_EOL, Prepending(1, 3))
    reader = encoder.reader(PROMPT_EOL)
    ids = reader.encode(TEXTS).ids
    tokens = pad(ids, length=96)
    vector = jax.random.normal(jax.random.key(0), (16,))
    made = dataclasses.replace(
        states_at(transformer_of(decoder.model), 3), prepended=vector, prepended_id=reader.prepended_id
    )
    run = jax.jit(lambda encoder, tokens: encoder(tokens, all_states=True))
    inert, active = (run(dataclasses.replace(made, layers=layers), tokens) for layers in ((1, 1), (1, 3)))
    where = [list(own).index(reader.prepended_id) for own in ids]
    for i, place in enumerate(where):
        np.testing.assert_array_equal(active[:2, i], inert[:2, i])  # before the first layer that reads another state
        np.testing.assert_allclose(inert[0, i, place], vector, atol=1e-6)
        np.testing.assert_array_equal(active[2, i, :place], inert[2, i, :place])  # what is before it does not see it
        assert np.abs(active[3, i, len(ids[i]) - 1] - inert[3, i, len(ids[i]) - 1]).max() > 1e-4
    last = np.stack([active[3, i, len(own) - 1] for i, own in enumerate(ids)])
    np.testing.assert_allclose(encoder.encode(TEXTS), last, atol=1e-4)  # packed as well


def test_what_a_layer_reads_of_the_prepended_token(decoder):
    """Exactly the state of its text's last token, and all others as they were, in packed rows."""
    made = dataclasses.replace(states_at(transformer_of(decoder.model), 3), prepended_id=9, layers=(1, 2))
    tokens = pack([np.array([3, 9, 4, 5]), np.array([6, 7, 9, 8, 2])], row_length=10)
    x = np.random.default_rng(0).normal(size=(len(tokens.ids), 10, 4)).astype(np.float32)
    replacing = made._replacing(tokens)
    ids, segments = np.asarray(tokens.ids), np.asarray(tokens.segment_ids)
    for layer, active in enumerate((False, True, False)):
        found = jax.tree.map(lambda leaf, layer=layer: leaf[layer], replacing)(jnp.asarray(x))
        expected = x.copy()
        for row, place in zip(*np.nonzero(ids == 9), strict=True):
            last = np.flatnonzero(segments[row] == segments[row, place])[-1]
            expected[row, place] = x[row, last] if active else x[row, place]
        np.testing.assert_array_equal(found, expected)


def test_lexical_weights():
    logits = np.float32([[np.e - 1, -3.0, 0.0, 4.0]])
    ids, weights = top_words(logits, most=2)
    assert ids.tolist() == [[3, 0]]
    np.testing.assert_allclose(weights, [[np.log(5), 1.0]], rtol=1e-6)
    allowed = np.array([[True, True, False, False]])
    np.testing.assert_allclose(top_words(logits, allowed, most=2)[1], [[1.0, 0.0]], rtol=1e-6)


def test_sparse_vectors_have_the_words_of_the_text(decoder):
    words = words_of(decoder.tokenizer, ["The DOG, the dog runs!", "the"], stop_words={"the"})
    expected = np.unique(np.concatenate(decoder.tokenizer(["dog", "runs"])))
    np.testing.assert_array_equal(words[0], expected)
    assert len(words[1]) == 0
    vocabulary = decoder.tokenizer.vocab_size
    table = np.random.default_rng(0).normal(size=(16, vocabulary)).astype(np.float32)
    states = np.random.default_rng(1).normal(size=(2, 16)).astype(np.float32)
    head = jax.tree_util.Partial(lambda table, x: x @ table, table)
    found = lexical_vectors(head, states, words, vocabulary, without_words=3)
    weights = np.round(100 * np.log1p(np.maximum(states @ table, 0)))
    dense = found.toarray()
    np.testing.assert_allclose(dense[0, words[0]], weights[0, words[0]], atol=1)
    assert not dense[0, np.setdiff1d(np.arange(vocabulary), words[0])].any()
    assert np.flatnonzero(dense[1]).tolist() == sorted(np.argsort(-weights[1], kind="stable")[:3].tolist())
    with pytest.raises(ValueError, match="words must be those of each of the 2 states; got 1"):
        lexical_vectors(jnp.tanh, states, words[:1], vocabulary)


def test_variants_are_averaged(decoder):
    encoder, wordings = Prompted(decoder, PROMPT_EOL), {"one dog": ["a dog", "the dog runs"]}
    found = mean_of_variants(encoder, ["one dog", "my field", "one dog"], lambda text: wordings.get(text, ()))
    expected = encoder.encode(["one dog", "a dog", "the dog runs"]).mean(0)
    np.testing.assert_allclose(found, [expected, encoder.encode(["my field"])[0], expected], atol=1e-5)


def test_it_is_an_encoder_of_evaluators(decoder):
    found = sts(Prompted(decoder, PROMPT_EOL), TEXTS[:3], TEXTS[1:4], [1.0, 2.0, 0.0])
    assert -1 <= found["cosine_spearman"] <= 1


def test_refusals(decoder):
    with pytest.raises(ValueError, match=r"layer must be in 1\.\.3 or -3\.\.-1; got 4"):
        Prompted(decoder, PromptTemplate("{text}", layer=4))
    with pytest.raises(ValueError, match="templates must be one or several; got none"):
        Prompted(decoder, ())
    with pytest.raises(ValueError, match="0 <= start <= stop; got 3 and 1"):
        Prepending(3, 1)
