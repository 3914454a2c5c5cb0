import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from compiled import grad, value_and_grad

from jaxemb.losses import (
    clip_distill,
    distill_kl,
    distill_kl_scores,
    embed_distill,
    info_nce,
    m3_kd,
    margin_mse,
    margin_mse_scores,
    masks,
    symmetric_info_nce,
)


def on_the_circle(*degrees):
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


QUERIES, DOCUMENTS, HARD = on_the_circle(0, 90), on_the_circle(30, 60), on_the_circle(45, 10)


def test_margin_mse_worked_example():
    losses = margin_mse(QUERIES, DOCUMENTS, HARD, np.full(2, 0.3))
    assert losses.shape == (2,)
    np.testing.assert_allclose(losses.mean(), 0.0869319, rtol=1e-5)


def test_margin_mse_takes_scores_or_margins():
    student = np.array([[3.0, 1.0, 2.0], [0.0, 1.0, -1.0]])
    teacher = np.array([[9.0, 8.0, 8.0], [5.0, 4.0, 3.0]])  # margins 1, 1 and 1, 2
    np.testing.assert_allclose(margin_mse_scores(student, teacher), [0.5, 2.5])
    np.testing.assert_allclose(margin_mse_scores(student, np.array([[1.0, 1], [1, 2]])), [0.5, 2.5])
    np.testing.assert_allclose(margin_mse_scores(student[:, :2], np.array([1.0, 1])), [1.0, 4.0])


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 0.0615542), (2.0, 0.0914167)])
def test_kl_worked_example(temperature, expected):
    student, teacher = np.array([[1.0, 0, -1]]), np.array([[2.0, 0, 0]])
    temperatures = {"student_temperature": temperature, "teacher_temperature": temperature}
    np.testing.assert_allclose(distill_kl_scores(student, teacher, **temperatures), [expected], rtol=1e-5)
    # the same from embeddings whose inner products are these scores
    x = lambda score: np.array([[score]])
    losses = distill_kl(x(1.0), x(1.0), np.array([[[0.0], [-1.0]]]), teacher, **temperatures)
    np.testing.assert_allclose(losses, [expected], rtol=1e-5)


def test_kl_of_a_certain_teacher_is_the_cross_entropy():
    student = np.random.default_rng(0).standard_normal((5, 4), np.float32)
    teacher = np.where(np.arange(4) == 2, 0.0, -jnp.inf) * np.ones((5, 1))
    np.testing.assert_allclose(
        distill_kl_scores(student, teacher), -scipy.special.log_softmax(student, axis=1)[:, 2], rtol=1e-6
    )
    assert np.isfinite(grad(lambda s: distill_kl_scores(s, teacher).sum())(student)).all()


def test_a_student_like_the_teacher_has_no_loss():
    scores = np.random.default_rng(0).standard_normal((5, 4), np.float32)
    np.testing.assert_allclose(distill_kl_scores(scores, scores + 3.0), 0.0, atol=1e-6)
    np.testing.assert_allclose(margin_mse_scores(scores, scores + 3.0), 0.0, atol=1e-10)
    for metric in ("cosine", "mse", "l2"):
        distance = value_and_grad(lambda x, metric=metric: embed_distill(x, scores, metric=metric).sum())
        value, gradient = distance(scores)
        np.testing.assert_allclose(value, 0.0, atol=1e-6)
        assert np.isfinite(gradient).all()


def test_the_teacher_gets_no_gradient():
    student, teacher = np.random.default_rng(0).standard_normal((2, 5, 4), np.float32)

    @jax.jit
    def losses(t):
        return (
            margin_mse_scores(student, t)
            + distill_kl_scores(student, t)
            + embed_distill(student, t, metric="mse")
            + m3_kd(student, student, student, t[:, :2])
            + clip_distill(student, student, t, t, temperature=0.1, teacher_temperature=0.1)
        ).sum()

    np.testing.assert_array_equal(grad(losses)(teacher), 0.0)


def test_embed_distill_by_hand():
    student, teacher = np.array([[3.0, 4.0]]), np.array([[4.0, 3.0]])
    for metric, expected in {"cosine": 1 - 24 / 25, "mse": 1.0, "l2": np.sqrt(2.0)}.items():
        np.testing.assert_allclose(embed_distill(student, teacher, metric=metric), [expected], rtol=1e-5)
        columns = np.stack([student, teacher], axis=1)  # the second column has no error
        np.testing.assert_allclose(embed_distill(columns, teacher, metric=metric), [expected / 2], rtol=1e-5, atol=1e-7)


