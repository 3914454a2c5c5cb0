"""The suite that experiments run on: intervals, verdicts, resume, tuning, tables."""

import ast
import dataclasses
import importlib
import json
import math
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

import experiments
from experiments.lib import datasets, report, reproductions, sources, suite
from experiments.lib.cells import Cell, Cells, plain
from experiments.lib.statistics import Spread, verdict
from experiments.lib.suite import Arm, Claim, Experiment, Measure, Preset, Reported


def test_the_interval_is_that_of_a_t_test():
    values = np.random.default_rng(0).normal(1, 2, 5)
    for level in (0.9, 0.95):
        expected = stats.ttest_1samp(values, 0).confidence_interval(level)
        np.testing.assert_allclose(Spread(tuple(values)).interval(level), expected)
    low, high = (Spread(tuple(values + 3)) - Spread(tuple(values[::-1]))).interval()
    np.testing.assert_allclose((low, high), stats.ttest_rel(values + 3, values[::-1]).confidence_interval())
    assert Spread((1.0,)).interval() == (-math.inf, math.inf)


def test_spreads():
    assert f"{Spread((0.1, 0.2, 0.3)):+.2f}" == "+0.20 ± 0.10"
    assert f"{Spread((0.5,)):.1f}" == "0.5"
    with pytest.raises(ValueError, match="the same seeds; got 2 and 1 values"):
        Spread((1.0, 2.0)) - Spread((1.0,))
    with pytest.raises(ValueError, match="one finite number or more"):
        Spread((1.0, math.nan))


CLEAR, OPEN, ONE = Spread((1.0, 1.2, 1.1)), Spread((1.0, -1.2, 0.3)), Spread((5.0,))
FAR = Spread((-3.0, -3.1, -2.9))
TWO, SAME = Spread((1.0, 1.000001)), Spread((0.01, 0.01, 0.01 + 1e-12))  # narrow, and no evidence


@pytest.mark.parametrize(
    ("difference", "relation", "margin", "expected"),
    [
        (CLEAR, ">", 0, "shown"),
        (CLEAR, "<", 0, "opposite"),
        (FAR, "<", 0, "shown"),
        (FAR, ">", 0, "opposite"),
        (OPEN, ">", 0, "not shown"),
        (ONE, ">", 0, "not shown"),
        (TWO, ">", 0, "not shown"),
        (TWO, "<", 0, "not shown"),
        (TWO, "≈", 2, "not shown"),
        (SAME, ">", 0, "not shown"),
        (SAME, "<", 0, "not shown"),
        (SAME, "≈", 1, "not shown"),
        (CLEAR, "≈", 1.5, "shown"),
        (CLEAR, "≈", 1.1, "not shown"),
        (CLEAR, "≈", 0.5, "opposite"),
        (FAR, "≈", 0.5, "opposite"),
    ],
)
def test_verdicts(difference, relation, margin, expected):
    assert verdict(difference, relation, margin) == expected


@pytest.mark.parametrize(("relation", "margin"), [("≈", 0), (">", 1), ("=", 0)])
def test_margins_are_of_one_relation(relation, margin):
    with pytest.raises(ValueError, match="must be"):
        verdict(CLEAR, relation, margin)


@dataclasses.dataclass(frozen=True)
class Shift(Arm):
    by: float = 0.0


PAPER = Reported("+2", confirmed=True)


class Calls:
    """What was measured; an object, as the values of globals are part of what made a cell."""

    def __init__(self):
        self.made = []


CALLS = Calls()


def measure(preset, data, arm, seed):
    """A value for each seed, and the arm's shift; more is measured where it is printed."""
    CALLS.made.append((data, arm.by, seed))
    return {"score": 10.0 * seed + arm.by + 0.01 * seed * arm.by, "curve": np.arange(2)}


def experiment(**changes) -> Experiment:
    presets = {"small": Preset(datasets=("first", "second"), seeds=3)}
    fields = {
        "name": "shifts",
        "about": "Shifts: they add up.\n\nWho claims it.",
        "presets": presets,
        "arms": {
            "none": Shift(),
            "up": Shift(by=1.0, paper=Reported("+2", True)),
            "odd": Shift(by=5.0, on=("second",)),
        },
        "data": lambda preset, dataset, seed: f"{dataset} {seed}",
        "measure": measure,
        "measures": {"score": Measure("score, %", 2), "absent": Measure("absent")},
        "claims": [Claim("Up is up", "up", ">", "none"), Claim("Odd is no other", "odd", "≈", "up", margin=1.0)],
        "describe": lambda data: f"about {data[:-2]}",
    }
    return Experiment(**fields | changes)


