import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from in_place import rewritten
from scipy import stats
from tiny_stream import drawn, jit_once

from jaxemb import Classifier
from jaxemb.encoders import Mlp
from jaxemb.objectives import classification
from jaxemb.train import begin_task, end_task, init_state, make_train_step, train
from jaxemb.transforms import Task, agem, der, der_plus_plus, er_ace, experience_replay
from jaxemb.transforms.continual.agem import without_conflict
from jaxemb.transforms.continual.replay import (
    AceState,
    column_shapes,
    draw_records,
    flat_columns,
    reservoir,
    reservoir_insert,
)

B, M, C, INPUTS = 4, 6, 3, 5
OBJECTIVE = classification()
ask = jax.jit(lambda model, batch: OBJECTIVE(model, batch, None))
slope = jax.jit(jax.grad(lambda model, batch: OBJECTIVE(model, batch, None)[0].mean()))
MODEL = drawn(lambda key: Classifier.init(key, Mlp.init(key, [INPUTS, 4]), 4, C))


def batch(step, labels=(0, 1, 0, 1)):
    x = np.random.default_rng(step).normal(size=(B, INPUTS)).astype(np.float32)
    return {"input": x, "label": np.array(labels, np.int32), "classes": np.array([True, True, False])}


def run(transform, batches, *, rate=0.1):
    """The state before every step, the last one's after it, and the losses."""
    optimizer = optax.sgd(rate)
    states = [init_state(jax.random.key(0), MODEL, optimizer, transform)]
    step = jit_once(make_train_step(OBJECTIVE, optimizer, transform))
    losses = []
    for one in batches:
        state, metrics = step(states[-1], one)
        assert state.finite
        states.append(state)
        losses.append(float(metrics["loss"]))
    return states, losses


def shapes_of(transform):
    """Those of a step's results."""
    state = jax.eval_shape(lambda: init_state(jax.random.key(0), MODEL, optax.sgd(0.1), transform))
    return jax.eval_shape(make_train_step(OBJECTIVE, optax.sgd(0.1), transform), state, batch(0))


def by_hand(key, capacity, count):
    kept, draw = np.full(capacity, -1), jax.jit(lambda n: jax.random.randint(jax.random.fold_in(key, n), (), 0, n + 1))
    for n in range(count):
        slot = n if n < capacity else int(draw(n))
        if slot < capacity:
            kept[slot] = n
    return kept


@pytest.mark.parametrize("size", [7, 28])
def test_the_reservoir_is_algorithm_r_however_the_records_come(size):
    state = reservoir(jax.random.key(3), M, {"n": jax.ShapeDtypeStruct((9,), jnp.int32)})
    insert = jax.jit(reservoir_insert)
    for start in range(0, 28, size):
        state = insert(state, {"n": np.arange(start, start + size)})
    assert int(state.seen) == 28
    np.testing.assert_array_equal(state.records["n"], by_hand(jax.random.key(3), M, 28))


def test_a_step_writes_only_the_rows_of_its_batch():
    data, capacity, optimizer = batch(0), 1000, optax.sgd(0.1)
    transform = experience_replay(capacity, B, data)
    state = init_state(jax.random.key(0), MODEL, optimizer, transform)
    step = jax.jit(make_train_step(OBJECTIVE, optimizer, transform), donate_argnums=0)
    assert rewritten(step.lower(state, data).compile(), f"f32[{capacity},{INPUTS}]") == []


def test_every_record_is_kept_with_probability_capacity_over_seen():
    runs, count = 10_000, 20

    def kept(key):
        state = reservoir(key, M, {"n": jax.ShapeDtypeStruct((1,), jnp.int32)})
        parts = np.arange(count).reshape(4, -1)
        state, _ = jax.lax.scan(lambda state, part: (reservoir_insert(state, {"n": part}), None), state, parts)
        return jnp.zeros(count).at[state.records["n"]].set(1)

    times = np.array(jax.jit(lambda keys: jax.vmap(kept)(keys).sum(axis=0))(jax.random.split(jax.random.key(0), runs)))
    assert times.sum() == M * runs
    p = M / count
    # Without replacement the sum of squares over the variance p(1-p) has mean count, with count-1 degrees of freedom.
    statistic = ((times - runs * p) ** 2 / (runs * p * (1 - p))).sum() * (count - 1) / count
    assert stats.chi2.sf(statistic, count - 1) > 1e-3
    assert abs(times - runs * p).max() < 5 * np.sqrt(runs * p * (1 - p))


