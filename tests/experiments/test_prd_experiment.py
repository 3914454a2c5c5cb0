import dataclasses

import numpy as np
import pytest

from experiments import prd
from experiments.prd import EXPERIMENT, FINETUNE, PLAIN, PRD, Recipe
from experiments.recipes import prd as published
from jaxemb.train import fit


def test_smoke(smoke_cells):
    """PRD and its ablation with one setting each; the others differ in fewer lines."""
    settings = {PRD: {"weight": (4.0,)}, PLAIN: {"weight": (0.0,)}}  # and a rate at which some steps do something
    one = {n: dataclasses.replace(EXPERIMENT.arms[n], grid=g | {"learning_rate": (0.3,)}) for n, g in settings.items()}
    table, summary = smoke_cells(dataclasses.replace(EXPERIMENT, arms=EXPERIMENT.arms | one), PRD, PLAIN)
    assert "10 classes in 5 tasks, 1,347 training and 450 test records" in table
    values = [record["values"] for record in summary["cells"].values()]
    assert all(of["TIL"] > of["CIL"] for of in values)  # fewer classes compete
    assert values[0]["TIL"] != values[1]["TIL"]


def signs(count):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), count).astype(np.int32)
    inputs = rng.uniform(size=(len(labels), 32, 32, 3)).astype(np.float32)
    inputs[:, :2, :2, 0] = np.arange(len(labels))[:, None, None]  # a number that an average of one block tells
    return {"input": inputs, "label": labels}


@pytest.fixture
def little(monkeypatch):
    """A stream of random images, ten of each of four classes, and its preset."""
    monkeypatch.setattr(prd, "read", lambda dataset: (signs(10), signs(5)))

    def preset(*sizes):
        recipe = Recipe(2, 1, 1, sizes, batch_size=4, per_class=4, side=16, drops=(1,))
        return prd.Preset(datasets=(prd.GTSRB,), recipes={prd.GTSRB: recipe})

    return preset


def test_a_share_of_the_training_records_is_trained_on_and_all_test_records_count(little):
    found = prd.data(little(2, 2, 4), prd.GTSRB, seed=0)
    assert [len(task.train["label"]) for task in found.tasks] == [8, 8]
    assert [len(task.test["label"]) for task in found.tasks] == [10, 10]
    assert found.tasks[0].test["input"].shape == (10, 16, 16, 3)


def test_what_settings_are_chosen_on_are_the_last_training_records(little):
    tasks = EXPERIMENT.held_out(little(2, 2, 4), prd.GTSRB).tasks
    numbers = lambda part: sorted(round(float(x[0, 0, 0])) for task in tasks for x in getattr(task, part)["input"])
    assert [len(task.test["label"]) for task in tasks] == [4, 4]  # the last two of each class
    tested, trained = numbers("test"), numbers("train")
    assert {n // 10 for n in tested} == {0, 1, 2, 3} and all(n % 10 > 7 for n in tested)
    assert not set(tested) & set(trained)


@pytest.mark.slow
@pytest.mark.parametrize("name", [PRD, FINETUNE, prd.LWF, prd.ER20])
def test_every_method_runs_on_the_published_network(name, little):
    preset = little(2)
    found = prd.data(preset, prd.GTSRB, seed=0)
    assert found.encoder(found.tasks[0].test["input"]).shape == (10, 16)
    arm = EXPERIMENT.arms[name]
    arm = dataclasses.replace(arm, **arm.choices()[0])
    assert all(0 <= value <= 100 for value in prd.measure(preset, found, arm, seed=0).values())


def test_the_texts_are_vectors_of_the_size_of_pixels(quick_vectors):
    prd.read.cache_clear()
    train, test = prd.read("banking77")
    prd.read.cache_clear()
    assert train["input"].shape == (10_003, 384) and test["label"].shape == (3_080,)
    np.testing.assert_allclose(np.square(test["input"]).mean(axis=1), 1, rtol=1e-4)


def test_the_rate_drops_within_the_first_task_alone():
    recipe = EXPERIMENT.presets["paper"].recipes[prd.CIFAR]
    rate = prd.schedule(0.01, recipe, steps=10)
    expected = [0.01, 0.001, 0.0001, 0.01, 0.01]
    np.testing.assert_allclose([rate(10 * epoch + 5) for epoch in (0, 120, 160, 220, 400)], expected, rtol=1e-5)


@pytest.mark.slow
def test_the_recipe_trains_task_after_task(little, monkeypatch, tmp_path):
    monkeypatch.setitem(EXPERIMENT.presets, "paper", little(2))
    run = published.run(dataset="gtsrb")
    assert [task.steps for task in run.tasks] == [4, 2]  # two batches in an epoch, two epochs of the first task
    fit(run, tmp_path / "run", progress=False)
