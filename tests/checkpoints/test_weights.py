import dataclasses
import re

import jax
import ml_dtypes
import numpy as np
import pytest

from jaxemb.checkpoints import CheckpointError, load_encoder, load_weights, read_tensors, save_weights
from jaxemb.encoders.families import family_of


def _load(tensors, config):
    family = family_of(config)
    return load_weights(family.config(config), tensors, family, config)


def _assert_same_bytes(saved, original):
    assert set(saved) == set(original)
    for name, tensor in original.items():
        assert (saved[name].dtype, saved[name].shape) == (tensor.dtype, tensor.shape), name
        assert saved[name].tobytes() == tensor.tobytes(), name


def test_layers_are_stacked_and_kernels_transposed(tensors, config):
    model, _ = _load(tensors, config)
    for i in range(2):
        np.testing.assert_array_equal(
            model.layers.mlp.up.kernel[i], tensors[f"encoder.layer.{i}.intermediate.dense.weight"].T
        )
        np.testing.assert_array_equal(
            model.layers.mlp.up.bias[i], tensors[f"encoder.layer.{i}.intermediate.dense.bias"]
        )
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(model))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=["f32", "f16", "bf16"])
def test_untouched_weights_come_back_byte_for_byte(tensors, config, dtype):
    original = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    _assert_same_bytes(save_weights(*_load(original, config)), original)


def test_dtypes_may_differ_from_tensor_to_tensor(tensors, config):
    original = {n: t.astype(np.float16) if "attention" in n else t for n, t in tensors.items()}
    _assert_same_bytes(save_weights(*_load(original, config)), original)


def test_prefix_legacy_names_and_unused_tensors_come_back(tensors, config):
    legacy = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    rename = lambda name: "bert." + next((name.replace(new, old) for new, old in legacy.items() if new in name), name)
    unused = {
        "bert.pooler.dense.weight": np.ones((4, 4), np.float32),
        "bert.pooler.dense.bias": np.ones(4, np.float64),
        "bert.embeddings.position_ids": np.arange(9)[None],
        "cls.predictions.transform.LayerNorm.gamma": np.ones(4, np.float16),
        "cls.predictions.bias": np.ones(11, np.float32),
    }
    original = {rename(name): tensor for name, tensor in tensors.items()} | unused
    model, format = _load(original, config)
    plain, _ = _load(tensors, config)
    jax.tree.map(np.testing.assert_array_equal, model, plain)
    assert set(format.unused) == set(unused)
    _assert_same_bytes(save_weights(model, format), original)


def test_a_changed_leaf_changes_its_tensor_only(tensors, config):
    model, format = _load(tensors, config)
    changed = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf + 1 if jax.tree_util.keystr(path).endswith(".attention.query.kernel") else leaf, model
    )
    saved = save_weights(changed, format)
    differing = {name for name in tensors if not np.array_equal(saved[name], tensors[name])}
    assert differing == {f"encoder.layer.{i}.attention.self.query.weight" for i in range(2)}
    np.testing.assert_allclose(
        saved["encoder.layer.1.attention.self.query.weight"], tensors["encoder.layer.1.attention.self.query.weight"] + 1
    )


def test_all_tensors_that_do_not_fit_are_named_at_once(tensors, config):
    del tensors["encoder.layer.1.attention.self.key.bias"]
    tensors["encoder.layer.0.surprise"] = np.zeros(1, np.float32)
    tensors["encoder.layer.2.output.dense.bias"] = np.zeros(4, np.float32)  # a third layer of two
    tensors["encoder.layer.0.intermediate.dense.weight"] = np.zeros((6, 5), np.float32)
    tensors["embeddings.LayerNorm.bias"] = np.zeros(4, np.int8)
    with pytest.raises(CheckpointError) as error:
        _load(tensors, config)
    assert str(error.value).splitlines() == [
        "the tensors do not fit config.json (model_type 'bert'):",
        "  missing: encoder.layer.1.attention.self.key.bias",
        "  not part of the model: encoder.layer.0.surprise",
        "  not part of the model: encoder.layer.2.output.dense.bias",
        "  dtype int8, expected float32, float16 or bfloat16: embeddings.LayerNorm.bias",
        "  shape [6, 5], expected [6, 4]: encoder.layer.0.intermediate.dense.weight",
    ]


def test_a_checkpoint_of_another_family_is_refused(tensors, config):
    with pytest.raises(CheckpointError, match=r"missing: transformer\.layer\.0\.attention\.q_lin\.weight"):
        _load(
            tensors,
            {"model_type": "distilbert", "vocab_size": 11, "dim": 4, "n_layers": 2, "n_heads": 2, "hidden_dim": 6},
        )


def test_a_model_with_dropped_layers_cannot_be_saved_as_the_checkpoint(tensors, config):
    model, format = _load(tensors, config)
    layers = jax.tree.map(lambda leaf: leaf[:1], model.layers)
    shorter = type(model)(
        embeddings=model.embeddings, layers=layers, config=dataclasses.replace(model.config, layers=1)
    )
    message = "model.layers.attention.key.bias: shape [1, 4], but its checkpoint has [2, 4]"
    with pytest.raises(ValueError, match=re.escape(message)):
        save_weights(shorter, format)


def test_load_encoder_reads_a_directory(write_encoder, tensors):
    path = write_encoder()
    model, format = load_encoder(path, dtype="bfloat16", remat=True)
    assert (model.config.dtype, model.config.remat) == ("bfloat16", True)
    assert format.config["model_type"] == "bert"
    _assert_same_bytes(save_weights(model, format), read_tensors(path))


def test_load_encoder_without_config_says_so(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json is missing; expected a Hugging Face model directory"):
        load_encoder(tmp_path)


def test_load_encoder_names_a_missing_key(write_encoder, config):
    path = write_encoder()
    (path / "config.json").write_text('{"model_type": "bert", "vocab_size": 11}')
    with pytest.raises(CheckpointError, match=r"config\.json: key 'hidden_size' is missing"):
        load_encoder(path)


def test_load_encoder_says_where_json_is_broken(write_encoder):
    path = write_encoder()
    (path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: not valid JSON"):
        load_encoder(path)
