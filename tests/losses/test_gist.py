import functools

import jax
import numpy as np
import pytest
from compiled import value_and_grad

from jaxemb.losses import gist, info_nce

rng = np.random.default_rng(0)
N, D = 7, 6
QUERIES, DOCUMENTS, NEGATIVES = rng.standard_normal((3, N, D)).astype(np.float32)


def circle(*degrees):
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 0.635439), (0.5, 0.624120)])
def test_worked_out_on_the_circle(temperature, expected):
    guide = {"guide_queries": circle(0, 10), "guide_documents": circle(40, 5)}
    losses = gist(circle(0, 90), circle(60, 60), **guide, temperature=temperature)
    np.testing.assert_allclose(losses, [0.0, 2 * expected], rtol=2e-6, atol=1e-6)


def test_a_guide_that_tells_nothing_apart_masks_nothing():
    same = np.ones((N, 3))
    losses = gist(
        QUERIES, DOCUMENTS, NEGATIVES, guide_queries=same, guide_documents=same, guide_negatives=same, margin=0.0
    )
    unguided = info_nce(QUERIES, DOCUMENTS, NEGATIVES, temperature=0.01, directions=("q2d", "q2q", "p2p"))
    np.testing.assert_allclose(losses, unguided, rtol=1e-5)


def test_a_guide_that_knows_the_classes_masks_all_of_the_own_class():
    labels = np.array([0, 1, 0, 2, 2, 0, 1])
    classes, same = np.eye(3, dtype=np.float32)[labels], labels[:, None] == labels
    # Not quite one-hot, so that the own pair is the furthest of its class: nothing else is a matter of ties.
    documents = classes + 0.1
    losses = gist(QUERIES, DOCUMENTS, guide_queries=classes, guide_documents=documents, temperature=0.3, margin=0.01)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    q, d = unit(QUERIES), unit(DOCUMENTS)
    own = np.eye(N, dtype=bool)
    blocks, kept = (q @ d.T, q @ q.T, d @ d.T), (~same | own, ~same, ~same)
    total = sum((np.exp(block / 0.3) * keep).sum(1) for block, keep in zip(blocks, kept, strict=True))
    np.testing.assert_allclose(losses, np.log(total) - (q * d).sum(1) / 0.3, rtol=1e-5)


def test_a_margin_that_masks_everything_gives_loss_and_gradient_0():
    guide = {"guide_queries": QUERIES, "guide_documents": DOCUMENTS, "guide_negatives": NEGATIVES, "margin": 3.0}
    loss = lambda q, d, n: gist(q, d, n, **guide, temperature=0.1).sum()
    value, gradients = value_and_grad(loss, (0, 1, 2))(QUERIES, DOCUMENTS, NEGATIVES)
    np.testing.assert_allclose(value, 0.0, atol=1e-5)
    for gradient in gradients:
        np.testing.assert_allclose(gradient, 0.0, atol=1e-5)


def test_an_own_document_that_the_guide_finds_equal_to_the_query_is_no_negative():
    same = circle(*range(0, 70 * N, 70))
    losses = gist(QUERIES, DOCUMENTS, guide_queries=same, guide_documents=same, temperature=0.1)
    expected = info_nce(QUERIES, DOCUMENTS, temperature=0.1, directions=("q2d", "q2q", "p2p"))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_any_tile_and_length_of_the_guides_vectors_and_no_gradient_to_the_guide():
    guide = rng.standard_normal((3, N, 5)).astype(np.float32)

    def loss(arrays, guide, tile=512):
        names = ("guide_queries", "guide_documents", "guide_negatives")
        losses = gist(*arrays, **dict(zip(names, guide, strict=True)), temperature=0.1, margin=0.1, tile=tile)
        return (losses * np.arange(1.0, N + 1)).sum()

    arrays = (QUERIES, DOCUMENTS, NEGATIVES)
    value, (gradients, of_guide) = value_and_grad(loss, (0, 1))(arrays, tuple(guide))
    jax.tree.map(lambda g: np.testing.assert_array_equal(g, 0.0), of_guide)
    lengths = rng.uniform(0.5, 2.0, (3, N, 1)).astype(np.float32)
    tiled = value_and_grad(functools.partial(loss, tile=3))(arrays, tuple(guide * lengths))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), tiled, (value, gradients))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guide_queries": QUERIES[:3]}, r"guide_documents must be \[N, G\] with N = 3, G = 6 as in guide_queries"),
        ({"guide_queries": QUERIES[:3], "guide_documents": DOCUMENTS[:3]}, r"must begin with \(7,\)"),
        ({"negatives": NEGATIVES}, r"must begin with \(7, 2\), for 7 records of 1 hard negatives each"),
        ({"margin": -0.1}, "margin must be >= 0; got -0.1"),
        ({"strategy": "ratio"}, "strategy must be 'absolute' or 'relative'; got 'ratio'"),
        ({"temperature": 0.0}, "temperature must be > 0; got 0.0"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {
        "queries": QUERIES,
        "documents": DOCUMENTS,
        "guide_queries": QUERIES,
        "guide_documents": DOCUMENTS,
    }
    with pytest.raises(ValueError, match=message):
        gist(**arguments | change)
