"""Arrays of mergekit 0.1.5 (`sparsify.magnitude`, `get_mask(deltas, "sum")`, `slerp`), made once and kept beside."""

from pathlib import Path

import jax
import numpy as np
import pytest

from jaxemb.merging import merge_slerp, merge_ties, task_vector

NAMES = ("kernel", "bias")


@pytest.fixture(scope="module")
def arrays():
    return np.load(Path(__file__).with_name("mergekit_0_1_5.npz"))


@pytest.mark.parametrize("density", [0.2, 0.5])
def test_ties(arrays, density):
    base = {name: arrays[f"base/{name}"] for name in NAMES}
    models = [{name: arrays[f"models/{name}"][i] for name in NAMES} for i in range(3)]

    @jax.jit
    def merge(base, models):
        vectors = [task_vector(model, base) for model in models]
        return merge_ties(base, vectors, density=density, scope="tensor", zero_sum="positive")

    merged = merge(base, models)
    for name in NAMES:
        np.testing.assert_allclose(merged[name], arrays[f"ties/{density}/{name}"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("t", [0.25, 0.5])
def test_slerp(arrays, t):
    first, second = ({name: arrays[f"models/{name}"][i] for name in NAMES} for i in range(2))
    merged = jax.jit(lambda first, second: merge_slerp(first, second, t))(first, second)
    for name in NAMES:
        np.testing.assert_allclose(merged[name], arrays[f"slerp/{t}/{name}"], rtol=1e-5, atol=1e-6)