def test_draws_are_without_replacement_and_only_of_what_is_there():
    records, filled = {"n": jnp.arange(M)}, jnp.array([True, False, True, True, False, False])
    draw = jax.jit(draw_records, static_argnums=3)
    counts = np.zeros(M)
    for seed in range(40):
        rows, weights = draw(jax.random.key(seed), records, filled, 5)
        assert weights.tolist() == [1, 1, 1, 0, 0]
        assert sorted(rows["n"][:3].tolist()) == [0, 2, 3]
        assert set(rows["n"].tolist()) == {0, 2, 3}
        counts[rows["n"][0]] += 1
    assert (counts[[0, 2, 3]] > 5).all()


def test_er_adds_the_loss_of_what_it_keeps_once_there_is_something():
    """And the records compete among the classes of their time where it keeps those."""
    data = [batch(0), batch(1, (2, 2, 2, 2)) | {"classes": np.array([True, False, True])}]
    columns = ("input", "label", "classes")
    states, losses = run(experience_replay(B, B, data[0], weight=0.5, columns=columns), data)
    assert losses[0] == pytest.approx(float(ask(MODEL, data[0])[0].mean()), rel=1e-6)
    # The reservoir holds the first batch, and the whole of it is replayed.
    assert states[1].method_state.records["classes"].tolist() == [[True, True, False]] * B
    now, old = (ask(states[1].model, one)[0].mean() for one in (data[1], data[0]))
    assert losses[1] == pytest.approx(float(now + 0.5 * old), rel=1e-5)


@pytest.mark.parametrize("example", [("input", "label", "id"), ("input", "label")])
@pytest.mark.parametrize("minibatch", [2, 6])
def test_replayed_records_come_with_their_own_ids(example, minibatch):
    """As masks by id and counts of texts read them."""

    def batch_of(step):
        ids = np.arange(B, dtype=np.int32) + 10 * step
        return {"input": np.tile(ids[:, None], (1, 2)).astype(np.float32), "label": ids, "id": ids}

    def objective(model, batch, key):
        assert batch["id"].shape == (len(batch["input"]),)
        known = (batch["id"] == batch["label"]) == (batch["id"] >= 0)
        return jnp.where(known & (batch["input"][:, 0] == batch["label"]), model, jnp.nan), {}

    transform = experience_replay(M, minibatch, {name: batch_of(0)[name] for name in example})
    state = train(jnp.ones(()), objective, optax.sgd(0.1), [batch_of(step) for step in range(3)], transform=transform)
    np.testing.assert_allclose(state.model, 1 - 0.1 * (1 + 2 + 2), rtol=1e-5)


def test_der_holds_outputs_to_those_of_insertion():
    data = [batch(0), batch(1)]
    states, losses = run(der_plus_plus(B, B, data[0], C, alpha=0.3, beta=0.7), data)
    said = ask(states[0].model, data[0])[1]["logits"]
    np.testing.assert_allclose(states[1].method_state.records["remembered output"], said, rtol=1e-6)
    (now, _), (old, outputs) = (ask(states[1].model, one) for one in (data[1], data[0]))
    expected = now.mean() + 0.3 * np.square(np.array(outputs["logits"] - said)).mean() + 0.7 * old.mean()
    assert losses[1] == pytest.approx(float(expected), rel=1e-5)


def test_what_der_remembers_is_never_refreshed():
    data = [batch(0), batch(1), batch(2)]
    states, _ = run(der(B, 2, data[0], 4, output="features"), data)
    memory = states[-1].method_state
    for row, said in zip(memory.records["input"], memory.records["remembered output"], strict=True):
        step = next(i for i, one in enumerate(data) if (one["input"] == np.array(row)).all(axis=1).any())
        np.testing.assert_allclose(said, states[step].model.features(row[None])[0], rtol=1e-5, atol=1e-6)


