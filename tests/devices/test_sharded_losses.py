"""Losses are written for the global batch: sharding the embeddings over devices changes neither value nor gradient."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxemb import losses

N, K, DIM = 16, 2, 8


def everything(arrays):
    queries, documents, hard, ids, scores = (arrays[name] for name in ("queries", "documents", "hard", "ids", "scores"))
    mask = losses.duplicates(ids, ids, ids[:, None] + np.arange(K))
    contrastive = losses.info_nce(queries, documents, hard, directions=("q2d", "d2q", "q2q", "d2d"), mask=mask)
    return (
        contrastive + losses.symmetric_info_nce(queries, documents) + losses.cosent(queries, documents, scores)
    ).mean()


step = jax.jit(jax.value_and_grad(lambda floats, rest: everything(floats | rest)))


@pytest.mark.parametrize("devices", [pytest.param(2, marks=pytest.mark.slow), 8])
def test_device_count_does_not_matter(devices):
    rng = np.random.default_rng(0)
    floats = {"queries": (N, DIM), "documents": (N, DIM), "hard": (N, K, DIM)}
    arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in floats.items()}
    arrays |= {"ids": rng.integers(0, 9, N), "scores": rng.integers(0, 5, N).astype(np.float32)}
    split = lambda: ({name: arrays[name] for name in floats}, {name: arrays[name] for name in ("ids", "scores")})
    expected = step(*split())

    sharding = NamedSharding(Mesh(jax.devices()[:devices], "data"), PartitionSpec("data"))
    sharded = step(*jax.device_put(split(), sharding))
    assert len(sharded[1]["queries"].sharding.device_set) == devices
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), sharded, expected)
