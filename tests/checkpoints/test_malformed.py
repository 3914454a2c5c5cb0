"""Model directories that are malformed are refused when they are loaded, by file, key and what was expected."""

import json
import time

import jax
import numpy as np
import pytest

import jaxemb
from jaxemb.checkpoints import CheckpointError, write_tensors
from jaxemb.data import SPECIAL_TOKENS, Tokenizer
from jaxemb.embedder import Dense, Normalize
from jaxemb.encoders import families
from jaxemb.nn import Linear
from jaxemb.pooling import Mean

SIZES = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 6}
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def new(config=SIZES, **options):
    heads = (Dense(Linear(np.ones((4, 3), np.float32), np.zeros(3, np.float32))), Normalize())
    tokenizer = Tokenizer.word_piece([*SPECIAL_TOKENS, "a", "b"])
    return jaxemb.new("bert", config, tokenizer, key=jax.random.key(0), **{"heads": heads, **options})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("malformed") / "model"
    new(SIZES | {"hidden_dropout_prob": 0.1, "layer_norm_eps": 1e-12}).save(path)
    return path


@pytest.fixture
def directory(saved, tmp_path):
    """A copy whose files may be written anew."""
    for file in saved.rglob("*"):
        if file.is_file():
            place = tmp_path / "model" / file.relative_to(saved)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
    return tmp_path / "model"


def changed(path, *keys_and_value):
    *keys, last, value = keys_and_value
    content = inside = json.loads(path.read_text())
    for key in keys:
        inside = inside[key]
    inside[last] = value
    path.write_text(json.dumps(content))


KEYS = [
    ("config.json", ("vocab_size", "7"), "vocab_size must be a whole number of at least 1; got '7'"),
    ("config.json", ("hidden_size", None), "hidden_size must be a whole number of at least 1; got null"),
    ("config.json", ("num_attention_heads", 0), "num_attention_heads must be a whole number of at least 1; got 0"),
    ("config.json", ("num_attention_heads", 3), "heads must divide dim .* got dim=4, heads=3"),
    ("config.json", ("num_hidden_layers", True), r"num_hidden_layers must be a whole number in 1\.\.4096; got true"),
    ("config.json", ("hidden_dropout_prob", 1), r"hidden_dropout_prob must be a number in \[0, 1\); got 1"),
    ("config.json", ("layer_norm_eps", 0), "layer_norm_eps must be a finite number > 0; got 0"),
    ("config.json", ("hidden_act", ["gelu"]), r'hidden_act must be one of .*; got \["gelu"\]'),
    ("config.json", ("model_type", ["bert"]), r'model_type must be a string; got \["bert"\]'),
    ("modules.json", (1, "type", 3), "modules.json: module 1: type must be a string; got 3"),
    ("modules.json", (1, "idx", "x"), "modules.json: module 1: idx must be a whole number of at least 0; got 'x'"),
    ("modules.json", (1, []), "modules.json: expected a list of modules, objects with type and path"),
    ("1_Pooling/config.json", ("pooling_mode_mean_tokens", "yes"), "mean_tokens must be true or false; got 'yes'"),
    ("1_Pooling/config.json", ("include_prompt", 1), "include_prompt must be true or false; got 1"),
    ("1_Pooling/config.json", ("pooling_mode", 1), "pooling_mode must be a string; got 1"),
    ("2_Dense/config.json", ("activation_function", None), "activation_function must be a string; got null"),
    ("2_Dense/config.json", ("bias", "no"), "bias must be true or false; got 'no'"),
    ("sentence_bert_config.json", ("max_seq_length", 2), "max_seq_length must be a whole number of at least 3; got 2"),
    ("sentence_bert_config.json", ("do_lower_case", "no"), "do_lower_case must be true or false; got 'no'"),
    ("config_sentence_transformers.json", ("prompts", []), r"prompts must be an object; got \[\]"),
    ("config_sentence_transformers.json", ("prompts", {"query": 1}), "prompts: query must be a string; got 1"),
    ("config_sentence_transformers.json", ("default_prompt_name", "no"), r"default_prompt_name must be .*; got 'no'"),
    ("config_sentence_transformers.json", ("similarity_fn_name", "l2"), "similarity_fn_name must be one of .*'l2'"),
    ("tokenizer_config.json", ("model_max_length", "8"), "model_max_length must be a finite number > 0; got '8'"),
    ("tokenizer_config.json", ("truncation_side", "top"), r"truncation_side must be one of \['left', 'right'\]"),
    ("tokenizer_config.json", ("pad_token", {"text": "x"}), "pad_token: key 'content' is missing"),
    ("tokenizer_config.json", ("added_tokens_decoder", {"x": {}}), "added_tokens_decoder: keys must be ids of tokens"),
    ("tokenizer.json", ("model", "type", "no"), "tokenizer.json: not what the tokenizers library reads"),
    ("tokenizer.json", ("model", "unk_token", "none"), "tokenizer.json: the tokenizer fails on a text: .*UNK"),
]


