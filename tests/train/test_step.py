import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from tiny_run import assert_bitwise_equal, distance, pair_batch, tiny_model, toy_objective

from jaxemb import parallel
from jaxemb.nn import unit
from jaxemb.train import adamw, decayed, init_state, make_train_step, stack_batches
from jaxemb.transforms import Transform, ema
from jaxemb.trees import by_path
from jaxemb.types import SourceName, Tokens

MODEL = {"w": np.array([1, 2], np.float32)}


def quadratic(model, batch, key):
    """`x_n |w|^2`, `[N]`."""
    return batch["x"] * jnp.sum(jnp.square(model["w"])), {}


def batch_of(*values):
    return {"x": np.array(values, np.float32)}


def step_once(objective, optimizer, batch, transform=None, model=MODEL, accumulate=1):
    state = init_state(jax.random.key(0), model, optimizer, transform or Transform())
    return jax.jit(make_train_step(objective, optimizer, transform, accumulate=accumulate))(state, batch)


def test_one_step_of_gradient_descent_by_hand():
    optimizer = optax.sgd(0.1)
    state, metrics = step_once(quadratic, optimizer, batch_of(1, 2))
    np.testing.assert_allclose(state.model["w"], [1 - 0.1 * 1.5 * 2, 2 - 0.1 * 1.5 * 4], rtol=1e-6)
    assert float(metrics["loss"]) == pytest.approx(1.5 * 5)
    assert float(metrics["grad_norm"]) == pytest.approx(np.hypot(3, 6))
    assert int(state.step) == 1


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        (
            {"loss": lambda losses, *_: jnp.mean(losses)},
            r"Transform.loss of .* must give one value per record, \[N\]; got .*\(\)",
        ),
        (
            {"auxiliary_loss": lambda *_: jnp.ones(2)},
            r"Transform.auxiliary_loss .* must give one number; got .*\(2,\)",
        ),
        ({"after_step": lambda *_: jnp.ones(2)}, r"Transform.after_step of .* must give a state like the one before"),
    ],
)
def test_a_hook_that_gives_something_else_is_named(hooks, message):
    with pytest.raises(ValueError, match=message):
        step_once(quadratic, optax.sgd(0.1), batch_of(1, 2), Transform(**hooks))


def test_an_objective_that_gives_something_else_is_named():
    with pytest.raises(ValueError, match=r"the objective must give one value per record"):
        step_once(lambda *a: (jnp.zeros(()), {}), optax.sgd(0.1), batch_of(1, 2))


def test_the_norm_is_that_before_clipping():
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
    state, metrics = step_once(quadratic, optimizer, batch_of(1.5))
    assert float(metrics["grad_norm"]) == pytest.approx(np.hypot(3, 6))
    assert np.linalg.norm(state.model["w"] - MODEL["w"]) == pytest.approx(1.0)


def test_terms_of_transforms_are_part_of_the_loss():
    penalty = Transform(auxiliary_loss=lambda context, params, state: 3 * jnp.sum(context.model["w"]))
    optimizer = optax.sgd(0.1)
    state, metrics = step_once(quadratic, optimizer, batch_of(0), penalty)
    assert float(metrics["loss"]) == 9
    np.testing.assert_allclose(state.model["w"], [0.7, 1.7], rtol=1e-6)


def test_gradients_of_bfloat16_weights_are_accumulated_in_float32():
    """In bfloat16 a sum of ones stops at 256."""
    model = {"w": jnp.ones((), jnp.bfloat16)}
    linear = lambda model, batch, key: (model["w"] * batch["x"], {})
    batch = {"x": jnp.ones((1024, 1), jnp.bfloat16)}
    state, metrics = step_once(linear, optax.sgd(0.5), batch, model=model, accumulate=1024)
    assert float(metrics["grad_norm"]) == 1.0
    assert state.model["w"].dtype == jnp.bfloat16 and float(state.model["w"]) == 0.5


