import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxemb.checkpoints import CheckpointError, read_tensors, write_tensors
from jaxemb.embedder import Dense, Normalize
from jaxemb.nn import Linear, Norm
from jaxemb.pooling import Attention, AtToken, Cls, Concatenation, Mean, names_of
from jaxemb.sentence_embedder import load


def _modules(*types: str) -> list[dict]:
    """Entries of `modules.json`, the first in the root."""
    return [
        {"idx": i, "name": str(i), "path": f"{i}_{kind.rpartition('.')[2]}" if i else "", "type": kind}
        for i, kind in enumerate(types)
    ]


_ENCODER_POOLING = ("Transformer", "Pooling")


def _write_json(path: Path, content) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def directory(write_encoder) -> Path:
    """A directory with every kind of module: mean and cls pooling, Dense, LayerNorm, Normalize."""
    path = write_encoder()
    rng = np.random.default_rng(1)
    kinds = ("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize")
    _write_json(path / "modules.json", _modules(*(f"sentence_transformers.models.{kind}" for kind in kinds)))
    _write_json(path / "sentence_bert_config.json", {"max_seq_length": 7, "do_lower_case": True})
    _write_json(
        path / "1_Pooling" / "config.json",
        {"word_embedding_dimension": 4, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
    )
    _write_json(
        path / "2_Dense" / "config.json",
        {
            "in_features": 8,
            "out_features": 5,
            "bias": True,
            "activation_function": "torch.nn.modules.activation.Tanh",
        },
    )
    dense = {"linear.weight": rng.normal(size=(5, 8)), "linear.bias": rng.normal(size=5)}
    write_tensors(path / "2_Dense", {name: tensor.astype(np.float16) for name, tensor in dense.items()})
    _write_json(path / "3_LayerNorm" / "config.json", {"dimension": 5})
    norm = {"norm.weight": rng.normal(size=5), "norm.bias": rng.normal(size=5)}
    write_tensors(path / "3_LayerNorm", {name: tensor.astype(np.float16) for name, tensor in norm.items()})
    _write_json(
        path / "config_sentence_transformers.json",
        {"prompts": {"query": "a ", "document": None}, "default_prompt_name": "query", "similarity_fn_name": "dot"},
    )
    return path


def test_everything_in_a_directory_is_read(directory):
    embedder = load(directory)
    assert embedder.model.pooling == Concatenation((Cls(), Mean()))
    dense, norm, normalize = embedder.model.heads
    assert isinstance(dense, Dense)
    assert isinstance(norm, Norm)
    assert isinstance(normalize, Normalize)
    stored = read_tensors(directory / "2_Dense")
    np.testing.assert_array_equal(dense.linear.kernel, stored["linear.weight"].T.astype(np.float32))
    np.testing.assert_array_equal(dense.linear.bias, stored["linear.bias"].astype(np.float32))
    assert dense.activation == "tanh"
    assert (norm.kind, norm.eps) == ("layer", 1e-5)
    np.testing.assert_array_equal(
        norm.weight, read_tensors(directory / "3_LayerNorm")["norm.weight"].astype(np.float32)
    )
    assert embedder.prompts == {"query": "a "}
    assert embedder.default_prompt_name == "query"
    assert embedder.similarity_fn_name == "dot"
    assert embedder.max_length == 7
    assert embedder.format.do_lower_case


def test_saving_what_was_loaded_gives_the_same_directory(directory, tmp_path):
    embedder = load(directory)
    embedder.save(tmp_path / "saved")
    for folder in ("", "2_Dense", "3_LayerNorm"):
        original, saved = read_tensors(directory / folder), read_tensors(tmp_path / "saved" / folder)
        assert {n: (t.dtype, t.tobytes()) for n, t in saved.items()} == {
            n: (t.dtype, t.tobytes()) for n, t in original.items()
        }
    for file in ("vocab.txt", "tokenizer_config.json"):
        assert (tmp_path / "saved" / file).read_bytes() == (directory / file).read_bytes()
    for file in ("config.json", "modules.json", "sentence_bert_config.json", "2_Dense/config.json"):
        assert json.loads((tmp_path / "saved" / file).read_text()) == json.loads((directory / file).read_text()), file

    again = load(tmp_path / "saved")
    jax.tree.map(np.testing.assert_array_equal, again.model, embedder.model)
    assert jax.tree.structure(again.model) == jax.tree.structure(embedder.model)
    assert again.tokenizer(["A b"])[0].tolist() == embedder.tokenizer(["A b"])[0].tolist()
    names = ("prompts", "default_prompt_name", "similarity_fn_name", "max_length")
    assert [getattr(again, name) for name in names] == [getattr(embedder, name) for name in names]


def test_minilm_round_trip_is_byte_equal(minilm, tmp_path):
    embedder = load(minilm)
    assert (embedder.model.pooling, embedder.max_length, embedder.model.depth) == (Mean(), 256, 6)
    embedder.save(tmp_path / "saved")
    original, saved = read_tensors(minilm), read_tensors(tmp_path / "saved")
    assert set(saved) == set(original)
    assert {"pooler.dense.weight", "embeddings.position_ids"} <= set(saved)
    for name, tensor in original.items():
        assert saved[name].dtype == tensor.dtype
        assert saved[name].tobytes() == tensor.tobytes(), name
    for file in ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"):
        assert (tmp_path / "saved" / file).read_bytes() == (minilm / file).read_bytes()
    for file in ("config.json", "modules.json", "sentence_bert_config.json"):
        assert json.loads((tmp_path / "saved" / file).read_text()) == json.loads((minilm / file).read_text())


def test_a_bare_encoder_gets_mean_pooling_and_a_warning(write_encoder, caplog):
    path = write_encoder()
    embedder = load(path)
    assert f"{path}: nothing says how states are pooled; it is by their mean." in caplog.text
    assert "jaxemb.load(..., pooling='mean')" in caplog.text
    assert (embedder.model.pooling, embedder.model.heads) == (Mean(), ())
    assert embedder.max_length == 9  # what the position table holds
    assert embedder.similarity_fn_name == "cosine"


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [("cls", Cls()), (("cls", "mean"), Concatenation((Cls(), Mean()))), (AtToken(4), AtToken(4))],
)
def test_a_pooling_that_is_named_is_taken(write_encoder, directory, caplog, pooling, expected):
    (directory / "1_Pooling" / "config.json").unlink()
    _write_json(directory / "modules.json", _modules(*(f"sentence_transformers.models.{m}" for m in _ENCODER_POOLING)))
    assert load(directory, pooling=pooling).model.pooling == expected
    assert load(write_encoder(name="bare"), pooling=pooling).model.pooling == expected
    assert not caplog.text
    with pytest.raises(ValueError, match=r"names of a pooling must be one or several of .*; got \('median',\)"):
        load(directory, pooling="median")