def test_er_ace_lets_old_classes_alone():
    data = [batch(0, (0, 0, 1, 1)), batch(1, (2, 2, 2, 1)), batch(2, (2, 2, 2, 2))]
    every = [one | {"classes": np.ones(C, bool)} for one in data]
    states, losses = run(er_ace(3 * B, 8, every[0], C), every)
    assert isinstance(states[1].method_state, AceState)
    assert states[1].method_state.seen.tolist() == [True, True, False]
    x = np.array(ask(states[2].model, every[2])[1]["logits"])
    assert x.shape == (B, C)
    current = 0.0  # class 2 alone competes in the last batch: the others were seen before and are not in it
    replayed = np.mean([ask(states[2].model, one)[0].mean() for one in every[:2]])
    assert losses[2] == pytest.approx(current + replayed, rel=1e-5)
    logits = np.array(ask(states[1].model, every[1])[1]["logits"])[:, 1:]
    current = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(B), [1, 1, 1, 0]])
    replayed = float(ask(states[1].model, every[0])[0].mean())
    assert losses[1] == pytest.approx(current + replayed, rel=1e-5)


@pytest.mark.parametrize("parts", [(), (3,)], ids=["batch", "micro-batches"])
def test_columns_without_labels_have_one_row_per_record(parts):
    shape = (*parts, B, INPUTS)
    given = {"text": {"ids": np.arange(np.prod(shape)).reshape(shape)}, "classes": np.array([True, False])}
    shapes = column_shapes(
        {"text": {"ids": given["text"]["ids"].reshape(-1, INPUTS)}, "classes": given["classes"]}, given
    )
    kept = flat_columns(given, shapes)
    np.testing.assert_array_equal(kept["text"]["ids"], given["text"]["ids"].reshape(-1, INPUTS))
    np.testing.assert_array_equal(kept["classes"], np.tile(given["classes"], (len(kept["text"]["ids"]), 1)))


def test_a_gem_removes_what_raises_the_reference():
    tree = lambda a, b: {"a": np.array([a], np.float32), "b": np.array(b, np.float32)}
    projected = lambda reference: jax.jit(without_conflict)(tree(1, -1), reference)
    assert (float(projected(tree(0, 1))["a"][0]), float(projected(tree(0, 1))["b"])) == (1, 0)
    assert projected(tree(1, 0.5))["b"] == -1
    assert projected(tree(0, 0))["b"] == -1


def test_a_gem_in_training():
    transform, optimizer = agem(B, B, batch(0)), optax.sgd(1.0)
    step = jit_once(make_train_step(OBJECTIVE, optimizer, transform))
    old, new = batch(0), batch(0, (1, 0, 1, 0))  # the other way round
    state = init_state(jax.random.key(0), MODEL, optimizer, transform)
    first, _ = step(state, old)
    expected = jax.tree.map(np.subtract, MODEL, slope(MODEL, old))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), first.model, expected)
    state = end_task(transform, OBJECTIVE, begin_task(transform, OBJECTIVE, first, Task(0)), Task(0, lambda: [old]))
    np.testing.assert_array_equal(state.method_state.records["input"], old["input"])

    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    g, r = (flat(slope(state.model, one)) for one in (new, old))
    assert g @ r < 0
    after, _ = step(state, new)
    np.testing.assert_allclose(flat(state.model) - flat(after.model), g - (g @ r) / (r @ r) * r, atol=1e-5)
    with pytest.raises(ValueError, match="the loop gives it no data"):
        end_task(transform, OBJECTIVE, state, Task(1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: experience_replay(0, 1, batch(0)), "capacity must be at least 1; got 0"),
        (lambda: agem(4, 5, batch(0)), "minibatch must be at most the capacity, 4; got 5"),
        (lambda: experience_replay(4, 2, batch(0), weight=0), "weight must be > 0; got 0"),
        (lambda: experience_replay(4, 2, batch(0), columns=["text"]), "but no text; name the columns"),
        (lambda: der(4, 2, batch(0), 3, beta=-1), "beta must be >= 0; got -1"),
        (lambda: der_plus_plus(4, 2, batch(0), 3, beta=0), "beta must be > 0; got 0"),
        (lambda: shapes_of(der(4, 2, batch(0), 5)), r"output 'logits' must be \[N, 5\]; got \(4, 3\)"),
        (lambda: shapes_of(der(4, 2, batch(0), 5, output="z")), "output 'z'; it returns features, logits"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
