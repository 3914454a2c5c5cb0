import pytest

from experiments import continual_retrieval


@pytest.mark.slow
def test_smoke(smoke, minilm):
    table, metrics = smoke(continual_retrieval)
    methods = metrics["results"]
    assert set(methods) == {"without training", *continual_retrieval.METHODS}
    assert all(f"| {name} |" in table for name in (*methods, *continual_retrieval.DOMAINS))
    # Nothing was learnt after the last domain: there the old index is the new one.
    run = metrics["runs"]["fine-tuning"][0]["matrices"]
    assert run["new index"][-1][-1] == pytest.approx(run["old index"][-1][-1], abs=1e-6)
    # Weights made for a domain that is known are barely touched by the domains after it.
    assert abs(methods["hypernetwork, domain known"]["forgetting"]["mean"]) < 5


@pytest.mark.slow
@pytest.mark.parametrize("domain", continual_retrieval.DOMAINS)
def test_no_test_pair_is_trained_on(data_dir, domain):
    train, test = continual_retrieval.DOMAINS[domain]()
    assert len(train) >= 1000 and len(test) >= 300
    for side in (0, 1):
        assert not {pair[side] for pair in train} & {pair[side] for pair in test}
