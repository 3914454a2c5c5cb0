"""The walks of docs/extending.md: each section's programs run, one after the other, in an empty directory."""

import re
from pathlib import Path

import pytest

from jaxemb.encoders import families

TEXT = (Path(__file__).parent.parent / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))


def programs(section: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", SECTIONS[section], re.DOTALL)


def run(section: str, *, with_torch: bool) -> None:
    names: dict = {}
    for number, program in enumerate(programs(section), 1):
        if with_torch or "import torch" not in program:
            exec(compile(program, f"docs/extending.md, {section}, program {number}", "exec"), names)


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))


@pytest.mark.parametrize("section", SECTIONS)
def test_a_walk(section):
    assert programs(section)
    run(section, with_torch=False)


@pytest.mark.slow
@pytest.mark.parametrize("section", [section for section in SECTIONS if "import torch" in SECTIONS[section]])
def test_a_walk_with_its_oracle(section):
    pytest.importorskip("transformers")
    run(section, with_torch=True)
