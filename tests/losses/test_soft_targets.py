import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import value_and_grad
from hypothesis import given

from jaxemb.losses import cwcl, info_nce, soft_target_contrastive, soft_targets, symmetric_info_nce

rng = np.random.default_rng(0)
N, D = 7, 5
LOCKED, LEARNED = rng.standard_normal((2, N, D)).astype(np.float32)
WEIGHTS = rng.random((N, N)).astype(np.float32)


def circle(*degrees):
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_worked_out_on_the_circle():
    locked, learned = circle(0, 60), circle(0, 90)
    one_way = lambda targets, documents=learned: soft_target_contrastive(locked, documents, targets, temperature=1.0)
    affine = soft_targets.affine(locked)
    np.testing.assert_allclose(one_way(affine).mean(), 0.712745, rtol=1e-5)
    np.testing.assert_allclose(one_way(soft_targets.equal(np.arange(2))).mean(), 0.420025, rtol=1e-5)
    np.testing.assert_allclose(one_way(affine, locked).mean(), 0.688363, rtol=1e-5)
    np.testing.assert_allclose(info_nce(learned, locked, temperature=1.0).mean(), 0.412585, rtol=1e-5)
    np.testing.assert_allclose(cwcl(locked, learned, temperature=1.0).mean(), 1.125330, rtol=1e-5)
    half = cwcl(locked, learned, temperature=1.0, reverse_weight=0.5)
    np.testing.assert_allclose(half.mean(), 0.712745 + 0.412585 / 2, rtol=1e-5)


def test_the_weights_are_what_they_say():
    features = np.array([[1.0, 0.0], [1.0, 1.0], [-2.0, 0.0]])
    cosines = np.array([[1.0, 0.5**0.5, -1.0], [0.5**0.5, 1.0, -(0.5**0.5)], [-1.0, -(0.5**0.5), 1.0]])
    matrix = lambda targets: np.asarray(targets.weight(targets.rows, targets.columns))
    np.testing.assert_allclose(matrix(soft_targets.affine(features)), (1 + cosines) / 2, atol=1e-6)
    np.testing.assert_allclose(
        matrix(soft_targets.exponential(features, 0.5)), np.exp((cosines - 1) / 0.5), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(matrix(soft_targets.equal([3, 5, 3])), [[1, 0, 1], [0, 1, 0], [1, 0, 1]])


def test_weights_of_the_own_document_alone_are_clips_two_directions():
    losses = cwcl(LOCKED, LEARNED, targets=soft_targets.given(np.eye(N)), temperature=0.2)
    np.testing.assert_allclose(losses, 2 * symmetric_info_nce(LOCKED, LEARNED, temperature=0.2), rtol=1e-5)


def test_any_tile_gives_the_definition():
    def by_definition(q, d):
        unit = lambda x: x / jnp.linalg.norm(x, axis=1, keepdims=True)
        surprise = -jax.nn.log_softmax(unit(q) @ unit(d).T / 0.2, axis=1)
        return ((WEIGHTS * surprise).sum(axis=1) / WEIGHTS.sum(axis=1)).mean()

    expected = jax.jit(jax.value_and_grad(by_definition, (0, 1)))(LOCKED, LEARNED)
    for tile in (3, 512):
        ours = lambda q, d, t=tile: soft_target_contrastive(q, d, 3 * WEIGHTS, temperature=0.2, tile=t).mean()
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            jax.jit(jax.value_and_grad(ours, (0, 1)))(LOCKED, LEARNED),
            expected,
        )


one_direction = jax.jit(soft_target_contrastive)


@given(st.integers(0, 2**31))
def test_no_loss_is_below_the_entropy_of_its_targets(seed):
    random = np.random.default_rng(seed)
    q, d = random.standard_normal((2, N, D), np.float32)
    weights = random.gamma(0.3, size=(N, N)).astype(np.float32) + 1e-6
    share = weights / weights.sum(axis=1, keepdims=True)
    assert (np.asarray(one_direction(q, d, weights)) >= -(share * np.log(share)).sum(axis=1) - 1e-4).all()


def test_features_get_no_gradient_and_zero_vectors_finite_ones():
    features = rng.standard_normal((N, 3)).astype(np.float32)
    loss = lambda locked, learned, features: cwcl(locked, learned, features, temperature=0.01).mean()
    for learned in (LEARNED, np.zeros_like(LEARNED)):
        value, gradients = value_and_grad(loss, (0, 1, 2))(LOCKED, learned, features)
        assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)
        np.testing.assert_array_equal(gradients[2], 0.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cwcl(LOCKED, LEARNED[:2]), r"learned must be \[N, D\] with N = 7, D = 5 as in locked; got \(2, 5\)"),
        (lambda: cwcl(LOCKED, LEARNED, temperature=0.0), "temperature must be > 0; got 0.0"),
        (lambda: cwcl(LOCKED, LEARNED, LOCKED[:3]), r"features must be \[N, F\] with N = 7 as in locked; got \(3, 5\)"),
        (lambda: cwcl(LOCKED, LEARNED, reverse_weight=-1.0), "reverse_weight must be >= 0; got -1.0"),
        (lambda: soft_targets.given(WEIGHTS[:2]), r"weights must be \[N, N\]; got \(2, 7\)"),
        (lambda: soft_targets.given(-WEIGHTS), "weights must be >= 0 with a positive sum in every row"),
        (lambda: soft_targets.given(np.zeros((2, 2))), "weights must be >= 0 with a positive sum in every row"),
        (lambda: soft_targets.exponential(LOCKED, 0.0), "temperature must be > 0; got 0.0"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