def test_a_directory_that_was_copied_in_part_is_refused(directory):
    for file, message in (
        ("2_Dense/config.json", "2_Dense/config.json is missing, of which modules.json speaks"),
        ("1_Pooling/config.json", r"1_Pooling/config.json is missing, .* jaxemb.load\(..., pooling='mean'\)"),
        ("modules.json", "modules.json is missing, which says what config_sentence_transformers.json, .*3_LayerNorm"),
    ):
        (directory / file).unlink()
        with pytest.raises(CheckpointError, match=message):
            load(directory)


@pytest.mark.parametrize("config", [{}, {"pooling_mode_cls": True}, {"pooling_mode_mean_tokens": False}])
def test_a_configuration_that_names_no_pooling_we_know_is_refused(directory, config):
    _write_json(directory / "1_Pooling" / "config.json", {"word_embedding_dimension": 4} | config)
    with pytest.raises(CheckpointError, match=r"expected pooling_mode, or one of \['pooling_mode_cls_token', .*; got"):
        load(directory)


def test_a_tokenizer_with_ids_beyond_the_embeddings_is_refused(write_encoder):
    path = write_encoder()
    with (path / "vocab.txt").open("a") as file:
        file.write("surplus\n")
    with pytest.raises(CheckpointError, match=r"ids up to 11 \('surplus'\), but the model has embeddings of 0..10"):
        load(path)


def test_a_vocabulary_with_gaps_is_judged_by_its_largest_id(write_encoder):
    path = write_encoder()
    load(path).tokenizer.save(path)
    content = json.loads((path / "tokenizer.json").read_text())
    content["model"]["vocab"]["f"] = 11  # instead of 10
    _write_json(path / "tokenizer.json", content)
    with pytest.raises(CheckpointError, match=r"ids up to 11 \('f'\)"):
        load(path)


def test_padding_that_config_and_tokenizer_number_differently_is_named(write_encoder, caplog):
    path = write_encoder(pad_token_id=3)
    load(path, pooling="mean")
    assert f"{path}: pad_token_id is 3 in config.json, but 0 in the tokenizer" in caplog.text


