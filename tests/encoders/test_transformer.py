import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxemb.data import pack, pad
from jaxemb.encoders import RopeConfig, Transformer, TransformerConfig
from jaxemb.encoders.transformer import _attention, _dropout

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


def _model(name, **changes):
    model = Transformer.init(jax.random.key(1), dataclasses.replace(CONFIGS[name], **changes))
    # Larger weights than at initialisation, so that attention is far from uniform.
    return jax.tree.map(lambda a: 5 * a if a.ndim > 1 else a, model)


def _texts(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 60, n) for n in lengths]


def _by_text(states, tokens):
    """The states of each text, whatever row it is in."""
    slots = np.arange(len(tokens.ids)) if tokens.slots is None else tokens.slots
    row, segment = slots // tokens.texts_per_row, slots % tokens.texts_per_row + 1
    return [np.asarray(states)[r][tokens.segment_ids[r] == s] for r, s in zip(row, segment, strict=True)]


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_texts_do_not_see_each_other(name):
    texts, model = _texts([5, 9, 2, 7, 11]), _model(name)
    alone = pad(texts, length=16)
    packed = pack(texts, row_length=24)
    assert packed.ids.shape[0] < len(texts)
    expected, got = (_by_text(model(t), t) for t in (alone, packed))
    for a, b in zip(expected, got, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_text_is_the_same_at_every_row_length(name):
    texts, model = _texts([5, 9]), _model(name)
    short, long = (_by_text(model(t), t) for t in (pad(texts, length=9), pad(texts, length=40)))
    for a, b in zip(short, long, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_causal_states_ignore_later_tokens_and_bidirectional_ones_do_not():
    first, second = (pad([np.array([1, 2, 3, last])]) for last in (4, 5))
    for name, same in (("decoder", True), ("bert", False)):
        model = _model(name)
        assert np.allclose(model(first)[:, :3], model(second)[:, :3], atol=1e-6) == same


def test_windows_limit_how_far_a_token_sees():
    model = _model("modern", windows=(1, 1, 1))
    a, b = np.arange(12), np.arange(12)
    b[-1] = 50
    one, other = model(pad([a], length=12)), model(pad([b], length=12))
    np.testing.assert_allclose(one[0, :8], other[0, :8], atol=1e-6)  # three layers reach three tokens back
    assert np.abs(one[0, 8] - other[0, 8]).max() > 1e-4


@pytest.mark.parametrize("name", CONFIGS)
def test_all_states_end_in_the_final_states(name):
    tokens, model = pad(_texts([5, 9])), _model(name)
    states = model(tokens, all_states=True)
    assert states.shape == (4, 2, 16, 32)
    np.testing.assert_array_equal(states[-1], model(tokens))


@pytest.mark.parametrize("name", ["bert", "modern"])
def test_a_prefix_of_the_stack_is_a_model(name):
    tokens, model = pad(_texts([5, 9])), _model(name)
    per_layer = {k: v[:2] for k in ("windows", "rope_of_layer") if (v := getattr(model.config, k))}
    shallow = Transformer(
        embeddings=model.embeddings,
        layers=jax.tree.map(lambda a: a[:2], model.layers),
        config=dataclasses.replace(model.config, layers=2, final_norm=False, **per_layer),
    )
    np.testing.assert_allclose(shallow(tokens), model(tokens, all_states=True)[2], atol=1e-5)


@pytest.mark.parametrize("changes", [{"remat": True}, {"unroll": 3}], ids=str)
def test_remat_and_unroll_change_neither_value_nor_gradient(changes):
    tokens = pad(_texts([5, 9]))

    def value_and_grad(model):
        return jax.value_and_grad(lambda m: jnp.sum(jnp.sin(m(tokens, key=jax.random.key(3)))))(model)

    (v1, g1), (v2, g2) = value_and_grad(_model("modern")), value_and_grad(_model("modern", **changes))
    np.testing.assert_allclose(v1, v2, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(g1), jax.tree.leaves(g2), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_dropout_acts_only_with_a_key_and_repeats_with_it():
    tokens, model = pad(_texts([5, 9])), _model("bert")
    a, b, c = (model(tokens, key=jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 1e-2
    assert np.abs(a - model(tokens)).max() > 1e-2


def test_bfloat16_computes_near_float32():
    tokens = pad(_texts([5, 9]))
    full, half = _model("modern")(tokens), _model("modern", dtype="bfloat16")(tokens)
    assert half.dtype == jnp.bfloat16
    assert np.abs(full - half.astype(jnp.float32)).mean() < 0.05


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_two_attention_implementations_agree(kv_heads):
    keys = jax.random.split(jax.random.key(0), 4)
    q = jax.random.normal(keys[0], (2, 6, 4, 8))
    k, v = (jax.random.normal(key, (2, 6, kv_heads, 8)) for key in keys[1:3])
    bias = jnp.where(jax.random.bernoulli(keys[3], 0.5, (2, 1, 6, 6)) | jnp.eye(6, dtype=bool), 0.0, -1e30)
    ours = lambda q, k, v: _attention(q, k, v, bias, 0.3)
    theirs = lambda q, k, v: jax.nn.dot_product_attention(q, k, v, bias=bias, scale=0.3)
    np.testing.assert_allclose(ours(q, k, v), theirs(q, k, v), atol=1e-5)
    grads = [jax.grad(lambda *a, f=f: jnp.sum(jnp.sin(f(*a))), argnums=(0, 1, 2))(q, k, v) for f in (ours, theirs)]
    for a, b in zip(*grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_attention_with_dropout_and_its_gradient():
    keys = jax.random.split(jax.random.key(0), 5)
    q, k, v = (jax.random.normal(key, (2, 6, 4, 8)) for key in keys[:3])
    bias = jax.random.normal(keys[3], (1, 4, 6, 6))

    def plain(q, k, v, bias):
        weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k) * 0.3 + bias)
        return jnp.einsum("bhts,bshd->bthd", _dropout(weights, 0.2, keys[4]), v)

    ours = lambda *a: _attention(*a, 0.3, 0.2, keys[4])
    np.testing.assert_allclose(ours(q, k, v, bias), plain(q, k, v, bias), atol=1e-5)
    grads = [jax.grad(lambda *a, f=f: jnp.sum(jnp.sin(f(*a))), (0, 1, 2, 3))(q, k, v, bias) for f in (ours, plain)]
    for a, b in zip(*grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_row_of_padding_is_finite_in_value_and_gradient():
    tokens, model = pad([np.arange(5), np.arange(0)], length=8), _model("modern")
    grads = jax.grad(lambda m: jnp.sum(m(tokens)[0, :5] ** 2))(model)
    assert np.isfinite(model(tokens)).all() and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_bad_shapes_are_refused_before_compilation():
    with pytest.raises(ValueError, match="kv_heads must divide heads; got heads=4, kv_heads=3"):
        dataclasses.replace(BASE, kv_heads=3)
    with pytest.raises(ValueError, match=r"windows must have one entry per layer \(3\) or none; got 2"):
        dataclasses.replace(BASE, windows=(1, 2))
    with pytest.raises(ValueError, match="rows of 65 tokens, but the model has 64 positions"):
        _model("bert")(pad([np.zeros(65, int)], length=65))


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
        ({"norm_eps": 0.0}, "norm_eps must be finite and > 0; got 0.0"),
        ({"attention_scale": float("nan")}, "attention_scale must be None, or finite and > 0; got nan"),
        ({"norm": "batch"}, r"norm must be one of \('layer', 'rms'\); got 'batch'"),
        ({"norm_placement": "middle"}, "norm_placement must be one of .*; got 'middle'"),
        ({"activation": "gelo"}, "activation must be one of .*; got 'gelo'"),
        ({"dtype": "float16"}, "dtype must be one of .*; got 'float16'"),
        ({"windows": (0, -1, 0)}, r"windows must be integers >= 0; got \(0, -1, 0\)"),
        ({"rope_of_layer": (0, 0, 1), "ropes": (RopeConfig(),)}, "rope_of_layer must be indices of the 1 ropes"),
        ({"ropes": (RopeConfig(),), "head_dim": 5}, "even for rotary positions; got 5"),
        ({"ropes": (RopeConfig(frequencies=(1.0,)),)}, "ropes: frequencies must be 4 numbers.*; got 1"),
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


def test_dropout_close_to_1_keeps_hardly_anything():
    kept = np.asarray(_dropout(jnp.ones((100, 100)), 1 - 1e-9, jax.random.key(0))) > 0
    assert kept.mean() < 0.01
