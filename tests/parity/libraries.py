"""The libraries that are compared with, imported when they are used."""

import pytest


class Library:
    """A module that is imported when it is used; the test is skipped where it is absent."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str):
        if attribute.startswith("__"):  # pytest looks at every object of a test file
            raise AttributeError(attribute)
        return getattr(pytest.importorskip(self._name), attribute)


torch = Library("torch")
