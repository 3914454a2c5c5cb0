"""The programs in the README run."""

import re
from pathlib import Path

import pytest

from jaxemb.train import fit

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture
def programs(tiny_minilm, tmp_path, monkeypatch) -> list[str]:
    """The README's Python programs, with a small local model for the one on the hub, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(found) == 2 and all(HUB_ID in program for program in found)
    return [program.replace(HUB_ID, str(tiny_minilm)) for program in found]


def test_use_a_model(programs, tmp_path, capsys):
    names: dict = {}
    exec(programs[0], names)
    assert names["vectors"].shape == (3, 384)
    assert capsys.readouterr().out.startswith("[[")
    assert (tmp_path / "my-model" / "modules.json").is_file()


def test_train_one(programs, tmp_path):
    rows = "".join(f"question {i},answer {i}\n" for i in range(64))
    (tmp_path / "pairs.csv").write_text(f"query,document\n{rows}")
    names: dict = {}
    exec(programs[1], names)
    result = fit(names["run"](steps=1), tmp_path / "run", progress=False)
    assert int(result.state.step) == 1
    assert (tmp_path / "run" / "model" / "modules.json").is_file()
