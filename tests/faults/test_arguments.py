"""Every argument of every public function, given what it should not be given."""

import inspect

import arguments
import jax
import outcomes
import pytest

# Functions of which the table has no good call, and why.
WITHOUT = {
    "data.huggingface": "asks the hub",
    "data.tfds": "asks for a data set of TFDS",
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """What is written to a path that is no path lands here."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")


def test_every_public_function_has_a_good_call():
    missing = {name for name, _, good in arguments.functions() if good is None}
    assert missing == WITHOUT.keys()


def test_every_public_function_checks_its_arguments():
    taking = {
        name: f for name, f, _ in arguments.functions() if inspect.isfunction(f) and inspect.signature(f).parameters
    }
    assert [name for name, function in taking.items() if not hasattr(function, "__wrapped__")] == []


def test_a_sample_of_wrong_arguments(record_property):
    chosen = outcomes.sample(list(arguments.calls()), 40)
    cases = [case for call in chosen for case in outcomes.sample(list(call.cases()), 4)]
    outcomes.survey(cases, record_property)


@outcomes.exhaustive
@pytest.mark.slow
def test_all_wrong_arguments(record_property):
    outcomes.survey(all_cases(), record_property)


def all_cases():
    """Those of one function after those of another; the programs that they compiled would fill the memory."""
    for call in arguments.calls():
        yield from call.cases()
        jax.clear_caches()
