import json
import logging
import os
import signal

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_run import assert_bitwise_equal, pair_batch, read_model, toy_objective, toy_run

import jaxemb
from jaxemb.checkpoints import Parameters
from jaxemb.data import SPECIAL_TOKENS, Tokenizer
from jaxemb.train import Checkpoints, NonFiniteError, fit, init_state, load_run, read_metrics
from jaxemb.transforms import Trained, Transform, ema, ema_model, identity, prompts

SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def stopping_at(step: int, how):
    """An evaluator that ends the process's work at a step, as a crash does."""
    calls = []

    def evaluator(embedder):
        calls.append(1)
        if len(calls) == step:
            how()
        return {"error": 0.0}

    return evaluator


class CrashError(Exception):
    pass


def crash():
    raise CrashError


def test_trains_logs_evaluates_and_saves(tmp_path):
    result = fit(toy_run(steps=12, best=("toy/error", "min")), tmp_path, progress=False)
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines if "train/loss" in line] == [2, 4, 6, 8, 10, 12]
    assert [line["step"] for line in lines if "toy/error" in line] == [0, 4, 8, 12]
    assert lines[-1]["toy/error"] == result.metrics["toy/error"] < lines[0]["toy/error"]
    assert {"train/learning_rate", "train/grad_norm", "train/records_per_second"} <= lines[-2].keys()
    assert result.best == {"step": 12, "value": result.metrics["toy/error"]}
    assert int(result.state.step) == 12
    np.testing.assert_array_equal(read_model(tmp_path / "model")["w"], result.embedder.model["w"])
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert json.loads((tmp_path / "run.json").read_text())["steps"] == 12


def test_the_logged_loss_is_the_mean_since_the_line_before(tmp_path):
    for every, out in ((1, tmp_path / "one"), (4, tmp_path / "four")):
        fit(toy_run(steps=8, log_every=every, evaluators={}), out, progress=False)
    each = [line["train/loss"] for line in read_metrics(tmp_path / "one")]
    means = [line["train/loss"] for line in read_metrics(tmp_path / "four")]
    np.testing.assert_allclose(means, [np.mean(each[:4]), np.mean(each[4:])], rtol=1e-6)