@pytest.mark.parametrize(("file", "change", "message"), KEYS)
def test_a_value_of_the_wrong_kind_is_named(directory, file, change, message):
    changed(directory / file, *change)
    with pytest.raises(ValueError, match=message) as raised:
        jaxemb.load(directory)
    assert "malformed" not in str(raised.value) and file in str(raised.value)


FILES = [
    ("tokenizer.json", LFS, "tokenizer.json: not valid JSON"),
    ("tokenizer_config.json", "{", "tokenizer_config.json: not valid JSON"),
    ("config.json", "[]", "config.json: expected a JSON object; got"),
    ("config.json", "[" * 100_000, "config.json: .*nested too deeply"),
    ("model.safetensors.index.json", "{}", "index.json: .*weight_map|no shard|missing|found neither"),
    ("modules.json", "[]", "modules.json: expected a list of modules"),
]


@pytest.mark.parametrize(("file", "content", "message"), FILES)
def test_a_damaged_file_is_named(directory, file, content, message):
    (directory / file).write_text(content)
    if file.endswith("index.json"):
        (directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=message):
        jaxemb.load(directory)


def test_what_other_software_reads_is_read(directory):
    expected = jaxemb.load(directory).encode(["a b"])
    modules = json.loads((directory / "modules.json").read_text())
    plain = [{key: value for key, value in module.items() if key != "idx"} for module in modules]
    (directory / "modules.json").write_text("\ufeff" + json.dumps(plain))
    np.testing.assert_array_equal(jaxemb.load(directory).encode(["a b"]), expected)


def test_a_head_that_does_not_fit_is_refused(directory):
    write_tensors(directory / "2_Dense", {"linear.weight": np.ones((3, 5), "f"), "linear.bias": np.ones(3, "f")})
    with pytest.raises(CheckpointError, match=r"2_Dense: linear.weight must have the shape \[3, 4\]; got \[3, 5\]"):
        jaxemb.load(directory)


def test_a_vocabulary_without_its_special_tokens_is_refused(write_encoder):
    path = write_encoder()
    (path / "vocab.txt").write_text("a\nb\n[UNK]\n")
    with pytest.raises(CheckpointError, match=r"vocab.txt: expected the special tokens \[CLS\], \[SEP\]"):
        Tokenizer.from_directory(path)
    (path / "vocab.txt").write_bytes(b"a\n\xff\n")
    with pytest.raises(CheckpointError, match=r"vocab.txt: expected UTF-8; got other bytes at 2"):
        Tokenizer.from_directory(path)


def test_a_normalizer_that_multiplies_texts_is_refused(directory):
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    changed(directory / "tokenizer.json", "normalizer", {"type": "Sequence", "normalizers": [double] * 4})
    assert jaxemb.load(directory)
    changed(directory / "tokenizer.json", "normalizer", {"type": "Sequence", "normalizers": [double] * 40})
    with pytest.raises(CheckpointError, match=r"normalizer can make texts 1099511627776 times as long"):
        jaxemb.load(directory)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size"])
