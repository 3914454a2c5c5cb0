"""Every argument of every public function, given what it should not be given."""

import arguments
import outcomes
import pytest

# Functions of which the table has no good call, and why.
WITHOUT = {
    "data.huggingface": "asks the hub",
    "data.tfds": "asks for a data set of TFDS",
}
_SAMPLE = 150
_MODULES = sorted({name.rpartition(".")[0].partition(".")[0] or name for name, *_ in arguments.functions()})


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """What is written to a path that is no path lands here."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")


def test_every_public_function_has_a_good_call():
    missing = {name for name, _, good in arguments.functions() if good is None}
    assert missing == WITHOUT.keys()


@pytest.mark.slow
def test_a_sample_of_wrong_arguments(record_property):
    chosen = outcomes.sample(list(arguments.calls()), _SAMPLE // 3)
    outcomes.survey([case for call in chosen for case in outcomes.sample(list(call.cases()), 3)], record_property)


@pytest.mark.slow
@pytest.mark.parametrize("module", _MODULES)
def test_all_wrong_arguments(module, record_property):
    of_module = [call for call in arguments.calls() if call.name == module or call.name.startswith(f"{module}.")]
    outcomes.survey([case for call in of_module for case in call.cases()], record_property)