@pytest.fixture(autouse=True)
def nothing_measured():
    CALLS.made.clear()


def test_a_run_that_was_killed_goes_on(tmp_path):
    def killed(preset, data, arm, seed):
        if len(CALLS.made) == 4:
            raise KeyboardInterrupt
        return measure(preset, data, arm, seed)

    killed.__code__ = killed.__code__.replace(co_name="measure")
    one = experiment(measure=killed)
    with pytest.raises(KeyboardInterrupt):
        suite.run(one, "small", tmp_path)
    assert len(CALLS.made) == 4 and not (tmp_path / "table.md").exists()
    CALLS.made.append(())  # the next call is not killed
    suite.run(one, "small", tmp_path)
    measured = [cell for cell in CALLS.made if cell]
    assert len(measured) == len(set(measured)) == 3 * (2 + 3)
    before = (tmp_path / "table.md").read_text()
    for path in (tmp_path / "cells").iterdir():  # a clone has the results, and no cells
        path.unlink()
    suite.run(one, "small", tmp_path)
    assert len(CALLS.made) == 16 and (tmp_path / "table.md").read_text() == before


def test_seeds_and_arms_can_be_shared_out(tmp_path, capsys):
    suite.run(experiment(), "small", tmp_path, only_seeds=[1])
    suite.run(experiment(), "small", tmp_path, only_arms=["none", "up"])
    assert len(CALLS.made) == 5 + 8 and not (tmp_path / "results.json").exists()
    assert "2 cells are still to be measured, such as second, odd, seed 0" in capsys.readouterr().out
    suite.run(experiment(), "small", tmp_path)
    assert len(CALLS.made) == 15 and (tmp_path / "results.json").exists()


def test_two_processes_of_one_directory_end_with_the_same_results(tmp_path):
    """The second one runs, to its end, while the first measures its fourth cell."""

    def interleaved(preset, data, arm, seed):
        if len(CALLS.made) == 3:
            CALLS.made.append(())
            suite.run(one, "small", tmp_path)
            tables.made.append((tmp_path / "table.md").read_text())
        return measure(preset, data, arm, seed)

    interleaved.__code__ = interleaved.__code__.replace(co_name="measure")
    one, tables = experiment(measure=interleaved), Calls()
    suite.run(one, "small", tmp_path)
    assert len(CALLS.made) == 15 + 2  # that cell is measured twice
    assert tables.made == [(tmp_path / "table.md").read_text()]
    assert len(json.loads((tmp_path / "results.json").read_text())["cells"]) == 15


def test_what_was_measured_otherwise_is_measured_again(tmp_path):
    suite.run(experiment(), "small", tmp_path, seeds=1)
    words = {"up": Shift(by=1.0, paper=Reported("+3"), scenario="told")}
    suite.run(experiment(arms=experiment().arms | words), "small", tmp_path, seeds=1)
    assert len(CALLS.made) == 5
    suite.run(experiment(arms=experiment().arms | {"up": Shift(by=2.0)}), "small", tmp_path, seeds=1)
    assert len(CALLS.made) == 5 + 2
    other = lambda preset, data, arm, seed: {"score": 1.0}
    suite.run(experiment(measure=other), "small", tmp_path, seeds=1)
    cells = json.loads((tmp_path / "results.json").read_text())["cells"]
    assert {record["values"]["score"] for record in cells.values()} == {1.0}


