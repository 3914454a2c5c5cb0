"""Chains of methods with teachers, importances and parameters of their own."""

import jax
import jax.numpy as jnp
import optax
from tiny_run import assert_bitwise_equal
from tiny_stream import MODEL, C, learn

from jaxemb.transforms import chain, cross_batch_memory, ema, ewc, frozen, l2, lora, lwf, si

LORA = lora(2, where="w", train="b")


def test_a_chain_of_five_compiles_once_and_each_does_its_part():
    """`learn` asserts that the step was compiled once for all tasks."""
    five = chain(LORA, ewc(5.0), lwf(1.0, classes=C), frozen("b"), ema(0.9))
    states = learn(five, tasks=3)
    adapters, held, distilled, nothing, average = states[-1].method_state
    assert_bitwise_equal(states[-1].model, MODEL)
    assert nothing == adapters == ()
    assert int(distilled.tasks) == 3
    assert float(optax.tree.norm(held.importance)) > 0
    merged = LORA.model(MODEL, states[-1].method_params[0], ())
    assert_bitwise_equal(distilled.teacher, merged)
    moved = lambda model: float(jnp.linalg.norm(model["w"] - MODEL["w"]))
    assert 0 < moved(average.average) < moved(merged)
    light = learn(chain(LORA, ewc(0.0), lwf(0.0, classes=C), frozen("b"), ema(0.9)), tasks=3)
    later = lambda states: optax.tree.norm(
        jax.tree.map(jnp.subtract, states[-1].method_params[0], states[0].method_params[0])
    )
    assert_bitwise_equal(light[0].method_params, states[0].method_params)
    assert float(later(states)) < 0.9 * float(later(light))
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[2])


def test_a_chain_compiles_once_for_a_model_with_weak_types():
    """As new models have them in their norms, whereas what a step returns has none."""
    model = {**MODEL, "b": jnp.full(C, 1.0)}
    assert model["b"].weak_type
    memory = cross_batch_memory(8, C, query="features", document="features")
    learn(chain(LORA, l2(0.1), si(0.1), ema(), memory), model=model)
