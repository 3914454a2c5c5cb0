"""Exact search over a corpus that is split over devices."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxemb.retrieval import topk_search


def mesh_of(*shape):
    devices = jax.devices()[: int(np.prod(shape))]
    return Mesh(np.array(devices).reshape(shape), ("data", "fsdp")[: len(shape)])


@pytest.mark.parametrize(
    ("mesh_shape", "n", "corpus_chunk"),
    [
        *[((8,), 61, 1000), ((8,), 5, 1000), ((4, 2), 61, 16), ((2,), 9000, 10_000)],
        *(pytest.param((1,), n, chunk, marks=pytest.mark.slow) for n, chunk in [(61, 1000), (61, 16), (5, 1000)]),
        *(pytest.param((2,), n, chunk, marks=pytest.mark.slow) for n, chunk in [(61, 1000), (61, 16), (5, 1000)]),
        *(pytest.param((8,), n, chunk, marks=pytest.mark.slow) for n, chunk in [(61, 16), (9000, 10_000)]),
        *(pytest.param((4, 2), n, chunk, marks=pytest.mark.slow) for n, chunk in [(61, 1000), (9000, 10_000)]),
    ],
)
def test_device_count_does_not_matter_ties_included(mesh_shape, n, corpus_chunk):
    rng = np.random.default_rng(0)
    queries, corpus = (rng.integers(-1, 2, (rows, 4)).astype(np.float32) for rows in (6, n))
    options = {"metric": "dot", "corpus_chunk": corpus_chunk, "exclude_ids": np.arange(6)[:, None]}
    expected = topk_search(queries, corpus, 10, **options)
    found = topk_search(queries, corpus, 10, mesh=mesh_of(*mesh_shape), **options)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_corpus_can_be_split_over_one_axis_of_the_mesh():
    rng = np.random.default_rng(0)
    queries, corpus = rng.standard_normal((6, 8), np.float32), rng.standard_normal((50, 8), np.float32)
    _, expected = topk_search(queries, corpus, 10)
    _, ids = topk_search(queries, corpus, 10, mesh=mesh_of(2, 4), corpus_axis="fsdp")
    np.testing.assert_array_equal(ids, expected)
    with pytest.raises(ValueError, match=r"axes \('data', 'fsdp'\); got \['tensor'\]"):
        topk_search(queries, corpus, 10, mesh=mesh_of(2, 4), corpus_axis="tensor")


def test_a_corpus_that_lies_on_the_devices_is_searched_there():
    corpus, mesh = np.random.default_rng(0).standard_normal((64, 8), np.float32), mesh_of(8)
    split = jax.device_put(corpus, NamedSharding(mesh, PartitionSpec("data")))
    for chunk in (64, 16):
        found = topk_search(corpus[:6], split, 10, mesh=mesh, corpus_chunk=chunk)
        for ours, theirs in zip(found, topk_search(corpus[:6], corpus, 10), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_values_that_are_not_finite_are_named_on_every_device():
    corpus = np.ones((50, 8), np.float32)
    corpus[33, 1] = np.nan
    with pytest.raises(ValueError, match="corpus row 33 holds"):
        topk_search(np.ones((2, 8), np.float32), corpus, 10, mesh=mesh_of(8))
