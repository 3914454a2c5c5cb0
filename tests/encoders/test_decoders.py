"""Config mappings, exact sizes, attention and errors of the decoder families."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxemb
from jaxemb.data import SPECIAL_TOKENS, Tokenizer, pad
from jaxemb.encoders import Transformer
from jaxemb.encoders.families import family_of
from jaxemb.trees import by_path
from jaxemb.types import Tokens


def _llama(model_type, dim, layers, heads, kv_heads, mlp, vocabulary, **more):
    return {
        "model_type": model_type,
        "hidden_size": dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": mlp,
        "vocab_size": vocabulary,
        **more,
    }


SMOL = _llama("llama", 576, 30, 9, 3, 1536, 49_152, tie_word_embeddings=True)
YI_6B = _llama("Yi", 4096, 32, 32, 4, 11_008, 64_000)
YI_9B = _llama("llama", 4096, 48, 32, 4, 11_008, 64_000)
GEMMA_2_2B = _llama("gemma2", 2304, 26, 8, 4, 9216, 256_000, head_dim=256)
QWEN_3 = _llama("qwen3", 1024, 28, 16, 8, 3072, 151_936, head_dim=128, tie_word_embeddings=True)
QWEN_2 = _llama("qwen2", 896, 24, 14, 2, 4864, 151_936, tie_word_embeddings=True)
MISTRAL = _llama("mistral", 4096, 32, 32, 8, 14_336, 32_000, sliding_window=4096)
PHI_3 = _llama("phi3", 3072, 32, 32, 32, 8192, 32_064)
GEMMA_3_270M = _llama("gemma3_text", 640, 18, 4, 1, 2048, 262_144, head_dim=256, sliding_window=512)
EMBEDDING_GEMMA = GEMMA_3_270M | {"hidden_size": 768, "num_hidden_layers": 24, "use_bidirectional_attention": True}
SIZES = [
    (SMOL, 134_515_008),
    (YI_6B, 6_061_035_520),
    (YI_9B, 8_829_407_232),
    (_llama("llama", 7168, 60, 56, 8, 20_480, 64_000), 34_388_917_248),
    (MISTRAL, 7_241_732_096),
    (_llama("llama", 4096, 32, 32, None, 11_008, 32_000), 6_738_415_616),
    (_llama("llama", 4096, 32, 32, 8, 14_336, 128_256), 8_030_261_248),
    (QWEN_2, 494_032_768),
    (QWEN_3, 596_049_920),
    (_llama("gemma", 2048, 18, 8, 1, 16_384, 256_000, head_dim=256), 2_506_172_416),
    (GEMMA_2_2B, 2_614_341_888),
    (GEMMA_3_270M, 268_098_176),
    (PHI_3, 3_821_079_552),
]


def _config(hf_config):
    return family_of(hf_config).config(hf_config)


@functools.cache
def _shapes(config):
    return jax.eval_shape(lambda key: Transformer.init(key, config), jax.random.key(0))


@pytest.mark.parametrize(("hf_config", "published"), SIZES)
def test_the_number_of_parameters_is_the_published_one(hf_config, published):
    """With a head where it is not tied."""
    head = family_of(hf_config).heads["language"]
    tied = hf_config.get("tie_word_embeddings", head.is_tied)
    body = sum(leaf.size for leaf in jax.tree.leaves(_shapes(_config(hf_config))))
    assert body + (0 if tied else hf_config["vocab_size"] * hf_config["hidden_size"]) == published


@pytest.mark.parametrize("hf_config", [SMOL, YI_6B, QWEN_2, QWEN_3, MISTRAL, PHI_3, GEMMA_2_2B, EMBEDDING_GEMMA])
def test_every_table_covers_every_leaf_once(hf_config):
    paths = by_path(_shapes(_config(hf_config)))
    for table in family_of(hf_config).tables:
        used = [leaf for weight in table for leaf in weight.leaves if all(leaf in paths for leaf in weight.leaves)]
        assert sorted(used) == sorted(paths)


def test_windows_are_those_of_each_family():
    """Causal, a window of W keys reaches W - 1 back; as transformers reads these keys."""
    assert _config(MISTRAL).windows == (4095,) * 32
    assert _config(MISTRAL | {"is_causal": False}).windows == (4096,) * 32
    assert _config(MISTRAL | {"sliding_window": None}).windows == ()
    assert _config(QWEN_2).windows == _config(QWEN_2 | {"sliding_window": 8}).windows == ()
    sliding = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 22}
    assert _config(QWEN_2 | sliding).windows == (0,) * 22 + (7,) * 2
    assert _config(GEMMA_2_2B | {"sliding_window": 4096}).windows == (4095, 0) * 13
    gemma = _config(GEMMA_3_270M)
    assert gemma.windows == ((511,) * 5 + (0,)) * 3 and gemma.rope_of_layer == ((1,) * 5 + (0,)) * 3
    assert [rope.base for rope in gemma.ropes] == [1_000_000.0, 10_000.0]
    both = _config(EMBEDDING_GEMMA)
    assert not both.causal and both.windows == ((256,) * 5 + (0,)) * 4
    types = ["full_attention"] * 17 + ["sliding_attention"]
    assert _config(GEMMA_3_270M | {"layer_types": types}).windows == (0,) * 17 + (511,)


def test_both_styles_of_rope_keys_are_read():
    llama3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    old = {"rope_theta": 500_000.0, "rope_scaling": {"type": "llama3", **llama3}}
    new = {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500_000.0, **llama3}}
    assert _config(SMOL | old).ropes == _config(SMOL | new).ropes != _config(SMOL).ropes
    assert _config(YI_6B).ropes[0].base == 5_000_000.0 and _config(YI_9B).ropes[0].base == 10_000.0
    stretched = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_theta": 2e6, "rope_local_base_freq": 9e3}
    full, sliding = _config(GEMMA_3_270M | stretched).ropes
    assert full.frequencies[0] == 0.125 and full.base == 2e6 and sliding.base == 9e3 and sliding.frequencies is None
    longer = _config(SMOL | {"max_position_embeddings": 100, "rope_scaling": {"type": "dynamic", "factor": 2.5}})
    assert longer.max_positions == 250 and longer.ropes[0].trained_length == 100
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
    lengths = {"max_position_embeddings": 40_960, "rope_scaling": yarn}
    assert _config(QWEN_3 | lengths).max_positions == 131_072


def test_phi_3_has_long_and_short_frequencies():
    factors = {"short_factor": [1.0] * 36, "long_factor": [2.0] * 36}
    lengths = {"max_position_embeddings": 131_072, "original_max_position_embeddings": 4096}
    (rope,) = _config(
        PHI_3 | lengths | {"rope_scaling": {"type": "su", **factors}, "partial_rotary_factor": 0.75}
    ).ropes
    assert rope.trained_length == 4096 and len(rope.frequencies) == 36
    np.testing.assert_allclose(np.divide(rope.frequencies, rope.long_frequencies), 2)
    np.testing.assert_allclose(rope.attention_factor, np.sqrt(1 + np.log(32) / np.log(4096)))


@pytest.mark.parametrize(
    ("hf_config", "message"),
    [
        (SMOL | {"rope_scaling": {"type": "ntk"}}, "rope_scaling: type must be one of ['default', 'dynamic', 'linear'"),
        (SMOL | {"rope_scaling": {"factor": 8.0}}, "rope_scaling: rope_type is missing, which says what factor is for"),
        (SMOL | {"rope_scaling": {"type": "linear"}}, "rope_scaling: key 'factor' is missing"),
        (SMOL | {"num_key_value_heads": 2}, "kv_heads must divide heads; got heads=9, kv_heads=2"),
        (SMOL | {"is_causal": "no"}, "is_causal must be true or false; got 'no'"),
        (GEMMA_2_2B | {"use_bidirectional_attention": True}, "use_bidirectional_attention must be false; got true"),
        (
            EMBEDDING_GEMMA | {"is_causal": True},
            "is_causal must be false, as use_bidirectional_attention is true; got true",
        ),
        (GEMMA_3_270M | {"layer_types": ["full_attention"]}, "layer_types must be 18 of ['full_attention', "),
        (GEMMA_3_270M | {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping must be null; got 50.0"),
        (PHI_3 | {"partial_rotary_factor": 0.01}, "partial_rotary_factor must leave an even number in 2..96 of"),
        (
            PHI_3 | {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
            "short_factors and long_factors must be 48 numbers each, half of dim; got 1 and 1",
        ),
    ],
)
def test_what_a_family_cannot_honour_is_refused(hf_config, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        _config(hf_config)


TINY = _llama("qwen3", 8, 2, 4, 2, 12, 31, head_dim=4, initializer_range=0.5)
IDS = np.random.default_rng(0).integers(1, 31, (1, 12))
_states = jax.jit(lambda model, tokens: model(tokens))


@functools.cache
def _tiny(**changes):
    model = jax.jit(lambda key: Transformer.init(key, _config(TINY)))(jax.random.key(0))
    return dataclasses.replace(model, config=dataclasses.replace(model.config, **changes))


def test_what_comes_later_is_seen_only_as_attention_says():
    """Causal: never. With a prompt that is seen as a whole: in it. Bidirectional: always."""
    changed = IDS.copy()
    changed[0, 4], changed[0, 9] = 1 + IDS[0, 4] % 30, 1 + IDS[0, 9] % 30
    tokens = lambda ids: Tokens.from_mask(ids, np.ones_like(ids)).with_prompt(6)
    moved = lambda model: np.abs(_states(model, tokens(IDS)) - _states(model, tokens(changed)))[0].max(-1) > 1e-6
    np.testing.assert_array_equal(moved(_tiny()), [False] * 4 + [True] * 8)
    np.testing.assert_array_equal(moved(_tiny(causal=False)), [True] * 12)
    only = IDS.copy()
    only[0, 9] = changed[0, 9]
    changed = only
    np.testing.assert_array_equal(moved(_tiny(prefix_attention=True)), [False] * 9 + [True] * 3)
    changed = IDS.copy()
    changed[0, 4] = 1 + IDS[0, 4] % 30
    np.testing.assert_array_equal(moved(_tiny(prefix_attention=True)), [True] * 12)


def test_a_prompt_is_that_of_its_text():
    """Two texts in a row, with prompts of two and three tokens, are what they are alone."""
    halves = [IDS[:, :5], IDS[:, 5:]]
    segments, positions = np.repeat([1, 2], [5, 7])[None], np.concatenate([np.arange(5), np.arange(7)])[None]
    packed = Tokens(IDS, segments, positions, texts_per_row=2).with_prompt(np.array([2, 3]))
    np.testing.assert_array_equal(packed.prompt[0], [1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0])
    model = _tiny(prefix_attention=True)
    found = _states(model, packed)
    for half, length, part in zip(halves, (2, 3), (found[:, :5], found[:, 5:]), strict=True):
        alone = _states(model, Tokens.from_mask(half, np.ones_like(half)).with_prompt(length))
        np.testing.assert_allclose(part, alone, atol=1e-5)
    with pytest.raises(ValueError, match="prefix_attention is for causal attention; got causal=False"):
        _tiny(prefix_attention=True, causal=False)


def test_prompts_of_encoded_texts_are_seen_as_a_whole():
    tokenizer = Tokenizer.word_piece([*SPECIAL_TOKENS, *"abcdef"])
    sizes = {key: TINY[key] for key in TINY if key not in ("model_type", "vocab_size")}
    embedder = jaxemb.new("qwen3", sizes, tokenizer, key=jax.random.key(0))
    config = dataclasses.replace(embedder.model.encoder.config, prefix_attention=True)
    whole = dataclasses.replace(embedder.model.encoder, config=config)
    prefixed = embedder.replace(model=dataclasses.replace(embedder.model, encoder=whole))
    assert tokenizer.prompt_length("a b ") == 3  # with what stands before it
    texts = ["c d", "e"]
    tokens = pad(tokenizer([f"a b {text}" for text in texts])).with_prompt(3)
    found = prefixed.encode(texts, prompt="a b ")
    np.testing.assert_allclose(found, jax.jit(prefixed.model.__call__)(tokens), atol=1e-5)
    assert np.abs(found - embedder.encode(texts, prompt="a b ")).max() > 1e-3
    np.testing.assert_allclose(prefixed.encode(texts), embedder.encode(texts), atol=1e-5)


def test_shared_heads_are_those_heads_repeated():
    """Grouped queries are as many keys and values, each there for all queries of its group."""
    shared = _tiny()
    attention = shared.layers.attention

    def repeated(linear):
        kernel = linear.kernel.reshape(2, 8, 2, 4)
        return dataclasses.replace(linear, kernel=jnp.repeat(kernel, 2, axis=2).reshape(2, 8, 16))

    attention = dataclasses.replace(attention, key=repeated(attention.key), value=repeated(attention.value))
    layers = dataclasses.replace(shared.layers, attention=attention)
    whole = dataclasses.replace(shared, layers=layers, config=dataclasses.replace(shared.config, kv_heads=4))
    tokens = Tokens.from_mask(IDS, np.ones_like(IDS))
    np.testing.assert_allclose(_states(whole, tokens), _states(shared, tokens), atol=1e-5)


def test_embeddings_are_scaled_as_the_type_has_it():
    """Gemma's sqrt(3072) is 55.5 in bfloat16."""
    config = _config(_llama("gemma", 3072, 1, 1, 1, 8, 5))
    scale = lambda dtype: dataclasses.replace(_tiny().embeddings, tokens=jnp.ones((5, 3072)))(
        Tokens.from_mask([[1]], [[1]]), dataclasses.replace(config, dtype=dtype), None
    )
    assert scale("bfloat16")[0, 0, 0] == 55.5
    np.testing.assert_allclose(scale("float32")[0, 0, 0], 3072**0.5, rtol=1e-6)
