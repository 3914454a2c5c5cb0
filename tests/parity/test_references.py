"""What is kept of other libraries' values is what these libraries give."""

import importlib
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["decoders", "directories", "families", "minilm", "mining", "pooling", "pretraining"])
def test_the_values_kept_are_those_of_the_libraries(name, frozen, monkeypatch, request):
    pytest.importorskip("torch")
    pytest.importorskip("sentence_transformers")
    kept, directory = frozen(name)
    monkeypatch.setattr(sys, "path", [str(request.path.with_name("references")), *sys.path])
    arguments = ()
    if name == "minilm":
        monkeypatch.setenv("JAXEMB_DATA", str(request.getfixturevalue("data_dir")))
        arguments = (str(request.getfixturevalue("minilm")),)
    found = importlib.import_module(f"make_{name}").values(*arguments)
    assert {key for key in found if not key.startswith("files/")} == set(kept)
    assert all((directory / key.removeprefix("files/")).exists() for key in found if key.startswith("files/"))
    for key, array in kept.items():
        if np.issubdtype(array.dtype, np.floating):
            np.testing.assert_allclose(found[key], array, atol=1e-5, rtol=1e-5, err_msg=key)
        else:
            np.testing.assert_array_equal(found[key], array, err_msg=key)
