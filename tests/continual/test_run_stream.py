import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from budget import Programs
from tiny_run import tiny_embedder
from tiny_stream import drawn

from jaxemb import Classifier, files
from jaxemb.continual import Experience, accuracy, loop, metrics, permuted, run_stream, split_by_class
from jaxemb.data import pad
from jaxemb.encoders.mlp import Mlp
from jaxemb.objectives import classification
from jaxemb.train import NonFiniteError, init_state, make_train_step
from jaxemb.transforms import (
    HypernetworkConfig,
    Transform,
    Variables,
    augmentation,
    chain,
    gpm,
    hypernetwork,
    icarl,
    identity,
    nmc_head,
)
from jaxemb.types import Tokens

D, C = 4, 4


def blobs(sizes=(7, 9, 6, 5), seed=0):
    """Columns of records around one centre per class."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    centres = np.random.default_rng(9).normal(size=(len(sizes), D)) * 3
    return {"input": (centres[labels] + rng.normal(size=(len(labels), D))).astype(np.float32), "label": labels}


def model():
    return drawn(lambda key: Classifier.init(key, Mlp.init(key, (D, 8)), 8, C))


def run(stream=None, model=model, **options):
    stream = split_by_class(blobs(), blobs(seed=1), 2) if stream is None else stream
    arguments = {"epochs": 2, "batch_size": 3, "evaluate": {"acc": accuracy()}} | options
    objective = arguments.pop("objective", classification())
    return run_stream(stream, model(), objective, arguments.pop("optimizer", optax.sgd(0.1)), **arguments)


def equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = (jax.random.key_data(v) if jnp.issubdtype(v.dtype, jax.dtypes.prng_key) else v for v in (x, y))
        np.testing.assert_array_equal(x, y)


def spy(log, scale=1):
    """A transform that notes on the host what its hooks are given, and carries the sum of the ids it has seen."""
    note = log.append

    def begin(task, context, params, state):
        note(("begin", task, int(context.step)))
        return context.trained, state

    def end(task, context, params, state):
        note(("end", task, [jax.device_get(batch) for batch in task.batches()]))
        return context.trained, state

    return Transform(
        init=lambda key, model: Variables(state=jnp.zeros((), jnp.int32)),
        begin_task=begin,
        end_task=end,
        after_step=lambda context, params, state: state + scale * context.batch["id"].sum(),
    )


def test_epochs_of_each_task():
    assert [len(losses) for losses in run(epochs=np.array([1, 3]), batch_size=5).losses] == [3, 6]


def test_it_says_what_it_does_and_is_printed_as_a_table(capsys, tmp_path):
    result = run(checkpoints=tmp_path)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("task 1/2 '0-1': 10 steps in ") and f", loss {result.losses[0][-1]:.4g}; on the" in first
    assert second.endswith(f"on the tasks so far acc {result.R['acc'][1].mean():.4f}")
    title, names, _, last = repr(result).splitlines()
    assert title == "acc, after each task (rows)" and names.split() == ["0-1", "2-3", "so", "far"]
    assert last.split() == ["2-3", *(f"{x:.4f}" for x in (*result.R["acc"][1], result.R["acc"][1].mean()))]
    assert repr(metrics.summarise(result.R["acc"])["acc"]) == f"{result.R['acc'][1].mean():.4f}"
    run(checkpoints=tmp_path)
    assert capsys.readouterr().err == "going on after 2 of 2 tasks\n"
    run(progress=False)
    assert capsys.readouterr().err == ""


def test_texts_are_learnt_as_the_docstring_shows():
    embedder = tiny_embedder()
    columns = lambda texts, labels: {"input": pad(embedder.tokenizer(texts), length=8), "label": np.array(labels)}
    data = columns([f"{label} {label + 4}" for label in range(4)] * 2, [*range(4)] * 2)
    stream = split_by_class(data, data, 2)
    model = Classifier.init(jax.random.key(0), embedder.model, embedder.model.dim, classes=4)
    arguments = (model, classification(), optax.sgd(1e-3))
    result = run_stream(stream, *arguments, steps=2, batch_size=4, evaluate={"class": accuracy()}, progress=False)
    assert result.R["class"].shape == (2, 2) and np.isfinite(result.losses).all()


def test_it_is_the_train_step_on_the_batches_of_the_tasks():
    stream = split_by_class(blobs(), blobs(seed=1), 2)
    result = run(stream)
    optimizer = optax.sgd(0.1)
    state = init_state(jax.random.key(0), model(), optimizer, identity())
    step = jax.jit(make_train_step(classification(), optimizer))
    losses = []
    for number, (task, seen) in enumerate(zip(stream, ([1, 1, 0, 0], [1, 1, 1, 1]), strict=True)):
        for epoch in range(2):
            order = np.random.default_rng([0, number, epoch]).permutation(len(task.train["label"]))
            for rows in order[: len(order) // 3 * 3].reshape(-1, 3):
                batch = {name: column[rows] for name, column in task.train.items()}
                state, values = step(state, batch | {"classes": np.array(seen, bool)})
                losses.append(values["loss"])
    np.testing.assert_allclose(np.concatenate(result.losses), losses, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(result.state.model), jax.tree.leaves(state.model), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert [len(values) for values in result.losses] == [10, 6]


def test_one_program_serves_all_tasks_and_convolutions_run_one_by_one_on_a_cpu(monkeypatch):
    traces = []

    def plainly(model, batch, key):
        traces.append(1)
        return classification()(model, batch, key)

    def convolved(model, batch, key):  # with a kernel of one, which changes nothing
        inputs = jax.lax.conv(batch["input"].reshape(-1, 1, D), jnp.ones((1, 1, 1)), (1,), "VALID")
        return plainly(model, batch | {"input": inputs}, key)

    ways = []
    for name in ("_in_a_loop", "_on_rows"):
        make = getattr(loop, name)
        monkeypatch.setattr(loop, name, lambda *a, name=name, make=make: ways.append(name) or make(*a))
    options = {"chunk": 4, "optimizer": optax.adam(1e-2), "reset_optimizer": True}
    plain, one_by_one = (run(objective=o, transform=spy([]), **options) for o in (plainly, convolved))
    assert ways == ["_in_a_loop", "_on_rows"]
    assert len(traces) == 4, "a step was compiled more than once"  # each is traced once more, in search of convolutions
    assert [len(losses) for losses in plain.losses] == [10, 6]
    np.testing.assert_allclose(np.concatenate(one_by_one.losses), np.concatenate(plain.losses), rtol=1e-4)


@pytest.mark.parametrize(
    "method",
    [
        icarl(8, 2, classes=C, dim=8, example={name: column[:1] for name, column in blobs().items()}),
        pytest.param(gpm(), marks=pytest.mark.slow),
        pytest.param(nmc_head(C, 8, policy="drift"), marks=pytest.mark.slow),
        pytest.param(hypernetwork(HypernetworkConfig(tasks=4, embed_dim=2, hidden=(4,))), marks=pytest.mark.slow),
    ],
    ids=["icarl", "gpm", "nmc_head", "hypernetwork"],
)
def test_later_tasks_compile_nothing_anew(method):
    programs, counts = Programs(), []

    def score(state, experience, number, seen):
        counts.append(programs.count)
        return 0.0

    train = blobs((6, 6, 6, 6))
    stream = [Experience(str(i), train, train, classes=np.ones(C, bool)) for i in range(4)]
    run(stream, transform=method, evaluate={"count": score}, future=False)
    assert counts[-1] == counts[2], "the last tasks compiled programs of their own"


def test_hooks_batches_and_the_classes_that_compete():
    for compete, second in {"task": [0, 0, 1, 1], "all": [1] * 4}.items():
        log = []
        result = run(transform=spy(log), compete=compete)
        assert [(name, task.number, task.steps) for name, task, _ in log] == [
            ("begin", 0, 10),
            ("end", 0, 10),
            ("begin", 1, 6),
            ("end", 1, 6),
        ]
        assert [log[0][2], log[2][2]] == [0, 10]
        np.testing.assert_array_equal(log[2][1].classes, [False, False, True, True])
        first, last = log[1][2], log[3][2]
        ids = np.concatenate([batch["id"] for batch in last])
        assert len(set(ids)) == 9  # of 11 records, in batches of 3
        assert 16 <= ids.min() < ids.max() < 27  # after the 16 of the first task
        np.testing.assert_array_equal(last[0]["label"], np.repeat(range(4), (7, 9, 6, 5))[last[0]["id"]])
        np.testing.assert_array_equal(last[0]["classes"], np.array(second, bool))
        np.testing.assert_array_equal(first[0]["classes"], [True, True, compete == "all", compete == "all"])
        assert result.state_bytes == 4
        assert result.parameters == 4 * 8 + 8 + 8 * 4 + 4
    log = []
    run(transform=spy(log), boundaries=False)
    assert log == []


def test_every_record_comes_once_in_an_epoch():
    # 16 and 11 records, all in full batches.
    stream = split_by_class(blobs((7, 9, 6, 6)), blobs(seed=1), 2)
    result = run(stream, transform=spy([]), batch_size=4, epochs=3)
    assert int(result.state.method_state) == 3 * sum(range(28))


def test_a_stopped_run_goes_on_and_ends_bit_for_bit_the_same(tmp_path):
    options = {"transform": spy([]), "optimizer": optax.adam(1e-2), "seed": 3}
    whole = run(**options)

    class Stopped(Exception):
        pass

    def stop_after_the_first_task(state, experience, number, seen):
        if int(state.step) > 10:
            raise Stopped
        return accuracy()(state, experience, number, seen)

    with pytest.raises(Stopped):
        run(**options, checkpoints=tmp_path, evaluate={"acc": stop_after_the_first_task})
    calls = []
    resumed = run(**options | {"transform": spy(calls)}, checkpoints=tmp_path)
    assert [task.number for _, task, _ in calls] == [1, 1]
    equal(resumed.state, whole.state)
    for name in ("R", "b"):
        np.testing.assert_array_equal(getattr(resumed, name)["acc"], getattr(whole, name)["acc"])
    equal(resumed.losses, whole.losses)

    finished = run(**options, checkpoints=tmp_path)
    equal(finished.state, whole.state)
    with pytest.raises(ValueError, match="another run"):
        run(**options | {"seed": 4}, checkpoints=tmp_path)
    for other in ({"boundaries": False}, {"future": False}, {"evaluate": {"other": accuracy()}}):
        with pytest.raises(ValueError, match="another run"):
            run(**options | other, checkpoints=tmp_path)
    with pytest.raises(ValueError, match=r"another run: optimizer.*: -0.01 there, -0.02 here"):
        run(**options | {"optimizer": optax.adam(2e-2)}, checkpoints=tmp_path)
    with pytest.raises(ValueError, match=r"another run: transform"):
        run(**options | {"transform": spy([], scale=2)}, checkpoints=tmp_path)
    moved = blobs() | {"input": blobs()["input"] + 1}
    first, second = split_by_class(blobs(), blobs(seed=1), 2)
    wider = dataclasses.replace(second, classes=np.array([True, False, True, True]))
    lighter = lambda: jax.tree.map(lambda leaf: leaf / 2, model())
    for name, others in {
        "data.train": {"stream": split_by_class(moved, blobs(seed=1), 2)},
        "data.test": {"stream": split_by_class(blobs(), moved, 2)},
        "data.valid": {"stream": [dataclasses.replace(first, valid=first.train), second]},
        "data.classes": {"stream": [first, wider]},
        "model": {"model": lighter},
    }.items():
        with pytest.raises(ValueError, match=f"another run: {name}: [^;]* here$"):
            run(**others, **options, checkpoints=tmp_path)


def test_one_run_at_a_time_has_the_checkpoints(tmp_path):
    """Another one would remove what this one is about to write."""
    with files.locked(tmp_path), pytest.raises(files.InUseError, match="is in use by another process"):
        run(checkpoints=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_optimizer_may_start_anew():
    kept, anew = (run(optimizer=optax.adam(1e-2), reset_optimizer=reset).state for reset in (False, True))
    assert int(optax.tree.get(kept.opt_state, "count")) == 16
    assert int(optax.tree.get(anew.opt_state, "count")) == 6


def test_steps_augmentation_and_small_tasks():
    keys = lambda key, batch: {**batch, "input": batch["input"] * 0 + jax.random.uniform(key)}
    seen = Transform(
        init=lambda key, model: Variables(state=jnp.zeros((9, 12, D))),
        after_step=lambda context, params, state: state.at[context.step].set(context.batch["input"]),
    )
    result = run(steps=4, epochs=None, batch_size=12, transform=chain(seen, augmentation(keys)))
    values = np.array(result.state.method_state[0])
    assert (values == values[:, :1, :1]).all()
    assert len(np.unique(values[:8])) == 8  # a key of its own for every step; 11 records fill a batch of 12
    assert not values[8].any()


def test_tokens_and_tasks_without_classes():
    ids = np.arange(30, dtype=np.int32).reshape(10, 3)
    part = lambda rows: {"query": Tokens(ids[rows], np.ones_like(ids[rows]), ids[rows] * 0)}
    stream = [Experience("a", part(slice(0, 6)), {}), Experience("b", part(slice(6, 10)), {})]
    score = lambda state, experience, number, seen: 0.0 if seen is None else 1.0
    objective = lambda model, batch, key: (jnp.sum(batch["query"].ids * model, axis=-1), {})
    result = run_stream(stream, jnp.zeros(3), objective, optax.sgd(1.0), epochs=1, batch_size=2, evaluate={"s": score})
    np.testing.assert_allclose(-result.state.model, ids.sum(axis=0) / 2)
    assert result.R["s"].shape == (2, 2)


def test_scores_of_tasks_to_come_may_be_left_out():
    lower = run(future=False)
    np.testing.assert_array_equal(np.isnan(lower.R["acc"]), [[False, True], [False, False]])
    assert np.isnan(lower.b["acc"]).all()


def test_a_loss_that_is_not_finite_is_found():
    def objective(model, batch, key):
        losses, outputs = classification()(model, batch, key)
        return jnp.where(batch["id"] == 20, jnp.nan, losses), outputs

    rows = np.random.default_rng([0, 1, 0]).permutation(11)[:9]
    with pytest.raises(NonFiniteError, match=r"It is step \d of 6 of task 1, '2-3'"):
        run(objective=objective)
    with pytest.raises(NonFiniteError) as caught:
        run(objective=objective)
    assert 20 in caught.value.ids and len(caught.value.ids) == 3 and bool(caught.value.state.finite)
    with pytest.raises(NonFiniteError, match=f"step {np.flatnonzero(rows == 4)[0] // 3 + 1} of 6"):
        run(objective=objective)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stream": []}, "experiences must not be empty"),
        ({"epochs": None}, "one of epochs and steps; got epochs=None, steps=None"),
        ({"steps": 2}, "one of epochs and steps; got epochs=2, steps=2"),
        ({"epochs": [2]}, r"epochs must be one number, or one for each of 2 tasks; got \[2\]"),
        ({"epochs": np.array([2])}, r"epochs must be one number, or one for each of 2 tasks; got \[.*2.*\]"),
        ({"epochs": [1, 0]}, r"epochs\[1\] must be at least 1; got 0"),
        ({"batch_size": 0}, r"batch_size must be in 1\.\.\d+; got 0"),
        ({"compete": "some"}, "compete must be 'task', 'seen' or 'all'; got 'some'"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)


@pytest.mark.parametrize("found", [None, "0.5", 1j, np.complex64(1), np.array([0.5])], ids=str)
def test_an_evaluator_that_gives_no_number_is_named(found):
    with pytest.raises(TypeError, match=r"evaluate\['acc'\] of task '0-1' must be one number; got "):
        run(evaluate={"acc": lambda *about: found}, steps=1, epochs=None)


def test_a_score_that_is_nan_is_told(caplog):
    score = lambda state, experience, number, seen: np.float32("nan") if number else True
    assert np.isnan(run(evaluate={"acc": score}, steps=1, epochs=None).R["acc"]).tolist() == [[False, True]] * 2
    assert set(caplog.messages) == {"evaluate['acc'] of task '2-3' is NaN"}


def test_no_column_has_the_name_of_the_mask():
    stream = split_by_class(blobs() | {"classes": blobs()["label"]}, blobs(seed=1), 2)
    with pytest.raises(ValueError, match="a training column must not be called 'classes'"):
        run(stream)


def test_tasks_must_have_the_same_columns():
    a, b = split_by_class(blobs(), blobs(seed=1), 2)
    b.train["input"] = b.train["input"][:, :2]
    with pytest.raises(ValueError, match=r"'2-3' has .*float32\[2\].*, the first has .*float32\[4\]"):
        run([a, b])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "expected", "spread"), [("split", 0.193, 0.005), ("permuted", 0.465, 0.02)])
def test_finetuning_on_digits_forgets_as_much_as_reported(kind, expected, spread):
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    matrices, task_matrices = [], []
    for seed in range(3):
        parts = train_test_split(
            (data.data / 16).astype(np.float32), data.target.astype(np.int32), stratify=data.target, random_state=seed
        )
        train, test = ({"input": x, "label": y} for x, y in (parts[::2], parts[1::2]))
        stream = split_by_class(train, test, 5) if kind == "split" else permuted(train, test, 5, seed=seed)
        keys = jax.random.split(jax.random.key(seed))
        digits = Classifier.init(keys[0], Mlp.init(keys[1], (64, 100, 100)), 100, 10)
        scores = {"class": accuracy(), "task": accuracy(scenario="task")}
        result = run_stream(
            stream, digits, classification(), optax.sgd(0.03), epochs=8, batch_size=10, evaluate=scores, seed=seed
        )
        matrices.append(result.R["class"])
        task_matrices.append(result.R["task"])
    assert metrics.summarise(matrices)["acc"].mean == pytest.approx(expected, abs=3 * spread)
    assert (np.array(task_matrices) >= np.array(matrices)).all()  # fewer classes compete
    if kind == "split":
        assert metrics.summarise(task_matrices)["acc"].mean > 0.85
