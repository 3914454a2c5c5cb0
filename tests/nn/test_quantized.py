"""Quantised kernels are what bitsandbytes and llama.cpp make of the same matrices, and stand where kernels stand."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxemb.nn import (
    Layout,
    Linear,
    Quantized,
    QuantizedScales,
    Stack,
    StackConfig,
    dense_kernels,
    quantize,
    quantize_base,
    quantized,
)
from jaxemb.transforms import identity, lora, trained_arrays
from jaxemb.trees import by_path

DENSE = jax.jit(Quantized.dense)
INIT = jax.jit(Stack.init, static_argnums=1)


@pytest.fixture(scope="module")
def theirs():
    with np.load(Path(__file__).with_name("references") / "bitsandbytes.npz") as arrays:
        return dict(arrays)


def kernel_of(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_the_values_of_both_tables(theirs):
    np.testing.assert_array_equal(quantized.NF4, theirs["nf4"])
    np.testing.assert_allclose(quantized.FLOAT8, theirs["float8"], atol=1e-7)


def test_nf4_of_bitsandbytes(theirs):
    ours = quantize(jnp.asarray(theirs["single/weight"].T), "nf4")
    np.testing.assert_array_equal(np.asarray(ours.codes).T, theirs["single/codes"])
    np.testing.assert_array_equal(np.ravel(np.asarray(ours.scales).T), theirs["single/scales"])
    np.testing.assert_array_equal(np.asarray(DENSE(ours)).T, theirs["single/values"])


def test_double_quantisation_of_bitsandbytes(theirs):
    """Of one block for each output, whose groups of 256 are then the same."""
    ours = quantize(jnp.asarray(theirs["double/weight"].T), "nf4", double=True)
    np.testing.assert_array_equal(np.asarray(ours.codes).T, theirs["double/codes"])
    # The mean is a sum in another order, which moves the few that are halfway between two.
    apart = np.abs(np.ravel(ours.scales.codes).astype(int) - theirs["double/scales"])
    assert apart.max() <= 1 and apart.mean() < 0.01
    np.testing.assert_allclose(np.ravel(ours.scales.steps), theirs["double/steps"], rtol=1e-6)
    np.testing.assert_allclose(np.ravel(ours.scales.mean), theirs["double/mean"], rtol=1e-6)
    scales = QuantizedScales(*(theirs[f"double/{n}"].reshape(1, -1) for n in ("scales", "steps", "mean")))
    dense = DENSE(Quantized(ours.codes, jax.tree.map(jnp.asarray, scales)))
    np.testing.assert_allclose(np.asarray(dense).T, theirs["double/values"], rtol=1e-6)


def test_int8_of_llama_cpp():
    gguf = pytest.importorskip("gguf")
    kernel, kind = kernel_of((64, 7)), gguf.GGMLQuantizationType.Q8_0
    stored = gguf.quantize(np.asarray(kernel).T, kind)
    ours = quantize(kernel, "int8", block=32)
    np.testing.assert_array_equal(
        np.asarray(ours.codes).T, stored.reshape(7, 2, 34)[..., 2:].view(np.int8).reshape(7, 64)
    )
    np.testing.assert_allclose(np.asarray(DENSE(ours)).T, gguf.dequantize(stored, kind), atol=2e-3)  # their scales: f16


@pytest.mark.parametrize("dtype", quantized.DTYPES)
def test_a_stack_of_layers_runs_and_passes_gradients_through(dtype):
    config = StackConfig(dim=16, layers=3, heads=2, mlp_dim=24, dropout=0.0, attention_dropout=0.0)
    stack = quantize_base(INIT(jax.random.key(0), config), dtype, block=8)
    kernels = [
        leaf for leaf in by_path(stack, lambda n: isinstance(n, Quantized)).values() if isinstance(leaf, Quantized)
    ]
    assert len(kernels) == 6 and {k.kind for k in kernels} == {dtype} and kernels[0].scales.shape[-2] == 2
    x, layout = kernel_of((2, 5, 16)), Layout(jnp.ones((2, 5), jnp.int32), jnp.tile(jnp.arange(5), (2, 1)))

    @jax.jit
    def both(stack, x):
        return jax.value_and_grad(lambda x: jnp.sum(jnp.square(stack(x, layout))))(x)

    for got, expected in zip(both(stack, x), both(jax.jit(dense_kernels)(stack), x), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    first = stack.truncate(1)
    assert first.layers.mlp.up.kernel.shape == (1, 16, 24)


def test_no_float_copy_of_the_layers_is_kept_for_the_backward_pass():
    layers = Linear(quantize(kernel_of((8, 64, 64)), "nf4"))
    x = kernel_of((2, 64))

    def loss(x, layers):
        return jnp.sum(jax.lax.scan(lambda x, layer: (jnp.tanh(layer(x)), None), x, layers)[0])

    of = lambda layers: jax.jit(jax.grad(loss)).lower(x, layers).compile().memory_analysis().temp_size_in_bytes
    assert of(layers) < 8 * 64 * 64 * 4 / 2  # bytes of all layers in float32, of which one is held at a time


def test_what_is_quantised_is_not_trained():
    model = {"layers": {"up": Linear(quantize(kernel_of((8, 4)), "int8")), "down": Linear(kernel_of((4, 8)))}}
    with pytest.raises(ValueError, match=r"layers\.up\.kernel is quantised, and so cannot be trained: train adapters"):
        trained_arrays(identity(), model)
    assert not any(jax.tree.leaves(trained_arrays(lora(2, where="up"), model)))


@pytest.mark.parametrize("magnitudes", [False, True])
def test_adapters_beside_a_kernel_are_those_merged_into_it(magnitudes):
    """Outputs and gradients, of LoRA and DoRA, over an array and over a quantised kernel."""
    kernel, x = kernel_of((2, 16, 12)), kernel_of((2, 3, 16))
    base = quantize(kernel, "nf4", block=16)
    kinds = {"array": (kernel, True, kernel), "nf4": (base, False, DENSE(base))}

    def outputs(params, model, beside):
        changed = lora(2, alpha=4.0, where="kernel", beside=beside).model(model, params, ())
        return jax.vmap(lambda layer, x: layer(x))(changed["linear"], x)

    outputs = jax.jit(outputs, static_argnums=2)
    gradient = jax.jit(jax.grad(lambda *a: jnp.sum(jnp.square(outputs(*a)))), static_argnums=2)
    for stored, beside, plain in kinds.values():
        transform = lora(2, where="kernel", magnitudes=magnitudes)
        params = transform.init(jax.random.key(0), {"linear": Linear(stored)}).params
        params = jax.tree.map(lambda p: p + 0.1, params)
        for function in (outputs, gradient):
            got = function(params, {"linear": Linear(stored)}, beside)
            expected = function(params, {"linear": Linear(plain)}, False)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), got, expected)


def test_adapters_to_go_on_with():
    model = {"linear": Linear(quantize(kernel_of((8, 4)), "nf4"))}
    start = lora(2, where="kernel").init(jax.random.key(1), model).params
    params = lora(2, start=start).init(jax.random.key(0), model).params
    jax.tree.map(np.testing.assert_array_equal, params, start)
    assert optax.tree.norm(params) > 0
    wrong = {"linear.kernel": start["linear.kernel"]._replace(up=jnp.ones((2, 5)))}
    with pytest.raises(ValueError, match=r"start\['linear.kernel'\] must have the shapes"):
        lora(2, start=wrong).init(jax.random.key(0), model)


def test_bad_kernels():
    with pytest.raises(ValueError, match=r"kernel of shape \[7, 4\] must have an even number of inputs to be nf4"):
        quantize(jnp.ones((7, 4)), "nf4")
    with pytest.raises(ValueError, match="where must choose a kernel of a linear layer; 'nothing' chooses none of up"):
        quantize_base({"up": Linear(jnp.ones((4, 4)))}, "int8", where="nothing")
    with pytest.raises(ValueError, match="dtype must be one of"):
        quantize(jnp.ones((4, 4)), "int4")
