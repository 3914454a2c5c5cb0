import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxemb.losses import contrastive, cosine_similarity_mse, online_contrastive, softmax_nli


def pairs_with_cosines(*cosines):
    """Unit vectors of which the pairs have these cosines."""
    cosines = np.array(cosines, np.float32)
    first = np.tile(np.array([1.0, 0.0]), (len(cosines), 1))
    return first, np.stack([cosines, np.sqrt(1 - np.square(cosines))], axis=1)


def test_contrastive_by_hand():
    first, second = pairs_with_cosines(0.6, 0.6, 0.0)  # distances 0.4, 0.4, 1
    losses = contrastive(first, second, np.array([1, 0, 0]))
    np.testing.assert_allclose(losses, [0.5 * 0.4**2, 0.5 * 0.1**2, 0.0], atol=1e-6)
    half = contrastive(first, second, np.full(3, 0.5))
    np.testing.assert_allclose(half[0], 0.5 * (losses[0] + losses[1]), atol=1e-6)


def test_contrastive_with_other_distances():
    first, second = np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([[3.0, 4.0], [1.0, 1.0]])
    losses = contrastive(first, second, np.array([1, 0]), margin=2.0, distance="euclidean")
    np.testing.assert_allclose(losses, [12.5, 2.0])
    manhattan = lambda u, v: jnp.abs(u - v).sum(axis=1)
    np.testing.assert_allclose(contrastive(first, second, np.ones(2), distance=manhattan), [24.5, 0.0])


def test_online_contrastive_counts_hard_pairs_alone():
    # like at 0.1 and 0.6, unlike at 0.3 and 0.9: hard are the like one beyond 0.3 and the unlike one within 0.6
    first, second = pairs_with_cosines(0.9, 0.4, 0.7, 0.1)
    losses = online_contrastive(first, second, np.array([1, 1, 0, 0]))
    np.testing.assert_allclose(losses, [0.0, 4 * 0.6**2, 4 * 0.2**2, 0.0], atol=1e-5)
    ignored = online_contrastive(first, second, np.array([1, 1, 2, 0]))
    np.testing.assert_array_equal(ignored, 0.0)


def test_online_contrastive_of_one_kind_counts_pairs_beyond_their_mean():
    first, second = pairs_with_cosines(0.9, 0.5)  # mean distance 0.3
    np.testing.assert_allclose(online_contrastive(first, second, np.ones(2)), [0.0, 2 * 0.5**2], atol=1e-5)
    np.testing.assert_allclose(online_contrastive(first, second, np.zeros(2)), [2 * 0.4**2, 0.0], atol=1e-5)


@pytest.mark.parametrize("labels", [[1, 0, 1], [1, 1, 1], [0, 0, 0], [1, 0, np.nan]])
def test_one_nan_makes_all_of_online_contrastive_nan(labels):
    first = np.where(np.isnan(labels).any(), 1.0, [[np.nan, 1.0], [1.0, 2.0], [2.0, 1.0]])
    assert np.isnan(online_contrastive(first, np.ones((3, 2)), np.array(labels, float))).all()


def test_cosine_similarity_mse_by_hand():
    first, second = pairs_with_cosines(0.6, 0.0)
    np.testing.assert_allclose(cosine_similarity_mse(3 * first, second, np.array([1.0, 0.5])), [0.16, 0.25], rtol=1e-5)


def test_softmax_nli_by_hand():
    first, second = np.array([[1.0], [2.0]]), np.array([[3.0], [2.0]])  # features [1, 3, 2] and [2, 2, 0]
    kernel = np.array([[0.0, 1.0], [0.0, 1.0], [0.0, -1.0]])  # logits of class 1: 2 and 4
    losses = softmax_nli(first, second, np.array([1, 0]), kernel=kernel)
    np.testing.assert_allclose(losses, [np.log1p(np.exp(-2.0)), np.log1p(np.exp(4.0))], rtol=1e-5)
    biased = softmax_nli(first, second, np.array([1, 0]), kernel=kernel, bias=np.array([0.0, -2.0]))
    np.testing.assert_allclose(biased[0], np.log(2.0), rtol=1e-5)
    product = softmax_nli(first, second, np.array([1, 1]), kernel=np.array([[0.0, 1.0]]), features=["product"])
    np.testing.assert_allclose(product, np.log1p(np.exp([-3.0, -4.0])), rtol=1e-5)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_degenerate_pairs_have_finite_gradients(distance):
    first, second = (np.outer(present, np.ones(3)) for present in ([0, 1, 1, 0], [0, 0, 1, 1]))
    labels = np.array([1, 0, 0, 1])

    def loss(first):
        kernel = np.ones((9, 2))
        return (
            contrastive(first, second, labels, distance=distance)
            + online_contrastive(first, second, labels, distance=distance)
            + cosine_similarity_mse(first, second, labels)
            + softmax_nli(first, second, labels, kernel=kernel)
        ).mean()

    assert np.isfinite(jax.jit(jax.grad(loss))(first)).all()


def test_half_precision_is_raised_to_f32():
    first, second = jax.random.normal(jax.random.key(0), (2, 4, 8), jnp.bfloat16)
    raised = [x.astype(jnp.float32) for x in (first, second)]
    for loss in (contrastive, online_contrastive, cosine_similarity_mse):
        losses = loss(first, second, np.array([1, 0, 1, 0]))
        assert losses.dtype == jnp.float32
        np.testing.assert_array_equal(losses, loss(*raised, np.array([1, 0, 1, 0])))


def test_bad_arguments_are_named():
    x, labels = np.ones((3, 4)), np.ones(3, int)
    for loss in (contrastive, online_contrastive):
        with pytest.raises(ValueError, match=r"first and second must both be \[N, D\]; got \(3, 4\) and \(3, 5\)"):
            loss(x, np.ones((3, 5)), labels)
        with pytest.raises(ValueError, match=r"labels must be \[N\] with N = 3; got \(3, 1\)"):
            loss(x, x, labels[:, None])
        with pytest.raises(ValueError, match="margin must be >= 0; got -2"):
            loss(x, x, labels, margin=-2)
        with pytest.raises(ValueError, match=r"distance must be one of \['cosine', 'euclidean'\].*got 'dot'"):
            loss(x, x, labels, distance="dot")
    with pytest.raises(ValueError, match=r"scores must be \[N\] with N = 3; got \(4,\)"):
        cosine_similarity_mse(x, x, np.ones(4))
    with pytest.raises(ValueError, match=r"labels must be integers.*got float64"):
        softmax_nli(x, x, np.ones(3), kernel=np.ones((12, 2)))
    with pytest.raises(ValueError, match=r"features must be some of.*got \('sum',\)"):
        softmax_nli(x, x, labels, kernel=np.ones((12, 2)), features=["sum"])
    with pytest.raises(ValueError, match=r"kernel must be \[F, C\] with F = 12 .*; got \(8, 2\) and \(3,\)"):
        softmax_nli(x, x, labels, kernel=np.ones((8, 2)), bias=np.ones(3))
