"""A run that has more steps than the one in its directory, and one that takes its place."""

import contextlib
import dataclasses
import json

import pytest
from tiny_run import assert_bitwise_equal, toy_run

from jaxemb.train import Checkpoints, adamw, fit, read_metrics
from jaxemb.transforms import Transform


def constant(steps):
    """A run whose rate is the same whatever its steps, but for the two of the warm-up."""
    return toy_run(steps=steps, optimizer=adamw(1e-2, steps, warmup=2 / steps, schedule="constant"))


@pytest.mark.parametrize("stops_at", [12, 6])
def test_a_run_becomes_longer(tmp_path, caplog, capsys, stops_at):
    """Finished or not, it ends as one that was as long from the first."""
    whole = fit(constant(20), tmp_path / "whole", progress=False)
    out = tmp_path / "out"
    first = constant(12)
    if stops_at < 12:
        steps = iter(range(0, stops_at, 4))
        first = dataclasses.replace(first, evaluators={"toy": lambda embedder: {"error": float(next(steps))}})
    with pytest.raises(StopIteration) if stops_at < 12 else contextlib.nullcontext():
        fit(first, out, progress=False)
    caplog.clear(), capsys.readouterr()
    longer = fit(constant(20), out)
    assert_bitwise_equal(longer.state, whole.state)
    assert longer.after.keys() == {"train"} and longer.metrics == whole.metrics
    assert json.loads((out / "run.json").read_text())["steps"] == 20
    assert [line["step"] for line in read_metrics(out) if "toy/error" in line] == [0, 4, 8, 12, 16, 20]
    assert "going on to step 20: more than before" in capsys.readouterr().err
    assert not caplog.text


def test_a_run_becomes_longer_regardless_of_what_it_was(tmp_path):
    fit(toy_run(steps=4), tmp_path, progress=False)
    (tmp_path / "run.json").unlink()
    assert int(fit(toy_run(steps=8, seed=1), tmp_path, progress=False).state.step) == 8


def test_a_longer_run_says_what_its_learning_rate_does(tmp_path, caplog):
    fit(toy_run(steps=4, optimizer=adamw(1e-2, 4)), tmp_path, progress=False)
    longer = toy_run(steps=8, optimizer=adamw(1e-2, 8), log_every=1)
    fit(longer, tmp_path, progress=False)
    assert "from step 4 on the learning rate follows the schedule of 8 steps, as if" in caplog.text
    assert "optimizer.schedules.transition_steps: 4 there, 7 here" in caplog.text
    rates = {line["step"]: line["train/learning_rate"] for line in read_metrics(tmp_path) if "train/loss" in line}
    assert rates[8] < rates[4] < rates[5] < 1e-2
    with pytest.raises(ValueError, match=r"different run: optimizer\.\w+\.weight_decay: 0.01 there, 0.1 here\. "):
        fit(toy_run(steps=9, optimizer=adamw(1e-2, 9, weight_decay=0.1)), tmp_path, progress=False)


def test_a_longer_run_with_the_schedule_of_the_shorter_one_says_so(tmp_path, caplog):
    for steps in (4, 8):
        fit(toy_run(steps=steps, optimizer=adamw(1e-2, 4), log_every=1), tmp_path, progress=False)
    told = [message for message in caplog.messages if "the learning rate is 0, as the optimiser" in message]
    assert len(told) == 1 and told[0].startswith("step 5: ")
    assert {line["train/learning_rate"] for line in read_metrics(tmp_path)[-4:] if "train/loss" in line} == {0.0}


def test_a_run_whose_method_has_ended_becomes_no_longer(tmp_path):
    ended = Transform(end_task=lambda task, context, params, state: (context.trained, state))
    fit(toy_run(steps=2, transform=ended), tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"is finished, and its method has changed the model .*Transform\.end_task"):
        fit(toy_run(steps=4, transform=ended), tmp_path, progress=False)


def test_overwriting_starts_anew_and_removes_what_is_ours_alone(tmp_path):
    fit(toy_run(best=("toy/error", "min")), tmp_path, progress=False)
    others = ["notes.txt", "checkpoints/notes.txt", "checkpoints/step_notes", "best/README.md", "index/vectors.npy"]
    for name in others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    result = fit(toy_run(steps=2, seed=1), tmp_path, overwrite=True, progress=False)
    alone = fit(toy_run(steps=2, seed=1), tmp_path / "other", overwrite=True, progress=False)
    assert_bitwise_equal(result.state, alone.state)
    assert Checkpoints(tmp_path / "checkpoints", 2).steps() == [2]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 2, 2]
    assert all((tmp_path / name).read_text() == "mine" for name in others)
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["README.md"]
    with pytest.raises(FileExistsError, match="model is there, and no run that made it"):
        (tmp_path / "empty" / "model").mkdir(parents=True)
        fit(toy_run(), tmp_path / "empty", overwrite=True, progress=False)
