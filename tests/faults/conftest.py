"""Shared by the fault suites: no hub, and no pages of Rust's backtraces."""

import pytest


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("RUST_BACKTRACE", "0")