@pytest.fixture
def of_two_modules(tmp_path, monkeypatch):
    """Makes an experiment of two modules of `experiments`: a class and the measure, and what they import; or edited."""
    monkeypatch.setattr(experiments, "__path__", [*experiments.__path__, str(tmp_path)])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    texts = {
        "shifted_by": "def amount(arm):\n    return arm.by\n",
        "shifted": (
            "from experiments import shifted_by\n\n\nclass Model:\n"
            "    def __call__(self, arm):\n        return 1.0 + shifted_by.amount(arm)\n\n\n"
            "def measure(preset, data, arm, seed):\n    return {'score': Model()(arm) + seed}\n"
        ),
    }

    def forget():
        for name in texts:
            sys.modules.pop(f"experiments.{name}", None)
            vars(experiments).pop(name, None)

    def made(**replaced):
        forget()
        for name, text in texts.items():
            old, new = replaced.get(name, ("", ""))
            assert old in text
            (tmp_path / f"{name}.py").write_text(text.replace(old, new) if old else text)
        importlib.invalidate_caches()
        return experiment(measure=importlib.import_module("experiments.shifted").measure)

    yield made
    forget()


@pytest.mark.parametrize(
    "edited",
    [
        {"shifted": ("return 1.0 +", "return 2.0 +")},  # a method of a class
        {"shifted_by": ("return arm.by", "return 1.0 + arm.by")},  # a function that is reached by its module
    ],
    ids=["method", "imported module"],
)
def test_cells_of_other_modules_are_measured_again(of_two_modules, tmp_path, edited):
    scores = lambda: {r["values"]["score"] for r in json.loads((out / "results.json").read_text())["cells"].values()}
    out = tmp_path / "out"
    suite.run(of_two_modules(), "small", out, seeds=1)
    assert scores() == {1.0, 2.0, 6.0}
    kept = Cells(of_two_modules(), "small", out, seeds=1)
    assert None not in [*map(kept.kept, kept)]
    suite.run(of_two_modules(**edited), "small", out, seeds=1)
    assert scores() == {2.0, 3.0, 7.0}


def test_an_edit_while_cells_are_measured_is_none_of_theirs(of_two_modules, tmp_path):
    cells = Cells(of_two_modules(), "small", tmp_path / "out")
    later = Cells(of_two_modules(shifted_by=("return arm.by", "return 9.0")), "small", tmp_path / "out")
    cells.measured(first := Cell("first", "none", 0))
    assert cells.kept(first) and later.kept(first) is None


def test_experiments_import_experiments_where_they_begin():
    """What a function imports is not there yet when the modules are hashed."""
    for path in (reproductions.REPOSITORY / "experiments").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        inner = [node for node in imports if node not in tree.body]
        texts = [f"{path.name}: {ast.unparse(node)}" for node in inner]
        assert not [text for text in texts if re.search(r": (import experiments|from (experiments|\.))", text)]


def test_a_hash_of_the_library(tmp_path):
    (tmp_path / "nn").mkdir()
    found = []
    for name, text in (("a.py", "1"), ("a.py", "2"), ("nn/b.py", ""), ("nn/b.txt", "no code")):
        (tmp_path / name).write_text(text)
        found.append(sources.library.__wrapped__(tmp_path))
    assert len(set(found)) == 3 and found[2] == found[3]


def test_the_table_says_that_cells_differ_in_the_library(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sources, "library", lambda: "before")
    suite.run(experiment(), "small", tmp_path, only_seeds=[0, 1])
    suite.run(experiment(), "small", tmp_path, only_seeds=[0, 1])
    assert "states of the library" not in capsys.readouterr().out
    monkeypatch.setattr(sources, "library", lambda: "after")
    suite.run(experiment(), "small", tmp_path)
    line = "cells were measured with different states of the library, by hash: 10 of before"
    assert f"{line}; it is after now\n" in capsys.readouterr().out
    assert f"- {line}, 5 of after\n" in (tmp_path / "table.md").read_text()
    assert len(CALLS.made) == 15


