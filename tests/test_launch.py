"""The launch files of `tpu/`: the scripts with stand-ins for the commands that they call, and the manifest."""

import inspect
import math
import os
import runpy
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

from jaxemb.cli.commands import parsed_options
from jaxemb.cli.parser import make_parser

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = ROOT / "tpu" / "launch"


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Puts a script in front of the PATH: `command(name, body)`."""
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    (tmp_path / "bin").mkdir()

    def put(name: str, body: str) -> None:
        path = tmp_path / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return put


# train.sh


@pytest.mark.parametrize(("body", "code"), [("mkdir {out}/model", 0), ("exit 0", 75), ("exit 3", 3)])
def test_the_exit_code_says_whether_there_is_a_model(command, tmp_path, body, code):
    command("jaxemb", f'echo "$@"; {body.format(out=tmp_path)}')
    done = subprocess.run(
        [LAUNCH / "train.sh", tmp_path, "config.py", "--set", "steps=3"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code
    assert done.stdout == f"train config.py --set steps=3 --out {tmp_path} --distributed\n"


def test_sigterm_reaches_the_training_and_asks_for_another_try(command, tmp_path):
    stopping = f"trap 'sleep 0.2; touch {tmp_path}/saved; exit 0' TERM"
    command("jaxemb", f"{stopping}; touch {tmp_path}/on; while :; do sleep 0.1; done")
    process = subprocess.Popen([LAUNCH / "train.sh", tmp_path, "config.py"])
    while not (tmp_path / "on").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    assert (tmp_path / "saved").exists()


# queued_resource.sh

GCLOUD = """
echo "$*" >>{here}/calls
case "$*" in
  *" list "*) turn=$(($(cat {here}/turn) + 1)); echo $turn >{here}/turn; sed -n ${{turn}}p {here}/states ;;
  *" create "*) cp "$(grep -o 'startup-script=[^ ]*' <<<"$*" | cut -d= -f2)" {here}/startup ;;
  "storage ls "*) [ "$(cat {here}/turn)" -ge 5 ] ;;
esac
"""
SETTINGS = {
    "PROJECT": "p",
    "ZONE": "us-west4-a",
    "ACCELERATOR": "v5litepod-64",
    "BUCKET": "b",
    "IMAGE": "us-docker.pkg.dev/p/r/jaxemb:1",
}


def queue(**settings: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [LAUNCH / "queued_resource.sh", "bert", "tpu/bert_base.py", "--set", "data=/mnt/bucket/my pairs.jsonl"],
        env=os.environ | SETTINGS | settings,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_slice_that_was_taken_away_is_asked_for_again(command, tmp_path):
    command("gcloud", GCLOUD.format(here=tmp_path))
    command("sleep", "")
    (tmp_path / "turn").write_text("0")
    (tmp_path / "states").write_text("\nPROVISIONING\nSUSPENDED\n\nACTIVE\n")
    done = queue()
    assert done.returncode == 0, done.stderr
    calls = [line.split()[3] for line in (tmp_path / "calls").read_text().splitlines() if "queued-resources" in line]
    assert [call for call in calls if call != "list"] == ["create", "delete", "create", "delete"]
    created = next(line for line in (tmp_path / "calls").read_text().splitlines() if " create " in line)
    assert "--accelerator-type v5litepod-64 --runtime-version v2-alpha-tpuv5-lite" in created
    assert created.endswith("--spot --project p --zone us-west4-a")
    startup = (tmp_path / "startup").read_text()
    assert subprocess.run(["bash", "-n"], input=startup, text=True).returncode == 0
    assert "gcloud auth configure-docker --quiet us-docker.pkg.dev\n" in startup
    trained = "jaxemb:1 /mnt/bucket/bert tpu/bert_base.py --set data=/mnt/bucket/my\\ pairs.jsonl"
    assert startup.rstrip().endswith(trained)


def test_unknown_accelerators_are_refused(command):
    command("gcloud", "exit 1")
    done = queue(ACCELERATOR="v4-8")
    assert done.returncode == 2 and "got v4-8" in done.stderr


# jobset.yaml


def test_the_manifest_fits_its_slice_and_the_command():
    yaml = pytest.importorskip("yaml")
    jobset = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    (slices,) = jobset["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    hosts = math.prod(map(int, topology.split("x"))) // container["resources"]["limits"]["google.com/tpu"]
    assert job["completions"] == job["parallelism"] == hosts
    # One pod that fails must fail the job, so that all start again together.
    assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"

    out, config, *options = container["args"]
    args = make_parser().parse_args(["train", config, *options, "--out", out, "--distributed"])
    names = inspect.signature(runpy.run_path(str(ROOT / config))["run"]).parameters
    assert set(parsed_options(args.set)) <= set(names)
    (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
    assert mount["name"] == volume["name"] and out.startswith(f"{mount['mountPath']}/")
    assert volume["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
    assert job["template"]["metadata"]["annotations"]["gke-gcsfuse/volumes"] == "true"
