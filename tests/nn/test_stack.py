"""A stack on its own, with nothing of any modality before it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxemb.nn import Layout, Module, Stack, StackConfig
from jaxemb.nn.self_attention import View

CONFIG = StackConfig(dim=16, layers=3, heads=2, mlp_dim=32, norm_placement="pre", final_norm=True, dropout=0.0)
X = np.random.default_rng(0).normal(size=(2, 12, 16)).astype(np.float32)
SEGMENTS = np.repeat([[1, 2, 0]], [5, 4, 3], axis=1).repeat(2, axis=0).astype(np.int32)
LAYOUT = Layout(SEGMENTS, np.broadcast_to(np.arange(12, dtype=np.int32), (2, 12)))


@functools.cache
def stack() -> Stack:
    made = jax.jit(lambda key: Stack.init(key, CONFIG))(jax.random.key(0))
    return jax.tree.map(lambda a: np.asarray(5 * a if a.ndim > 2 else a), jax.device_get(made))


@nnx.dataclass
class Shift(Module):
    """Of all layers, stacked."""

    by: jax.Array = nnx.data()

    def __call__(self, x):
        return x + self.by


@functools.partial(jax.jit, static_argnames="all_states")
def run(stack, before=None, all_states=False):
    return stack(X, LAYOUT, all_states=all_states, before=before)


def test_it_is_its_layers_one_after_the_other():
    shift = Shift(np.random.default_rng(1).normal(size=(3, 16)).astype(np.float32))

    @jax.jit
    def by_hand(stack, shift):
        states = [x := jnp.asarray(X)]
        view = View(SEGMENTS, None, None, None)
        for number in range(3):
            layer = jax.tree.map(lambda leaf, n=number: leaf[n], stack.layers)
            x = layer(x + shift.by[number], CONFIG, view, is_first=number == 0, key=None)
            states.append(x)
        return jnp.stack([*states[:-1], stack.final_norm(x)])

    np.testing.assert_allclose(run(stack(), shift, all_states=True), by_hand(stack(), shift), atol=1e-5)


def test_a_stack_cut_is_what_is_read_at_its_depth():
    deep = jax.jit(lambda s: s.at_layers(X, LAYOUT, (2, 0, 3), lambda x: x))(stack())
    np.testing.assert_allclose(deep[0], run(stack().truncate(2)), atol=1e-6)
    np.testing.assert_allclose(deep[1], stack().final_norm(X), atol=1e-6)
    np.testing.assert_allclose(deep[2], run(stack()), atol=1e-6)
    for cut, most in ((lambda: stack().truncate(0), "1..3"), (lambda: stack().truncate(4), "1..3")):
        with pytest.raises(ValueError, match=rf"layers must be in {most}"):
            cut()
    with pytest.raises(ValueError, match=r"layers must be in 0\.\.3, .*; got \(4,\)"):
        stack().at_layers(X, LAYOUT, (4,), lambda x: x)


def test_remat_keeps_less():
    """By XLA's own account of the temporaries of a gradient."""

    def temporaries(remat):
        config = dataclasses.replace(CONFIG, layers=6, remat=remat)
        model = jax.eval_shape(lambda: Stack.init(jax.random.key(0), config))
        x, ids = jax.ShapeDtypeStruct((8, 64, 16), jnp.float32), jax.ShapeDtypeStruct((8, 64), jnp.int32)
        loss = lambda model, x, layout: jnp.sum(jnp.square(model(x, layout)))
        compiled = jax.jit(jax.grad(loss)).lower(model, x, Layout(ids, ids)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    full, dots, none = map(temporaries, ("full", "dots", "none"))
    assert full < 0.8 * dots < 0.8 * 0.8 * none


@pytest.mark.parametrize(("unroll", "prevents"), [(1, False), (2, False), (3, True)])
def test_what_is_computed_again_is_merged_with_nothing(unroll, prevents):
    """Without a loop between them, XLA would merge it with what was computed at first."""
    config = dataclasses.replace(CONFIG, remat="full", unroll=unroll)
    operations = str(jax.make_jaxpr(lambda stack: dataclasses.replace(stack, config=config)(X, LAYOUT))(stack()))
    assert ("prevent_cse=True" in operations) == prevents
