"""Several tasks in one run: what the method is told, what is compiled, evaluated, logged and gone on with."""

import dataclasses
import functools
import itertools
import os
import signal

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from budget import Programs
from tiny_run import CONTRASTIVE, assert_bitwise_equal, pair_batch, pairs, tiny_embedder, toy_run

from jaxemb.continual import metrics
from jaxemb.train import Runner, RunTask, fit, read_metrics
from jaxemb.transforms import Transform, Variables, experience_replay, identity

FIRST, SECOND = (functools.partial(pairs, seed=seed, records=24) for seed in (1, 2))
TASKS = (RunTask("first", FIRST, 5), RunTask("second", SECOND, 7))


def told(note):
    """A transform that notes what it is told, and whose state says the same."""

    def begin(task, context, params, state):
        note(("begin", task.number, int(context.step), task.steps, len(list(task.batches()))))
        return context.trained, state + 100

    def end(task, context, params, state):
        note(("end", task.number, int(context.step), task.steps, len(list(task.batches()))))
        return context.trained, state + 10_000

    return Transform(
        init=lambda key, model: Variables(state=jnp.zeros((), jnp.int32)),
        begin_task=begin,
        end_task=end,
        after_step=lambda context, params, state: state + 1,
    )


def two_tasks(**changes):
    error = lambda embedder: {"error": float(jnp.sum(embedder.model["w"]))}
    settings = {"data": None, "steps": 0, "tasks": TASKS, "evaluators": {"first": error, "second": error}}
    return toy_run(**settings | {"evaluate_every": 100, "checkpoint_every": 2, "log_every": 3} | changes)


def test_tasks_come_one_after_another(tmp_path):
    log, programs, counts = [], Programs(), []
    count = lambda embedder: counts.append(programs.count) or {"error": 0.0}
    tasks = (*TASKS, RunTask("third", FIRST, 3), RunTask("fourth", SECOND, 3))
    result = fit(two_tasks(tasks=tasks, transform=told(log.append), evaluators={"x": count}), tmp_path, progress=False)
    hooks = [("begin", 0, 0, 5, 5), ("end", 0, 5, 5, 5), ("begin", 1, 5, 7, 7), ("end", 1, 12, 7, 7)]
    assert log[:4] == hooks and len(log) == 8
    assert int(result.state.step) == 18 and int(result.state.method_state) == 18 + 4 * 10_100
    assert counts[-1] == counts[-2], "a later task compiled programs of its own"
    lines = read_metrics(tmp_path)
    assert [(line["step"], line["task"]) for line in lines if "train/loss" in line] == [
        *((3, 0), (5, 0), (6, 1), (9, 1), (12, 1), (15, 2), (18, 3)),
    ]
    assert [(line["step"], line["task"]) for line in lines if "x/error" in line] == [
        *((0, 0), (5, 0), (12, 1), (15, 2), (18, 3)),
    ]


def test_the_results_after_each_task_make_a_matrix(tmp_path):
    result = fit(two_tasks(), tmp_path, progress=False)
    R, b = result.scores("error")
    assert R.shape == (2, 2) and b.shape == (2,)
    assert R[1, 0] == result.metrics["first/error"] == result.after["second"]["first/error"] != R[0, 0]
    assert b[0] == result.initial["first/error"] == 2.5
    metrics.summarise(R, b)
    with pytest.raises(ValueError, match=r"there is no result 'first/ndcg'; there are .*first/error"):
        result.scores("ndcg")
    again = fit(two_tasks(), tmp_path, progress=False)
    assert (again.initial, again.after) == (result.initial, result.after)


@pytest.mark.parametrize("step", [3, 5, 8])
def test_a_run_that_stops_in_any_task_goes_on_bit_for_bit(tmp_path, step):
    """At step 5 it stops after the first task's end, before the next begins."""
    calls = []
    settings = {"transform": told(calls.append), "tasks": TASKS, "evaluate_every": 1}
    whole = fit(two_tasks(**settings), tmp_path / "whole", progress=False)
    expected, calls[:] = list(calls), []
    evaluations = itertools.count()

    def stop(embedder):
        if next(evaluations) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"error": 0.0}

    evaluators = {"first": stop, "second": lambda embedder: {"error": 0.0}}
    with pytest.raises(SystemExit):
        fit(two_tasks(**settings, evaluators=evaluators), tmp_path / "cut", progress=False)
    resumed = fit(two_tasks(**settings), tmp_path / "cut", progress=False)
    assert calls == expected, "each hook is called once"
    assert_bitwise_equal(resumed.state, whole.state)
    losses = lambda out: [(x["step"], x["task"], x["train/loss"]) for x in read_metrics(out) if "train/loss" in x]
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_a_batch_is_brought_to_the_device_before_its_step_and_leaves_after_it(tmp_path, monkeypatch):
    """The device holds the batch of the running step and the next one."""
    started, held = Runner.start, []

    def start(self, batch, *args, **options):
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(batch))
        held.append(sum(leaf.shape == (8, 7) for leaf in jax.live_arrays()))
        started(self, batch, *args, **options)

    monkeypatch.setattr(Runner, "start", start)
    marked = lambda embedder: pairs().map(lambda batch: {**batch, "marked": np.ones((8, 7), np.float32)})
    objective = lambda model, batch, key: (jnp.square(model["w"][0] - batch["marked"][:, 0]), {})
    fit(toy_run(data=marked, objective=objective, evaluators={}, checkpoint_every=100), tmp_path, progress=False)
    assert len(held) == 12 and max(held) <= 2


