import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, value_and_grad
from hypothesis import given

from jaxemb.losses import info_nce, masks, progressive_info_nce, progressive_weights

rng = np.random.default_rng(0)
N, K, D = 7, 2, 8
QUERIES, DOCUMENTS = rng.standard_normal((2, N, D)).astype(np.float32)
NEGATIVES = rng.standard_normal((N, K, D)).astype(np.float32)
ALLOWED = rng.random((N, N * (1 + K))) < 0.7
OPTIONS = {"alpha": 2.0, "hardest": 3, "temperature": 0.1}


def test_weights_worked_out():
    weights = progressive_weights(np.array([0.1, 0.5, 0.3]), alpha=2.0)
    np.testing.assert_allclose(weights, [0.635948, 1.415329, 0.948723], rtol=1e-6)
    np.testing.assert_allclose((weights * np.array([1.0, 2.0, 3.0])).mean(), 2.104258, rtol=1e-6)


def test_weights_are_clipped_and_have_mean_1():
    difficulty = np.array([1.0, 0.0, 0.0, 0.0])
    # softmax gives the first 4 and the others 0: cut to 2 and 1/2, of mean 7/8
    weights = progressive_weights(difficulty, alpha=100.0, max_weight=2.0)
    np.testing.assert_allclose(weights, np.array([2.0, 0.5, 0.5, 0.5]) * 8 / 7, rtol=1e-6)
    unclipped = progressive_weights(difficulty, alpha=100.0, max_weight=float("inf"))
    np.testing.assert_allclose(unclipped, [4.0, 0.0, 0.0, 0.0], atol=1e-6)


@given(
    st.lists(st.floats(-2, 2, width=32), min_size=6, max_size=6),
    st.floats(-8, 8, width=32),
    st.floats(1, 10, width=32),
)
def test_weights_order_records_as_alpha_says(difficulty, alpha, max_weight):
    difficulty = np.array(difficulty, np.float32)
    weights = np.asarray(progressive_weights(difficulty, alpha=alpha, max_weight=max_weight))
    assert np.isfinite(weights).all() and weights.mean() == pytest.approx(1, abs=1e-5)
    assert weights.max() <= weights.min() * max_weight**2 * (1 + 1e-5)
    order = np.argsort(np.sign(alpha) * difficulty, kind="stable")
    assert (np.diff(weights[order]) >= -1e-5).all()


def by_definition(queries, documents, negatives, allowed=None, *, alpha, hardest, temperature, max_weight=5.0):
    """NumPy, f64: losses, weights and difficulty."""
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    candidates = np.concatenate([documents, *np.moveaxis(negatives, 1, 0)]).astype(np.float64)
    cosines = unit(queries.astype(np.float64)) @ unit(candidates).T
    own = np.eye(N, len(candidates), dtype=bool)
    allowed = (np.ones_like(own) if allowed is None else allowed) | own
    logits = np.where(allowed, cosines / temperature, -np.inf)
    losses = np.log(np.exp(logits).sum(1)) - logits[own]
    hard = -np.sort(-np.where(allowed & ~own, cosines, -np.inf), axis=1)[:, :hardest]
    difficulty = np.array([row[np.isfinite(row)].mean() for row in hard]) - cosines[own]
    weights = N * np.exp(alpha * difficulty) / np.exp(alpha * difficulty).sum()
    weights = np.clip(weights, 1 / max_weight, max_weight)
    weights /= weights.mean()
    return weights * losses, weights, difficulty


@pytest.mark.parametrize("allowed", [None, ALLOWED], ids=["all", "masked"])
@pytest.mark.parametrize("tile", [2, 512])
def test_value_and_gradient_by_definition(allowed, tile):
    arrays = (QUERIES, DOCUMENTS, NEGATIVES)
    ours = lambda *x: progressive_info_nce(*x, **OPTIONS, mask=allowed, tile=tile)
    losses, weights, difficulty = by_definition(*arrays, allowed, **OPTIONS)
    for found, expected in zip(jax.jit(ours)(*arrays), (losses, weights, difficulty), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

    gradients = jax.jit(jax.grad(lambda *x: ours(*x).losses.mean(), argnums=(0, 1, 2)))(*arrays)
    # The weights are constants: the gradient is that of weighted InfoNCE, checked by differences along a direction.
    direction = [np.random.default_rng(1).standard_normal(x.shape) for x in arrays]

    def weighted(step):
        moved = (x + step * d for x, d in zip(arrays, direction, strict=True))
        unweighted = by_definition(*moved, allowed, **OPTIONS | {"alpha": 0.0})[0]
        return (weights * unweighted).mean()

    slope = (weighted(1e-5) - weighted(-1e-5)) / 2e-5
    along = sum(float((np.asarray(g, np.float64) * d).sum()) for g, d in zip(gradients, direction, strict=True))
    np.testing.assert_allclose(along, slope, rtol=2e-5)


@pytest.mark.parametrize("alpha", [0.0, jnp.float32(0.0)])
def test_alpha_0_is_info_nce(alpha):
    ours = lambda q: progressive_info_nce(q, DOCUMENTS, NEGATIVES, alpha=alpha, temperature=0.1).losses
    theirs = lambda q: info_nce(q, DOCUMENTS, NEGATIVES, temperature=0.1)
    np.testing.assert_allclose(ours(QUERIES), theirs(QUERIES), rtol=1e-6)
    gradients = (grad(lambda q, f=f: f(q).mean())(QUERIES) for f in (ours, theirs))
    np.testing.assert_allclose(*gradients, atol=1e-7)


def test_alpha_may_follow_the_step_within_one_program():
    loss = jax.jit(functools.partial(progressive_info_nce, temperature=0.1))
    for alpha in (-2.0, 3.0):
        expected = progressive_info_nce(QUERIES, DOCUMENTS, NEGATIVES, alpha=alpha, temperature=0.1)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
            loss(QUERIES, DOCUMENTS, NEGATIVES, alpha=alpha),
            expected,
        )


def test_a_record_without_negatives_is_of_difficulty_0():
    everything = masks.same_label(np.zeros(N, np.int32), np.zeros((N, K), np.int32))
    loss = lambda q: progressive_info_nce(q, DOCUMENTS, NEGATIVES, alpha=2.0, mask=everything)
    losses, weights, difficulty = loss(QUERIES)
    for found, expected in ((losses, 0.0), (difficulty, 0.0), (weights, 1.0)):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(grad(lambda q: loss(q).losses.sum())(QUERIES), 0.0, atol=1e-5)


def test_zero_and_equal_vectors_have_finite_gradients():
    loss = lambda q, d: progressive_info_nce(q, d, alpha=8.0, temperature=0.01).losses.mean()
    for q in (np.zeros((N, D)), np.ones((N, D))):
        value, gradients = value_and_grad(loss, (0, 1))(q, q)
        assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": float("inf")}, "alpha must be finite; got inf"),
        ({"max_weight": 0.5}, "max_weight must be >= 1; got 0.5"),
        ({"hardest": 0}, "hardest must be at least 1; got 0"),
        ({"temperature": 0.0}, "temperature must be > 0; got 0.0"),
        ({"documents": DOCUMENTS[:2]}, r"both be \[N, D\]; got \(7, 8\) and \(2, 8\)"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        progressive_info_nce(**{"queries": QUERIES, "documents": DOCUMENTS, "alpha": 1.0} | options)


def test_difficulty_must_be_one_per_record():
    with pytest.raises(ValueError, match=r"difficulty must be \[N\]; got \(2, 2\)"):
        progressive_weights(np.ones((2, 2)), alpha=1.0)
