"""What other libraries give for the losses, values and gradients.

They are frozen in `references/losses.npz`, so that comparing with them needs no torch. `make_losses.py` makes that
file; the slow tests compare with the libraries themselves.
"""

import os
from pathlib import Path

import jax
import numpy as np
import pytest
from libraries import torch

FROZEN = Path(__file__).parent / "references" / "losses.npz"
FREEZE = "JAXEMB_FREEZE"


@pytest.fixture(params=["frozen", pytest.param("live", marks=pytest.mark.slow)])
def agree(request):
    """`agree(ours, theirs, arrays)`: `ours(*arrays)` is `theirs(*tensors)` to 1e-5, and so are the gradients.

    Both give a scalar; `theirs` is called where the libraries are looked at alone.
    """
    calls = 0

    def compare(ours, theirs, arrays):
        nonlocal calls
        key = f"{request.node.module.__name__}.{request.node.name}.{calls}".replace("live", "frozen")
        calls += 1
        expected, *expected_gradients = _live(theirs, arrays, key) if request.param == "live" else _frozen(key)
        # One case of FLOPS has a threshold above all activations.
        assert "test_flops" in key or any(map(np.any, expected_gradients)), "nothing is compared: all gradients are 0"
        value, gradients = jax.jit(jax.value_and_grad(lambda arrays: ours(*arrays)))(arrays)
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
        for gradient, reference in zip(gradients, expected_gradients, strict=True):
            np.testing.assert_allclose(gradient, reference, rtol=1e-5, atol=1e-5)

    return compare


def _live(theirs, arrays, key: str) -> list[np.ndarray]:
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    expected = theirs(*tensors)
    expected.backward()
    gradients = [np.zeros_like(a) if t.grad is None else t.grad.numpy() for a, t in zip(arrays, tensors, strict=True)]
    found = [expected.detach().numpy(), *gradients]
    if FREEZE in os.environ:
        known = dict(np.load(FROZEN)) if FROZEN.exists() else {}
        np.savez_compressed(FROZEN, **known | {f"{key}.{i}": array for i, array in enumerate(found)})
    return found


def _frozen(key: str) -> list[np.ndarray]:
    with np.load(FROZEN) as values:
        count = sum(name.startswith(f"{key}.") for name in values)
        assert count, f"{FROZEN.name} lacks {key}: run tests/parity/make_losses.py"
        return [values[f"{key}.{i}"] for i in range(count)]
