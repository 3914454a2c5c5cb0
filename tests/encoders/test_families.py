"""Config mappings, exact sizes, hand cases and errors of the encoder families."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxemb.encoders import Transformer
from jaxemb.encoders.families import FAMILIES, family_of
from jaxemb.encoders.transformer import Embeddings
from jaxemb.nn.stack import relative_position_bias
from jaxemb.types import Tokens

_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
BERT = {"model_type": "bert", "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2, **_BASE}
ROBERTA = {
    "model_type": "roberta",
    "vocab_size": 50265,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    **_BASE,
}
XLM_ROBERTA = ROBERTA | {"model_type": "xlm-roberta", "vocab_size": 250002}
DISTILBERT = {
    "model_type": "distilbert",
    "vocab_size": 30522,
    "dim": 768,
    "n_layers": 6,
    "n_heads": 12,
    "hidden_dim": 3072,
    "max_position_embeddings": 512,
}
MPNET = {"model_type": "mpnet", "vocab_size": 30527, "max_position_embeddings": 514, "layer_norm_eps": 1e-5, **_BASE}
MODERNBERT = {
    "model_type": "modernbert",
    "vocab_size": 50368,
    "hidden_size": 768,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "intermediate_size": 1152,
    "max_position_embeddings": 8192,
    "local_attention": 128,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "local_rope_theta": 10000.0,
}
NOMIC_BERT = {
    "model_type": "nomic_bert",
    "vocab_size": 30528,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": 3072,
    "n_positions": 8192,
    "type_vocab_size": 2,
    "activation_function": "swiglu",
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_scaling_factor": None,
    "qkv_proj_bias": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "prenorm": False,
    "use_rms_norm": False,
    "layer_norm_epsilon": 1e-12,
}


def _config(hf_config):
    return family_of(hf_config).config(hf_config)


def _size(hf_config) -> int:
    model = jax.eval_shape(lambda key: Transformer.init(key, _config(hf_config)), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(model))


_POOLER = 768 * 768 + 768


@pytest.mark.parametrize(
    ("hf_config", "published"),
    [
        (BERT, 109_482_240 - _POOLER),
        (ROBERTA, 124_645_632 - _POOLER),
        (XLM_ROBERTA, 278_043_648 - _POOLER),
        (MPNET, 109_486_464 - _POOLER),
        (DISTILBERT, 66_362_880),
        (MODERNBERT, 149_014_272 + 768),  # the first layer's attention norm is in the stack, unused
        (NOMIC_BERT, 136_731_648),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_parameter_count_is_the_published_one(hf_config, published):
    assert _size(hf_config) == published


@pytest.mark.parametrize(
    "hf_config", [BERT, ROBERTA, DISTILBERT, MPNET, MODERNBERT, NOMIC_BERT], ids=lambda c: c["model_type"]
)
def test_every_table_covers_every_leaf_once(hf_config):
    model = jax.eval_shape(lambda key: Transformer.init(key, _config(hf_config)), jax.random.key(0))
    paths = [jax.tree_util.keystr(p, simple=True, separator=".") for p, _ in jax.tree_util.tree_leaves_with_path(model)]
    for table in family_of(hf_config).tables:
        named = [leaf for weight in table for leaf in weight.leaves]
        assert len(named) == len(set(named))
        assert set(paths) <= set(named)


def test_every_model_type_has_its_family():
    assert set(FAMILIES) == {
        "bert", "camembert", "distilbert", "modernbert", "mpnet", "nomic_bert", "roberta", "xlm-roberta",
        "gemma", "gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3", "Yi",
    }  # fmt: skip
    assert FAMILIES["xlm-roberta"] is FAMILIES["roberta"]


def test_roberta_positions_start_after_the_padding_id():
    ids, mask = np.array([[0, 9, 2, 1, 1]]), np.array([[1, 1, 1, 0, 0]])
    config = dataclasses.replace(_config(ROBERTA), dropout=0.0)
    embeddings = Embeddings(tokens=jnp.zeros((10, 1)), positions=jnp.arange(514.0)[:, None])
    rows = embeddings(Tokens.from_mask(ids, mask), config, None)[0, :, 0]
    np.testing.assert_array_equal(rows[:3], [2, 3, 4])
    assert config.max_positions == 512


def test_padding_that_a_text_holds_itself_takes_no_position():
    """transformers: `cumsum(ids != padding) * (ids != padding) + padding`, in every text of a row."""
    texts = [[0, 1, 9, 2], [0, 9, 1, 1, 9, 2], [1]]
    expected = [[2, 1, 3, 4], [2, 3, 1, 1, 4, 5], [1]]
    lengths = list(map(len, texts))
    segments, positions = np.repeat([1, 2, 3], lengths), np.concatenate([np.arange(n) for n in lengths])
    packed = Tokens(np.concatenate(texts)[None], segments[None], positions[None], texts_per_row=3)
    embeddings = Embeddings(tokens=jnp.zeros((10, 1)), positions=jnp.arange(514.0)[:, None])
    for config in (ROBERTA, MPNET):
        rows = embeddings(packed, dataclasses.replace(_config(config), dropout=0.0), None)[0, :, 0]
        np.testing.assert_array_equal(rows, np.concatenate(expected))


def test_mpnet_buckets():
    table = jnp.arange(32.0)[:, None]  # one head whose bias is the bucket
    bias = relative_position_bias(table, 201, _config(MPNET).relative_max_distance)[0, 0]
    at = lambda relative: int(bias[200, 200 + relative] if relative < 0 else bias[0, relative])
    assert [at(relative) for relative in (0, 1, -1, 7, 8, -200)] == [0, 17, 1, 23, 24, 15]


def test_modernbert_reads_both_styles_of_rope_keys():
    rope = lambda theta: {"rope_type": "default", "rope_theta": theta}
    new = {key: value for key, value in MODERNBERT.items() if "rope" not in key and "global" not in key} | {
        "layer_types": ["sliding_attention" if i % 3 else "full_attention" for i in range(22)],
        "rope_parameters": {"full_attention": rope(160000.0), "sliding_attention": rope(10000.0)},
    }
    assert _config(new) == _config(MODERNBERT)
    config = _config(MODERNBERT)
    assert config.windows[:4] == (0, 64, 64, 0)
    assert [config.ropes[i].base for i in config.rope_of_layer[:4]] == [160000.0, 10000.0, 10000.0, 160000.0]
    without_local = _config(MODERNBERT | {"local_rope_theta": None})
    assert [rope.base for rope in without_local.ropes] == [160000.0, 160000.0]


def test_nomic_bert_reads_both_styles_of_keys():
    new = {
        "model_type": "nomic_bert",
        "vocab_size": 30528,
        "max_position_embeddings": 8192,
        "type_vocab_size": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
        **_BASE,
    }
    assert _config(new) == _config(NOMIC_BERT)
    # With dynamic scaling, the plain frequencies hold up to the trained length.
    assert _config(NOMIC_BERT | {"rotary_scaling_factor": 2.0, "max_trained_positions": 2048}).max_positions == 2048
    assert _config(NOMIC_BERT | {"vocab_size": 30522, "pad_vocab_size_multiple": 64}).vocab_size == 30528


@pytest.mark.parametrize(
    ("hf_config", "message"),
    [
        ({"model_type": "t5"}, "model_type must be one of ['Yi', 'bert', 'camembert'"),
        ({}, "key 'model_type' is missing"),
        (BERT | {"hidden_act": "mish"}, "hidden_act must be one of ['gelu'"),
        (
            BERT | {"position_embedding_type": "relative_key"},
            "position_embedding_type must be 'absolute'; got 'relative_key'",
        ),
        (BERT | {"is_decoder": True}, "is_decoder must be false; got true"),
        (NOMIC_BERT | {"rotary_emb_interleaved": True}, "rotary_emb_interleaved must be false; got true"),
        (NOMIC_BERT | {"prenorm": True}, "prenorm must be false; got true"),
        (
            MODERNBERT | {"rope_parameters": {"full_attention": {"rope_type": "mrope"}}},
            "'llama3', 'longrope', 'su', 'yarn']; got 'mrope'",
        ),
        (BERT | {"num_attention_heads": 7}, "heads must divide dim unless head_dim is given; got dim=768, heads=7"),
    ],
)
def test_what_a_family_cannot_honour_is_refused(hf_config, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        _config(hf_config)


@pytest.mark.parametrize(
    ("hf_config", "rows", "usable"),
    [(BERT, 20, 20), (ROBERTA, 22, 20), (MPNET, 22, 20)],
    ids=["bert", "roberta", "mpnet"],
)
def test_rows_beyond_the_position_table_are_refused(hf_config, rows, usable):
    tiny = {"hidden_size": 12, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 9}
    config = _config(hf_config | tiny | {"max_position_embeddings": rows})
    model = jax.eval_shape(lambda key: Transformer.init(key, config), jax.random.key(0))
    ids = np.ones((1, usable + 1), int)
    states = jax.eval_shape(lambda m: m(Tokens.from_mask(ids[:, 1:], ids[:, 1:])), model)
    assert states.shape == (1, usable, 12)
    with pytest.raises(ValueError, match=f"rows of {usable + 1} tokens, but the model has {usable} positions"):
        jax.eval_shape(lambda m: m(Tokens.from_mask(ids, ids)), model)
