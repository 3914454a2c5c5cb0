import functools
import math

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, value_and_grad
from hypothesis import given
from scipy.special import log_softmax, logsumexp

from jaxemb.losses import info_nce, symmetric_info_nce

ALL = ("q2d", "q2q", "d2q", "d2d")
all_directions = jax.jit(functools.partial(info_nce, directions=ALL))


def circle(*degrees):
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(jnp.float32)


Q, D, HARD = circle(0, 90), circle(30, 60), circle(45, 10)


@pytest.mark.parametrize(
    ("expected", "options"),
    [
        (0.526789, {}),
        (6.61607e-4, {"temperature": 1 / 20}),
        (1.207529, {"negatives": HARD}),
        (1.570196, {"directions": ALL}),
        (1.219936, {"directions": ("q2d", "d2q")}),
        (0.526789, {"directions": ("q2d", "d2q"), "partition": "per_direction"}),
        (1.713478, {"negatives": HARD, "hardness": "all_negatives", "hardness_strength": 1.0}),
        (1.329936, {"negatives": HARD, "hardness": "hard_negatives", "hardness_strength": 1.0}),
        (1.634652, {"negatives": HARD, "hardness": "in_batch_negatives", "hardness_strength": 1.0}),
    ],
)
def test_values_worked_out_on_the_circle(expected, options):
    options = {"temperature": 1.0, **options}
    losses = info_nce(Q, D, **options)
    assert losses.shape == (2,) and losses.dtype == np.float32
    np.testing.assert_allclose(losses.mean(), expected, rtol=5e-5)


def test_symmetric_is_the_mean_of_both_cross_entropies():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 6, 4), np.float32)
    both = [-np.diagonal(log_softmax(a @ b.T / 0.5, axis=axis)) for axis in (0, 1)]
    losses = symmetric_info_nce(a, b, temperature=0.5, similarity="dot")
    np.testing.assert_allclose(losses, (both[0] + both[1]) / 2, rtol=1e-5)


def test_temperature_can_be_trained():
    gradient = grad(lambda t: symmetric_info_nce(Q, D, temperature=1 / jnp.exp(t)).mean())
    step = 1e-2
    value = lambda t: float(symmetric_info_nce(Q, D, temperature=math.exp(-t)).mean())
    np.testing.assert_allclose(gradient(0.3), (value(0.3 + step) - value(0.3 - step)) / (2 * step), rtol=1e-3)


def test_euclidean_similarity_is_the_negative_distance():
    a, b = np.array([[0.0, 0.0], [3.0, 0.0]]), np.array([[0.0, 1.0], [3.0, 4.0]])
    distances = np.array([[1.0, 5.0], [math.sqrt(10), 4.0]])
    expected = logsumexp(-distances, axis=1) + np.diagonal(distances)
    np.testing.assert_allclose(info_nce(a, b, similarity="euclidean", temperature=1.0), expected, rtol=1e-5)
    gradient = grad(lambda x: info_nce(x, a, similarity="euclidean").sum())(a)
    assert np.isfinite(gradient).all()  # the distance of a point to itself has no slope of its own


def test_mask_removes_a_candidate_in_every_direction():
    rng = np.random.default_rng(1)
    q, d, hard = rng.standard_normal((3, 4, 8), np.float32)
    mask = np.ones((4, 8), bool)
    mask[1, 3] = False  # document 3 is no negative of record 1, nor query 1 of record 3
    mask[2, 4 + 0] = False  # nor is record 0's hard negative one of record 2
    s = lambda a, b: (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
    candidates = np.concatenate([d, hard])
    blocks = [s(q, candidates), s(d, q), s(q, q), s(d, candidates)]
    own, own_query = np.tile(np.eye(4, dtype=bool), 2), np.eye(4, dtype=bool)
    keeps = [mask, mask[:, :4].T, mask[:, :4].T & ~own_query, mask & ~own]
    terms = np.concatenate([np.exp(b / 0.1) * k for b, k in zip(blocks, keeps, strict=True)], axis=1)
    expected = np.log(terms.sum(1)) - np.diagonal(blocks[0]) / 0.1
    losses = info_nce(q, d, hard, temperature=0.1, mask=mask, directions=("q2d", "d2q", "q2q", "d2d"))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_the_own_positive_is_never_masked_and_a_masked_row_is_zero():
    mask = np.zeros((2, 4), bool)
    loss = lambda q, d, n: info_nce(q, d, n, mask=mask, directions=("q2d", "q2q", "d2d")).sum()
    value, gradients = value_and_grad(loss, (0, 1, 2))(Q, D, HARD)
    assert value == 0.0
    for gradient in gradients:
        np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_one_example_without_negatives_is_zero():
    value, gradient = value_and_grad(lambda q: info_nce(q, D[:1], directions=ALL).sum())(Q[:1])
    # d2q holds the positive a second time
    np.testing.assert_allclose(value, math.log(2), rtol=1e-6)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_zero_vectors_have_finite_gradients(similarity):
    q = Q * np.array([[0.0], [1.0]], np.float32)
    loss = lambda q, d: info_nce(q, d, temperature=0.01, directions=ALL, similarity=similarity).mean()
    value, gradients = value_and_grad(loss, (0, 1))(q, D * np.array([[1.0], [0.0]], np.float32))
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() and np.abs(g).max() < 1e4 for g in gradients)


