"""Oracles that take long to start are not even imported unless the slow tests are asked for."""

from pathlib import Path

import numpy as np
import pytest

REFERENCES = Path(__file__).with_name("references")


def pytest_ignore_collect(collection_path, config):
    """A file that is slow as a whole, `pytestmark = pytest.mark.slow`, is left out of the default run unread."""
    is_default = config.option.markexpr == "not slow" and collection_path.suffix == ".py"
    return True if is_default and "\npytestmark = pytest.mark.slow\n" in collection_path.read_text("utf-8") else None


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """`frozen(name)`: the arrays of references/NAME.npz; those whose names are paths of files are written as files.

    Returns:
      The arrays by name, and the directory of the files.
    """

    def read(name: str) -> tuple[dict[str, np.ndarray], Path]:
        directory = tmp_path_factory.mktemp(name)
        with np.load(REFERENCES / f"{name}.npz") as stored:
            arrays = dict(stored)
        for path in [path for path in arrays if path.startswith("files/")]:
            target = directory / path.removeprefix("files/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(arrays.pop(path).tobytes())
        return arrays, directory

    return read
