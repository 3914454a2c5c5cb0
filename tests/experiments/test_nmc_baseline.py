import pytest

from experiments import nmc_baseline


@pytest.mark.slow
def test_smoke(smoke):
    table, metrics = smoke(nmc_baseline)
    assert metrics["digits_largest_difference"] <= 1e-4
    assert "to 1e-4, is reached" in table
    (results,) = metrics["results"].values()
    assert set(results) == {*nmc_baseline.HEADS, nmc_baseline.FINETUNED, nmc_baseline.JOINT}
    assert all(f"| {method} |" in table for method in results)
    assert 0 < metrics["prequential"]["banking77"]["mean"] < 100


def test_the_table_of_digits():
    for seed in range(1, 5):
        for row, value in nmc_baseline.digits(seed).items():
            assert value == pytest.approx(nmc_baseline.REFERENCE[row][seed], abs=1e-4), (seed, row)


def test_the_order_of_classes_does_not_matter_to_means(quick_vectors):
    preset = nmc_baseline.PRESETS["smoke"]
    ends = []
    for seed in range(2):
        tasks = nmc_baseline.intents("banking77", 7, preset, seed)
        ends.append(nmc_baseline.stream(nmc_baseline.HEADS["NMC, Euclidean"], tasks)[2])
    assert ends[0] == pytest.approx(ends[1], abs=1e-3)
