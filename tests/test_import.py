"""`import jaxemb` is light, and gives access to everything."""

import os
import subprocess
import sys

import pytest

import jaxemb

ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu"}


def _modules_after(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    return set(done.stdout.split())


def test_import_does_not_import_jax():
    assert "jax" not in _modules_after("import jaxemb")


def test_no_other_framework_is_imported():
    modules = _modules_after("import jaxemb\nfor name in jaxemb.__all__: getattr(jaxemb, name)")
    assert {"jax", "jaxemb.train", "jaxemb.checkpoints"} <= modules
    assert not modules & {"torch", "tensorflow", "transformers", "sentence_transformers", "sklearn", "datasets"}


def test_public_names_are_listed_and_found():
    assert set(jaxemb.__all__) <= set(dir(jaxemb))
    assert jaxemb.load.__module__.startswith("jaxemb.sentence_embedder")
    assert jaxemb.train.fit and jaxemb.transforms.chain and jaxemb.losses.info_nce


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'jaxemb' has no attribute 'nothing'"):
        jaxemb.nothing  # noqa: B018