def test_m3_kd_with_a_teacher_that_is_certain_is_info_nce():
    queries, documents, *hard = np.random.default_rng(0).standard_normal((4, 6, 8), np.float32)
    hard = np.stack(hard, axis=1)
    teacher = np.array([[0.0, -jnp.inf, -jnp.inf]] * 6)
    ours = jax.jit(lambda mask: m3_kd(queries, documents, hard, teacher, temperature=0.1, mask=mask))
    theirs = jax.jit(lambda mask: info_nce(queries, documents, hard, temperature=0.1, mask=mask))
    np.testing.assert_allclose(ours(None), theirs(None), rtol=1e-5, atol=1e-5)
    mask = np.random.default_rng(1).random((6, 18)) < 0.5
    own = np.arange(18)[None, :] % 6 == np.arange(6)[:, None]  # own candidates are never masked
    np.testing.assert_allclose(ours(mask), theirs(mask | own), rtol=1e-5, atol=1e-5)


def test_m3_kd_without_other_candidates_has_finite_gradients():
    one = lambda q: m3_kd(q, q, np.ones((1, 2, 3)), np.array([[0.0, 1.0, 2.0]])).sum()
    value, gradient = jax.jit(jax.value_and_grad(one))(np.zeros((1, 3)))
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_clip_distill_of_a_certain_teacher_is_the_symmetric_loss():
    queries, documents = np.random.default_rng(0).standard_normal((2, 6, 8), np.float32)
    teacher = np.eye(6)
    options = {"temperature": 0.1, "teacher_temperature": 1e-3}
    losses = jax.jit(lambda q, d: clip_distill(q, d, teacher, teacher, **options))(queries, documents)
    expected = jax.jit(lambda q, d: symmetric_info_nce(q, d, temperature=0.1))(queries, documents)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_tiles_do_not_matter():
    queries, documents, hard, teacher, teacher_documents = np.random.default_rng(0).standard_normal(
        (5, 7, 6), np.float32
    )
    mask = masks.same_label(np.arange(7) // 2, np.arange(7))

    def loss(queries, tile):
        m3 = m3_kd(queries, documents, hard, teacher[:, :2], temperature=0.2, mask=mask, tile=tile)
        teachers = {"temperature": 0.2, "teacher_temperature": 0.01}
        return (m3 + clip_distill(queries, documents, teacher, teacher_documents, tile=tile, **teachers)).mean()

    step = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    jax.tree.map(same, step(queries, 3), step(queries, 99))


def test_bad_arguments_are_named():
    x, hard = np.ones((3, 4)), np.ones((3, 2, 4))
    for loss in (margin_mse, distill_kl, m3_kd):
        with pytest.raises(ValueError, match=r"negatives \[N, K, D\]; got \(\(3, 4\), \(3, 4\), \(2, 4\)\)"):
            loss(x, x, x[:2], np.ones((3, 2)))
        with pytest.raises(ValueError, match=r"teacher_scores must be \[N, 1 \+ K\] = \(3, 3\).*got \(3, 4\)"):
            loss(x, x, hard, np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"margins \[N, K\] = \(3, 2\); got \(3,\)"):
        margin_mse(x, x, hard, np.ones(3))
    with pytest.raises(ValueError, match=r"student_scores must be \[N, C\] of at least 2 candidates; got \(3, 1\)"):
        distill_kl_scores(np.ones((3, 1)), np.ones((3, 1)))
    with pytest.raises(ValueError, match="teacher_temperature must be > 0; got 0"):
        distill_kl(x, x, hard, np.ones((3, 3)), teacher_temperature=0)
    with pytest.raises(ValueError, match="temperature must be > 0; got -1"):
        m3_kd(x, x, hard, np.ones((3, 3)), temperature=-1)
    with pytest.raises(ValueError, match=r"mask must be \[N, N \(1 \+ K\)\] = \(3, 9\); got \(3, 3\)"):
        m3_kd(x, x, hard, np.ones((3, 3)), mask=np.ones((3, 3), bool))
    with pytest.raises(ValueError, match="metric must be 'cosine', 'mse' or 'l2'; got 'l1'"):
        embed_distill(x, x, metric="l1")
    with pytest.raises(ValueError, match=r"student must be \[N, D\] or \[N, C, D\].*got \(3, 4\) and \(3, 5\)"):
        embed_distill(x, np.ones((3, 5)))
    with pytest.raises(ValueError, match=r"teacher_documents must be .* D_t = 5 as in teacher_queries; got \(3, 6\)"):
        clip_distill(x, x, np.ones((3, 5)), np.ones((3, 6)), temperature=1.0, teacher_temperature=1.0)
    with pytest.raises(ValueError, match=r"teacher_queries must be \[N, D_t\] with N = 3 as in queries; got \(2, 4\)"):
        clip_distill(x, x, x[:2], x[:2], temperature=1.0, teacher_temperature=1.0)
