"""Every encoder family against what transformers gave for tiny random models, kept by make_families.py.

`test_families_transformers` compares with transformers itself, in more ways, and is slow.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxemb
from jaxemb.checkpoints import load_encoder, load_weights, read_tensors, save_weights
from jaxemb.data import SPECIAL_TOKENS, Tokenizer
from jaxemb.encoders.families import family_of
from jaxemb.types import Tokens

FAMILIES = ("bert", "roberta", "distilbert", "mpnet", "modernbert", "nomic_bert")

_all_states = jax.jit(lambda model, tokens: model(tokens, all_states=True))


@jax.jit
def _states_and_gradient(model, tokens, probe):
    def value(model):
        states = model(tokens)
        return jnp.sum(states * probe), states

    gradient, states = jax.grad(value, has_aux=True)(model)
    return states, gradient


@pytest.fixture(scope="module")
def families(frozen):
    return frozen("families")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_hidden_state(families, name):
    arrays, directory = families
    model, _ = load_encoder(directory / name)
    for side in ("right", "left"):
        ids, mask, expected = (arrays[f"{name}/{side}/{part}"] for part in ("ids", "mask", "states"))
        states = np.asarray(_all_states(model, Tokens.from_mask(ids, mask)))
        assert len(states) == model.config.layers + 1
        np.testing.assert_allclose(states[:, mask == 1], expected[:, mask == 1], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in ("roberta", "distilbert") else ()) for n in FAMILIES]
)
def test_packed_texts_and_gradients_of_all_parameters(families, name):
    """All texts in one row: their states are those of rows of their own, and so is the gradient."""
    arrays, directory = families
    model, format = load_encoder(directory / name)
    ids, mask, expected, probe = (
        arrays[f"{name}/{part}"] for part in ("right/ids", "right/mask", "right/states", "probe")
    )
    real, lengths = mask == 1, mask.sum(axis=1)
    packed = Tokens(
        ids[real][None],
        np.repeat(np.arange(1, 5), lengths)[None],
        np.concatenate([np.arange(n) for n in lengths])[None],
        texts_per_row=4,
    )
    states, gradient = _states_and_gradient(model, packed, probe[real][None])
    np.testing.assert_allclose(states[0], expected[-1][real], atol=1e-4, rtol=0)

    found, theirs = save_weights(gradient, format), read_tensors(directory / f"{name}-gradient")
    compared = 0
    for tensor in set(theirs) - set(format.unused):
        # The gradient of a key bias is 0 but for rounding: softmax does not see it. Hence the absolute term.
        atol = 1e-5 + 1e-4 * np.abs(theirs[tensor]).max()
        np.testing.assert_allclose(found[tensor], theirs[tensor], atol=atol, rtol=1e-3, err_msg=tensor)
        compared += theirs[tensor].size
    norms = jax.tree.leaves(model.layers.attention_norm) if model.config.skip_first_attention_norm else ()
    assert compared == sum(leaf.size for leaf in jax.tree.leaves(model)) - sum(leaf[0].size for leaf in norms)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_was_read_is_written_and_every_leaf_is_read(families, name):
    _, directory = families
    model, format = load_encoder(directory / name)
    original, saved = read_tensors(directory / name), save_weights(model, format)
    assert {n: (t.dtype, t.tobytes()) for n, t in saved.items()} == {
        n: (t.dtype, t.tobytes()) for n, t in original.items()
    }
    # Other weights of the same shapes give other leaves everywhere, so that no leaf keeps an initial value.
    tensors = {name: tensor + 1 for name, tensor in saved.items()}
    other, _ = load_weights(model.config, tensors, family_of(format.config), format.config)
    differences = jax.tree.map(lambda a, b: np.asarray(b) - np.asarray(a), model, other)
    for path, difference in jax.tree_util.tree_leaves_with_path(differences):
        leaf = jax.tree_util.keystr(path)
        unused = model.config.skip_first_attention_norm and "attention_norm" in leaf  # the first of the stack
        np.testing.assert_allclose(difference[1:] if unused else difference, 1, atol=1e-5, err_msg=leaf)


def test_token_types(families):
    arrays, directory = families
    model, _ = load_encoder(directory / "bert")
    ids = arrays["types/ids"]
    states = _all_states(model, Tokens.from_mask(ids, np.ones_like(ids), type_ids=arrays["types/types"]))
    np.testing.assert_allclose(states[-1], arrays["types/last"], atol=1e-4, rtol=0)


def test_nomic_bert_is_read_under_both_namings(families):
    _, directory = families
    published, native = (directory / name for name in ("nomic_bert", "nomic_bert-native"))
    assert any("attn.Wqkv" in name for name in read_tensors(published))
    assert any("self_attn.q_proj" in name for name in read_tensors(native))
    jax.tree.map(np.testing.assert_array_equal, load_encoder(published)[0], load_encoder(native)[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_new_model_is_written_as_transformers_writes_it(families, name, tmp_path):
    """The names, shapes and types of tensors, but for poolers and buffers, which are no part of an encoder."""
    directory = families[1] / ("nomic_bert-native" if name == "nomic_bert" else name)
    config, theirs = json.loads((directory / "config.json").read_text()), read_tensors(directory)
    words = [*SPECIAL_TOKENS, *map(str, range(20))]
    words[0], words[config["pad_token_id"]] = words[config["pad_token_id"]], words[0]
    made = []

    def make():  # traced: how weights are drawn need not be compiled to know their shapes
        made.append(jaxemb.new(name, config, Tokenizer.word_piece(words), key=jax.random.key(0)))
        return made[0].model

    model = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(make))
    made[0].replace(model=model).save(tmp_path / "model")
    ours, family = read_tensors(tmp_path / "model"), family_of(config)
    expected = {n: tensor for n, tensor in theirs.items() if not family.leaves_unused(n)}
    assert {n: (t.shape, t.dtype) for n, t in ours.items()} == {n: (t.shape, t.dtype) for n, t in expected.items()}
    assert json.loads((tmp_path / "model" / "config.json").read_text()) == config
    assert config["architectures"] == [family.model_types[name]]
