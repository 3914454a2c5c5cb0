import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from in_place import rewritten

from jaxemb.losses import info_nce, memory_info_nce
from jaxemb.train import init_state, make_train_step
from jaxemb.transforms import chain, cross_batch_memory, ema

N, D = 4, 3
WEIGHTS = jnp.asarray(np.random.default_rng(1).normal(size=(D, D)), jnp.float32)


def batch(step):
    x = np.random.default_rng(step).normal(size=(2, N, D)).astype(np.float32)
    return {"id": np.arange(N) + N * step, "query": x[0], "document": x[1]}


def objective(model, batch, key):
    outputs = {name: batch[name] @ model for name in ("query", "document")}
    return info_nce(outputs["query"], outputs["document"]), outputs


losses_of = jax.jit(lambda model, batch: objective(model, batch, None))
remember_all = jax.jit(functools.partial(memory_info_nce, temperature=0.1))


def run(transform, batches, accumulate=1):
    optimizer = optax.sgd(0.1)
    state = init_state(jax.random.key(0), WEIGHTS, optimizer, transform)
    step = jax.jit(make_train_step(objective, optimizer, transform, accumulate=accumulate))
    history = []
    for one in batches:
        before, (state, metrics) = state, step(state, one)
        history.append((before, metrics["loss"]))
    return state, history


@functools.cache
def of_six():
    return run(cross_batch_memory(6, D, weight=0.5, temperature=0.1), [batch(i) for i in range(3)])


def test_it_remembers_the_newest_documents_first_in_first_out():
    state, history = of_six()
    newest_last = np.roll(np.arange(6), -int(state.method_state.next))
    np.testing.assert_array_equal(state.method_state.ids[newest_last], [6, 7, 8, 9, 10, 11])
    models = [state.model for state, _ in history]
    expected = np.concatenate([batch(1)["document"][2:] @ models[1], batch(2)["document"] @ models[2]])
    np.testing.assert_allclose(state.method_state.embeddings[newest_last], expected, rtol=1e-5)


def test_of_a_batch_that_is_larger_than_the_memory_the_last_ones_stay():
    state, _ = run(cross_batch_memory(3, D), [batch(0), batch(1)])
    assert sorted(state.method_state.ids.tolist()) == [5, 6, 7]


def test_a_step_writes_only_the_rows_of_its_batch():
    size, optimizer = 1000, optax.sgd(0.1)
    transform = cross_batch_memory(size, D, similarity="dot")
    state = init_state(jax.random.key(0), WEIGHTS, optimizer, transform)
    step = jax.jit(make_train_step(objective, optimizer, transform), donate_argnums=0)
    assert rewritten(step.lower(state, batch(0)).compile(), f"f32[{size},{D}]") == []


def test_its_term_is_the_loss_against_the_memory():
    for i, (state, loss) in enumerate(of_six()[1]):
        losses, outputs = losses_of(state.model, batch(i))
        both, memory = (outputs["query"], outputs["document"]), state.method_state
        term = remember_all(*both, memory.embeddings, batch(i)["id"], memory.ids)
        assert (float(term.sum()) > 0) == (i > 0)
        np.testing.assert_allclose(loss, losses.mean() + 0.5 * term.mean(), rtol=1e-5)


def test_before_its_start_it_remembers_but_does_not_count():
    _, history = run(cross_batch_memory(6, D, start=2), [batch(i) for i in range(3)])
    late = [float(loss - losses_of(state.model, batch(i))[0].mean()) for i, (state, loss) in enumerate(history)]
    assert late[:2] == pytest.approx([0, 0], abs=1e-6)
    assert late[2] > 1e-3


def test_a_document_of_the_same_record_is_no_negative():
    _, history = run(cross_batch_memory(N, D), [batch(0), batch(0) | {"id": batch(0)["id"][::-1].copy()}])
    state, loss = history[1]
    losses, outputs = losses_of(state.model, batch(0))
    unit = lambda x: np.asarray(x) / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = unit(outputs["query"]) @ unit(state.method_state.embeddings).T
    cosines[np.arange(N), np.arange(N)[::-1]] = -np.inf  # the memory's records in reverse
    positive = (unit(outputs["query"]) * unit(outputs["document"])).sum(axis=1)
    term = np.log1p(np.exp((cosines - positive[:, None]) / 0.05).sum(axis=1))
    np.testing.assert_allclose(loss, losses.mean() + term.mean(), rtol=1e-4)


def test_accumulated_micro_batches_are_all_remembered_and_it_chains():
    stacked = jax.tree.map(lambda *x: np.stack(x), batch(0), batch(1))
    state, _ = run(chain(ema(), cross_batch_memory(2 * N, D)), [stacked], accumulate=2)
    np.testing.assert_array_equal(state.method_state[1].ids, np.arange(2 * N))


@pytest.mark.parametrize("option", ["size", "dim", "weight", "temperature"])
def test_bad_numbers(option):
    with pytest.raises(ValueError, match=f"{option} must be > 0; got 0"):
        cross_batch_memory(**{"size": 6, "dim": D} | {option: 0})
    with pytest.raises(ValueError, match="start must be >= 0; got -1"):
        cross_batch_memory(6, D, start=-1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query": "question"}, "needs the objective's output 'question'; it returns document, query"),
        ({"dim": 5}, r"output 'query' must be \[N, 5\]; got \(4, 3\)"),
    ],
)
def test_bad_outputs(options, message):
    with pytest.raises(ValueError, match=message):
        transform = cross_batch_memory(**{"size": 6, "dim": D} | options)
        state = jax.eval_shape(lambda: init_state(jax.random.key(0), WEIGHTS, optax.sgd(0.1), transform))
        jax.eval_shape(make_train_step(objective, optax.sgd(0.1), transform), state, batch(0))
