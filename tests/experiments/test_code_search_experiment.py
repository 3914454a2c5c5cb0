import pytest

from experiments import code_search
from experiments.code_search import BEFORE, DEALT, EXPERIMENT, TUNED
from jaxemb.train import load_run


@pytest.mark.slow  # compiles the train step of six layers
def test_smoke(smoke_cells, minilm):
    table, summary = smoke_cells(EXPERIMENT, BEFORE, TUNED)
    values = {name: record["values"] for name, record in summary["cells"].items()}
    assert len(values) == 4  # two learning rates were tried
    assert all(0 < found["ndcg@10"] <= found["recall@10"] <= 100 for found in values.values())
    assert "48 training pairs, 48 questions" in table and "| of those that are cut |" in table


def test_the_control_deals_the_functions_within_a_group():
    preset = EXPERIMENT.presets["smoke"]
    data = EXPERIMENT.data(preset, "stdlib", 0)
    true, dealt = (
        code_search.groups(data, code_search.Arm(1.0, dealt=dealt), preset, seed=0) for dealt in (False, True)
    )
    assert len(true) == len(dealt) > 1 and EXPERIMENT.arms[DEALT].dealt
    column = lambda group, name: [pair[name] for pair in group]
    for a, b in zip(true, dealt, strict=True):
        assert column(a, "query") == column(b, "query")
        assert column(a, "body") != column(b, "body") and sorted(column(a, "body")) == sorted(column(b, "body"))


def test_learning_rates_are_chosen_on_other_modules():
    preset = EXPERIMENT.presets["small"]
    found, real = EXPERIMENT.held_out(preset, "stdlib"), EXPERIMENT.data(preset, "stdlib", 0)
    modules = lambda pairs: {pair["module"] for pair in pairs}
    assert modules(found.pairs) == modules(real.pairs)
    parts = [modules(found.pairs), modules(found.test), modules(real.test)]
    assert all(parts) and sum(map(len, parts)) == len(set.union(*parts))


def test_the_file_is_a_run_config():
    assert load_run(code_search.__file__, {"learning_rate": 2e-4}).options["learning_rate"] == 2e-4
