import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import tiny_model

from jaxemb.data import pack, pad
from jaxemb.encoders import Transformer, TransformerConfig
from jaxemb.nn import RopeConfig
from jaxemb.types import Tokens

BASE = TransformerConfig(
    vocab_size=60, dim=32, layers=3, heads=4, mlp_dim=48, position_table=64, token_types=2, norm_eps=1e-6
)
ROPE = dict(position_table=0, ropes=(RopeConfig(100.0), RopeConfig(10.0)), rope_of_layer=(0, 1, 1), windows=(0, 2, 2))
CONFIGS = {
    "bert": BASE,
    "relative": dataclasses.replace(BASE, relative_buckets=8, relative_max_distance=16),
    "modern": dataclasses.replace(
        BASE, **ROPE, norm_placement="pre", gated=True, final_norm=True, skip_first_attention_norm=True
    ),
    "decoder": dataclasses.replace(
        BASE,
        **ROPE,
        kv_heads=2,
        head_dim=12,
        causal=True,
        norm="rms",
        norm_bias=False,
        norm_placement="sandwich",
        query_key_norm=True,
        embedding_norm=False,
        activation="gelu_tanh",
        gated=True,
        final_norm=True,
        token_types=0,
    ),
}


@functools.cache
def _weights(name):
    model = jax.jit(lambda key: Transformer.init(key, CONFIGS[name]))(jax.random.key(1))
    # Larger weights than at initialisation, so that attention is far from uniform.
    return jax.tree.map(lambda a: np.asarray(5 * a if a.ndim > 1 else a), jax.device_get(model))


def _model(name, **changes):
    """The same weights whatever changes."""
    return dataclasses.replace(_weights(name), config=dataclasses.replace(CONFIGS[name], **changes))


_run = jax.jit(lambda model, tokens, key=None: model(tokens, key=key))
_all_states = jax.jit(lambda model, tokens: model(tokens, all_states=True))


def _texts(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 60, n) for n in lengths]


TEXTS = _texts([5, 9, 2, 7, 11])
TOKENS = pad(TEXTS, length=16)  # most tests take this batch, so that they share programs


@functools.cache
def _states(name):
    """All states of `TOKENS`, `[layers + 1, N, T, D]`."""
    return np.asarray(_all_states(_model(name), TOKENS))


def _by_text(states, tokens):
    """The states of each text, whatever row it is in."""
    slots = np.arange(len(tokens.ids)) if tokens.slots is None else tokens.slots
    row, segment = slots // tokens.texts_per_row, slots % tokens.texts_per_row + 1
    return [np.asarray(states)[r][tokens.segment_ids[r] == s] for r, s in zip(row, segment, strict=True)]