def test_bfloat16_embeddings_are_accumulated_in_float32():
    rng = np.random.default_rng(2)
    q, d = jnp.asarray(rng.standard_normal((2, 8, 512)), jnp.bfloat16)
    losses = info_nce(q, d, temperature=0.01)
    assert losses.dtype == jnp.float32
    expected = info_nce(q.astype(jnp.float32), d.astype(jnp.float32), temperature=0.01)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


seeds = st.integers(0, 2**31)
sizes = st.sampled_from([(1, 1), (4, 0), (6, 2)])  # few, as each is compiled


def random_batch(seed, size, dim=5):
    n, k = size
    rng = np.random.default_rng(seed)
    q, d = rng.standard_normal((2, n, dim), np.float32)
    return q, d, rng.standard_normal((n, k, dim), np.float32) if k else None, rng


@given(seeds, sizes)
def test_permuting_the_records_permutes_the_losses(seed, size):
    q, d, hard, rng = random_batch(seed, size)
    order = rng.permutation(len(q))
    shuffled = all_directions(q[order], d[order], None if hard is None else hard[order])
    np.testing.assert_allclose(shuffled, all_directions(q, d, hard)[order], rtol=1e-4, atol=1e-4)


@given(seeds, sizes)
def test_a_mask_that_allows_everything_is_no_mask(seed, size):
    q, d, hard, _ = random_batch(seed, size)
    mask = np.ones((len(q), len(q) * (1 + size[1])), bool)
    np.testing.assert_allclose(all_directions(q, d, hard, mask=mask), all_directions(q, d, hard), rtol=1e-6)


@given(seeds, sizes, st.floats(1e-3, 1e3))
def test_cosine_does_not_depend_on_the_vectors_lengths(seed, size, factor):
    q, d, hard, _ = random_batch(seed, size)
    np.testing.assert_allclose(all_directions(q * np.float32(factor), d, hard), all_directions(q, d, hard), atol=1e-4)


@pytest.mark.parametrize(
    ("message", "arguments", "options"),
    [
        (r"both be \[N, D\]; got \(2, 2\) and \(1, 2\)", (Q, D[:1]), {}),
        (r"N = 2 and D = 2; got \(2, 1, 1\)", (Q, D, HARD[:, :, None][:, :1]), {}),
        (r"temperature must be > 0; got 0.0", (Q, D), {"temperature": 0.0}),
        (r"temperature must be > 0; got nan", (Q, D), {"temperature": float("nan")}),
        (r"similarity must be one of .*cosine.*; got 'l2'", (Q, D), {"similarity": "l2"}),
        (r"with 'q2d'; got \('d2q',\)", (Q, D), {"directions": ("d2q",)}),
        (r"got \('q2d', 'p2d'\)", (Q, D), {"directions": ("q2d", "p2d")}),
        (
            r"lack; got directions=\('q2d', 'q2q'\)",
            (Q, D),
            {"directions": ("q2d", "q2q"), "partition": "per_direction"},
        ),
        (r"'joint' or 'per_direction'; got 'both'", (Q, D), {"partition": "both"}),
        (r"mask must be .* \(2, 2\); got \(2, 3\)", (Q, D), {"mask": np.ones((2, 3), bool)}),
        (r"or None; got 'hard'", (Q, D), {"hardness": "hard"}),
        (r"hardness_strength must be >= 0; got -1", (Q, D), {"hardness": "all_negatives", "hardness_strength": -1}),
    ],
)
def test_bad_arguments_are_named(message, arguments, options):
    with pytest.raises(ValueError, match=message):
        info_nce(*arguments, **options)