def test_the_task_whose_data_end_is_named(tmp_path):
    short = RunTask("short", lambda _: grain.MapDataset.range(16).batch(8, batch_fn=pair_batch).to_iter_dataset(), 3)
    with pytest.raises(ValueError, match="the data of task 'short' ended at step 8 of 8; let it repeat"):
        fit(two_tasks(tasks=(TASKS[0], short)), tmp_path, progress=False)


def of_records(first):
    """Batches of the same eight pairs of texts, without end."""
    batch = grain.MapDataset.range(first, first + 8).batch(8, batch_fn=pair_batch).repeat()
    return lambda embedder: batch.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))


def test_an_embedder_keeps_a_task_of_texts_that_is_replayed(tmp_path):
    loss = jax.jit(lambda model, batch: jnp.mean(CONTRASTIVE(model, batch, None)[0]))
    score = lambda first: lambda embedder: {"loss": float(loss(embedder.model, pair_batch(range(first, first + 8))))}
    replay = experience_replay(8, 6, pair_batch(range(8)), columns=("query", "document"))

    def scores(name, transform):
        run = two_tasks(
            embedder=tiny_embedder,
            objective=CONTRASTIVE,
            optimizer=optax.adam(1e-2),
            transform=transform,
            evaluators={"first": score(0), "second": score(8)},
            tasks=(RunTask("first", of_records(0), 8), RunTask("second", of_records(8), 8)),
            checkpoint_every=100,
        )
        result = fit(run, tmp_path / name, progress=False)
        assert (tmp_path / name / "model" / "tokenizer.json").is_file()
        return result.scores("loss")

    (plain, b), (replayed, _) = scores("plain", identity()), scores("replay", replay)
    assert plain[0, 0] < b[0] - 0.5 and plain[1, 1] < b[1] - 0.5, "both tasks are learned"
    assert replayed[1, 0] < plain[1, 0] - 0.2, "and the first is forgotten, but for replay"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": pairs}, TypeError, "Run takes data and steps, or tasks; got both"),
        ({"tasks": ()}, TypeError, "Run takes data and steps, or tasks; got none of them"),
        (
            {"tasks": (TASKS[0], TASKS[0])},
            ValueError,
            r"Run.tasks must have names of their own; got \['first', 'first'\]",
        ),
        (
            {"tasks": (RunTask("a", pairs, 0),)},
            ValueError,
            r"Run.tasks\['a'\].steps must be a whole number of at least 1",
        ),
        ({"tasks": (RunTask("a", 3, 1),)}, TypeError, r"Run.tasks\['a'\].data must be a function; got 3"),
        ({"tasks": (pairs,)}, TypeError, r"tasks\[0\] must be a RunTask; got function <function pairs"),
        ({"steps": 3}, ValueError, "Run.steps of several tasks is their sum, 12; got 3: leave it out"),
    ],
)
def test_refuses(changes, error, message):
    with pytest.raises(error, match=message):
        two_tasks(**changes)


def test_a_run_of_other_tasks_is_made_of_one(tmp_path):
    run = two_tasks()
    assert dataclasses.replace(run, tasks=TASKS[:1]).steps == 5
    assert dataclasses.replace(run, seed=1).steps == 12
    assert dataclasses.replace(run, tasks=(), data=pairs, steps=3).steps == 3
    with pytest.raises(ValueError, match=r"Run.steps must be given with Run.data; 12 is the sum of other tasks"):
        dataclasses.replace(run, tasks=(), data=pairs)
    with pytest.raises(ValueError, match="is their sum, 12; got 3: leave it out"):
        dataclasses.replace(run, steps=3)
    assert dataclasses.replace(toy_run(steps=3), data=None, steps=0, tasks=TASKS).steps == 12
    assert run.describe()["steps"] == 12


def test_a_task_without_an_evaluator_of_its_name_is_told_before_the_first_step(tmp_path, caplog):
    said = []
    evaluators = {"first": lambda e: said.append(caplog.text) or {"error": 0.0}, "secnd": lambda e: {"error": 0.0}}
    tasks = [dataclasses.replace(task, steps=1) for task in TASKS]
    result = fit(two_tasks(tasks=tasks, evaluators=evaluators), tmp_path, progress=False)
    assert "has none called 'second', as Result.scores needs one for each task; there are ['first', 'sec" in said[0]
    with pytest.raises(ValueError, match="there is no result 'second/error'"):
        result.scores("error")
