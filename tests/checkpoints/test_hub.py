import re
from pathlib import Path

import huggingface_hub
import pytest

from jaxemb.checkpoints import resolve


def test_a_directory_is_itself(tmp_path):
    assert resolve(tmp_path) == resolve(str(tmp_path)) == tmp_path


def test_of_a_run_it_is_the_best_model_or_the_last(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"has written no model yet; .* by fit\(run, '.*'\) in Python"):
        resolve(tmp_path)
    (tmp_path / "config.py").touch()
    with pytest.raises(
        FileNotFoundError, match=f"no model yet; go on with it: jaxemb train CONFIG.py --out {tmp_path}$"
    ):
        resolve(tmp_path)
    (tmp_path / "model").mkdir()
    assert resolve(tmp_path) == tmp_path / "model"
    (tmp_path / "best").mkdir()
    assert resolve(str(tmp_path)) == tmp_path / "best"


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


@pytest.fixture
def no_network(monkeypatch):
    """Any request is an error that no caller expects."""

    def fail(*args, **options):
        raise AssertionError("the hub was asked")

    for name in ("snapshot_download", "hf_hub_download"):
        monkeypatch.setattr(huggingface_hub, name, fail)


def test_only_the_cache_is_looked_into_where_nothing_is_to_be_fetched(no_network, monkeypatch, tmp_path):
    cached = tmp_path / "config.json"
    cached.touch()
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda name, *_, **__: str(cached) if name == "acme/known" else None
    )
    assert resolve("acme/known", fetch=False) == resolve(tmp_path, fetch=False) == tmp_path
    with pytest.raises(FileNotFoundError, match="'acme/unknown' is not in the hub's cache"):
        resolve("acme/unknown", fetch=False)


def test_what_is_no_name_of_a_repository_is_in_no_cache(no_network):
    with pytest.raises(FileNotFoundError, match=r"'a/\.\.' is not in the hub's cache"):
        resolve("a/..", fetch=False)


@pytest.mark.parametrize("name", ["notes.txt", "acme/notes.txt", Path("notes.txt")])
def test_a_file_is_no_model_and_not_looked_up_on_the_hub(no_network, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text("notes")
    with pytest.raises(NotADirectoryError, match=rf"{str(name)!r} is a file; expected the directory of a model, or a"):
        resolve(name)


def test_a_link_to_nothing_is_not_looked_up_on_the_hub(no_network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    with pytest.raises(FileNotFoundError, match="'loop' is a link that leads nowhere"):
        resolve("loop")


@pytest.mark.parametrize("name", ["./missing", "a/b/c", "/no/such/directory", "missing/", "~/missing", Path("missing")])
def test_what_can_be_neither_is_refused(no_network, name):
    with pytest.raises(
        FileNotFoundError, match=rf"{re.escape(repr(str(name)))} is not a directory, nor can it be a hub id"
    ):
        resolve(name)
