import jax
import numpy as np
import pytest
import torch

from jaxemb.encoders import Mlp


@pytest.mark.parametrize("final_activation", [True, False])
def test_equals_torch(final_activation):
    model = Mlp.init(jax.random.key(0), [6, 5, 3], final_activation=final_activation)
    linears = [torch.nn.Linear(6, 5), torch.nn.Linear(5, 3)]
    for ours, theirs in zip(model.layers, linears, strict=True):
        theirs.weight.data = torch.tensor(np.array(ours.kernel.T))
        theirs.bias.data = torch.tensor(np.array(ours.bias))
    relu = torch.nn.ReLU()
    torch_model = torch.nn.Sequential(linears[0], relu, linears[1], *([relu] if final_activation else []))
    x = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
    with torch.no_grad():
        expected = torch_model(torch.tensor(x.reshape(4, 6))).numpy()
    np.testing.assert_allclose(model(x), expected, atol=1e-6)


def test_starts_uniform_in_one_over_the_root_of_the_inputs():
    kernel = np.asarray(Mlp.init(jax.random.key(0), [100, 50]).layers[0].kernel)
    assert np.abs(kernel).max() <= 0.1
    np.testing.assert_allclose(kernel.std(), 0.1 / np.sqrt(3), rtol=0.05)


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match=r"two or more numbers of at least 1; got \(3,\)"):
        Mlp.init(jax.random.key(0), [3])
    with pytest.raises(ValueError, match="inputs must have 3 values each; got 4"):
        Mlp.init(jax.random.key(0), [3, 2])(np.zeros((2, 4), np.float32))
