import dataclasses

import numpy as np
import pytest

from experiments import hyperinterval
from experiments.hyperinterval import EXPERIMENT, PERMUTED, SPLIT, TINY

PRESETS = EXPERIMENT.presets


@pytest.mark.slow
def test_smoke(smoke_cells):
    """The rows of one run, and what tells them apart."""
    table, summary = smoke_cells(EXPERIMENT, "nested, own", "nested, universal", "nested, point", "fine-tuning")
    own, universal, point, other = (record["values"] for record in summary["cells"].values())
    assert all(f"| {row} |" in table for row in ("nested, point", "fine-tuning"))
    assert own["R_worst_case"] == [[None if j > i else own["R_worst_case"][i][j] for j in range(5)] for i in range(5)]
    assert np.shape(other["R"]) == (5, 5) and "broken" not in other
    assert own["bounds_checked"] > 1e3
    assert own["promises"] == universal["promises"] == point["promises"] == 4 * 3 * 64  # whole batches of old tasks
    assert universal["max_excess"] != point["max_excess"] != own["max_excess"]


def test_streams():
    preset = PRESETS["small"]
    permuted, split = (hyperinterval.data(preset, name, 0).tasks for name in (PERMUTED, SPLIT))
    assert (len(permuted), len(split)) == (10, 5)
    assert sum(len(task.train["label"]) for task in split) == len(permuted[0].train["label"]) == 1212
    assert sum(len(task.test["label"]) for task in split) == 450
    assert all(set(np.unique(task.test["label"])) == {0, 1} for task in split)
    assert len({len(task.valid["label"]) for task in split}) == 1
    assert 0 <= permuted[3].train["input"].min() < permuted[3].train["input"].max() <= 1
    other = hyperinterval.data(preset, SPLIT, 1).tasks
    np.testing.assert_array_equal(other[2].test["input"], split[2].test["input"])  # one test for all seeds
    assert not np.array_equal(other[2].train["input"], split[2].train["input"])


def test_what_settings_are_chosen_on_is_no_test_record():
    rows = lambda tasks, part: {row.tobytes() for task in tasks for row in getattr(task, part)["input"]}
    found = EXPERIMENT.held_out(PRESETS["small"], SPLIT).tasks
    test = rows(hyperinterval.data(PRESETS["small"], SPLIT, 0).tasks, "test")
    assert not rows(found, "test") & rows(found, "train")
    assert not (rows(found, "test") | rows(found, "train")) & test


def test_rows_of_one_run_train_once(monkeypatch):
    runs = []
    found = hyperinterval.data(PRESETS["smoke"], TINY, 0)
    monkeypatch.setattr(hyperinterval, "run_stream", lambda *args, **named: runs.append(named) or "the result")
    arms = [dataclasses.replace(EXPERIMENT.arms[f"nested, {model}"], model="own") for model in hyperinterval.MODELS]
    assert [hyperinterval.learnt(found, arm, 0)[0] for arm in arms] == ["the result"] * 3
    assert len(runs) == 1
    hyperinterval.learnt(found, EXPERIMENT.arms["nested, beta 1, own"], 0)
    assert len(runs) == 2
    hyperinterval.learnt.cache_clear()


def test_arms_differ_in_one_thing():
    found = hyperinterval.data(PRESETS["small"], SPLIT, 0)
    of = lambda name: EXPERIMENT.arms[name].config(found.stream, found.tasks)
    changed = lambda name, base: {
        field.name
        for field in dataclasses.fields(of(base))
        if getattr(of(name), field.name) != getattr(of(base), field.name)
    }
    assert changed("beta 0", "HyperInterval") == {"beta"}
    assert changed("hypernetwork, no boxes", "HyperInterval") == {"gamma"}
    assert changed("regulariser all", "HyperInterval") == {"regulariser"}
    assert changed("nested, beta 1, own", "nested, own") == {"beta"}
    assert changed("nested, select official, point", "nested, point") == {"select"}
    assert of("nested, own").regularises_all and not of("nested, regulariser mid, own").regularises_all
    assert of("nested, own").records == 1212


def test_every_nested_claim_of_an_unknown_task_is_judged_on_permuted_digits_too():
    small = PRESETS["small"].datasets
    unknown = [claim for claim in EXPERIMENT.claims if claim.text.endswith("task unknown")]
    assert len(unknown) == 3
    assert all(EXPERIMENT.compared(claim, dataset) for claim in unknown for dataset in small)


def test_batches_of_nested_boxes():
    streams = PRESETS["paper"].streams
    sizes = {name: (stream.records(False), stream.records(True)) for name, stream in streams.items()}
    assert sizes == {hyperinterval.SPLIT_MNIST: (128, 64), hyperinterval.PERMUTED_MNIST: (128, 128)}
