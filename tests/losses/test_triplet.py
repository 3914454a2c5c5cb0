import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from jaxemb.losses import batch_all_triplet, batch_hard_triplet, batch_semi_hard_triplet, triplet

BATCH = [batch_all_triplet, batch_hard_triplet, batch_semi_hard_triplet]
N = 8


def on_a_line(*places):
    return np.array(places, np.float32)[:, None]


def test_triplet_by_hand():
    losses = triplet(on_a_line(0, 0), on_a_line(1, 2), on_a_line(3, 9))
    np.testing.assert_allclose(losses, [3.0, 0.0], rtol=1e-6)
    several = triplet(on_a_line(0), on_a_line(1), on_a_line(3, 9)[None])
    np.testing.assert_allclose(several, [1.5], rtol=1e-6)
    unit = lambda degrees: np.array([[np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))]])
    cosine = triplet(unit(0), unit(60), unit(90), margin=1.0, similarity="cosine")
    np.testing.assert_allclose(cosine, [0.5], rtol=1e-6)


# Four points on a line, labels 0 0 1 1. Distances: 01 = 2, 02 = 3, 03 = 7, 12 = 1, 13 = 5, 23 = 4.
POINTS, LABELS = on_a_line(0, 2, 3, 7), np.array([0, 0, 1, 1])


def test_batch_hard_by_hand():
    # furthest positive - nearest negative: 2 - 3, 2 - 1, 4 - 1, 4 - 5
    np.testing.assert_allclose(batch_hard_triplet(POINTS, LABELS, margin=1.5), [0.5, 2.5, 4.5, 0.5], rtol=1e-6)
    soft = batch_hard_triplet(POINTS, LABELS, soft_margin=True)
    np.testing.assert_allclose(soft, np.log1p(np.exp([-1.0, 1.0, 3.0, -1.0])), rtol=1e-6)


def test_batch_semi_hard_by_hand():
    # pairs (a, p) with their negative: 2 with 3; 2 with 5; 4 with none further, so the furthest, 3; 4 with 5
    losses = batch_semi_hard_triplet(POINTS, LABELS, margin=1.5)
    np.testing.assert_allclose(losses, [0.5, 0.0, 2.5, 0.5], rtol=1e-6)


def test_batch_all_by_hand():
    # violations of margin 1.5 by anchor: 2-3; 2-1; 4-3 and 4-1; 4-5 (2-7, 2-5 and 4-7 do not violate)
    losses = batch_all_triplet(POINTS, LABELS, margin=1.5)
    np.testing.assert_allclose(losses, np.array([0.5, 2.5, 2.5 + 4.5, 0.5]) * 4 / 5, rtol=1e-6)
    np.testing.assert_array_equal(batch_all_triplet(on_a_line(0, 0, 99, 99), LABELS), 0.0)


def by_definition(loss, x, labels, mask, margin):
    """The mean loss, triplet by triplet, in f64."""
    x = np.asarray(x, np.float64)
    d = np.linalg.norm(x[:, None] - x[None], axis=-1)
    indices = range(len(x))
    all_losses, hard, semi_hard = [], [], []
    for a in indices:
        positives = [p for p in indices if p != a and labels[p] == labels[a]]
        negatives = [n for n in indices if labels[n] != labels[a] and mask[a, n]]
        triplets = [d[a, p] - d[a, n] + margin for p in positives for n in negatives]
        all_losses += [violation for violation in triplets if violation > 0]
        hard.append(max([0.0, *triplets]))
        for p in positives if negatives else []:
            further = [d[a, n] for n in negatives if d[a, n] > d[a, p]]
            chosen = min(further) if further else max(d[a, n] for n in negatives)
            semi_hard.append(max(0.0, d[a, p] - chosen + margin))
    losses = {batch_all_triplet: all_losses, batch_hard_triplet: hard, batch_semi_hard_triplet: semi_hard}[loss]
    return np.mean(losses) if losses else 0.0


@functools.cache
def compiled(loss):
    return jax.jit(lambda x, labels, mask, margin: loss(x, labels, mask=mask, margin=margin))


