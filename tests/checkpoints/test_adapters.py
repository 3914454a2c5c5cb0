"""Adapter directories of PEFT: read, they give what PEFT gives; written, they are what PEFT wrote."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import jaxemb
from jaxemb.checkpoints import (
    CheckpointError,
    LoraAdapter,
    load_adapter,
    load_encoder,
    save_adapter,
    save_weights,
    with_adapters,
)
from jaxemb.nn import Adapter, LowRank, dense_kernels, quantize_base
from jaxemb.pooling import Mean
from jaxemb.trees import by_path
from jaxemb.types import Tokens

with np.load(Path(__file__).with_name("references") / "peft.npz") as arrays:
    STORED = dict(arrays)
CASES = json.loads(str(STORED["cases"]))
ENCODE = jax.jit(lambda encoder, tokens: encoder(tokens))


def write(path, prefix, tensors, config):
    path.mkdir()
    start = f"{prefix}/tensor/"
    found = {name.removeprefix(start): tensor for name, tensor in STORED.items() if name.startswith(start)}
    safetensors.numpy.save_file(found, path / tensors, {"format": "pt"})
    (path / config).write_text(str(STORED[f"{prefix}/config"]))
    return path


def encoder_of(name, tmp_path):
    return load_encoder(write(tmp_path / "base", f"base/{CASES[name]}", "model.safetensors", "config.json"))


def adapter_of(name, tmp_path):
    return write(tmp_path / name, name, "adapter_model.safetensors", "adapter_config.json")


def outputs(model):
    ids = jnp.asarray(STORED["ids"], jnp.int32)
    return ENCODE(model.encoder, Tokens.from_mask(ids, jnp.ones(ids.shape, bool)))


def written(path):
    return json.loads((path / "adapter_config.json").read_text()), safetensors.numpy.load_file(
        path / "adapter_model.safetensors"
    )


@pytest.mark.parametrize("name", CASES)
def test_what_peft_wrote_is_read_and_written_again(name, tmp_path):
    encoder, format = encoder_of(name, tmp_path)
    model = jaxemb.Embedder(encoder, pooling=Mean())
    adapter = load_adapter(path := adapter_of(name, tmp_path), format)
    merged = with_adapters(model, [adapter])
    np.testing.assert_allclose(outputs(merged), STORED[f"{name}/y"], atol=1e-5)
    assert jax.tree.structure(merged) == jax.tree.structure(model)

    save_adapter(tmp_path / "again", adapter, format)
    (theirs, their_tensors), (ours, tensors) = written(path), written(tmp_path / "again")
    assert tensors.keys() >= their_tensors.keys()  # layers without an adapter get one that is 0
    again = load_adapter(tmp_path / "again", format)
    assert again.scale == pytest.approx(ours["lora_alpha"] / ours["r"])
    for one, other in ((adapter.adapters, again.adapters), (adapter.replaced, again.replaced)):
        scaled = lambda a, s: {
            p: [x.down @ x.up * s, x.magnitude] if isinstance(x, Adapter) else x for p, x in a.items()
        }
        found, expected = scaled(other, again.scale), scaled(one, adapter.scale)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)
    if name in ("llama", "llama_all_dora"):  # elsewhere scales differ from module to module, and stand in B
        assert (ours["r"], ours["lora_alpha"]) == (theirs["r"], theirs["lora_alpha"])
        assert set(ours["target_modules"]) == set(theirs["target_modules"])
        for key, tensor in their_tensors.items():
            np.testing.assert_array_equal(tensors[key], tensor, err_msg=key)


def test_beside_a_quantised_base_and_saved_merged(tmp_path):
    encoder, format = encoder_of("llama_all_dora", tmp_path)
    adapter = load_adapter(adapter_of("llama_all_dora", tmp_path), format)
    base = quantize_base(jaxemb.Embedder(encoder, pooling=Mean()), "nf4", block=16)
    found = with_adapters(base, [adapter])
    assert isinstance(found.encoder.layers.mlp.up.kernel, LowRank)
    merged = with_adapters(dense_kernels(base), [adapter])
    np.testing.assert_allclose(outputs(found), outputs(merged), atol=1e-4)
    for name, tensor in save_weights(merged.encoder, format).items():
        np.testing.assert_allclose(save_weights(found.encoder, format)[name], tensor, atol=1e-5)


def test_several_with_weights(tmp_path):
    encoder, format = encoder_of("llama", tmp_path)
    model = jaxemb.Embedder(encoder, pooling=Mean())
    x, y = (load_adapter(adapter_of(name, tmp_path), format) for name in ("llama", "llama_all_dora"))
    found, of_x, of_y = (by_path(with_adapters(model, *a)) for a in (([x, y], [0.7, 0.4]), ([x],), ([y],)))
    for path, w in by_path(model).items():
        expected = w + 0.7 * (of_x[path] - w) + 0.4 * (of_y[path] - w)
        np.testing.assert_allclose(found[path], expected, atol=1e-5, err_msg=path)
    with pytest.raises(ValueError, match="weights must be 2, one for each adapter; got 1"):
        with_adapters(model, [x, y], [1.0])
    with pytest.raises(ValueError, match="one of DoRA cannot be weighted beside the kernel"):
        with_adapters(model, [y], [0.5], beside=True)


def test_parts_of_a_fused_module_with_an_a_of_their_own(tmp_path):
    encoder, format = encoder_of("phi3_fused", tmp_path)
    noise, shapes = np.random.default_rng(0), by_path(encoder)
    paths = ("layers.attention.query.kernel", "layers.attention.value.kernel")
    new = lambda *shape: noise.normal(size=shape).astype(np.float32)
    of = lambda path: Adapter(new(3, 16, 2), new(3, 2, shapes[path].shape[-1]))
    adapter = LoraAdapter({f"encoder.{path}": of(path) for path in paths}, scale=2.0)
    save_adapter(tmp_path / "fused", adapter, format)
    config, tensors = written(tmp_path / "fused")
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (4, 8, ["qkv_proj"]) and len(tensors) == 6
    again, product = load_adapter(tmp_path / "fused", format), lambda a: a.down @ a.up
    for path, one in adapter.adapters.items():
        np.testing.assert_allclose(product(again.adapters[path]), product(one), atol=1e-5)
    assert not product(again.adapters["encoder.layers.attention.key.kernel"]).any()


def test_what_is_not_read_is_named(tmp_path):
    _, format = encoder_of("llama", tmp_path)
    path = adapter_of("llama", tmp_path)
    config = json.loads((path / "adapter_config.json").read_text())

    def refused(error, match, **changes):
        (path / "adapter_config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(error, match=match):
            load_adapter(path, format)

    refused(ValueError, "peft_type must be 'LORA'; got 'IA3'", peft_type="IA3")
    refused(ValueError, "init_lora_weights='pissa' changes the weights of the base", init_lora_weights="pissa")
    refused(ValueError, "lora_bias is not supported", lora_bias=True)
    refused(CheckpointError, "r must be a whole number of at least 1; got 0|r must be", r=0)
    tensors = written(path)[1]
    tensors["base_model.model.layers.0.self_attn.x_proj.lora_A.weight"] = np.ones((3, 16), np.float32)
    safetensors.numpy.save_file(tensors, path / "adapter_model.safetensors")
    refused(CheckpointError, r"no adapter of this encoder: base_model\.model\.layers\.0\.self_attn\.x_proj")
    (path / "adapter_model.safetensors").rename(path / "adapter_model.bin")
    refused(CheckpointError, "adapter_model.bin is a pickle")
    with pytest.raises(ValueError, match=r"adapter must be of arrays of the encoder; it has encoder\.nothing"):
        save_adapter(tmp_path / "new", LoraAdapter({"encoder.nothing": Adapter(jnp.ones(1), jnp.ones(1))}), format)


def test_peft_reads_what_is_written(tmp_path):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    for name in CASES:
        (here := tmp_path / name / "here").mkdir(parents=True)
        _, format = encoder_of(name, here)
        save_adapter(here / "again", load_adapter(adapter_of(name, here), format), format)
        base = transformers.AutoModel.from_pretrained(here / "base")
        model = peft.PeftModel.from_pretrained(base, here / "again").eval()
        with torch.no_grad():
            y = model(input_ids=torch.tensor(STORED["ids"])).last_hidden_state.numpy()
        np.testing.assert_allclose(y, STORED[f"{name}/y"], atol=1e-5)
