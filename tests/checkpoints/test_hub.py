import re

import huggingface_hub
import pytest

from jaxemb.checkpoints import resolve


def test_a_directory_is_itself(tmp_path):
    assert resolve(tmp_path) == resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("name", "repository"),
    [("intfloat/e5-base-v2", "intfloat/e5-base-v2"), ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2")],
)
def test_a_hub_id_is_fetched_without_pickles(monkeypatch, tmp_path, name, repository):
    calls = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *args, **options: calls.append((args, options)) or str(tmp_path)
    )
    assert resolve(name, revision="v1") == tmp_path
    ((args, options),) = calls
    assert args == (repository,)
    assert options["revision"] == "v1"
    kept = list(
        huggingface_hub.utils.filter_repo_objects(
            ["model.safetensors", "1_Pooling/config.json", "vocab.txt", "pytorch_model.bin", "onnx/config.json"],
            allow_patterns=options["allow_patterns"],
            ignore_patterns=options["ignore_patterns"],
        )
    )
    assert kept == ["model.safetensors", "1_Pooling/config.json", "vocab.txt"]


def test_an_unreachable_hub_is_reported_with_the_reason(monkeypatch):
    def fail(*args, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    message = "'acme/model' is not a directory, and 'acme/model' could not be fetched from the hub: no route to host"
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        resolve("acme/model")


@pytest.mark.parametrize("name", ["./missing", "a/b/c", "/no/such/directory"])
def test_what_can_be_neither_is_refused(name):
    with pytest.raises(FileNotFoundError, match=rf"{re.escape(repr(name))} is not a directory, nor can it be a hub id"):
        resolve(name)
