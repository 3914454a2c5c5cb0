"""Losses of pairs, triplets and teachers: sharding the embeddings changes neither value nor gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxemb import losses

N, K, DIM = 16, 2, 8


def everything(floats, labels):
    first, second, hard, teacher = (floats[name] for name in ("first", "second", "hard", "teacher"))
    pairs = labels % 2
    return (
        losses.angle(first, second, labels)
        + losses.online_contrastive(first, second, pairs)
        + losses.triplet(first, second, hard)
        + losses.batch_all_triplet(first, labels)
        + losses.batch_hard_triplet(first, labels)
        + losses.batch_semi_hard_triplet(first, labels)
        + losses.mega_batch_margin(first, second)
        + losses.orthogonal_regularization(first, second)
        + losses.margin_mse(first, second, hard, teacher)
        + losses.distill_kl(first, second, hard, teacher)
        + losses.m3_kd(first, second, hard, teacher, temperature=0.5)
        + losses.embed_distill(first, second)
        + losses.clip_distill(first, second, second, first, temperature=0.5, teacher_temperature=0.5)
        + losses.contrastive_tension(first, second, pairs)
    ).mean()


@pytest.mark.slow
def test_device_count_does_not_matter():
    rng = np.random.default_rng(0)
    shapes = {"first": (N, DIM), "second": (N, DIM), "hard": (N, K, DIM), "teacher": (N, 1 + K)}
    arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}, jnp.arange(N) // 3
    step = jax.jit(jax.value_and_grad(everything))
    expected = step(*arrays)

    sharding = NamedSharding(Mesh(jax.devices()[:8], "data"), PartitionSpec("data"))
    sharded = step(*jax.device_put(arrays, sharding))
    assert len(sharded[1]["first"].sharding.device_set) == 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), sharded, expected)
