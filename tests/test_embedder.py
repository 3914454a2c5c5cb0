"""What an embedder does with its vectors; the real MiniLM is compared with its peers in the tests of parity."""

import numpy as np
import pytest

import jaxemb
from jaxemb.similarity import similarity


@pytest.fixture(scope="module")
def ours(tiny_minilm):
    return jaxemb.load(tiny_minilm)


def by_definition(kind, a, b):
    difference = a[:, None] - b[None]
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    return {
        "cosine": lambda: unit(a) @ unit(b).T,
        "dot": lambda: a @ b.T,
        "euclidean": lambda: -np.sqrt(np.square(difference).sum(-1)),
        "manhattan": lambda: -np.abs(difference).sum(-1),
    }[kind]()


@pytest.mark.parametrize("kind", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarities_by_definition(ours, kind):
    vectors = np.random.default_rng(0).normal(size=(5, 384))
    found = ours.replace(similarity_fn_name=kind).similarity(vectors.astype(np.float32), vectors[:3].astype(np.float32))
    np.testing.assert_allclose(found, by_definition(kind, vectors, vectors[:3]), rtol=1e-4, atol=1e-3)


def test_fewer_dimensions_are_a_renormalised_prefix(ours):
    whole, cut = (ours.encode(["one", "two"], dim=dim) for dim in (None, 64))
    np.testing.assert_allclose(cut, whole[:, :64] / np.linalg.norm(whole[:, :64], axis=-1, keepdims=True), atol=1e-6)


def test_similarity_names_what_is_wrong(ours):
    with pytest.raises(ValueError, match=r"same dimension; got \(1, 3\) and \(1, 4\)"):
        ours.similarity(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="kind must be one of cosine, dot, euclidean, manhattan; got 'angle'"):
        similarity(np.ones(3), np.ones(3), "angle")
