import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, value_and_grad

from jaxemb.losses import info_nce, memory_info_nce

rng = np.random.default_rng(0)
N, M, D = 5, 13, 8
QUERIES, DOCUMENTS = rng.normal(size=(2, N, D)).astype(np.float32)
MEMORY = rng.normal(size=(M, D)).astype(np.float32)
IDS, MEMORY_IDS = np.arange(N), np.array([-1, 0, 7, 8, 9, 1, 1, 10, 11, 12, 13, -1, 4])


def by_definition(queries, documents):
    unit = lambda x: x / jnp.linalg.norm(x, axis=1, keepdims=True)
    absent = (MEMORY_IDS == -1)[None, :] | (IDS[:, None] == MEMORY_IDS[None, :])
    negatives = jnp.where(absent, -jnp.inf, unit(queries) @ unit(MEMORY).T / 0.2)
    positive = (unit(queries) * unit(documents)).sum(axis=1, keepdims=True) / 0.2
    return -jax.nn.log_softmax(jnp.concatenate([positive, negatives], axis=1), axis=1)[:, 0]


def with_gradient(loss):
    def total(queries, documents):
        losses = loss(queries, documents)
        return (losses * np.linspace(1, 2, N)).sum(), losses

    return value_and_grad(total, (0, 1), has_aux=True)(QUERIES, DOCUMENTS)


@pytest.mark.parametrize("tile", [1, 2, 512])
def test_value_and_gradient_by_definition(tile):
    ours = lambda q, d: memory_info_nce(q, d, MEMORY, IDS, MEMORY_IDS, temperature=0.2, tile=tile)
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    jax.tree.map(same, with_gradient(ours), with_gradient(by_definition))


def test_with_the_rest_of_a_batch_as_memory_it_is_info_nce():
    np.testing.assert_allclose(
        memory_info_nce(QUERIES, DOCUMENTS, DOCUMENTS, IDS, IDS), info_nce(QUERIES, DOCUMENTS), rtol=1e-5
    )


def test_an_empty_memory_costs_nothing_and_has_no_gradient():
    loss = lambda q: memory_info_nce(q, DOCUMENTS, np.zeros((M, D)), IDS, np.full(M, -1)).sum()
    value, gradient = value_and_grad(loss)(QUERIES)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(QUERIES))


def test_the_memory_has_no_gradient():
    gradient = grad(lambda m: memory_info_nce(QUERIES, DOCUMENTS, m, IDS, MEMORY_IDS).sum())(MEMORY)
    np.testing.assert_array_equal(gradient, np.zeros_like(MEMORY))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory": MEMORY[:, :3]}, r"memory \[M, D\]; got \(5, 8\), \(5, 8\) and \(13, 3\)"),
        ({"documents": DOCUMENTS[:2]}, r"queries and documents must be \[N, D\]"),
        ({"ids": IDS[:2]}, r"N = 5, M = 13; got \(2,\) and \(13,\)"),
        ({"memory_ids": IDS}, r"N = 5, M = 13; got \(5,\) and \(5,\)"),
        ({"temperature": 0.0}, "temperature must be > 0; got 0.0"),
    ],
)
def test_bad_input(change, message):
    arguments = {"queries": QUERIES, "documents": DOCUMENTS, "memory": MEMORY, "ids": IDS, "memory_ids": MEMORY_IDS}
    with pytest.raises(ValueError, match=message):
        memory_info_nce(**arguments | change)