@pytest.mark.parametrize("value", [4000, 2**31 - 1, 10**12])
def test_sizes_are_compared_before_anything_is_made(directory, key, value):
    changed(directory / "config.json", key, value)
    start = time.process_time()
    with pytest.raises(CheckpointError) as raised:
        jaxemb.load(directory)
    assert len(str(raised.value)) < 10_000 and time.process_time() - start < 5


def test_families_from_outside_are_registered(monkeypatch):
    family = families.Family({"other-bert": "OtherBertModel"}, families.FAMILIES["bert"].config, ())
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    assert families.register(family) is family is families.register(family)
    assert families.family_of({"model_type": "other-bert"}) is family
    with pytest.raises(ValueError, match="another family has the model_type 'bert'"):
        families.register(families.Family({"bert": "OtherBertModel"}, family.config, ()))
    with pytest.raises(TypeError, match="family must be a Family; got 'bert'"):
        families.register("bert")


class _Entry:
    name, value = "other", "other_package:FAMILY"

    def __init__(self, load):
        self.load = load


def test_an_installed_package_brings_its_families(monkeypatch):
    family = families.Family({"installed-bert": "InstalledBertModel"}, families.FAMILIES["bert"].config, ())
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    found = [_Entry(lambda: family)]
    monkeypatch.setattr(families.importlib.metadata, "entry_points", lambda group: found)
    families._register_installed.cache_clear()
    assert families.family_of({"model_type": "installed-bert"}) is family
    found[:] = [_Entry(lambda: 1 / 0)]
    families._register_installed.cache_clear()
    with pytest.raises(ValueError, match=r"jaxemb.families, other = other_package:FAMILY: division by zero"):
        families.family_of({"model_type": "another"})
    families._register_installed.cache_clear()


def test_keys_of_a_new_model_that_are_misspelt_are_refused(caplog):
    with pytest.raises(ValueError, match="key 'hidden_dropout' is not known; did you mean 'hidden_dropout_prob'"):
        new(SIZES | {"hidden_dropout": 0.2})
    with pytest.raises(ValueError, match=r"key 'max_positions_embeddings' .* 'max_position_embeddings'"):
        new(SIZES | {"max_positions_embeddings": 16})
    new(SIZES | {"my_note": 1})
    assert "key 'my_note' is saved, but changes nothing" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "1"}, "layers must be a whole number or None; got str '1'"),
        ({"dim": 2.0}, "dim must be a whole number or None; got float 2.0"),
        ({"mesh": "data"}, "mesh must be a Mesh or None; got str 'data'"),
        ({"rules": 1}, "rules must be a sequence; got int 1"),
        ({"rules": [1]}, r"rules\[0\] must be a tuple of 2; got int 1"),
        ({"encoder_only": "no"}, "encoder_only must be True or False; got str 'no'"),
        ({"param_dtype": 32}, "param_dtype must be a string; got int 32"),
    ],
)
def test_arguments_of_load_are_checked(saved, options, message):
    with pytest.raises(TypeError, match=message):
        jaxemb.load(saved, **options)


def test_overrides_are_fields(saved):
    with pytest.raises(ValueError, match=r"overrides must be among dim, .*; got dtyp"):
        jaxemb.load(saved, dtyp="float32")
    with pytest.raises(ValueError, match="dtype must be one of"):
        jaxemb.load(saved, dtype="float8")


def test_a_number_is_no_random_key():
    for key in (0, jax.random.split(jax.random.key(0)), np.zeros(2, np.uint32)):
        with pytest.raises(TypeError, match=r"key must be a random key, such as jax.random.key\(0\)"):
            jaxemb.new("bert", SIZES, Tokenizer.word_piece(SPECIAL_TOKENS), key=key, pooling=Mean())


def test_half_a_character_names_its_text(saved):
    embedder = jaxemb.load(saved)
    with pytest.raises(ValueError, match=r"texts\[1\] has a lone surrogate, half a character, at 2: 'a \\ud83d'"):
        embedder.encode(["a", "a \ud83d"])
    with pytest.raises(ValueError, match=r"pairs\[0\] has a lone surrogate"):
        embedder.tokenizer.encode_pairs([("a", "\ud83d")])