def test_an_encoder_in_a_folder_of_its_own_is_found(write_encoder, tmp_path):
    write_encoder(name="model/0_Transformer")
    modules = _modules(*(f"sentence_transformers.models.{module}" for module in _ENCODER_POOLING))
    modules[0]["path"] = "0_Transformer"
    _write_json(tmp_path / "model" / "1_Pooling" / "config.json", {"pooling_mode": "mean"})
    _write_json(tmp_path / "model" / "modules.json", modules)
    _write_json(tmp_path / "model" / "0_Transformer" / "sentence_roberta_config.json", {"max_seq_length": 5})
    assert load(tmp_path / "model").max_length == 5


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"pooling_mode_mean_tokens": True}, ("mean",)),
        ({"pooling_mode_max_tokens": True}, ("max",)),
        ({"pooling_mode_weightedmean_tokens": True, "pooling_mode_mean_tokens": False}, ("weightedmean",)),
        ({"pooling_mode_lasttoken": True, "pooling_mode_cls_token": True}, ("cls", "lasttoken")),
        ({"pooling_mode": "cls"}, ("cls",)),
        ({"pooling_mode": ["mean", "cls", "mean_sqrt_len_tokens"]}, ("mean", "cls", "mean_sqrt_len_tokens")),
    ],
)
def test_pooling_in_old_and_new_keys_is_read_and_kept(directory, tmp_path, config, expected):
    modules = _modules(*(f"sentence_transformers.models.{module}" for module in _ENCODER_POOLING))
    _write_json(directory / "modules.json", modules)
    _write_json(directory / "1_Pooling" / "config.json", config)
    embedder = load(directory)
    assert names_of(embedder.model.pooling) == expected
    embedder.save(tmp_path / "saved")
    assert names_of(load(tmp_path / "saved").model.pooling) == expected


def test_a_pooling_with_weights_is_written_as_a_module_of_our_own(directory, tmp_path):
    embedder = load(directory)  # whose heads are stored in f16
    draw = lambda *shape: np.random.default_rng(2).normal(size=shape).astype(np.float16).astype(np.float32)
    attention = Attention(Linear(draw(4, 3), draw(3)), draw(3))
    model = dataclasses.replace(embedder.model, pooling=attention, heads=())
    embedder.replace(model=model).save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    jax.tree.map(np.testing.assert_array_equal, again.model, model)
    assert again.model.dim == 4
    types = [module["type"] for module in json.loads((tmp_path / "saved" / "modules.json").read_text())]
    assert types == ["sentence_transformers.models.Transformer", "jaxemb.pooling.Attention"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_was_trained_is_saved_without_rounding(directory, tensors, tmp_path, dtype):
    """A checkpoint of 16 bits whose weights were trained in 32 becomes one of 32."""
    write_tensors(directory, {name: tensor.astype(jnp.dtype(dtype)) for name, tensor in tensors.items()})
    _write_json(directory / "config.json", json.loads((directory / "config.json").read_text()) | {"torch_dtype": dtype})
    embedder = load(directory)
    for name, change, expected in (("same", 0, dtype), ("trained", 1e-5, "float32")):
        model = jax.tree.map(lambda leaf, change=change: leaf + change, embedder.model)
        embedder.replace(model=model).save(tmp_path / name)
        saved = read_tensors(tmp_path / name)
        assert {str(saved[tensor].dtype) for tensor in saved} == {expected}
        assert json.loads((tmp_path / name / "config.json").read_text())["torch_dtype"] == expected
        jax.tree.map(np.testing.assert_array_equal, load(tmp_path / name).model, model)


def test_a_pooling_that_the_format_cannot_say_is_not_saved(directory, tmp_path):
    embedder = load(directory)
    for pooling, name in ((AtToken(4), "AtToken"), (Concatenation((Mean(), AtToken(4))), "Concatenation")):
        with pytest.raises(
            ValueError, match=f"a {name} pooling cannot be saved: a model directory holds one or several"
        ):
            embedder.replace(model=dataclasses.replace(embedder.model, pooling=pooling)).save(tmp_path / "saved")


def test_module_paths_of_newer_releases_are_read(directory):
    names = (
        "sentence_transformers.base.modules.transformer.Transformer",
        "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
        "sentence_transformers.base.modules.dense.Dense",
        "sentence_transformers.sentence_transformer.modules.layer_norm.LayerNorm",
        "sentence_transformers.base.modules.normalize.Normalize",
    )
    old = load(directory)
    _write_json(directory / "modules.json", _modules(*names))
    assert jax.tree.structure(load(directory).model) == jax.tree.structure(old.model)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "median"}, "pooling_mode must be among"),
        (
            "2_Dense/config.json",
            {"activation_function": "torch.nn.modules.activation.Mish"},
            "activation_function must be",
        ),
        ("2_Dense/config.json", {"activation_function": "evil.Tanh"}, "activation_function must be one of"),
        ("2_Dense/config.json", {"use_residual": True}, "use_residual=true is not supported; expected false"),
        (
            "2_Dense/config.json",
            {"module_input_name": "token_embeddings"},
            "module_input_name must be 'sentence_embedding'",
        ),
        ("2_Dense/config.json", {"bias": False}, "expected tensors of ranks {'linear.weight': 2}; found shapes"),
        ("config_sentence_transformers.json", {"similarity_fn_name": "hamming"}, "similarity_fn_name must be one of"),
        ("config.json", {"model_type": "t5"}, "model_type must be one of"),
    ],
)
def test_what_cannot_be_honoured_is_refused(directory, file, changes, message):
    content = json.loads((directory / file).read_text())
    _write_json(directory / file, content | changes)
    with pytest.raises(ValueError, match=re.escape(message)):
        load(directory)


