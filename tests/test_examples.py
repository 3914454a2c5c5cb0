"""The examples of docstrings give what they say."""

import doctest
import importlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jaxemb

_ROOT = Path(jaxemb.__file__).parent
_EXAMPLE = "    >>> "
WITH_EXAMPLES = sorted(
    ".".join(path.relative_to(_ROOT.parent).with_suffix("").parts)
    for path in _ROOT.rglob("*.py")
    if _EXAMPLE in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples(name):
    module = importlib.import_module(name)
    found = doctest.testmod(
        module, extraglobs={"np": np, "jnp": jnp}, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    assert found.attempted and not found.failed