def test_accumulating_is_the_big_batch_for_losses_of_single_records():
    accumulate = 4
    optimizer = optax.sgd(0.1)
    bag = lambda model, tokens: jnp.tanh(jnp.sum(model["w"][tokens.ids] * tokens.mask[..., None], axis=1))
    objective = lambda model, batch, key: (distance(*(bag(model, batch[c]) for c in ("query", "document"))), {})
    model = {"w": np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)}
    big, big_metrics = step_once(objective, optimizer, pair_batch(range(8)), model=model)
    micro = stack_batches([pair_batch(part) for part in np.split(np.arange(8), accumulate)])
    small, metrics = step_once(objective, optimizer, micro, model=model, accumulate=accumulate)
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(metrics[name], big_metrics[name], rtol=1e-5)
    np.testing.assert_allclose(small.model["w"], big.model["w"], atol=1e-6)
    assert np.any(big.model["w"] != model["w"])


def test_hooks_after_the_loss_see_all_micro_batches():
    shapes = {}

    def auxiliary_loss(context, params, state):
        shapes["auxiliary_loss"] = context.batch["x"].shape
        return jnp.zeros(())

    def after_step(context, params, state):
        shapes["after_step"] = context.batch["x"].shape, context.outputs["double"].shape
        return state

    transform, optimizer = Transform(auxiliary_loss=auxiliary_loss, after_step=after_step), optax.sgd(0.1)
    objective = lambda model, batch, key: (quadratic(model, batch, key)[0], {"double": 2 * batch["x"]})
    batch = {"x": np.ones((3, 5), np.float32)}
    jax.eval_shape(lambda: step_once(objective, optimizer, batch, transform, accumulate=3))
    assert shapes == {"auxiliary_loss": (5,), "after_step": ((3, 5), (3, 5))}


