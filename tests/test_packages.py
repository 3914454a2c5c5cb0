"""A machine without the packages that only some functions need."""

import importlib.metadata
import json
import sys

import numpy as np
import pytest

from jaxemb.cli import main
from jaxemb.continual import plots
from jaxemb.data import Source, batches, read, tfds
from jaxemb.packages import remedy
from jaxemb.progress import progress_bar
from jaxemb.train import RunLog, read_metrics


def _progress():
    with progress_bar(1, "texts"):
        pass


@pytest.mark.parametrize(
    ("package", "use"),
    [
        ("grain", lambda path: batches(Source([{"a": "b"}], "one"), None, ("a",), batch_size=1, max_length=8)),
        ("tensorflow_datasets", lambda path: tfds("stsb/en", "dev")),
        ("pyarrow", lambda path: read(path / "table.parquet")),
        ("rich", lambda path: _progress()),
        ("matplotlib", lambda path: plots.score_matrix(np.eye(2))),
    ],
)
def test_a_missing_package_is_named_with_its_remedy(package, use, tmp_path, monkeypatch):
    (tmp_path / "table.parquet").touch()
    for name in [name for name in sys.modules if name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=f"{package} is not installed: pip install {package}"):
        use(tmp_path)


def test_a_package_that_another_one_lacks_is_named():
    with pytest.raises(ModuleNotFoundError, match="unheard_of is not installed"), remedy():
        raise ModuleNotFoundError("No module named 'unheard_of.part'", name="unheard_of.part")


def test_without_tensorboard_and_rich_a_run_still_has_its_log(tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with RunLog(tmp_path, steps=2) as log:
        log.write(1, {"x": 1.0})
        log.write(2, {"x": 2.0})
        log.sync()
    assert [line["x"] for line in read_metrics(tmp_path)] == [1.0, 2.0]
    assert not (tmp_path / "tensorboard").exists()
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'tensorboard'} is not written: pip install tensorboardX"
    ]
    assert "step 2/2  x 2" in capsys.readouterr().err


def test_info_says_which_packages_are_absent(capsys, monkeypatch):
    version = importlib.metadata.version

    def without_grain(package):
        if package == "grain":
            raise importlib.metadata.PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(importlib.metadata, "version", without_grain)
    assert main(["info", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["grain"] == "absent" and report["flax"] == version("flax")
