import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxemb import parallel
from jaxemb.checkpoints import (
    CheckpointError,
    Placement,
    load_encoder,
    load_weights,
    read_tensors,
    save_weights,
    write_tensors,
)
from jaxemb.checkpoints.tensors import TensorParts
from jaxemb.checks import is_finite
from jaxemb.encoders import Transformer
from jaxemb.encoders.families import family_of
from jaxemb.trees import by_path


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


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named(tensors, config, dtype, bad):
    family, name = family_of(config), "encoder.layer.1.attention.self.key.weight"
    tensors = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    tensors[name][2, 1] = bad
    with pytest.raises(CheckpointError, match=f"{name}: has values that are not finite"):
        load_weights(family.config(config), tensors, family, config, Placement(param_dtype=np.dtype(dtype).name))


def test_large_values_are_finite():
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        largest = np.full((3, 2**17), ml_dtypes.finfo(dtype).max, dtype)
        assert is_finite(largest)
        largest[1, -1] = -np.inf
        assert not is_finite(largest)


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
    model, format = load_encoder(path, dtype="bfloat16", remat="full")
    assert (model.config.dtype, model.config.remat) == ("bfloat16", "full")
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


# Onto a mesh

# Fused kernels, a gated feed-forward, no biases, and a norm that the first layer does not have.
MODERNBERT = {
    "model_type": "modernbert",
    "vocab_size": 11,
    "hidden_size": 4,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 9,
}


def _mesh(fsdp, tensor):
    return parallel.make_mesh(1, fsdp, tensor, devices=jax.devices()[: fsdp * tensor])


def _random_tensors(hf_config) -> dict[str, np.ndarray]:
    """Tensors for every row of the family's first weight table."""
    family = family_of(hf_config)
    config, rng = family.config(hf_config), np.random.default_rng(0)
    model = jax.eval_shape(lambda: Transformer.init(jax.random.key(0), config))
    tensors = {}
    for weight in family.tables[0]:
        leaves = [jax.tree_util.tree_leaves(_at(model, path)) for path in weight.leaves]
        if not all(leaves):
            continue
        for layer in range(config.layers) if "{}" in weight.name else [None]:
            shapes = [leaf.shape if layer is None else leaf.shape[1:] for (leaf,) in leaves]
            shape = (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
            if layer not in weight.absent_in_layers:
                array = rng.normal(size=shape[::-1] if weight.transpose else shape)
                tensors[weight.name.format(layer)] = array.astype(np.float32)
    return tensors


def _at(tree, path):
    for name in path.split("."):
        tree = getattr(tree, name)
    return tree


@pytest.fixture(params=["bert", "modernbert"])
def directory(request, write_encoder, config, tmp_path):
    """A checkpoint of several files."""
    path = write_encoder()
    if request.param == "modernbert":
        config = MODERNBERT
    (path / "config.json").write_text(json.dumps(config))
    (path / "model.safetensors").unlink()
    write_tensors(path, _random_tensors(config), max_bytes=400)
    assert (path / "model.safetensors.index.json").exists()
    return path


@pytest.mark.parametrize(("fsdp", "tensor"), [(2, 2), (4, 1)])
def test_shards_read_onto_a_mesh_are_those_of_the_whole_model(directory, fsdp, tensor):
    whole, _ = load_encoder(directory)
    model, format = load_encoder(directory, Placement(_mesh(fsdp, tensor)))
    jax.tree.map(np.testing.assert_array_equal, model, whole)
    assert model.layers.mlp.up.kernel.sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    found = {path: leaf.sharding for path, leaf in by_path(model).items()}
    assert found == by_path(parallel.shardings(model, _mesh(fsdp, tensor)))
    _assert_same_bytes(save_weights(model, format), read_tensors(directory))


def test_weights_rest_in_bfloat16(directory):
    whole, _ = load_encoder(directory)
    for placement in (Placement(param_dtype="bfloat16"), Placement(_mesh(2, 2), param_dtype="bfloat16")):
        model, _ = load_encoder(directory, placement)
        assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype("bfloat16")}
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.asarray(b).astype(a.dtype)), model, whole)


def test_a_process_reads_what_its_devices_hold_and_no_more(write_encoder, monkeypatch):
    path, read = write_encoder(), []
    whole = TensorParts.__getitem__
    monkeypatch.setattr(TensorParts, "__getitem__", lambda self, index: read.append(part := whole(self, index)) or part)
    model, _ = load_encoder(path, Placement(_mesh(4, 1)))
    assert sum(part.size for part in read) == sum(leaf.size for leaf in jax.tree.leaves(model))
    assert max(part.size for part in read) == max(t.size for t in read_tensors(path).values()) // 4


def test_nothing_is_read_to_know_the_shapes(write_encoder, monkeypatch):
    path = write_encoder()
    monkeypatch.setattr(TensorParts, "__getitem__", lambda self, index: 1 / 0)
    shapes = jax.eval_shape(lambda: load_encoder(path, Placement(_mesh(2, 2)))[0])
    assert shapes.layers.mlp.up.kernel.shape == (2, 4, 6)


def test_a_leaf_that_does_not_divide_is_named(write_encoder):
    with pytest.raises(ValueError, match=r"encoder\.embeddings\.\w+ of shape .* the 8 devices of fsdp"):
        load_encoder(write_encoder(), Placement(_mesh(8, 1)))


def test_another_dtype_at_rest_is_refused():
    with pytest.raises(ValueError, match=r"param_dtype must be one of .*; got 'float8'"):
        Placement(param_dtype="float8")
