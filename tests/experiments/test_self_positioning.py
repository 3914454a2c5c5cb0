import dataclasses

import jax
import numpy as np
import pytest

from experiments import self_positioning as sp
from experiments.self_positioning import EXPERIMENT
from jaxemb.losses import cosent, info_nce, masks


def test_smoke(smoke_cells):
    arms = (sp.JOINT, sp.JOINT_PROBE, sp.SCALAR, sp.SP, sp.OURS)
    table, summary = smoke_cells(EXPERIMENT, *arms)
    values = {name: record["values"] for name, record in summary["cells"].items()}
    assert len({found["mean"] for found in values.values()}) == len(arms)
    assert all(found["worst"] <= found["mean"] for found in values.values())
    assert sum("kept 3" in found for found in values.values()) == 2
    assert "+0.7 (MTEB)" in table and "pairs of task vectors have a cosine of" in table


def settings(**records):
    """Data whose batches are their records."""
    tasks = {name: sp.Task(*parts, steps=1) for name, parts in records.items()}
    return sp.Data(None, tasks, dict, None, None, 1e-3, 3, 2)


def part(start, count):
    return {"label": np.arange(start, start + count)}


def test_joint_training_draws_by_size_or_alike_and_from_the_probe_when_it_is_told_to(monkeypatch):
    data = settings(large=(part(0, 90), part(100, 10)), small=(part(200, 10), part(300, 10)))
    monkeypatch.setattr(
        sp, "learn", lambda data, model, batches, steps, seed: (steps, [next(batches) for _ in range(400)])
    )

    def shares(**options):
        steps, batches = sp.joint(data, sp.Arm(sp.joint, **options), None, seed=0)
        assert steps == 2 and all(len({n // 200 for n in batch["label"]}) == 1 for batch in batches)  # of one task
        drawn = np.concatenate([batch["label"] for batch in batches])
        return [np.mean((drawn >= 100 * i) & (drawn < 100 * i + 100)) for i in range(4)]

    np.testing.assert_allclose(shares(), [0.9, 0, 0.1, 0], atol=0.05)
    np.testing.assert_allclose(shares(alike=True), [0.5, 0, 0.5, 0], atol=0.08)
    np.testing.assert_allclose(shares(probe=True), [0.75, 0.083, 0.083, 0.083], atol=0.05)


def test_the_search_sees_the_probe_alone_or_what_was_trained_on():
    data = settings(one=(part(0, 9), part(100, 9)))
    for seen, low in ((False, 100), (True, 0)):
        (batches,) = sp.probes(data, sp.Arm(sp.searched, seen=seen), seed=0).values()
        for _ in range(20):
            labels = next(batches)["label"]
            assert len(labels) == 2 and np.all((labels >= low) & (labels < low + 9))


def test_a_batch_has_the_loss_of_its_task():
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 6, 4), np.float32)
    batch = {"first": first, "second": second, "label": np.array([0, 1, 1, 2, 3, 4], np.int32)}
    run = jax.jit(lambda batch: sp.of_task(lambda x, key: x, batch, None)[0])
    scores = rng.uniform(0, 5, 6).astype(np.float32)
    np.testing.assert_allclose(run(batch | {"score": scores}), cosent(first, second, scores), rtol=1e-5)
    expected = info_nce(first, second, temperature=0.05, mask=masks.same_label(batch["label"]))
    np.testing.assert_allclose(run(batch | {"score": np.full(6, np.nan, np.float32)}), expected, rtol=1e-5)


@pytest.mark.slow
def test_texts_to_train_on_to_probe_and_to_test_are_apart_and_all_merges_run(minilm, quick_vectors):
    preset = dataclasses.replace(EXPERIMENT.presets["smoke"], datasets=(sp.TEXTS,), tests=80)
    sp.corpus.cache_clear()
    data, c = sp.data(preset, sp.TEXTS, 0), sp.corpus(preset)
    pairs = {}
    for name, size in zip(("retrieval", "STS", "intents"), preset.pairs, strict=True):
        task = data.tasks[name]
        assert (len(task.fitted["label"]), len(task.probe["label"])) == (size, preset.held_out)
        pairs[name] = [
            set(zip(p["first"].tolist(), p["second"].tolist(), strict=True)) for p in (task.fitted, task.probe)
        ]
        assert not pairs[name][0] & pairs[name][1]
    trained = {n for parts in pairs.values() for part in parts for pair in part for n in pair}
    assert not trained & {*c.questions.tolist(), *c.intents["rows"].tolist()}
    assert c.right.any(axis=1).all() and c.right.any(axis=0).all()
    for name in (sp.REGMEAN, sp.TIES, sp.SP):
        values = sp.measure(preset, data, EXPERIMENT.arms[name], 0)
        assert all(0 < values[measure] <= 100 for measure in ("mean", "worst", *data.tasks))
    sp.corpus.cache_clear()
