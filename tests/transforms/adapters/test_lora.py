from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_run import PAIRWISE, assert_bitwise_equal, pair_batch, tiny_model
from tiny_stream import MODEL, learn

import jaxemb
from jaxemb.nn import Adapter, merge_lora
from jaxemb.train import adamw, apply_transform, init_state, make_train_step
from jaxemb.transforms import lora


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_outputs_gradients_and_merged_kernels_of_peft(kind):
    with np.load(Path(__file__).parents[1] / "references" / "peft.npz") as arrays:
        peft = {name.split("/")[1]: arrays[name] for name in arrays if name.startswith(kind)}
    adapters = {"kernel": Adapter(peft["down"], peft["up"], peft.get("magnitude"))}

    @jax.jit
    def outputs(adapters):
        return peft["x"] @ merge_lora({"kernel": peft["kernel"]}, adapters, scale=3.0)["kernel"]

    np.testing.assert_allclose(outputs(adapters), peft["y"], rtol=1e-4, atol=1e-5)
    merged = merge_lora({"kernel": peft["kernel"]}, adapters, scale=3.0)["kernel"]
    np.testing.assert_allclose(merged, peft["merged"], rtol=1e-5, atol=1e-6)
    gradients = jax.jit(jax.grad(lambda adapters: jnp.sum(jnp.square(outputs(adapters)))))(adapters)["kernel"]
    for name in adapters["kernel"]._fields:
        if name in peft:
            expected = peft[f"{name}_gradient"]
            np.testing.assert_allclose(getattr(gradients, name), expected, rtol=1e-3, atol=1e-3, err_msg=name)


def test_the_base_is_frozen_and_what_is_to_train_trains():
    state = learn(lora(2, where="^w$", train="^b$"), tasks=1)[0]
    assert_bitwise_equal(state.model["w"], MODEL["w"])
    assert np.all(state.model["b"] != MODEL["b"])
    assert np.all(state.method_params["w"].up != 0)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"magnitudes": True, "train": r"norm\.bias$"}])
def test_training_a_scanned_encoder(options):
    model, optimizer = tiny_model(dropout=0.0), optax.adamw(1e-2, weight_decay=0.1)
    transform = lora(3, alpha=6.0, **options)
    state = init_state(jax.random.key(0), model, optimizer, transform)
    start = jax.tree.map(jnp.copy, state.method_params)
    batch = pair_batch(range(8))
    losses = jax.jit(lambda model: PAIRWISE(model, batch, None)[0])
    before = losses(model)
    np.testing.assert_allclose(losses(apply_transform(transform, state)), before, atol=1e-5)
    step = jax.jit(make_train_step(PAIRWISE, optimizer, transform))
    for _ in range(3):
        state, _ = step(state, batch)

    paths = {"encoder.layers.attention.query.kernel", "encoder.layers.attention.value.kernel"}
    assert set(state.method_params) == paths
    query = state.method_params["encoder.layers.attention.query.kernel"]
    assert query.down.shape == (2, 16, 3)
    assert query.up.shape == (2, 3, 16)
    assert (query.magnitude is not None) == bool(options)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), state.method_params, start)
    assert all(jax.tree.leaves(moved))

    merged = apply_transform(transform, state)
    assert jax.tree.structure(merged) == jax.tree.structure(model)
    assert losses(merged).mean() < before.mean()
    for (path, now), then in zip(jax.tree_util.tree_leaves_with_path(state.model), jax.tree.leaves(model), strict=True):
        is_trained = bool(options) and jax.tree_util.keystr(path, simple=True, separator=".").endswith("norm.bias")
        assert bool(jnp.any(now != then)) == is_trained, path


def test_the_rank_of_the_change_and_its_scales():
    model = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(6, 5)), jnp.float32)}
    adapters = {"kernel": Adapter(jnp.ones((6, 4)), jnp.ones((4, 5)))}
    change = lambda transform: transform.model(model, adapters, ())["kernel"] - model["kernel"]
    where = {"where": "kernel"}
    np.testing.assert_allclose(change(lora(4, **where)), 4.0, rtol=1e-5)
    np.testing.assert_allclose(change(lora(4, alpha=8.0, **where)), 8.0, rtol=1e-5)
    np.testing.assert_allclose(change(lora(4, alpha=8.0, rank_stabilized=True, **where)), 16.0, rtol=1e-5)
    params, _ = lora(2, **where).init(jax.random.key(0), model)
    assert float(jnp.abs(params["kernel"].down).max()) <= 1 / np.sqrt(6)
    assert_bitwise_equal(params["kernel"].up, jnp.zeros((2, 5)))


def test_bad_options():
    model = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
    with pytest.raises(ValueError, match="rank must be at least 1; got 0"):
        lora(0)
    with pytest.raises(ValueError, match="chooses none of bias, kernel"):
        lora(1).init(jax.random.key(0), model)
    with pytest.raises(ValueError, match=r"where must choose kernels \[..., in, out\]; got bias \(2,\)"):
        lora(1, where="").init(jax.random.key(0), model)


def test_the_optimiser_knows_the_adapters_alone(minilm):
    """Of MiniLM's 22.7 M numbers none has moments, and they may be bfloat16."""
    model = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), jaxemb.load(minilm).model)
    transform, optimizer = lora(8), adamw(1e-3, 100)
    state = jax.eval_shape(lambda: init_state(jax.random.key(0), model, optimizer, transform))
    numbers = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    adapters, counters = numbers(state.method_params), sum(leaf.ndim == 0 for leaf in jax.tree.leaves(state.opt_state))
    assert adapters == 2 * 6 * 2 * 384 * 8
    assert numbers(state.opt_state) == 2 * adapters + counters
    assert {leaf.dtype for leaf in jax.tree.leaves(state.method_params)} == {jnp.dtype("float32")}


def test_a_base_in_bfloat16_stays_as_it_is():
    model = {"w": MODEL["w"].astype(jnp.bfloat16), "b": MODEL["b"]}
    state = learn(lora(2, where="^w$", train="^b$"), tasks=1, model=model)[0]
    assert_bitwise_equal(state.model["w"], model["w"])
    assert np.all(state.method_params["w"].up != 0) and state.method_params["w"].up.dtype == jnp.float32
