"""`docs/composition.md` says what composes; nothing fails without saying why."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from composition import ROWS, SETTINGS, losses, reason

from jaxemb import transforms

DOCUMENT = Path(__file__).parents[2] / "docs" / "composition.md"
#: One of every kind; all others are slow.
FAST = {("lora", "in chunks"), ("ema", "accumulated"), ("er_ace", "matryoshka_2d")}


def documented() -> dict[tuple[str, str], str | None]:
    """The table: why a transform and a setting do not compose, None where they do."""
    text = DOCUMENT.read_text(encoding="utf-8")
    notes = dict(re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE))
    found = {}
    for name, *cells in re.findall(r"^\| `(.*)`" + r" \| ([^|]*)" * len(SETTINGS) + r" \|$", text, re.MULTILINE):
        for setting, cell in zip(SETTINGS, cells, strict=True):
            found[name, setting] = None if cell == "yes" else notes[cell.removeprefix("no (").removesuffix(")")]
    return found


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        pytest.param(name, setting, marks=[] if (name, setting) in FAST else pytest.mark.slow)
        for name in ROWS
        for setting in SETTINGS
    ],
)
def test_what_composes_is_what_the_table_says(name, setting):
    assert reason(ROWS[name], setting) == documented()[name, setting]


def test_every_transform_has_a_row():
    makes_one = lambda f: inspect.isfunction(f) and inspect.signature(f).return_annotation is transforms.Transform
    methods = {name for name in transforms.__all__ if makes_one(getattr(transforms, name))} - {"chain"}
    assert methods == {name.partition(",")[0] for name in ROWS}
    assert documented().keys() == {(name, setting) for name in ROWS for setting in SETTINGS}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "experience_replay", "cross_batch_memory", "lwf", "prd", "er_ace", "icarl"])
@pytest.mark.parametrize("setting", ["in chunks", "sharded"])
def test_how_it_is_computed_changes_no_loss(name, setting):
    np.testing.assert_allclose(losses(ROWS[name], setting), losses(ROWS[name], "plain"), rtol=1e-4)