def test_the_table(tmp_path):
    (tmp_path / "notes.md").write_text("It went well.")
    recipe = {"config": "shift.py", "set": ["far=3"], "topology": "v5e:2x2", "parameters": 2_500_000, "steps": 1800}
    needs = {"memory": {"peak": 2**30, "capacity": 2**34}, "seconds": {"step": 2.0}, "chip_hours": 4.0}
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "shift.json").write_text(json.dumps(recipe | needs))
    suite.run(experiment(), "small", tmp_path)
    table = (tmp_path / "table.md").read_text()
    row = "`jaxemb compile shift.py --topology v5e:2x2 --set far=3` | 2.5 | 1.00 of 16.00 | 2 | 1,800 | 1 | 4 |"
    assert "## The full recipe\n" in table and row in table
    assert table.startswith("# Shifts: they add up\n\nWho claims it.\n\n## Results\n")
    assert "**second**: about second\n\n|  | score, % | paper |\n| --- | ---: | ---: |\n" in table
    assert "| up | 11.01 ± 10.01 | +2 |" in table
    difference = "+1.010 [+0.985, +1.035]"  # of 1, 1.01, 1.02: sd 0.01, t 4.3027
    assert f"| Up is up | first | up > none | score | {difference} | **shown** |" in table
    assert "| Odd is no other | second | odd ≈ up ± 1 | score | +4.040 [+3.941, +4.139] | **opposite** |" in table
    assert "## Notes\n\nIt went well.\n" in table and "`python -m experiments.shifts --preset small`, 0 CPU" in table
    assert (tmp_path / "figure.png").stat().st_size > 0
    assert json.loads((tmp_path / "results.json").read_text())["claims"][0]["verdict"] == "shown"


def test_settings_are_chosen_on_held_out_data_with_a_seed_of_their_own(tmp_path):
    best = lambda preset, data, arm, seed: CALLS.made.append((data, seed)) or {"score": -abs(arm.by - 2.0) + seed % 2}
    arms = {"fixed": Shift(by=9.0), "tuned": Shift(grid={"by": (1.0, 2.5, 7.0)})}
    made = {"arms": arms, "measure": best, "claims": [Claim("It is better", "tuned", ">", "fixed")]}
    with pytest.raises(ValueError, match="tuned of shifts have a grid, but there are no held_out data"):
        experiment(**made)
    one = experiment(**made, held_out=lambda preset, dataset: f"validation {dataset}")
    suite.run(one, "small", tmp_path)
    tried = [cell for cell in CALLS.made if "validation" in cell[0]]
    assert len(tried) == 2 * 3 and {seed for _, seed in tried} == {suite.CHOICE_SEED}
    records = json.loads((tmp_path / "results.json").read_text())["cells"]
    tuned = [r["values"]["score"] for file, r in records.items() if "tuned-seed" in file]
    assert sorted(tuned) == [-0.5] * 4 + [0.5] * 2
    assert "second, tuned: by 1.0: -1.0; by 2.5: -0.5; by 7.0: -5.0\n" in (tmp_path / "table.md").read_text()
    arms = arms | {"tuned": Shift(grid={"by": (1.0, 1.5)})}
    suite.run(experiment(**made | {"arms": arms}, held_out=one.held_out), "small", tmp_path / "edge")
    text = "by 1.0: -1.0; by 1.5: -0.5 (the best by is at an edge of what was tried)\n"
    assert text in (tmp_path / "edge" / "table.md").read_text()


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        (Claim("X", "up", ">", "down"), "the claim 'X' is of no arm of shifts: down"),
        (Claim("X", "up", ">", "none", "speed"), "of no measure of shifts: speed"),
        (Claim("X", "up", ">", "none", on=("third",)), "of no data set of shifts: third"),
        (Claim("X", "odd", ">", "none", on=("first",)), "of arms that no data set has both of"),
    ],
)
def test_claims_of_what_there_is_not(claim, message):
    with pytest.raises(ValueError, match=message):
        experiment(claims=[claim])


def test_a_claim_of_what_was_not_measured():
    found = {"first": {"up": [{"score": 1.0}], "none": [{"other": 1.0}]}}
    with pytest.raises(ValueError, match="'score' of 'none' on first, which was not measured"):
        report.judged(experiment(), found)


