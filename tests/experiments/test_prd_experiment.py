import jax
import numpy as np
import pytest

from experiments import prd


@pytest.mark.slow
def test_smoke(smoke):
    table, metrics = smoke(prd)
    assert {*prd.REFERENCE, prd.NMC} == set(metrics["results"]["digits"])
    assert all(f"| {method} |" in table for method in prd.REFERENCE)
    values = metrics["results"]["digits"]
    assert all(of["TIL"]["mean"] > of["CIL"]["mean"] for of in values.values())  # fewer classes compete


def test_the_rate_drops_within_the_first_task_alone():
    recipe = prd.PRESETS["paper"].gtsrb
    rate = prd._schedule(0.01, recipe, steps=10)
    expected = [0.01, 0.001, 0.0001, 0.01, 0.01]
    np.testing.assert_allclose([rate(10 * epoch + 5) for epoch in (0, 120, 160, 220, 400)], expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", [prd.PRD4, prd.FINETUNE, prd.LWF, prd.EWC, prd.ER])
def test_every_method_runs_on_images(method):
    def read(per_class):
        rng = np.random.default_rng(0)
        labels = np.repeat(np.arange(4), per_class).astype(np.int32)
        return [{"input": rng.uniform(size=(len(labels), 16, 16, 3)).astype(np.float32), "label": labels}] * 2

    recipe = prd.Recipe(1, 1, 4, 0.02, per_class=4, side=8, width=2, replay=2)
    stream = prd._images(read, 2, None, recipe, seed=0, flip=True)
    assert stream.encoder(jax.random.key(0))(stream.tasks[0].test["input"]).shape == (8, 16)
    made = prd.run(method, stream, recipe, seed=0)
    assert set(made) == {method} | ({prd.NMC} if method == prd.FINETUNE else set())
    for values in made.values():
        assert values["matrices"]["TIL"].shape == (2, 2)