@pytest.mark.parametrize(
    ("types", "message"),
    [
        (
            ("sentence_transformers.models.Transformer", "sentence_transformers.models.CNN"),
            "module type 'sentence_transformers.models.CNN' is not supported; expected one of Transformer, Pooling",
        ),
        (
            ("custom_code.Transformer", "sentence_transformers.models.Pooling"),
            "module type 'custom_code.Transformer' is not supported",
        ),
        (
            ("sentence_transformers.models.Transformer", "sentence_transformers.models.Normalize"),
            "modules are ['Transformer', 'Normalize']; expected Transformer, Pooling, then any of",
        ),
    ],
)
def test_module_lists_that_cannot_be_built_are_refused(directory, types, message):
    _write_json(directory / "modules.json", _modules(*types))
    with pytest.raises(ValueError, match=re.escape(message)):
        load(directory)


def test_a_pickled_head_is_refused(directory):
    (directory / "2_Dense" / "model.safetensors").rename(directory / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"2_Dense: has only pytorch_model\.bin, a pickle"):
        load(directory)


def test_a_norm_that_the_format_cannot_say_is_not_saved(directory, tmp_path):
    embedder = load(directory)
    dense, norm, normalize = embedder.model.heads
    other = Norm(norm.weight, norm.bias, kind="layer", eps=1e-12)
    model = dataclasses.replace(embedder.model, heads=(dense, other, normalize))
    with pytest.raises(ValueError, match="a norm head must be a LayerNorm with bias and eps=1e-05"):
        embedder.replace(model=model).save(tmp_path / "saved")
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]  # nothing half-written stays behind


def test_of_a_model_directory_only_the_files_of_the_model_are_replaced(directory, tmp_path):
    embedder, saved = load(directory), tmp_path / "saved"
    embedder.save(saved)
    fresh = names(saved)
    theirs = {".git/HEAD", "README.md", "train.csv", "onnx/model.onnx", "2_Dense/notes", "2024_data/text.csv"}
    for name in theirs:
        (saved / name).parent.mkdir(exist_ok=True)
        (saved / name).write_text("mine")
    ours = {"spiece.model", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "7_Dense/config.json"}
    for name in ours:  # of another model, which was there before
        (saved / name).parent.mkdir(exist_ok=True)
        (saved / name).write_text("old")
    (tmp_path / "link").symlink_to("saved")
    load(directory).save(tmp_path / "link")
    assert names(saved) == fresh | theirs
    assert {(saved / name).read_text() for name in theirs} == {"mine"}
    assert not (saved / "7_Dense").exists() and (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder", "link", "saved"]
    load(saved)


def names(directory):
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def test_an_empty_path_is_none(directory):
    with pytest.raises(ValueError, match="expected a path; got ''"):
        load(directory).save("")


@pytest.mark.parametrize("path", ["../1_Pooling", "/1_Pooling", "1_Pooling/../../1_Pooling", 1])
def test_modules_lie_in_the_directory(directory, path):
    modules = json.loads((directory / "modules.json").read_text())
    modules[1]["path"] = path
    _write_json(directory / "modules.json", modules)
    message = rf"modules.json: module 1: (expected a path inside of {directory}|path must be a string); got {path!r}"
    with pytest.raises(CheckpointError, match=message):
        load(directory)


def test_files_of_a_cache_may_be_links_to_elsewhere(directory, tmp_path):
    shutil.move(directory / "1_Pooling", tmp_path / "blob")
    (directory / "1_Pooling").symlink_to(tmp_path / "blob")
    shutil.move(directory / "model.safetensors", tmp_path / "weights")
    (directory / "model.safetensors").symlink_to("../weights")
    load(directory).save(tmp_path / "saved")
    assert read_tensors(tmp_path / "saved").keys() == read_tensors(directory).keys()
    assert (tmp_path / "weights").is_file() and (directory / "model.safetensors").is_symlink()


def test_saving_over_the_directory_it_came_from_works(directory):
    before = {name: tensor.tobytes() for name, tensor in read_tensors(directory).items()}
    load(directory).save(directory)
    assert {name: tensor.tobytes() for name, tensor in read_tensors(directory).items()} == before


def test_other_directories_and_files_are_not_overwritten(directory, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    for name in ("home", "file"):
        with pytest.raises(FileExistsError, match=f"{name} exists and is no model directory; give another path"):
            load(directory).save(tmp_path / name)
    assert (tmp_path / "home" / "thesis.tex").exists()
