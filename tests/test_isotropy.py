"""Whitening and ICA against scikit-learn, and measures of isotropy by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxemb import isotropy

CROSS = np.array([[2.0, 0], [-2, 0], [0, 1], [0, -1]])


@pytest.fixture(scope="module")
def sources() -> np.ndarray:
    """Independent components that are not normal, mixed and moved away from 0."""
    rng = np.random.default_rng(0)
    independent = np.stack([rng.laplace(size=3000), rng.uniform(-1, 1, 3000), rng.exponential(size=3000)], axis=1)
    return independent @ rng.normal(size=(3, 3)) + 5


def test_whitening_by_hand():
    transform = isotropy.whiten(CROSS)
    np.testing.assert_allclose(np.abs(transform.matrix), np.diag([0.707107, 1.414214]), atol=1e-6)
    found = transform(CROSS)
    np.testing.assert_allclose(np.abs(found), 1.414214 * (CROSS != 0), atol=1e-5)
    np.testing.assert_allclose(np.cov(found, rowvar=False, bias=True), np.eye(2), atol=1e-6)


def test_measures_by_hand():
    assert isotropy.partition_isotropy(CROSS) == pytest.approx(0.534014, abs=1e-6)
    assert isotropy.partition_isotropy(isotropy.whiten(CROSS)(CROSS)) == pytest.approx(1.0, abs=1e-5)
    moved = CROSS + np.array([3.0, 0])
    assert isotropy.partition_isotropy(moved) == pytest.approx(0.002479, abs=1e-6)
    assert isotropy.mean_cosine(CROSS) == pytest.approx(-1 / 3, abs=1e-6)
    assert isotropy.mean_cosine(moved) == pytest.approx(0.932, abs=1e-3)
    assert isotropy.effective_rank(isotropy.whiten(CROSS)(CROSS)) == pytest.approx(2.0, abs=1e-5)
    assert isotropy.effective_rank(CROSS) == pytest.approx(np.exp(-(0.8 * np.log(0.8) + 0.2 * np.log(0.2))))


@pytest.mark.parametrize("dim", [None, 2])
def test_whitening_is_pca(sources, dim):
    PCA = pytest.importorskip("sklearn.decomposition").PCA
    theirs = PCA(n_components=dim or 3, whiten=True, svd_solver="full").fit_transform(sources)
    theirs = theirs * np.sqrt(len(sources) / (len(sources) - 1))  # there variances are divided by N - 1
    ours = isotropy.whiten(sources, dim)(sources)
    np.testing.assert_allclose(ours * np.sign((ours * theirs).sum(axis=0)), theirs, atol=1e-4)


def test_zca_stays_nearest(sources):
    zca, pca = (isotropy.whiten(sources, zca=zca) for zca in (True, False))
    np.testing.assert_allclose(np.cov(zca(sources), rowvar=False, bias=True), np.eye(3), atol=1e-4)
    np.testing.assert_allclose(zca.matrix, zca.matrix.T, atol=1e-9)
    standard = isotropy.center(sources)(sources)
    assert np.square(zca(sources) - standard).sum() < np.square(pca(sources) - standard).sum()


def test_ica_is_that_of_scikit_learn(sources):
    x = isotropy.standardize(sources)(sources)
    ours = isotropy.ica(x)(x)
    FastICA = pytest.importorskip("sklearn.decomposition").FastICA
    theirs = FastICA(3, whiten="unit-variance", fun="logcosh", tol=1e-4, max_iter=1000, random_state=42).fit_transform(
        x
    )
    correlation = np.abs(np.corrcoef(ours, theirs, rowvar=False)[:3, 3:])
    np.testing.assert_array_less(0.99, correlation.max(axis=1))
    assert sorted(correlation.argmax(axis=1)) == [0, 1, 2]
    np.testing.assert_allclose(np.cov(ours, rowvar=False, bias=True), np.eye(3), atol=1e-4)
    with pytest.warns(UserWarning, match="did not converge in 1 iterations"):
        isotropy.ica(x, max_iterations=1, tolerance=0.0)


def test_standardizing_and_scaling(sources):
    transform = isotropy.standardize(np.concatenate([sources, np.ones((3000, 1))], axis=1))
    found = transform.scaled(100)(np.concatenate([sources, np.ones((3000, 1))], axis=1))
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-2)
    np.testing.assert_allclose(found.std(axis=0), [100, 100, 100, 0], rtol=1e-4)


@pytest.mark.parametrize("scale", [2.0**660, 2.0**-660, 2.0**100, 2.0**-100])
def test_measures_do_not_depend_on_the_scale(sources, scale):
    for measure in (isotropy.mean_cosine, isotropy.effective_rank):
        assert measure(sources * scale) == pytest.approx(measure(sources), rel=1e-12)
    assert isotropy.partition_isotropy(sources * scale) == (0 if scale > 1 else 1)
    if abs(np.log2(scale)) == 100:  # float32 can hold the transform
        for make in (isotropy.whiten, isotropy.standardize):
            np.testing.assert_allclose(make(sources * scale).matrix * scale, make(sources).matrix, rtol=1e-12)


def test_applies_to_new_vectors_of_any_kind(sources):
    transform = isotropy.whiten(sources[:2000], 2)
    new = sources[2000:].astype(np.float32)
    expected = (new - sources[:2000].mean(axis=0)) @ transform.matrix
    np.testing.assert_allclose(transform(jnp.asarray(new)), expected, atol=1e-4)
    np.testing.assert_allclose(transform(new[0]), expected[0], atol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: isotropy.whiten(CROSS, 3), "dim must be in 1..2"),
        (lambda: isotropy.whiten(CROSS, 1, zca=True), "with zca"),
        (lambda: isotropy.whiten(CROSS[:2]), "more rows than the 2 components"),
        (lambda: isotropy.whiten(CROSS[:, :1] * [1.0, 2.0]), "varies in 1 directions only"),
        (lambda: isotropy.ica(CROSS * np.nan), "must be finite"),
        (lambda: isotropy.mean_cosine(CROSS[0]), r"x must be \[N, D\]"),
        (lambda: isotropy.effective_rank(CROSS * 0), "rows that differ"),
        (lambda: isotropy.partition_isotropy(np.zeros((3, 0))), r"N >= 2 and D >= 1; got \(3, 0\)"),
        (lambda: isotropy.partition_isotropy(np.full((2, 2), 1.7e308)), "so large that its projections overflow"),
        *(
            (lambda make=make, scale=scale: make(CROSS * scale), "neither too large nor too small for .* float32")
            for make in (isotropy.standardize, isotropy.whiten, isotropy.ica)
            for scale in (1e200, 1e-200)
        ),
        (lambda: isotropy.center(CROSS * 1e200 + 1e200), "neither too large nor too small"),
    ],
)
def test_names_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()
