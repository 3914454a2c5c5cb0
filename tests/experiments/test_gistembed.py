import dataclasses
import json

import numpy as np
import pytest

import jaxemb
from experiments import gistembed, gistembed_labels
from experiments.gistembed import BEFORE, EXPERIMENT, LARGE
from experiments.lib import datasets
from experiments.recipes import gistembed as recipe
from experiments.recipes import peg
from jaxemb.train import fit


@pytest.mark.slow  # encodes texts of many lengths, before and after
def test_smoke(smoke_cells, minilm, quick_vectors):
    """Before and after two steps; projections stand in for the guide."""
    arms = {BEFORE: EXPERIMENT.arms[BEFORE], LARGE: EXPERIMENT.arms["GISTEmbed, MiniLM"]}
    table, summary = smoke_cells(dataclasses.replace(EXPERIMENT, arms=arms, claims=EXPERIMENT.claims[:4]), *arms)
    values = [record["values"] for record in summary["cells"].values()]
    assert values[0]["STS"] > 50  # three layers of MiniLM
    assert all(0 < values[0][measure] != values[1][measure] for measure in ("average", "STS"))
    assert "pairs of similarity" in table
    assert "61.76 to 62.40 (bge-small, MTEB; recomputed from public results) (unconfirmed)" in table
    assert "masked" not in values[0] and 0 < values[1]["masked"] < 100


