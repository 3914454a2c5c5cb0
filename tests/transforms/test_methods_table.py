"""The table of methods leaves none out, and its links lead somewhere."""

import inspect
import re
from pathlib import Path

from jaxemb import transforms

ROOT = Path(__file__).parents[2]
#: They make a `Transform`, but are no methods.
TOOLS = {"chain", "identity"}


def test_every_method_has_one_row_with_an_experiment_that_exists():
    rows = [
        re.split(r"(?<!\\)\|", line)[1:-1]
        for line in (ROOT / "docs" / "methods.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    named = [re.findall(r"`(\w+)`", cells[0])[0] for cells in rows]
    makes_one = lambda f: inspect.isfunction(f) and inspect.signature(f).return_annotation is transforms.Transform
    methods = {name for name in transforms.__all__ if makes_one(getattr(transforms, name))} - TOOLS
    assert sorted(named) == sorted(methods)
    experiments = {name for cells in rows for name in re.findall(r"`(\w+)`", cells[-1])}
    for name in experiments:
        assert (ROOT / "experiments" / f"{name}.py").exists() and (ROOT / "experiments" / "results" / name).is_dir()
