import numpy as np
import pytest

from experiments.continual_retrieval import EXPERIMENT, HYPER
from experiments.lib import domains


@pytest.mark.slow  # compiles a train step for each method
def test_smoke(smoke_cells, minilm, tmp_path):
    table, summary = smoke_cells(EXPERIMENT, *EXPERIMENT.arms)
    assert all(f"| {name} |" in table for name in EXPERIMENT.arms) and "5 domains, 40 training pairs" in table
    values = {name.removeprefix("domains-"): record["values"] for name, record in summary["cells"].items()}
    of = lambda arm: next(found for name, found in values.items() if name.startswith(arm))
    # Nothing was learnt after the last domain: there the old index is the new one.
    tuned = of("fine-tuning")
    assert tuned["R new"][-1][-1] == pytest.approx(tuned["R old"][-1][-1], abs=1e-6)
    assert np.mean([tuned[domain] for domain in domains.DOMAINS]) == pytest.approx(tuned["new"])
    # Weights made for a domain that is known are barely touched by the domains after it.
    assert abs(of(HYPER)["forgetting"]) < 5
    assert (tmp_path / "results" / "old_index.png").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("domain", domains.DOMAINS)
def test_no_test_pair_is_trained_on(data_dir, domain):
    train, test = domains.DOMAINS[domain]()
    assert len(train) >= 1000 and len(test) >= 300
    for side in (0, 1):
        assert not {pair[side] for pair in train} & {pair[side] for pair in test}
