"""What may happen to a run between its start and its end, and that it can be gone on with or says what is wrong."""

import io
import itertools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from disk_events import numbers, recorded, synced_before
from tiny_run import assert_bitwise_equal, read_model, toy_run

from jaxemb.checkpoints import Parameters
from jaxemb.cli import main
from jaxemb.files import InUseError, locked
from jaxemb.progress import Audience
from jaxemb.train import Checkpoints, RunLostError, UnwrittenCheckpointError, fit, init_state, read_metrics
from jaxemb.transforms import identity

NO_JSON = {
    "empty": b"",
    "half": b'{"step": 3, "state/',
    "list": b"[]",
    "number": b"3",
    "deep": b"[" * 100_000,
    "not UTF-8": b'{"\xff": 1}',
    "zeros": b"\0" * 64,
}
damages = pytest.mark.parametrize("content", NO_JSON.values(), ids=NO_JSON)


class CrashError(Exception):
    pass


def acting_at(step, action, every=1):
    """Evaluators, asked after every `every` steps, of which the one at `step` acts."""
    steps = itertools.count(0, every)

    def evaluator(embedder):
        if next(steps) == step:
            action()
        return {"error": 0.0}

    return {"evaluators": {"toy": evaluator}, "evaluate_every": every}


def crash():
    raise CrashError


def send(number):
    return lambda: os.kill(os.getpid(), number)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, fit(toy_run(best=("toy/error", "min")), out, progress=False)


@pytest.fixture
def finished(whole, tmp_path):
    """A copy of a finished run, and its state."""
    return shutil.copytree(whole[0], tmp_path / "run"), whole[1].state


def again(out, **changes):
    return fit(toy_run(best=("toy/error", "min"), **changes), out, progress=False)


# Files that are not as they were written


@damages
def test_a_damaged_run_json_is_no_obstacle(finished, caplog, content):
    out, state = finished
    (out / "run.json").write_bytes(content)
    assert_bitwise_equal(again(out).state, state)
    assert f"{out / 'run.json'}: " in caplog.text and "which run" in caplog.text


@damages
def test_a_damaged_manifest_makes_the_checkpoint_before_the_newest(finished, caplog, content):
    out, state = finished
    (out / "checkpoints/step_00000012/manifest.json").write_bytes(content)
    assert_bitwise_equal(again(out).state, state)
    assert "manifest.json: " in caplog.text and "the checkpoint before it is used" in caplog.text


@damages
def test_a_damaged_log_warns_and_blocks_nothing(finished, caplog, content):
    out, state = finished
    log = out / "metrics.jsonl"
    intact = read_metrics(out)
    log.write_bytes(content + b"\n" + log.read_bytes() + b'{"no": 1}\n' + content)
    assert read_metrics(out) == intact
    assert_bitwise_equal(again(out).state, state)
    assert read_metrics(out) == intact
    assert f"{log}, line 1 is left out" in caplog.text


def test_a_damaged_best_checkpoint_costs_the_best_model_alone(finished, caplog):
    out, _ = finished
    newest = Checkpoints(out / "checkpoints", 2).steps()[-1]
    run = {"best": ("toy/error", "min"), "evaluators": {"toy": lambda e: {"error": float(jnp.sum(e.model["w"]))}}}
    away = lambda model, batch, key: (-jnp.square(batch["score"] - model["w"][batch["id"] % 5]), {})
    other = out.with_name("other")
    first = fit(toy_run(**run, objective=away), other, progress=False)
    best = first.best["step"]
    assert best < newest
    (other / f"checkpoints/step_{best:08d}/manifest.json").write_text("{}")
    shutil.rmtree(other / "model")
    shutil.rmtree(other / "best")
    found = fit(toy_run(**run, objective=away), other, progress=False)
    assert found.best is None and (other / "model").is_dir() and not (other / "best").exists()
    assert f"{other / 'best'} is not written" in caplog.text


def test_when_all_checkpoints_are_damaged_it_says_that_it_starts_anew(finished, caplog, capsys):
    out, state = finished
    for manifest in out.glob("checkpoints/*/manifest.json"):
        manifest.unlink()
    found = fit(toy_run(best=("toy/error", "min")), out)
    assert_bitwise_equal(found.state, state)
    assert "as none is intact, the run starts anew" in caplog.text
    assert "no checkpoint yet: starting at 0" in capsys.readouterr().err


