import json
import re
import resource
import shlex
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from jaxemb.checkpoints import CheckpointError, read_tensors, write_tensors

TENSORS = {
    "f32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "f16": np.arange(4, dtype=np.float16),
    "bf16": np.arange(5).astype(ml_dtypes.bfloat16),
    "i64": np.arange(3)[None],
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
}


def _assert_equal(read, expected):
    assert set(read) == set(expected)
    assert len(read) == len(expected)
    for name, tensor in expected.items():
        assert read[name].dtype == tensor.dtype
        np.testing.assert_array_equal(read[name], tensor)


def test_single_file_round_trip(tmp_path):
    write_tensors(tmp_path, TENSORS)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    _assert_equal(read_tensors(tmp_path), TENSORS)


def test_sharded_round_trip(tmp_path):
    write_tensors(tmp_path, TENSORS, max_bytes=40)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in TENSORS.values())
    _assert_equal(read_tensors(tmp_path), TENSORS)


def test_a_missing_shard_is_named(tmp_path):
    write_tensors(tmp_path, TENSORS, max_bytes=40)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"index\.json: shards are missing: model-00002-of-00003\.safetensors"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("shard", ["../a.safetensors", "/a.safetensors", "a/../../a.safetensors", 3, None])
def test_shards_lie_in_the_directory(tmp_path, shard):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    path, text = f"expected a path inside of {tmp_path}; got {shard!r}", f"a must be a string; got {json.dumps(shard)}"
    message = f"{index}: weight_map: {path if isinstance(shard, str) else text}"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object; got a list"),
        ("{}", "key 'weight_map' is missing; expected an object"),
        ('{"weight_map": ["a"]}', 'weight_map must be an object; got ["a"]'),
    ],
)
def test_an_index_of_shards_that_is_none_is_refused(tmp_path, content, message):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=rf"model.safetensors.index.json: {re.escape(message)}"):
        read_tensors(tmp_path)


def test_a_tensor_that_only_the_index_has_is_named(tmp_path):
    write_tensors(tmp_path, TENSORS, max_bytes=40)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["ghost"] = "model-00001-of-00003.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="no shard has the tensors ghost"):
        read_tensors(tmp_path)


def test_a_truncated_file_is_named(tmp_path):
    write_tensors(tmp_path, TENSORS)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a complete safetensors file"):
        read_tensors(tmp_path)


def test_a_file_that_is_not_safetensors_is_named(tmp_path):
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a complete safetensors file"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_pickles_are_refused_with_the_way_to_convert(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x02}q\x00.")
    expected = rf"has only {re.escape(name)}, a pickle.*refuses it\. Convert it once.*\n  python -c \".*\"$"
    with pytest.raises(CheckpointError, match=expected):
        read_tensors(tmp_path)


@pytest.mark.slow
def test_the_conversion_that_the_message_states_works(tmp_path):
    torch = pytest.importorskip("torch")
    weight = torch.arange(4.0)
    torch.save({"a": weight, "b": weight}, tmp_path / "pytorch_model.bin")  # shared memory, as tied weights are
    with pytest.raises(CheckpointError) as error:
        read_tensors(tmp_path)
    command = shlex.split(str(error.value).splitlines()[-1])
    subprocess.run([sys.executable, *command[1:]], check=True, capture_output=True)
    _assert_equal(read_tensors(tmp_path), {"a": weight.numpy(), "b": weight.numpy()})


def test_an_empty_directory_says_what_is_expected(tmp_path):
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors or model\.safetensors\.index\.json"):
        read_tensors(tmp_path)


def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path):
    write_tensors(tmp_path / "model", {"a": np.zeros(3, np.float32)})
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=f"File too large: '{tmp_path / 'model'}'"):
            write_tensors(tmp_path / "model", {"a": np.zeros(10_000, np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["model.safetensors"]
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