def test_measures_are_finite(tmp_path):
    with pytest.raises(ValueError, match="first, none, seed 0: measures must be finite numbers"):
        suite.run(experiment(measure=lambda *of: {"score": math.nan}), "small", tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def test_the_command_line(tmp_path, monkeypatch, capsys):
    suite.main(experiment(), ["--out", str(tmp_path), "--seeds", "2", "--seed", "1", "--arm", "up"])
    assert CALLS.made == [("first 1", 1.0, 1), ("second 1", 1.0, 1)]
    for wrong in (["--seeds", "0"], ["--preset", "huge"], ["--arm", "down"]):
        with pytest.raises(SystemExit):
            suite.main(experiment(), wrong)
    monkeypatch.setenv("JAXEMB_DATA", str(tmp_path / "nowhere"))
    absent = experiment(data=lambda *of: datasets.data_dir("intents"))
    with pytest.raises(SystemExit, match=r"experiments\.shifts: the data set .*nowhere/intents is absent; JAXEMB_DATA"):
        suite.main(absent, ["--out", str(tmp_path / "other")])


def test_numbers_of_seeds_and_places_of_results_are_usage_errors(tmp_path, capsys):
    (file := tmp_path / "file").touch()
    for options, message in (
        (["--seed", "0", "--seed", "3"], "--seed must be in 0..2; got 3"),
        (["--seed", "-1"], "--seed must be in 0..2; got -1"),
        (["--seeds", "1", "--seed", "1"], "--seed must be in 0..0; got 1"),
        (["--out", str(file)], f"--out must be a directory; {file} is a file"),
        (["--out", str(file / "results")], f"--out must be a directory; {file} is a file"),
    ):
        with pytest.raises(SystemExit) as error:
            suite.main(experiment(), ["--out", str(tmp_path / "out"), *options])
        assert error.value.code == 2 and message in capsys.readouterr().err
    assert not CALLS.made and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda cell: [1], "expected a JSON object of made_by, .*; got a list"),
        (lambda cell: {name: part for name, part in cell.items() if name != "made_by"}, "missing or unknown: made_by"),
        (lambda cell: cell | {"more": 1}, "missing or unknown: more"),
        (lambda cell: {name: part for name, part in cell.items() if name != "data"}, "missing or unknown: data"),
        (lambda cell: cell | {"cpu_seconds": "long"}, "cpu_seconds must not be a string 'long'"),
        (lambda cell: cell | {"values": {"score": "high"}}, "measures must be finite numbers"),
        ('{"made_by": "', "not valid JSON"),
        ("", "is empty"),
    ],
)
def test_a_damaged_cell_is_measured_again(damage, message, tmp_path, caplog):
    run = lambda: suite.run(experiment(), "small", tmp_path, seeds=1, only_arms=["up"])
    run()
    path = tmp_path / "cells" / Cell("first", "up", 0).file
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(damage(whole)) if callable(damage) else damage)
    run()
    assert CALLS.made[2:] == [("first 0", 1.0, 0)]
    assert len(caplog.messages) == 1 and re.search(rf"{path}: .*{message}.*; the cell is measured again", caplog.text)
    assert json.loads(path.read_text())["values"] == whole["values"]


@pytest.mark.parametrize("content", ["{", "{}", '{"cells": []}', "[1]", None])
def test_results_that_cannot_be_read_are_named(content, tmp_path):
    path = tmp_path / "shifts" / "results.json"
    path.parent.mkdir()
    if content is None:
        path.mkdir()
    else:
        path.write_text(content)
    with pytest.raises(SystemExit, match=rf"experiments\.shifts: {path}: "):
        suite.main(experiment(), ["--out", str(path.parent)])
    assert not CALLS.made
    if content is not None:
        with pytest.raises(ValueError, match=f"{path}: "):
            reproductions.page(tmp_path)


def test_what_is_in_the_place_of_a_cell_is_named(tmp_path):
    (path := tmp_path / "cells" / Cell("first", "none", 0).file).mkdir(parents=True)
    with pytest.raises(SystemExit, match=f"{path}: is a directory; expected a file"):
        suite.main(experiment(), ["--out", str(tmp_path)])
    path.rmdir()
    path.parent.rmdir()
    path.parent.touch()
    with pytest.raises(SystemExit, match=f"{path.parent} must be a directory"):
        suite.main(experiment(), ["--out", str(tmp_path)])
    assert not CALLS.made


def test_files_of_cells_have_names_of_their_own():
    cells = [
        Cell("a", arm, seed, choice) for arm in ("x > 1", "x < 1") for seed in (1, 11) for choice in ((), (("r", 1),))
    ]
    assert len({cell.file for cell in cells}) == len({str(cell) for cell in cells}) == 6
    assert cells[0].file.startswith("a-x-1-seed-1-")


