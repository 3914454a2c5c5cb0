import jax
import numpy as np
import pytest

from jaxemb.encoders import Mlp


@pytest.mark.parametrize("final_activation", [True, False])
def test_is_linear_layers_with_relu_between_them(final_activation):
    init = lambda key: Mlp.init(key, [6, 5, 3], final_activation=final_activation)
    model = jax.device_get(jax.jit(init)(jax.random.key(0)))
    first, second = model.layers
    x = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
    expected = np.maximum(x.reshape(4, 6) @ first.kernel + first.bias, 0) @ second.kernel + second.bias
    expected = np.maximum(expected, 0) if final_activation else expected
    np.testing.assert_allclose(jax.jit(lambda model, x: model(x))(model, x), expected, atol=1e-6)


def test_starts_uniform_in_one_over_the_root_of_the_inputs():
    kernel = np.asarray(jax.jit(lambda key: Mlp.init(key, [100, 50]))(jax.random.key(0)).layers[0].kernel)
    assert np.abs(kernel).max() <= 0.1
    np.testing.assert_allclose(kernel.std(), 0.1 / np.sqrt(3), rtol=0.05)


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match=r"two or more numbers of at least 1; got \(3,\)"):
        Mlp.init(jax.random.key(0), [3])
    with pytest.raises(ValueError, match="inputs must have 3 values each; got 4"):
        Mlp.init(jax.random.key(0), [3, 2])(np.zeros((2, 4), np.float32))
