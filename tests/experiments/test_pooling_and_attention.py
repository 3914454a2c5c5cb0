import dataclasses

import jax
import numpy as np
import pytest

from experiments import llm2vec
from experiments.pooling_and_attention import EXPERIMENT, FIVE, LANGUAGES, ONE, wilcoxon
from jaxemb.pooling import AllLayers, LastToken


@pytest.mark.slow  # trains a decoder, and two designs
def test_smoke(smoke_cells):
    some = dataclasses.replace(EXPERIMENT, claims=EXPERIMENT.claims[:1])
    table, summary = smoke_cells(some, ONE, FIVE)
    found = [record["values"] for record in summary["cells"].values()]
    assert all(sorted(values["by language"]) == sorted(LANGUAGES) for values in found)
    assert all(np.mean([*v["by language"].values()]) == pytest.approx(v["spearman"]) for v in found)
    assert found[0]["spearman"] != found[1]["spearman"]
    assert "test pairs of 11 languages" in table


@pytest.mark.slow  # trains a decoder, and on
def test_the_smoke_preset_of_llm2vec(smoke_cells):
    table, summary = smoke_cells(llm2vec.EXPERIMENT, llm2vec.BIDIRECTIONAL, llm2vec.MNTP, llm2vec.BOTH)
    found = [record["values"]["spearman"] for record in summary["cells"].values()]
    assert len(found) == len(set(found)) == 3 and np.isfinite(found).all()
    assert "49.43 (Mistral-7B, MTEB)" in table


def test_designs():
    sizes = {"latents": 2, "heads": 2, "head_dim": 2}
    made = {name: arm.design(jax.random.key(0), 4, 3, sizes) for name, arm in EXPERIMENT.arms.items()}
    assert isinstance(made[ONE][0], LastToken) and made[ONE][1]
    assert isinstance(made[FIVE][0], AllLayers) and made[FIVE][0].layers.shape == (3, 4) and not made[FIVE][1]
    assert {name for name, (_, causal) in made.items() if causal} == {n for n in made if "causal" in n}


def test_the_figure_tests_every_two_arms():
    rng = np.random.default_rng(0)
    arms = {
        name: [{"by language": dict(zip(LANGUAGES, base + rng.normal(size=11) / 100, strict=True))} for _ in range(3)]
        for name, base in (("a", 50), ("b", 60), ("c", 50))
    }
    (axis,) = wilcoxon({"STS-B": arms})["wilcoxon"].axes
    texts = [text.get_text() for text in axis.texts]
    assert len(texts) == 6
    least = 3 * 2 / 2**11  # Holm's correction of three tests
    assert texts.count(f"+1.00\np {least:.3g}") == 2 and texts.count(f"-1.00\np {least:.3g}") == 2