def _assert_same_texts(states, tokens, others, other_tokens):
    for a, b in zip(_by_text(states, tokens), _by_text(others, other_tokens), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_texts_do_not_see_each_other(name):
    packed = pack(TEXTS, row_length=24)
    assert packed.ids.shape[0] < len(TEXTS)
    _assert_same_texts(_states(name)[-1], TOKENS, _run(_model(name), packed), packed)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_text_is_the_same_at_every_row_length_and_all_states_end_in_the_final_ones(name):
    longer = pad(TEXTS, length=40)
    assert _states(name).shape == (4, 5, 16, 32)
    _assert_same_texts(_states(name)[-1], TOKENS, _run(_model(name), longer), longer)


def test_causal_states_ignore_later_tokens_and_bidirectional_ones_do_not():
    ids = TOKENS.ids.copy()
    ids[1, 5] = (ids[1, 5] + 1) % 60
    other = dataclasses.replace(TOKENS, ids=ids)
    for name, same in (("decoder", True), ("bert", False)):
        changed = _all_states(_model(name), other)[-1]
        assert np.allclose(_states(name)[-1][1, :5], changed[1, :5], atol=1e-6) == same


def test_windows_limit_how_far_a_token_sees():
    model = _model("modern", windows=(1, 1, 1))
    a, b = np.arange(12), np.arange(12)
    b[-1] = 50
    one, other = (np.asarray(_run(model, pad([text], length=12)))[0] for text in (a, b))
    np.testing.assert_allclose(one[:8], other[:8], atol=1e-6)  # three layers reach three tokens back
    assert np.abs(one[8] - other[8]).max() > 1e-4


@pytest.mark.parametrize("name", ["bert", "modern"])
def test_a_prefix_of_the_stack_is_a_model(name):
    model = _model(name)
    per_layer = {k: v[:2] for k in ("windows", "rope_of_layer") if (v := getattr(model.config, k))}
    shallow = Transformer(
        embeddings=model.embeddings,
        layers=jax.tree.map(lambda a: a[:2], model.layers),
        config=dataclasses.replace(model.config, layers=2, final_norm=False, **per_layer),
    )
    np.testing.assert_allclose(_run(shallow, TOKENS), _states(name)[2], atol=1e-5)


_KEY = jax.random.key(3, impl="rbg")  # compiles sooner than threefry
_value_and_grad = jax.jit(jax.value_and_grad(lambda model: jnp.sum(jnp.sin(model(TOKENS, key=_KEY)))))


@pytest.mark.parametrize(
    "changes",
    [
        {"remat": "full"},
        *(pytest.param(c, marks=pytest.mark.slow) for c in ({"remat": "dots"}, {"remat": "full", "unroll": 3})),
    ],
    ids=str,
)
def test_how_it_is_computed_changes_neither_value_nor_gradient(changes):
    (v1, g1), (v2, g2) = _value_and_grad(_model("modern")), _value_and_grad(_model("modern", **changes))
    np.testing.assert_allclose(v1, v2, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(g1), jax.tree.leaves(g2), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_dropout_acts_only_with_a_key_and_repeats_with_it():
    a, b, c = (np.asarray(_run(_model("bert"), TOKENS, jax.random.key(k, impl="rbg"))) for k in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 1e-2
    assert np.abs(a - _states("bert")[-1]).max() > 1e-2


def test_bfloat16_computes_near_float32():
    half = _run(_model("modern", dtype="bfloat16"), TOKENS)
    assert half.dtype == jnp.bfloat16
    real = TOKENS.segment_ids > 0
    assert np.abs(_states("modern")[-1] - np.asarray(half, np.float32))[real].mean() < 0.05


@pytest.mark.parametrize("name", ["relative", "decoder"])
def test_weights_that_rest_in_bfloat16_compute_as_the_same_numbers_in_float32(name):
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), _model(name))
    high = jax.tree.map(lambda leaf: leaf.astype(np.float32), low)
    np.testing.assert_allclose(_run(low, TOKENS), _run(high, TOKENS), rtol=1e-4, atol=1e-4)  # bf16 rounds by 4e-3


def test_a_row_of_padding_is_finite_in_value_and_gradient():
    tokens = pad([np.arange(5), np.arange(0)], length=8)
    loss = lambda model: (jnp.sum((y := model(tokens))[0, :5] ** 2), y)
    gradients, states = jax.jit(jax.grad(loss, has_aux=True))(_model("modern"))
    assert np.isfinite(states).all() and all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_bad_shapes_are_refused_before_compilation():
    with pytest.raises(ValueError, match="kv_heads must divide heads; got heads=4, kv_heads=3"):
        dataclasses.replace(BASE, kv_heads=3)
    with pytest.raises(ValueError, match=r"windows must have one entry per layer \(3\) or none; got 2"):
        dataclasses.replace(BASE, windows=(1, 2))
    with pytest.raises(ValueError, match="rows of 65 tokens, but the model has 64 positions"):
        _run(_model("bert"), pad([np.zeros(65, int)], length=65))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\); got 1.0"),
        ({"attention_dropout": -0.1}, r"attention_dropout must be in \[0, 1\); got -0.1"),
        ({"dropout": None}, r"dropout must be in \[0, 1\); got None"),
        ({"layers": 0}, "layers must be an integer >= 1; got 0"),
        ({"dim": 32.0}, r"dim must be an integer >= 1; got 32.0"),
        ({"head_dim": 0}, "head_dim must be an integer >= 1; got 0"),
        ({"token_types": -1}, "token_types must be an integer >= 0; got -1"),
        ({"norm_eps": 0.0}, "norm_eps must be in 1.2e-38..1; got 0.0"),
        ({"norm_eps": 1e300}, "norm_eps must be in 1.2e-38..1; got 1e.300"),
        ({"attention_scale": float("nan")}, "attention_scale must be None, or finite and > 0; got nan"),
        ({"norm": "batch"}, r"norm must be one of \('layer', 'rms'\); got 'batch'"),
        ({"norm_placement": "middle"}, "norm_placement must be one of .*; got 'middle'"),
        ({"activation": "gelo"}, "activation must be one of .*; got 'gelo'"),
        ({"remat": True}, r"remat must be one of \('none', 'full', 'dots'\); got True"),
        ({"attention_implementation": "flash"}, "attention_implementation must be one of .*; got 'flash'"),
        ({"attention_soft_cap": 0}, "attention_soft_cap must be None, or finite and > 0; got 0"),
        ({"dtype": "float16"}, "dtype must be one of .*; got 'float16'"),
        ({"windows": (0, -1, 0)}, r"windows must be integers >= 0; got \(0, -1, 0\)"),
        ({"rope_of_layer": (0, 0, 1), "ropes": (RopeConfig(),)}, "rope_of_layer must be indices of the 1 ropes"),
        ({"ropes": (RopeConfig(),), "head_dim": 5}, "even for rotary positions; got 5"),
        (
            {"ropes": (RopeConfig(frequencies=(1.0,) * 5),)},
            "ropes: frequencies must be .* at most 4, half of .*; got 5",
        ),
        (
            {"position_table": 2, "position_offset": 2},
            "position_table must be .* position_offset, 2; got 2",
        ),
        ({"relative_buckets": 2}, "relative_buckets must be 0 or from 4 to .*; got 2"),
    ],
    ids=str,
)
def test_a_bad_configuration_names_field_value_and_what_is_expected(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BASE, **changes)


def test_a_rope_has_a_positive_base():
    with pytest.raises(ValueError, match="base must be finite and > 0; got 0"):
        RopeConfig(0)


@pytest.mark.parametrize("bad", [50, -1, 2**31 - 1])
def test_an_id_without_a_row_is_not_taken_for_another(bad):
    """A value that is known raises; in a compiled program it is NaN, in its own row alone. Padding may be anything."""
    model = tiny_model().encoder
    ids, mask = np.full((2, 4), 3), np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    good = model(Tokens.from_mask(ids, mask))
    ids[1, 3] = bad
    np.testing.assert_array_equal(model(Tokens.from_mask(ids, mask))[mask > 0], good[mask > 0])
    ids[0, 2] = bad
    with pytest.raises(ValueError, match=f"token ids must be in 0..49, as the table has rows; got {bad}"):
        model(Tokens.from_mask(ids, mask))
    compiled = jax.jit(lambda model, tokens: model(tokens))(model, Tokens.from_mask(ids, mask))
    assert np.isnan(compiled[0]).all() and np.isfinite(compiled[1]).all()
    types = np.where(ids == bad, bad, 0)
    with pytest.raises(ValueError, match=f"type ids must be in 0..1, as the table has rows; got {bad}"):
        model(Tokens.from_mask(np.full((2, 4), 3), mask, types))