def test_refuses_a_batch_without_the_axis_of_micro_batches():
    with pytest.raises(AssertionError, match="dimension"):
        step_once(quadratic, optax.sgd(0.1), batch_of(1, 2, 3), accumulate=2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing_and_neither_do_later_ones(bad):
    optimizer, transform = optax.adam(0.1), ema(0.9)
    step = jax.jit(make_train_step(quadratic, optimizer, transform), donate_argnums=0)
    state = init_state(jax.random.key(0), MODEL, optimizer, transform)
    state, _ = step(state, batch_of(1, 2))
    before = jax.jit(lambda state: jax.tree.map(jnp.copy, state))(state)
    state, metrics = step(state, batch_of(1, bad))
    assert not metrics["finite"]
    state, metrics = step(state, batch_of(1, 2))
    assert not metrics["finite"] and np.isfinite(metrics["loss"])
    assert_bitwise_equal(state, dataclasses.replace(before, finite=jnp.zeros((), bool)))


def test_a_gradient_that_is_not_finite_counts_too():
    objective = lambda model, batch, key: (batch["x"] * jnp.sum(jnp.sqrt(model["w"] - 1)), {})  # slope inf at w = 1
    after, metrics = step_once(objective, optax.sgd(0.1), batch_of(1))
    assert np.isfinite(metrics["loss"]) and not metrics["finite"]
    assert_bitwise_equal(after.model, MODEL)


def test_the_noise_of_a_step_depends_on_the_step_alone():
    optimizer, batch = optax.sgd(0.0), pair_batch(range(8))
    step = jax.jit(make_train_step(toy_objective, optimizer))
    state = init_state(jax.random.key(0), {"w": jnp.zeros(5)}, optimizer, Transform())
    once, first = step(state, batch)
    _, again = step(state, batch)
    _, second = step(once, batch)
    assert first["loss"] == again["loss"] != second["loss"]


def test_half_precision_computes_in_bfloat16_and_keeps_float32_parameters():
    still = {"dropout": 0.0, "attention_dropout": 0.0}
    batch, optimizer = pair_batch(range(8)), optax.sgd(0.1)
    objective = lambda model, batch, key: (1 - unit(model(batch["query"]))[:, 0], {})
    loss = jax.jit(lambda model: jnp.mean(objective(model, batch, None)[0]))
    full, half = tiny_model(**still), tiny_model(dtype="bfloat16", **still)
    assert float(loss(half)) == pytest.approx(float(loss(full)), rel=0.02)
    assert loss(half) != loss(full)
    state = init_state(jax.random.key(0), half, optimizer, Transform())
    after, metrics = jax.eval_shape(make_train_step(objective, optimizer), state, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves((after.model, metrics["loss"]))} == {jnp.dtype("float32")}


def test_the_state_shares_no_buffer_with_the_model_it_was_made_from():
    model, optimizer, transform = {"w": jnp.ones(3)}, optax.sgd(0.1), ema(0.9)
    step = jax.jit(make_train_step(quadratic, optimizer, transform), donate_argnums=0)
    step(init_state(jax.random.key(0), model, optimizer, transform), batch_of(1))
    np.testing.assert_array_equal(model["w"], np.ones(3))


def test_refuses_to_accumulate_less_than_one():
    with pytest.raises(ValueError, match="accumulate must be at least 1; got 0"):
        make_train_step(quadratic, optax.sgd(0.1), accumulate=0)


class TestStackBatches:
    def test_pads_to_the_largest_and_renumbers_the_slots(self):
        one = {"id": np.zeros(1)}
        small = Tokens(*[np.ones((1, 2), np.int32)] * 3, slots=np.array([0]), texts_per_row=1)
        large = Tokens(*[np.full((2, 3), 2, np.int32)] * 3, slots=np.array([3]), texts_per_row=2)
        tokens = stack_batches([{"a": small} | one, {"a": large} | one])["a"]
        np.testing.assert_array_equal(tokens.ids, [[[1, 1, 0], [0, 0, 0]], [[2, 2, 2], [2, 2, 2]]])
        np.testing.assert_array_equal(tokens.slots, [[0], [3]])
        assert tokens.texts_per_row == 2

    def test_keeps_every_text_where_its_slot_says(self):
        segment_ids = np.array([[1, 2, 0], [1, 1, 2]], np.int32)
        packed = Tokens(segment_ids, segment_ids, segment_ids * 0, slots=np.array([1, 2]), texts_per_row=2)
        wide = Tokens(*[np.ones((3, 4), np.int32)] * 3, slots=np.array([0, 5]), texts_per_row=3)
        tokens = stack_batches([{"a": packed, "id": np.zeros(2)}, {"a": wide, "id": np.zeros(2)}])["a"]
        np.testing.assert_array_equal(tokens.slots, [[1, 3], [0, 5]])  # rows 0 and 1, segments 2 and 1, S = 3

    def test_the_padding_changes_no_embedding(self):
        model, indices = tiny_model(), np.arange(3)
        short = jax.tree.map(lambda a: a[:, :8], pair_batch(indices)["query"])
        long = jax.tree.map(lambda a: np.pad(a, ((0, 0), (0, 4))), short)
        stacked = stack_batches([{"q": short, "id": indices}, {"q": long, "id": indices}])["q"]
        first = jax.tree.map(lambda a: a[0], stacked)
        embed = jax.jit(lambda model, tokens: model(tokens))
        np.testing.assert_allclose(embed(model, first), embed(model, short), atol=1e-6)

    def test_refuses_different_numbers_of_records(self):
        with pytest.raises(ValueError, match=r"the same number of records; got \[3, 4\]"):
            stack_batches([pair_batch(range(4)), pair_batch(range(3))])

    def test_refuses_different_sources(self):
        of = lambda name: pair_batch(range(4)) | {"source_name": SourceName(name)}
        assert stack_batches([of("nli"), of("nli")])["source_name"] == SourceName("nli")
        with pytest.raises(ValueError, match=r"must be of one source; got \['nli', 'stsb'\]"):
            stack_batches([of("nli"), of("stsb")])


class TestAdamw:
    def rates(self, steps, rate=1.0, taken=None, **settings):
        optimizer = adamw(rate, steps, **settings)
        params = {"kernel": np.ones((2, 2), np.float32)}
        state, seen, update = jax.jit(optimizer.init)(params), [], jax.jit(optimizer.update)
        for _ in range(taken or steps):
            _, state = update(params, state, params)
            seen.append(float(optax.tree.get(state, "hyperparams")["learning_rate"]))
        return seen

    def test_linear_warm_up_and_decay(self):
        assert self.rates(8, warmup=0.5) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25])

    def test_stays_at_0_after_the_end(self):
        for schedule in ("linear", "cosine"):
            assert self.rates(12, 1e-2, taken=20, schedule=schedule)[12:] == [0.0] * 8

    def test_cosine(self):
        expected = [0.5 * (1 + np.cos(np.pi * t / 4)) for t in range(4)]
        assert self.rates(4, warmup=0.0, schedule="cosine") == pytest.approx(expected)

    def test_constant(self):
        assert self.rates(4, warmup=0.25, schedule="constant") == [1.0] * 4

    def test_decays_kernels_and_tables_only(self):
        mask = decayed(tiny_model())
        assert mask.encoder.embeddings.tokens and mask.encoder.layers.attention.query.kernel
        assert not mask.encoder.layers.attention.query.bias  # [L, D]: stacked, but a bias
        assert not mask.encoder.layers.mlp_norm.weight and not mask.encoder.embeddings.norm.weight
        optimizer = adamw(0.1, 2, warmup=0.0, weight_decay=1.0, max_grad_norm=None)
        params = {"kernel": np.ones((2, 2), np.float32), "bias": np.ones((2, 2), np.float32)}
        still = jax.tree.map(np.zeros_like, params)
        updates, _ = jax.jit(lambda p: optimizer.update(still, optimizer.init(p), p))(params)
        np.testing.assert_allclose(updates["kernel"], -0.1)
        np.testing.assert_array_equal(updates["bias"], 0)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"steps": 0}, "steps must be at least 1; got 0"),
            ({"steps": 5, "warmup": 1.0}, r"warmup must be in \[0, 1\); got 1.0"),
            ({"steps": 5, "learning_rate": -1}, "learning_rate must be >= 0; got -1"),
            ({"steps": 5, "weight_decay": -1}, "weight_decay must be >= 0; got -1"),
            ({"steps": 5, "max_grad_norm": -1}, "max_grad_norm must be > 0; got -1"),
            ({"steps": 5, "b1": 1}, r"b1 must be in \[0, 1\); got 1"),
            ({"steps": 5, "b2": -1}, r"b2 must be in \[0, 1\); got -1"),
            ({"steps": 5, "eps": 0}, "eps must be > 0; got 0"),
            (
                {"steps": 5, "schedule": "step"},
                r"schedule must be one of \['constant', 'cosine', 'linear'\]; got 'step'",
            ),
        ],
    )
    def test_refuses(self, settings, message):
        with pytest.raises(ValueError, match=message):
            adamw(**{"learning_rate": 1e-3, **settings})


def test_the_state_is_made_where_the_rules_say():
    """The optimiser's moments and the averages lie as the weights do, and are those of one device."""
    mesh = parallel.make_mesh(1, 2, 2, devices=jax.devices()[:4])
    model, optimizer, transform = tiny_model(), adamw(1e-2, 10), ema(0.9)
    state, whole = (init_state(jax.random.key(0), model, optimizer, transform, mesh=m) for m in (mesh, None))
    assert_bitwise_equal(state, whole)
    kernels = {path: leaf for path, leaf in by_path(state).items() if path.endswith("mlp.up.kernel")}
    assert len(kernels) == 4  # weights, two moments, average
    assert {leaf.sharding.spec for leaf in kernels.values()} == {PartitionSpec(None, "fsdp", "tensor")}
    with pytest.raises(ValueError, match=r"encoder\..* the 3 devices of fsdp"):
        mesh = parallel.make_mesh(1, 3, devices=jax.devices()[:3])
        init_state(jax.random.key(0), model, optimizer, transform, mesh=mesh)