def test_files_of_others_do_no_harm(finished):
    out, state = finished
    checkpoints = out / "checkpoints"
    stray = [".DS_Store", "step_00000012/.DS_Store", "step_00000012/state/.DS_Store", "notes.partial", "step_00000099"]
    for name in (*stray, "step_00000003.partial", ".DS_Store"):
        (checkpoints / name).write_text("not ours")
    for name in ("step_", "step_x", "step_٣", "step_5"):
        (checkpoints / name).mkdir()
    found = again(out)
    assert_bitwise_equal(found.state, state)
    assert all((checkpoints / name).read_text() == "not ours" for name in stray)
    assert not list(checkpoints.glob("*.corrupt"))


def test_the_checkpoint_of_another_version_is_named(finished):
    out, state = finished
    with Checkpoints(out / "checkpoints", 2) as checkpoints:
        checkpoints.save(12, state, {"progress": {}, "data": {}})
    with pytest.raises(ValueError, match="step_00000012 is of another version of jaxemb"):
        again(out)


# Whose the directory is


def test_a_failed_first_start_does_not_claim_the_directory(tmp_path):
    def none(embedder):
        raise FileNotFoundError("no such data")

    with pytest.raises(FileNotFoundError, match="no such data"):
        fit(toy_run(data=none, best=("toy/error", "min")), tmp_path, progress=False)
    with pytest.raises(CrashError):
        fit(toy_run(seed=5, **acting_at(0, crash)), tmp_path, progress=False)
    result = fit(toy_run(steps=2), tmp_path, resume=False, progress=False)
    assert int(result.state.step) == 2 and json.loads((tmp_path / "run.json").read_text())["steps"] == 2
    with pytest.raises(ValueError, match=r"holds a different run: .* or, to go on regardless, remove .*run\.json"):
        fit(toy_run(steps=2, seed=3), tmp_path, progress=False)