def test_keeps_the_newest_checkpoints_and_the_best(tmp_path):
    # The error is smallest before training, as the "training" moves away from the scores.
    away = lambda model, batch, key: (-toy_objective(model, batch, key)[0], {})
    run = toy_run(objective=away, best=("toy/error", "min"), keep=2)
    result = fit(run, tmp_path, progress=False)
    assert result.best["step"] == 0
    assert Checkpoints(tmp_path / "checkpoints", 2).steps() == [0, 9, 12]
    np.testing.assert_array_equal(read_model(tmp_path / "best")["w"], np.full(5, 0.5, np.float32))
    assert np.any(read_model(tmp_path / "model")["w"] != 0.5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resuming_gives_the_same_bits_and_the_same_log(tmp_path, accumulate):
    settings = {"transform": ema(0.9), "log_every": 2, "checkpoint_every": 3, "accumulate": accumulate}
    whole = fit(toy_run(**settings), tmp_path / "whole", progress=False)
    broken = {"toy": stopping_at(3, crash)}  # at step 8; the newest checkpoint is that of step 6
    with pytest.raises(CrashError):
        fit(toy_run(**settings, evaluators=broken), tmp_path / "cut", progress=False)
    (tmp_path / "cut" / "run.json").unlink()  # the evaluator differs
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "train/lo')  # a line that was being written
    resumed = fit(toy_run(**settings), tmp_path / "cut", progress=False)
    assert_bitwise_equal(resumed.state, whole.state)
    train_lines = [
        [(line["step"], line["train/loss"]) for line in read_metrics(tmp_path / out) if "train/loss" in line]
        for out in ("whole", "cut")
    ]
    assert train_lines[0] == train_lines[1]


def test_a_finished_run_gives_its_result_again(tmp_path, caplog):
    first = fit(toy_run(best=("toy/error", "min")), tmp_path, progress=False)
    log = (tmp_path / "metrics.jsonl").read_text()
    assert "finished" not in caplog.text
    again = fit(toy_run(best=("toy/error", "min")), tmp_path, progress=False)
    assert "holds this run, finished: nothing is trained, and its results are those of then; more steps" in caplog.text
    assert (first.steps_taken, again.steps_taken) == (12, 0)
    assert_bitwise_equal(again.state, first.state)
    assert (again.metrics, again.best) == (first.metrics, first.best)
    assert (tmp_path / "metrics.jsonl").read_text() == log


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, caplog, damage):
    whole = fit(toy_run(), tmp_path, progress=False)
    newest = tmp_path / "checkpoints" / "step_00000012"
    victim = max((p for p in (newest / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    match damage:
        case "truncate":
            os.truncate(victim, victim.stat().st_size // 2)
        case "flip":
            data = bytearray(victim.read_bytes())
            data[len(data) // 2] ^= 1
            victim.write_bytes(data)
        case "remove":
            victim.unlink()
        case "manifest":
            (newest / "manifest.json").write_text('{"state/')
    with caplog.at_level(logging.WARNING):
        again = fit(toy_run(), tmp_path, progress=False)
    assert "step_00000012 is damaged (" in caplog.text and "the checkpoint before it is used" in caplog.text
    assert (tmp_path / "checkpoints" / "step_00000012.corrupt").is_dir()
    assert_bitwise_equal(again.state, whole.state)


def test_starts_anew_when_every_checkpoint_is_damaged(tmp_path):
    whole = fit(toy_run(), tmp_path, progress=False)
    for manifest in (tmp_path / "checkpoints").rglob("manifest.json"):
        manifest.unlink()
    again = fit(toy_run(), tmp_path, progress=False)
    assert_bitwise_equal(again.state, whole.state)
    assert [line["step"] for line in read_metrics(tmp_path) if "toy/error" in line] == [0, 4, 8, 12]


def bad_record(indices):
    batch = pair_batch(indices)
    batch["score"][batch["id"] == 37] = np.nan
    return batch


def spoiled(embedder):
    """Batches of 8 in order; the fifth, of step 5, holds the bad record 37."""
    return grain.MapDataset.range(40).repeat().batch(8, batch_fn=bad_record).to_iter_dataset()


@pytest.mark.parametrize("checkpoint_every", [3, 5, 100])
def test_a_loss_that_is_not_finite_stops_at_the_exact_state(tmp_path, checkpoint_every):
    run = toy_run(data=spoiled, checkpoint_every=checkpoint_every, evaluators={}, log_every=1)
    with pytest.raises(NonFiniteError) as caught:
        fit(run, tmp_path / "bad", progress=False)
    error = caught.value
    assert (error.step, error.ids) == (5, list(range(32, 40)))
    last = tmp_path / "bad" / "checkpoints" / "step_00000003" if checkpoint_every == 3 else None
    assert error.checkpoint == last
    message = str(error)
    assert message.startswith("step 5: loss nan") and "32, 33, 34, 35, 36, 37, 38, 39" in message
    assert f"Last good checkpoint: {last or 'none yet'}" in message
    good = fit(toy_run(data=spoiled, steps=4, evaluators={}), tmp_path / "good", progress=False)
    assert_bitwise_equal(error.state.model, good.state.model)
    assert [line["step"] for line in read_metrics(tmp_path / "bad")] == [1, 2, 3, 4]


def test_sigterm_saves_and_exits_with_code_0(tmp_path):
    terminate = {"toy": stopping_at(2, lambda: os.kill(os.getpid(), signal.SIGTERM))}  # at step 4
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        fit(toy_run(evaluators=terminate, checkpoint_every=100), tmp_path, progress=False)
    assert caught.value.code == 0
    assert signal.getsignal(signal.SIGTERM) is before
    assert Checkpoints(tmp_path / "checkpoints", 2).steps() == [4]


def test_refuses_the_directory_of_another_run(tmp_path):
    fit(toy_run(steps=2), tmp_path, progress=False)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(
        ValueError, match=r"holds a different run: seed: 0 there, 1 here\. To .* overwrite=True.*run\.json"
    ):
        fit(toy_run(seed=1), tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"holds a different run: steps: 2 there, 1 here\. "):
        fit(toy_run(steps=1), tmp_path, progress=False)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_refuses_to_begin_where_a_run_is(tmp_path):
    fit(toy_run(steps=2), tmp_path, progress=False)
    with pytest.raises(FileExistsError, match="already holds a run; resume it, start anew with overwrite=True"):
        fit(toy_run(steps=2), tmp_path, resume=False, progress=False)


def test_refuses_the_checkpoint_of_another_model(tmp_path):
    fit(toy_run(steps=3), tmp_path, progress=False)
    (tmp_path / "run.json").unlink()
    other = toy_run(steps=3, embedder=lambda: Parameters({"w": jnp.zeros(7)}))
    with pytest.raises(ValueError, match=r"another model or method: model\.w is float32\[5\] there, float32\[7\] here"):
        fit(other, tmp_path, progress=False)


def test_says_when_the_data_ends_early(tmp_path):
    short = lambda embedder: grain.MapDataset.range(24).batch(8, batch_fn=pair_batch).to_iter_dataset()
    with pytest.raises(ValueError, match=r"the data ended at step 4 of 12; let it repeat or lower Run\.steps"):
        fit(toy_run(data=short), tmp_path, progress=False)


def test_says_when_the_best_result_does_not_exist(tmp_path):
    with pytest.raises(ValueError, match=r"'toy/spearman', but the evaluation results are \['toy/error'\]"):
        fit(toy_run(best=("toy/spearman", "max")), tmp_path, progress=False)


def test_copies_the_config_file_and_tells_another_one_apart(tmp_path, caplog):
    config = tmp_path / "config.py"
    text = "from tiny_run import toy_run\ndef run(**options):\n    return toy_run(steps=2)\n"
    config.write_text(text)
    fit(load_run(config), tmp_path / "out", progress=False)
    assert (tmp_path / "out" / "config.py").read_text() == text
    config.write_text(text + "# changed\n")
    fit(load_run(config), tmp_path / "out", progress=False)
    assert "the config file is not the text in" in caplog.text and "but gives the same run" in caplog.text
    config.write_text(text.replace("steps=2", "steps=2, seed=7"))
    with pytest.raises(ValueError, match="seed: 0 there, 7 here"):
        fit(load_run(config), tmp_path / "out", progress=False)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_config_file_may_have_another_name(tmp_path, overwrite):
    config, out = tmp_path / "cfg.py", tmp_path / "out"
    config.write_text(
        "from tiny_run import toy_objective, toy_run\n"
        "def run():\n    return toy_run(steps=2, objective=lambda *of: toy_objective(*of))\n"
    )
    fit(load_run(config), out, progress=False)
    again = config.rename(tmp_path / "c.py")
    for path in (again, out / "config.py"):
        assert fit(load_run(path), out, overwrite=overwrite, progress=False).steps_taken == 2 * overwrite
    assert (out / "config.py").read_text() == again.read_text()


def test_may_evaluate_and_save_the_average(tmp_path):
    result = fit(toy_run(transform=ema(0.9), evaluated_model=ema_model), tmp_path, progress=False)
    average = ema_model(result.state)["w"]
    np.testing.assert_array_equal(read_model(tmp_path / "model")["w"], average)
    assert np.any(np.asarray(average) != np.asarray(result.state.model["w"]))


def test_training_is_one_task(tmp_path):
    def begin(task, context, params, state):
        return Trained({"w": context.trained.model["w"] * 0}), state + 1

    def end(task, context, params, state):
        return Trained({"w": context.trained.model["w"] + 100}), state + 10

    transform = Transform(init=lambda key, model: ((), jnp.zeros(())), begin_task=begin, end_task=end)
    result = fit(toy_run(transform=transform, steps=2), tmp_path, progress=False)
    assert float(result.state.method_state) == 11
    assert np.all(read_model(tmp_path / "model")["w"] > 99)
    again = fit(toy_run(transform=transform, steps=2), tmp_path, progress=False)
    assert_bitwise_equal(again.state, result.state)


@pytest.mark.parametrize("prng", ["threefry2x32", "rbg"])
def test_both_generators_survive_a_checkpoint(tmp_path, prng):
    still = lambda model, batch, key: (jnp.square(batch["score"] - model["w"][batch["id"] % 5]), {})
    run = toy_run(prng=prng, steps=3, objective=still)  # "rbg" is slow to compile
    result, again = (fit(run, tmp_path, progress=False) for _ in range(2))
    assert str(jax.random.key_impl(again.state.key)) == prng
    assert_bitwise_equal(again.state, result.state)


def test_the_embedder_it_was_given_stays_usable(tmp_path):
    embedder = Parameters({"w": jnp.full(5, 0.5)})
    fit(toy_run(embedder=lambda: embedder, steps=2), tmp_path, progress=False)
    np.testing.assert_array_equal(embedder.model["w"], np.full(5, 0.5))


def test_a_url_is_no_directory():
    with pytest.raises(ValueError, match="out must be a directory; got 'gs://bucket/run': mount the bucket"):
        fit(toy_run(), "gs://bucket/run")
    with pytest.raises(ValueError, match="expected a path; got ''"):
        fit(toy_run(), "")


def test_a_checkpoint_holds_the_state_it_was_given_whatever_happens_to_that(tmp_path):
    """Steps overwrite the state's buffers while its copy is being written."""
    model = {"w": jnp.arange(2_000_000, dtype=jnp.float32)}
    state = init_state(jax.random.key(0), model, optax.sgd(0.1), identity())
    double = jax.jit(lambda model: jax.tree.map(lambda x: x + x, model), donate_argnums=0)
    moved = state.model
    with Checkpoints(tmp_path, 2) as checkpoints:
        checkpoints.save(3, state, {"losses": [1.0]})
        for _ in range(5):
            moved = double(moved)
    like = init_state(jax.random.key(0), model, optax.sgd(0.1), identity())
    restored, loop = Checkpoints(tmp_path, 2).restore(3, like)
    np.testing.assert_array_equal(restored.model["w"], model["w"])
    np.testing.assert_array_equal(moved["w"], 32 * model["w"])
    assert loop == {"losses": [1.0]}


def test_a_model_that_cannot_be_saved_is_refused_before_it_is_trained(tmp_path):
    embedder = jaxemb.new("bert", SIZES, Tokenizer.word_piece(SPECIAL_TOKENS), key=jax.random.key(0))
    steps = []
    objective = lambda model, batch, key: steps.append(1) or toy_objective(model, batch, key)
    run = toy_run(embedder=lambda: embedder, objective=objective, transform=prompts(2), evaluators={})
    with pytest.raises(ValueError, match=r"training gives could not be saved .*set Run.evaluated_model"):
        fit(run, tmp_path, progress=False)
    assert not steps


def test_a_result_that_is_nan_is_named_once(tmp_path, caplog):
    run = toy_run(evaluators={"bad": lambda embedder: {"a": np.float32("nan"), "b": 1}}, best=("bad/a", "max"))
    result = fit(run, tmp_path, progress=False)
    assert result.best is None and np.isnan(result.metrics["bad/a"])
    told = [text for text in caplog.messages if "nan" in text.lower()]
    assert told == ["step 0: the evaluation results ['bad/a'] are NaN, which is never the best"]


@pytest.mark.parametrize("found", [None, 3.0, {"x": "a"}, {"x": "0.5"}, {"x": 1j}])
def test_an_evaluator_that_gives_no_numbers_is_named(tmp_path, found):
    with pytest.raises(TypeError, match=r"Run.evaluators\['bad'\] must give numbers by name"):
        fit(toy_run(evaluators={"bad": lambda embedder: found}), tmp_path, progress=False)