@pytest.mark.parametrize("loss", BATCH)
@given(st.integers(0, 2**31), st.sampled_from([0.1, 2.0, 9.0]), st.integers(1, 5))
def test_batch_losses_equal_the_definition(loss, seed, margin, n_labels):
    rng = np.random.default_rng(seed)
    x, labels = 2 * rng.standard_normal((N, 3), np.float32), rng.integers(0, n_labels, N)
    mask = rng.random((N, N)) < 0.8
    losses = compiled(loss)(x, labels, mask, margin)
    assert losses.shape == (N,) and losses.dtype == jnp.float32
    expected = by_definition(loss, x, labels, mask, margin)
    np.testing.assert_allclose(losses.mean(), expected, rtol=2e-5, atol=1e-5)
    order = rng.permutation(N)
    shuffled = compiled(loss)(x[order], labels[order], mask[np.ix_(order, order)], margin)
    np.testing.assert_allclose(shuffled, losses[order], rtol=1e-5, atol=1e-5)


def test_batch_all_does_not_lose_small_violations_among_large_distances():
    places = [0.0, 0.0, 6.0, 6.0, 1e4, 1e4, 1e4, 1e4]  # the nearest negatives violate the margin by 1e-3
    losses = batch_all_triplet(on_a_line(*places), np.array([0, 0, 1, 1, 2, 2, 2, 2]), margin=6.001)
    np.testing.assert_allclose(losses[:4], 8 / 8 * 2 * 1e-3, rtol=1e-3)
    np.testing.assert_array_equal(losses[4:], 0.0)


def test_batch_all_makes_no_array_of_all_triplets():
    n = 512
    step = jax.jit(jax.grad(lambda x, labels: batch_all_triplet(x, labels).mean()))
    arguments = jax.ShapeDtypeStruct((n, 8), np.float32), jax.ShapeDtypeStruct((n,), jnp.int32)
    assert step.lower(*arguments).compile().memory_analysis().temp_size_in_bytes < 4 * n**3 / 10


@pytest.mark.parametrize("loss", BATCH)
@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3]], ids=["one label", "all different"])
def test_batches_without_triplets_give_zero(loss, labels):
    value, gradient = jax.jit(jax.value_and_grad(lambda x: loss(x, np.array(labels)).sum()))(POINTS)
    assert value == 0.0
    np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("loss", BATCH)
def test_coinciding_embeddings_have_finite_gradients(loss):
    gradient = jax.jit(jax.grad(lambda x: loss(x, LABELS).mean()))(np.eye(4, 3)[[3, 0, 3, 3]])
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("loss", BATCH)
def test_a_mask_removes_negatives_and_nothing_else(loss):
    everything = loss(POINTS, LABELS, margin=1.5)
    np.testing.assert_array_equal(loss(POINTS, LABELS, margin=1.5, mask=np.ones((4, 4), bool)), everything)
    np.testing.assert_array_equal(loss(POINTS, LABELS, margin=1.5, mask=np.zeros((4, 4), bool)), 0.0)
    # false at the positives: they stay positives
    unlike = LABELS[:, None] != LABELS[None, :]
    np.testing.assert_array_equal(loss(POINTS, LABELS, margin=1.5, mask=unlike), everything)


@pytest.mark.parametrize("loss", BATCH)
def test_bad_arguments_are_named(loss):
    x = np.ones((4, 3))
    with pytest.raises(ValueError, match=r"labels must be \[N\] with N = 4 as in embeddings; got \(3,\)"):
        loss(x, np.ones(3))
    with pytest.raises(ValueError, match=r"mask must be \[N, N\] with N = 4 as in embeddings; got \(4, 3\)"):
        loss(x, LABELS, mask=np.ones((4, 3), bool))
    with pytest.raises(ValueError, match="margin must be >= 0; got -1"):
        loss(x, LABELS, margin=-1)
    with pytest.raises(ValueError, match=r"similarity must be one of.*got 'manhattan'"):
        loss(x, LABELS, similarity="manhattan")


def test_bad_triplets_are_named():
    x = np.ones((4, 3))
    with pytest.raises(ValueError, match=r"negatives must be \[N, K, D\] or \[N, D\] with N = 4"):
        triplet(x, x, np.ones((5, 3)))
    with pytest.raises(ValueError, match="negatives must not be empty"):
        triplet(x, x, np.ones((4, 0, 3)))
    with pytest.raises(ValueError, match="margin must be >= 0; got -1"):
        triplet(x, x, x, margin=-1)