@pytest.mark.parametrize("name", ["modules.json", "config.json", "vectors.npy"])
def test_a_directory_of_something_else_is_refused(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(FileExistsError, match=f"holds a model or an index \\({name}\\); choose another directory"):
        fit(toy_run(), tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["model", "best"])
def test_a_model_of_nobody_is_noticed_before_the_first_step(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text("{}")
    made = []
    with pytest.raises(FileExistsError, match=f"{name} is there, and no run that made it; choose another directory"):
        fit(toy_run(embedder=lambda: made.append(1)), tmp_path, progress=False)
    assert not made


def test_a_link_in_place_of_a_model_is_refused(finished, tmp_path):
    pretrained = tmp_path / "pretrained"
    out, _ = finished
    shutil.move(out / "model", pretrained)
    (out / "model").symlink_to(pretrained)
    before = (pretrained / "model.safetensors").read_bytes()
    for options in ({}, {"overwrite": True}):
        with pytest.raises(FileExistsError, match=r"model is a link, through which a run would overwrite .*pretrained"):
            fit(toy_run(steps=14), out, progress=False, **options)
    assert (pretrained / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard", "config.py", "metrics.jsonl", "run.json"])
def test_a_link_to_what_another_run_wrote_is_refused(tmp_path, name):
    theirs = tmp_path / "theirs" / name
    (theirs.parent if theirs.suffix else theirs / "step_00000004").mkdir(parents=True)
    if theirs.suffix:
        theirs.write_text("{}")
    (out := tmp_path / "out").mkdir()
    (out / name).symlink_to(theirs)
    for options in ({}, {"overwrite": True}, {"resume": False}):
        with pytest.raises(FileExistsError, match=f"{name} is a link, through which a run would overwrite .*theirs"):
            fit(toy_run(), out, progress=False, **options)
    assert theirs.read_text() == "{}" if theirs.suffix else (theirs / "step_00000004").is_dir()


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(NotADirectoryError, match="a run needs a directory"):
        fit(toy_run(), tmp_path / "run", progress=False)


def test_only_one_process_trains_in_a_directory(tmp_path):
    with locked(tmp_path), pytest.raises(InUseError, match="is in use by another process"):
        fit(toy_run(), tmp_path, progress=False)


def test_a_directory_that_is_removed_meanwhile_is_an_error(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(RunLostError, match="run was removed or replaced while the run was trained in it"):
        fit(toy_run(**acting_at(8, lambda: out.rename(tmp_path / "away"), every=4)), out, progress=False)


# Being stopped


def test_checkpoints_come_by_time_too(tmp_path):
    for minutes, steps in ((0.0, [11, 12]), (5.0, [12])):
        out = tmp_path / str(minutes)
        fit(toy_run(checkpoint_every=100, checkpoint_minutes=minutes), out, progress=False)
        assert Checkpoints(out / "checkpoints", 2).steps() == steps


@pytest.fixture
def heard():
    """Where the tests run in the background, Ctrl-C is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_saves_and_the_run_goes_on_from_there(heard, tmp_path, capfd, caplog):
    before = signal.getsignal(signal.SIGINT)
    interrupted = acting_at(4, send(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        fit(toy_run(**interrupted, checkpoint_every=100), tmp_path, progress=False)
    assert "Ctrl-C: saving after this evaluation; once more quits at once" in capfd.readouterr().err
    assert f"Ctrl-C: saved {tmp_path / 'checkpoints/step_00000004'}" in caplog.text
    assert signal.getsignal(signal.SIGINT) is before
    assert Checkpoints(tmp_path / "checkpoints", 2).steps() == [4]
    fit(toy_run(evaluators={"toy": lambda embedder: {}}), tmp_path)
    assert "resuming at step 4" in capfd.readouterr().err


def test_a_second_ctrl_c_quits_at_once(heard, tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(toy_run(**acting_at(4, twice), checkpoint_every=3), tmp_path, progress=False)
    assert Checkpoints(tmp_path / "checkpoints", 2).steps() == [3]


def test_sigterm_before_the_first_step_saves_and_exits_with_code_0(tmp_path):
    embedder = toy_run().embedder

    def terminated():
        os.kill(os.getpid(), signal.SIGTERM)
        return embedder()

    with pytest.raises(SystemExit) as caught:
        fit(toy_run(embedder=terminated), tmp_path, progress=False)
    assert caught.value.code == 0
    assert Checkpoints(tmp_path / "checkpoints", 2).steps() == [0]
    assert not (tmp_path / "model").exists()


class Terminated(Parameters):
    """Saving it, the process is asked to end."""

    def save(self, path):
        os.kill(os.getpid(), signal.SIGTERM)
        super().save(path)


def test_sigterm_while_models_are_written_leaves_them_whole(tmp_path, whole):
    embedder = lambda: Terminated({"w": jnp.asarray(np.full(5, 0.5, np.float32))})
    with pytest.raises(SystemExit) as caught:
        fit(toy_run(embedder=embedder, best=("toy/error", "min")), tmp_path, progress=False)
    assert caught.value.code == 0
    for name in ("model", "best"):
        np.testing.assert_array_equal(read_model(tmp_path / name)["w"], read_model(whole[0] / name)["w"])


def test_an_evaluator_that_fails_loses_no_step_and_is_asked_again(tmp_path):
    """Whether in the middle, at a step without another reason to save, or at the end."""
    whole = fit(toy_run(evaluate_every=4, checkpoint_every=100), tmp_path / "whole", progress=False)
    for step in (8, 12):
        out = tmp_path / str(step)
        with pytest.raises(CrashError):
            fit(toy_run(**acting_at(step, crash, every=4), checkpoint_every=100), out, progress=False)
        assert Checkpoints(out / "checkpoints", 2).steps()[-1] == step
        resumed = fit(toy_run(evaluate_every=4, checkpoint_every=100), out, progress=False)
        assert_bitwise_equal(resumed.state, whole.state)
        asked = [line["step"] for line in read_metrics(out) if "toy/error" in line]
        assert asked == [0, 4, 8, 12] and resumed.metrics == whole.metrics


def test_a_full_disk_is_no_bad_usage(tmp_path, monkeypatch, capsys):
    import orbax.checkpoint as ocp

    def full(self, *args, **options):
        raise ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device")

    monkeypatch.setattr(ocp.StandardCheckpointer, "save", full)
    with pytest.raises(UnwrittenCheckpointError, match=r"step_00000003 could not be written; there is none before it"):
        fit(toy_run(), tmp_path / "run", progress=False)
    (tmp_path / "config.py").write_text("from tiny_run import toy_run\nrun = toy_run\n")
    assert main(["train", str(tmp_path / "config.py"), "--out", str(tmp_path / "run"), "--quiet"]) == 1
    assert "No space left on device" in capsys.readouterr().err


CONFIG = """
import os, signal
from tiny_run import toy_run

def stop(embedder):
    if steps and len(steps) == 3:
        os.kill(os.getpid(), signal.SIGINT)
    steps.append(0)
    return {"error": 0.0}

steps = []

def run(stops=False):
    changes = {"evaluators": {"toy": stop}} if stops else {}
    return toy_run(evaluate_every=1, checkpoint_every=100, best=("toy/error", "min"), options={}, **changes)
"""


def test_the_command_says_where_it_starts_how_it_was_stopped_and_where_the_models_are(heard, tmp_path, capsys):
    config, out = tmp_path / "config.py", tmp_path / "run"
    config.write_text(CONFIG)
    arguments = ["train", str(config), "--out", str(out)]
    assert main([*arguments, "--set", "stops=True"]) == 130
    said = capsys.readouterr().err
    assert said.startswith(
        "no checkpoint yet: starting at 0\nevaluating before the first step: toy\nstep 0/12  toy/error "
    )
    compiling = "\ncompiling the training step, here and for each new shape of a batch: seconds to minutes, also where"
    assert said.count(compiling) == 1 and said.endswith("jaxemb: interrupted\n")
    assert "Traceback" not in said
    (out / "run.json").unlink()  # the option differs
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert said.err.startswith("resuming at step 3\n")
    *_, model, best = said.out.splitlines()
    assert model == f"the model is {out}/model"
    assert best.startswith(f"the best is {out}/best, of step ") and ": toy/error 0." in best


# Whoever watches


class Pipe(io.StringIO):
    """A pipe whose reader leaves after some text."""

    def write(self, text):
        if self.tell() > 30:
            raise BrokenPipeError
        return super().write(text)


@pytest.mark.parametrize("stream", [Pipe, lambda: None], ids=["reader gone", "closed"])
def test_a_run_goes_on_when_nobody_listens(tmp_path, monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream())
    logging.disable(logging.CRITICAL)
    try:
        fit(toy_run(), tmp_path)
    finally:
        logging.disable(logging.NOTSET)
    assert (tmp_path / "model").is_dir()


def test_what_is_said_to_nobody_is_dropped():
    audience = Audience(None)
    assert audience.write("text") == 4
    with pytest.raises(UnicodeEncodeError):
        Audience(io.TextIOWrapper(io.BytesIO(), encoding="ascii")).write("ä")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["2>&1 | head -1", "| head -0", "<&- >&- 2>&-"])
def test_the_command_trains_whatever_its_standard_files_are(tmp_path, how):
    (tmp_path / "config.py").write_text("from tiny_run import toy_run\nrun = toy_run\n")
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    command = f"{sys.executable} -m jaxemb train config.py --out run {how}; exit ${{PIPESTATUS[0]}}"
    environment = os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_run_goes_on_after_its_disk_was_full(tmp_path):
    """A limit on the size of files has the same effect, inside of orbax."""
    (tmp_path / "config.py").write_text(
        "import jax.numpy as jnp\nfrom jaxemb.checkpoints import Parameters\nfrom tiny_run import toy_run\n"
        "def run():\n    return toy_run(embedder=lambda: Parameters({'w': jnp.ones(5) / 2, 'x': jnp.arange(3e5)}))\n"
    )
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    environment = os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    for limit, code in (("100", 1), ("unlimited", 0)):
        command = f"ulimit -f {limit}; exec {sys.executable} -m jaxemb train config.py --out run"
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        if code:
            assert "checkpoint" in done.stderr.splitlines()[-1] and "could not be written" in done.stderr


def test_batches_whose_position_cannot_be_saved_are_refused_before_the_first_step(tmp_path):
    with pytest.raises(TypeError, match=r"must have get_state and set_state, .*; got list_iterator"):
        fit(toy_run(data=lambda e: [{"score": np.ones(2)}]), tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match=r"the numbers of their records as 'id'; got \[.*'score'\]"):
        without = lambda batch: {name: value for name, value in batch.items() if name != "id"}
        fit(toy_run(data=lambda e: toy_run().data(e).map(without)), tmp_path / "other", progress=False)


def test_a_checkpoint_is_there_until_the_one_that_replaces_it_is(tmp_path, monkeypatch):
    def state(number):
        model = {"w": jnp.full(5, number, jnp.float32)}
        return init_state(jax.random.key(0), model, optax.sgd(1.0), identity())

    rename = Path.rename

    def dies(path, target):
        if path.suffix == ".partial":
            raise RuntimeError("killed")
        return rename(path, target)

    with Checkpoints(tmp_path, 1) as checkpoints:
        checkpoints.save(7, state(1), {})
    monkeypatch.setattr(Path, "rename", dies)
    with pytest.raises(UnwrittenCheckpointError, match="killed"), Checkpoints(tmp_path, 1) as checkpoints:
        checkpoints.save(7, state(2), {})
    monkeypatch.setattr(Path, "rename", rename)
    with Checkpoints(tmp_path, 1) as checkpoints:
        assert_bitwise_equal(checkpoints.restore(7, state(0))[0], state(1))
        checkpoints.save(7, state(2), {})
        assert_bitwise_equal(checkpoints.restore(7, state(0))[0], state(2))
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000007"]


def test_a_checkpoint_is_on_the_disk_before_the_older_one_goes(tmp_path, monkeypatch):
    state = init_state(jax.random.key(0), {"w": jnp.ones(5)}, optax.sgd(1.0), identity())
    with Checkpoints(tmp_path, 1) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.finish()
        events = recorded(monkeypatch)
        checkpoints.save(2, state, {})
    new = tmp_path / "step_00000002"
    assert [path.name for path in tmp_path.iterdir()] == [new.name]
    content = {path for path in (new, *new.rglob("*"))}
    assert len(content) > 5 and numbers(*content) <= synced_before(events, ("rename", new.name))
    later = events[events.index(("rename", new.name)) :]
    assert numbers(tmp_path) <= synced_before(later, ("remove", "step_00000001"))


def test_a_result_that_cannot_be_printed_is_a_failure(capsys, monkeypatch):
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["info", "--json"]) == 1
    assert "the result could not be printed: [Errno 28] No space left on device" in capsys.readouterr().err


def test_a_model_that_cannot_be_saved_as_it_is_is_refused_before_the_first_step(tmp_path):
    model = {"w": jnp.ones(5)}
    with pytest.raises(TypeError, match=r"got dict without model, .*save: .* return jaxemb.checkpoints.Parameters"):
        fit(toy_run(embedder=lambda: model), tmp_path, progress=False)
    with pytest.raises(TypeError, match=r"must make a model of arrays; name is str 'tiny'"):
        fit(toy_run(embedder=lambda: Parameters({**model, "name": "tiny"})), tmp_path, progress=False)
    with pytest.raises(TypeError, match=r"must make a model of arrays; it is Parameters Parameters\(model="):
        fit(toy_run(embedder=lambda: Parameters(Parameters(model))), tmp_path, progress=False)


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl"])
def test_a_directory_in_the_place_of_a_file_is_named(finished, name):
    out, _ = finished
    (out / name).unlink()
    (out / name).mkdir()
    with pytest.raises(IsADirectoryError, match=f"is a directory; expected a file: '{out / name}'"):
        again(out)


def test_a_file_in_the_place_of_the_events_is_named(finished):
    out, _ = finished
    shutil.rmtree(out / "tensorboard")
    (out / "tensorboard").touch()
    with pytest.raises(NotADirectoryError, match="tensorboard is a file; expected the directory of TensorBoard's"):
        again(out)


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(finished, name):
    out, _ = finished
    (out / name).unlink()
    os.mkfifo(out / name)
    with pytest.raises(FileExistsError, match=f"is no regular file; expected a file: '{out / name}'"):
        again(out)


class Enough(BaseException):
    """What a config file may call its own."""


@pytest.mark.parametrize("error", [Enough, SystemExit])
def test_an_evaluator_that_ends_the_program_loses_no_step(tmp_path, error):
    def evaluator(embedder):
        if calls.append(0) or len(calls) == 2:
            raise error("of it")
        return {"error": 0.0}

    calls: list[int] = []
    run = toy_run(evaluators={"toy": evaluator}, evaluate_every=4, checkpoint_every=100)
    with pytest.raises(error):
        fit(run, tmp_path, progress=False)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000004"]
