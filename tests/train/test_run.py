import dataclasses
import json

import pytest
from tiny_run import tiny_run

from jaxemb.train import load_run
from jaxemb.train.run import differences


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"steps": 0}, ValueError, "Run.steps must be a whole number of at least 1; got 0"),
        ({"steps": 10.0}, ValueError, "Run.steps must be a whole number of at least 1; got 10.0"),
        ({"accumulate": -1}, ValueError, "Run.accumulate must be a whole number of at least 1; got -1"),
        ({"checkpoint_minutes": -1}, ValueError, "Run.checkpoint_minutes must be a number of at least 0; got -1"),
        ({"keep": True}, ValueError, "Run.keep must be a whole number of at least 1; got True"),
        ({"optimizer": 1e-3}, TypeError, "Run.optimizer must be a GradientTransformation; got 0.001"),
        ({"transform": None}, TypeError, "Run.transform must be a Transform; got None"),
        ({"objective": "info_nce"}, TypeError, "Run.objective must be a function; got 'info_nce'"),
        ({"evaluators": {"sts": 3}}, TypeError, r"evaluators\['sts'\] must be a function; got int 3"),
        ({"best": ("tiny/similarity", "top")}, ValueError, 'Run.best must be .name of a result, "max" or "min".'),
        ({"best": ("sts/spearman", "max")}, ValueError, r"'sts/spearman', but the evaluators are \['tiny'\]"),
        ({"prng": "mt19937"}, ValueError, 'Run.prng must be "threefry2x32" or "rbg"; got \'mt19937\''),
        ({"rules": ()}, ValueError, "Run.mesh must be given, too"),
    ],
)
def test_refuses(changes, error, message):
    with pytest.raises(error, match=message):
        tiny_run(**changes)


def test_is_described_by_what_json_can_hold():
    described = tiny_run(seed=3, best=("tiny/similarity", "max")).describe()
    assert json.loads(json.dumps(described)) == described
    assert described["seed"] == 3 and described["data"]["function"] == "tiny_run.pairs"
    assert described["best"] == ["tiny/similarity", "max"]


def test_differences_name_the_field_but_not_what_may_change():
    a = tiny_run(seed=1, log_every=1).describe()
    assert differences(a, tiny_run(seed=2, log_every=7, keep=5).describe()) == ["seed: 1 there, 2 here"]
    assert differences(a, a) == []


def test_nan_is_never_better():
    run = tiny_run(best=("tiny/similarity", "min"))
    assert run.is_better(1.0, None) and run.is_better(0.5, 1.0)
    assert not run.is_better(1.0, 1.0) and not run.is_better(float("nan"), None)
    assert not dataclasses.replace(run, best=None).is_better(0.0, None)


class TestConfigFile:
    def write(self, tmp_path, text):
        path = tmp_path / "config.py"
        path.write_text(text)
        return path

    def test_is_called_with_the_options(self, tmp_path):
        path = self.write(
            tmp_path, "from tiny_run import tiny_run\ndef run(steps=3):\n    return tiny_run(steps=steps)\n"
        )
        run = load_run(path, {"steps": 5})
        assert run.steps == 5 and run.source == path and run.options == {"steps": 5}
        assert run.describe() != dataclasses.replace(run, source=None).describe()

    def test_must_exist(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no config file .*absent\.py"):
            load_run(tmp_path / "absent.py")

    def test_must_define_run(self, tmp_path):
        with pytest.raises(ValueError, match=r"must define a function run\(\*\*options\)"):
            load_run(self.write(tmp_path, "steps = 3\n"))

    def test_must_be_text(self, tmp_path):
        with pytest.raises(ValueError, match=r"config\.py is no Python file: it has null bytes"):
            load_run(self.write(tmp_path, "def run():\0\n"))

    def test_must_have_the_options(self, tmp_path):
        path = self.write(tmp_path, "def run(steps=2):\n    return {}\n")
        with pytest.raises(TypeError, match=r"config\.py: run\(steps=2\): got an unexpected keyword argument 'x'"):
            load_run(path, {"x": 1})

    def test_must_return_a_run(self, tmp_path):
        with pytest.raises(ValueError, match=r"must return a jaxemb\.train\.Run; got dict"):
            load_run(self.write(tmp_path, "def run():\n    return {}\n"))