def unit(rng, *shape):
    x = rng.standard_normal(shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_masks_that_are_given_are_those_of_the_guide():
    rng = np.random.default_rng(0)
    queries, documents, guide_query, guide_document = unit(rng, 4, 12, 5)
    masked = gistembed.closer(guide_query, guide_document)
    assert masked.any(axis=(0, 2)).all() and not masked[np.arange(12), :, np.arange(12)].any()
    batch = {"queries": queries, "documents": documents, "guide_query": guide_query, "guide_document": guide_document}
    loss = lambda of, masked: np.asarray(of(**batch, masked=masked))
    np.testing.assert_allclose(loss(gistembed.given, masked), loss(gistembed.guided, masked), rtol=1e-5)
    none = np.zeros_like(masked)
    np.testing.assert_allclose(loss(gistembed.given, none), loss(gistembed.unguided, none), rtol=1e-5)
    anew = gistembed.dealt(masked, rng)
    assert (loss(gistembed.given, anew) != loss(gistembed.guided, anew)).any()


def test_the_control_masks_as_many_random_others():
    rng = np.random.default_rng(0)
    masked = gistembed.closer(*unit(rng, 2, 12, 5))
    draws = np.stack([gistembed.dealt(masked, rng) for _ in range(400)])
    np.testing.assert_array_equal(draws.sum(axis=-1), np.broadcast_to(masked.sum(axis=-1), (400, 12, 3)))
    others = ~np.eye(12, dtype=bool)[:, None]
    expected = np.broadcast_to(masked.sum(axis=-1, keepdims=True) / 11, masked.shape) * others
    np.testing.assert_allclose(draws.mean(axis=0), expected, atol=0.12)  # 4.8 standard deviations


def test_the_smoke_preset_with_labels(smoke_cells, quick_vectors):
    _, summary = smoke_cells(gistembed_labels.EXPERIMENT, "MNRL", "GISTEmbed, strong guide")
    values = {name: record["values"] for name, record in summary["cells"].items()}
    (strong,) = (found for name, found in values.items() if "strong" in name)
    assert 0 < strong["true masked"] < strong["false masked"] < 100
    assert len({found["mAP@39"] for found in values.values()}) == 2


def test_pairs_are_of_one_label_and_never_a_row_with_itself():
    labels = np.array([2, 0, 1, 0, 2, 2, 3])
    found = set()
    for seed in range(50):
        first, second = datasets.pairs(labels, np.arange(7), np.random.default_rng(seed))
        assert first.tolist() == [0, 1, 3, 4, 5]  # rows 2 and 6 are alone
        found |= set(zip(first.tolist(), second.tolist(), strict=True))
    assert found == {(a, b) for a in range(7) for b in range(7) if a != b and labels[a] == labels[b]}


def test_one_pair_per_intent():
    questions = gistembed_labels.Questions(np.zeros((9, 2)), np.array([0, 1, 2] * 3))
    for first, second in questions.one_pair_per_intent(3, np.random.default_rng(0)):
        assert questions.labels[first].tolist() == questions.labels[second].tolist() == [0, 1, 2]
        assert (first != second).all()


def test_measures_by_hand():
    angles = np.deg2rad([0.0, 10.0, 15.0, 80.0])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    # nearest first: 0: 1 2 3; 1: 2 0 3; 2: 1 0 3; 3: 2 1 0
    measured = gistembed_labels.nearest(vectors, np.array([0, 0, 1, 1]))
    assert measured["1-NN"] == pytest.approx(100 * 2 / 4)
    assert measured["mAP@39"] == pytest.approx(100 * (1 + 1 / 2 + 1 / 3 + 1) / 4)


def test_the_share_that_a_guide_masks():
    labels = np.array([0, 0, 0, 0, 1, 1])
    rows = [np.array([[0, 2, 4], [1, 3, 5]])]
    exact = np.eye(3)[labels]
    assert gistembed_labels.masked(exact, labels, rows) == {"false masked": 0, "true masked": 0}  # equal is not closer
    worse = exact.copy()
    worse[1, 1] = 0.1  # documents 3 and 5: the first is now closer to query 0 than its own, document 1
    assert gistembed_labels.masked(worse, labels, rows) == {"false masked": 50, "true masked": 0}


@pytest.fixture
def tasks(tmp_path):
    """A directory of two tasks, and their records in order."""
    (tmp_path / "tasks").mkdir()
    records = []
    for task, size in (("a", 6), ("b", 9)):
        part = [{c: f"{c} {i} of {task}" for c in ("query", "document", "negative")} for i in range(size)]
        lines = "".join(json.dumps(record) + "\n" for record in part)
        (tmp_path / "tasks" / f"{task}.jsonl").write_text(lines)
        records += part
    return str(tmp_path / "tasks"), records


def test_batches_are_of_one_task_and_have_the_guides_vectors_of_their_texts(tasks, quick_vectors, tiny_minilm):
    directory, records = tasks
    embedder = jaxemb.load(str(tiny_minilm))
    data = iter(recipe.run(data=directory, batch_size=4, max_length=16).data(embedder))
    seen = set()
    for _ in range(6):
        batch = next(data)
        ids = batch["id"].tolist()
        assert max(ids) < 6 or min(ids) >= 6
        seen |= set(ids)
        for column in ("query", "document", "negative"):
            texts = [records[i][column] for i in ids]
            np.testing.assert_allclose(batch[f"guide_{column}"], quick_vectors(texts), rtol=1e-5)
            for row, expected in zip(batch[column].ids, embedder.tokenizer(texts), strict=True):
                np.testing.assert_array_equal(row[: len(expected)], expected)
    assert min(seen) < 6 <= max(seen)


@pytest.mark.slow
def test_the_full_recipe_trains(tasks, quick_vectors, tiny_minilm, tmp_path):
    run = recipe.run(data=tasks[0], model=str(tiny_minilm), batch_size=4, steps=2, max_length=16)
    assert run.best == ("sts/cosine_spearman", "max")
    fitted = fit(dataclasses.replace(run, evaluators={}, best=None), tmp_path / "run", progress=False)
    assert np.isfinite(fitted.embedder.encode(["a question"])).all()


def test_without_data_the_recipe_has_pairs_of_intents(quick_vectors):
    (source,) = recipe._sources(None)
    intent = dict(zip(*datasets.intents("banking77", "train"), strict=True))
    assert len(source) == 10_003
    assert all(intent[r["query"]] == intent[r["document"]] for r in source.__getitems__(range(0, 10_003, 100)))


@pytest.mark.slow
def test_the_recipe_of_peg_trains(quick_vectors, tiny_minilm, tmp_path):
    run = peg.run(model=str(tiny_minilm), batch_size=8, hard=2, chunk=4, steps=2, max_length=16, limit=24)
    assert np.isfinite(fit(run, tmp_path / "run", progress=False).embedder.encode(["Ein Hund."])).all()