def test_plain_values():
    value = {"a": np.float32(0.5), 1: [np.arange(2), (True, None, "x")]}
    assert plain(value) == {"a": 0.5, "1": [[0, 1], [True, None, "x"]]}


def test_the_page_of_reproductions(tmp_path, monkeypatch):
    suite.run(experiment(), "small", tmp_path / "shifts")
    (tmp_path / "older").mkdir()
    page = reproductions.page(tmp_path)
    assert (
        "| [Shifts](../experiments/results/shifts/table.md) | Up is up | first | – | +1.01 [+0.99, +1.03] score |"
        in page
    )
    assert page.count("| Up is up |") == 2 and "Odd" not in page
    assert "[older](../experiments/results/older/table.md)" in page
    monkeypatch.setattr(reproductions, "OF_NO_PAPER", ("shifts",))
    page = reproductions.page(tmp_path)
    assert "Up is up" not in page and "no paper claims: [shifts](../experiments/results/shifts/table.md).\n" in page
    (tmp_path / "results").mkdir()
    (tmp_path / "to_come.py").write_text("suite.main(EXPERIMENT)")
    page = reproductions.page(tmp_path / "results")
    assert "No experiment has a row yet.\n" in page and "\nExperiments without results: [to_come](" in page


def test_experiments_of_no_paper_are_there():
    for name in reproductions.OF_NO_PAPER:
        assert "main(EXPERIMENT)" in (reproductions.REPOSITORY / "experiments" / f"{name}.py").read_text("utf-8")


def test_the_page_is_that_of_the_results():
    results = reproductions.REPOSITORY / "experiments" / "results"
    assert reproductions.PAGE.read_text(encoding="utf-8") == reproductions.page(results), (
        "run python -m experiments.lib.reproductions"
    )


def test_samples_are_random_and_whole_where_they_can_be():
    assert datasets.sample(5, None).tolist() == datasets.sample(5, 9).tolist() == [0, 1, 2, 3, 4]
    drawn = datasets.sample(1000, 10)
    assert len(set(drawn)) == 10 and drawn.max() > 100 and (np.diff(drawn) > 0).all()
    assert drawn.tolist() == datasets.sample(1000, 10).tolist() != datasets.sample(1000, 10, seed=1).tolist()


def test_samples_of_classes_are_disjoint():
    labels = np.array([0] * 5 + [1] * 50 + [2] * 2)
    first, second, rest = datasets.per_class(labels, [3, 1, None], seed=0)
    assert np.bincount(labels[first]).tolist() == [3, 3, 2] and np.bincount(labels[second]).tolist() == [1, 1]
    assert sorted([*first, *second, *rest]) == list(range(57))
    assert set(first) != set(datasets.per_class(labels, [3], seed=1)[0])


def test_what_is_absent_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXEMB_MODELS", str(tmp_path))
    with pytest.raises(datasets.AbsentError, match=r"the model .*bge is absent; JAXEMB_MODELS says where models are"):
        datasets.model_dir("bge")
    (tmp_path / "bge").mkdir()
    (tmp_path / "bge" / "config.json").touch()
    assert datasets.model_dir("bge") == tmp_path / "bge"


def test_vectors_are_kept(tiny_minilm, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "REPOSITORY", tmp_path)
    first = datasets.vectors(["one text", "another"], str(tiny_minilm))
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, rtol=1e-5)
    (kept,) = (tmp_path / "runs" / "experiments").iterdir()
    np.save(kept, first + 1)
    np.testing.assert_array_equal(datasets.vectors(["one text", "another"], str(tiny_minilm)), first + 1)


def test_cells_of_an_arm_that_waits_for_its_choice_are_not_kept(tmp_path):
    arms = {"tuned": Shift(grid={"by": (1.0, 2.0)}), "none": Shift()}
    one = experiment(arms=arms, claims=[Claim("X", "tuned", ">", "none")], held_out=lambda *of: "validation")
    cells = Cells(one, "small", tmp_path)
    assert cells.kept(Cell("first", "tuned", 0)) is None
    assert cells.measured(Cell("first", "tuned", 0)).values["score"] == 2.0
    assert SimpleNamespace(**cells.measured(Cell("first", "tuned", 0)).values).curve == [0, 1]
