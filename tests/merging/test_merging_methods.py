import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxemb import merging
from jaxemb.merging import (
    dare,
    merge_average,
    merge_fisher,
    merge_regmean,
    merge_slerp,
    merge_slerp_vectors,
    merge_task_arithmetic,
    merge_ties,
)

# With density 1/2 the trimmed vectors are (3, 0, 0, 2), (-1, -2, 0, 0), (2, 0, 0, -4), and their sum (4, -2, 0, -2).
TAUS = np.array([[3, -1, 0.1, 2], [-1, -2, 0.2, 1], [2, 1, -0.3, -4]], np.float32)
MERGED = np.array([2.5, -2, 0, -4], np.float32)


def vectors(values=TAUS):
    return [{"a": v[:2], "b": v[2:, None]} for v in values]


def jitted(merge, *trees, **options):
    """The merge, compiled as one program: it may be used inside others, and many small ones take longer."""
    return jax.jit(lambda *trees: merge(*trees, **options))(*trees)


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def test_average_and_task_arithmetic():
    models = vectors()
    np.testing.assert_allclose(flat(jitted(merge_average, models)), TAUS.mean(axis=0), rtol=1e-6, atol=1e-7)
    weighted = (TAUS * np.array([[1], [1], [2]])).sum(axis=0) / 4
    np.testing.assert_allclose(flat(jitted(merge_average, models, weights=[1, 1, 2])), weighted, rtol=1e-6)
    base = {"a": np.ones(2, np.float32), "b": np.zeros((2, 1), np.float32)}
    expected = flat(base) + 0.4 * TAUS.sum(axis=0)
    np.testing.assert_allclose(flat(jitted(merge_task_arithmetic, base, models, scale=0.4)), expected, rtol=1e-6)
    first_b = jitted(merge_average, models, include="a")["b"]
    np.testing.assert_array_equal(first_b, models[0]["b"])


def test_ties_by_hand():
    base = jax.tree.map(np.ones_like, vectors()[0])
    np.testing.assert_allclose(flat(jitted(merge_ties, base, vectors(), density=0.5)), 1 + MERGED, rtol=1e-6)
    np.testing.assert_allclose(
        flat(jitted(merge_ties, base, vectors(), density=0.5, scale=0.5)), 1 + MERGED / 2, rtol=1e-6
    )
    # Each tensor trimmed by itself: (3, 0 | 0, 2), (0, -2 | 0, 1), (2, 0 | 0, -4), and they sum to (5, -2, 0, -1).
    by_tensor = jitted(merge_ties, base, vectors(), density=0.5, scope="tensor")
    np.testing.assert_allclose(flat(by_tensor), 1 + np.array([2.5, -2, 0, -4]), rtol=1e-6)


def test_ties_trims_every_layer_of_a_stack_by_itself():
    stack = np.array([[1, 2, 3, 4], [10, 20, 30, 40]], np.float32)
    tau = {"x": {"layers": {"w": stack}}}
    base = jax.tree.map(np.zeros_like, tau)
    trimmed = lambda **options: jitted(merge_ties, base, [tau], density=0.5, **options)["x"]["layers"]["w"]
    whole = stack * (stack >= 10)
    np.testing.assert_array_equal(trimmed(scope="tensor", stacked=lambda path: False), whole)
    np.testing.assert_array_equal(trimmed(scope="tensor"), [[0, 0, 3, 4], [0, 0, 30, 40]])


@pytest.mark.parametrize(("zero_sum", "expected"), [("majority", [-1, -1, -3]), ("positive", [1, -1, -3])])
def test_ties_whose_entries_sum_to_zero(zero_sum, expected):
    taus = [{"a": np.array(x, np.float32)} for x in ([1, -1, -2], [-1, -1, -4])]
    base = {"a": np.zeros(3, np.float32)}
    np.testing.assert_array_equal(jitted(merge_ties, base, taus, density=1, zero_sum=zero_sum)["a"], expected)


def test_dare_keeps_the_mean():
    tau = {"a": jnp.array([1.0, -2.0, 3.0])}
    draws = jax.vmap(lambda key: dare(key, tau, 0.7)["a"])(jax.random.split(jax.random.key(0), 10_000))
    error = draws.std(axis=0) / 100
    assert (np.abs(draws.mean(axis=0) - tau["a"]) < 3 * error).all()
    dropped = (draws == 0).mean(axis=0)
    np.testing.assert_allclose(dropped, 0.7, atol=3 * np.sqrt(0.21 / 10_000))
    np.testing.assert_allclose(draws[draws != 0].min(), -2 / 0.3, rtol=1e-6)


def test_dare_keeps_the_norm_or_nothing():
    tau = {"a": jnp.arange(1.0, 101.0), "x": {"layers": jnp.ones((2, 50))}, "none": None}
    kept = jitted(dare, jax.random.key(1), tau, drop_rate=0.5, rescale=None)
    assert set(np.unique(kept["a"])) <= {0.0, *np.arange(1.0, 101.0)}
    scaled = jitted(dare, jax.random.key(1), tau, drop_rate=0.5, rescale="l1", stacked=lambda path: "layers" in path)
    np.testing.assert_allclose(np.abs(scaled["a"]).sum(), 5050, rtol=1e-6)
    np.testing.assert_allclose(np.abs(scaled["x"]["layers"]).sum(axis=1), 50, rtol=1e-6)
    assert scaled["none"] is None
    np.testing.assert_array_equal(scaled["a"] == 0, kept["a"] == 0)


def test_slerp_by_hand():
    a, b = {"w": np.array([1.0, 0.0], np.float32)}, {"w": np.array([0.0, 1.0], np.float32)}
    np.testing.assert_allclose(jitted(merge_slerp, a, b, t=0.5)["w"], [0.70711, 0.70711], atol=1e-5)
    third = jitted(merge_slerp, a, b, t=1 / 3)["w"]
    np.testing.assert_allclose(third, [np.cos(np.pi / 6), np.sin(np.pi / 6)], rtol=1e-6)
    np.testing.assert_array_equal(jitted(merge_slerp, a, b, t=0.0)["w"], a["w"])
    parallel = {"w": np.array([3.0, 0.01], np.float32)}
    np.testing.assert_allclose(jitted(merge_slerp, a, parallel, t=0.25)["w"], [1.5, 0.0025], rtol=1e-6)
    zero = {"w": np.zeros(2, np.float32)}
    np.testing.assert_allclose(jitted(merge_slerp, a, zero, t=0.25)["w"], [0.75, 0], rtol=1e-6)


def test_slerp_of_stacks_has_an_angle_for_each_layer():
    a = {"x": {"layers": {"w": np.array([[1, 0], [1, 0]], np.float32)}}}
    b = {"x": {"layers": {"w": np.array([[0, 1], [1, 0]], np.float32)}}}
    merged = jitted(merge_slerp, a, b, t=0.5, stacked=lambda path: True)["x"]["layers"]["w"]
    np.testing.assert_allclose(merged, [[np.sqrt(0.5), np.sqrt(0.5)], [1, 0]], rtol=1e-6)


def test_slerp_of_task_vectors_by_hand():
    """In NumPy: three oblique vectors with weights, one after another; worked cases; what is nearly parallel."""
    taus, a = np.random.default_rng(0).normal(size=(3, 5)), [0.5, 1.5, 3.0]
    expected = taus[0]
    for k in (1, 2):
        s = np.mean(a[:k]) / (np.mean(a[:k]) + a[k])
        cosine = expected @ taus[k] / np.linalg.norm(expected) / np.linalg.norm(taus[k])
        omega = np.arccos(cosine)
        expected = (np.sin(s * omega) * expected + np.sin((1 - s) * omega) * taus[k]) / np.sin(omega)
    base = {"a": np.ones((1, 2), np.float32), "b": np.ones(3, np.float32)}
    trees = [{"a": tau[None, :2].astype(np.float32), "b": tau[2:].astype(np.float32)} for tau in taus]
    merged = jitted(merge_slerp_vectors, base, trees, weights=a, scale=0.5)
    found = np.concatenate([merged["a"][0], merged["b"]])
    np.testing.assert_allclose(found, 1 + 0.5 * expected, rtol=1e-5)

    vectors = lambda rows: [{"w": np.array(row, np.float32)} for row in rows]
    zeros = {"w": np.zeros(3, np.float32)}
    merge = lambda rows, **options: jitted(merge_slerp_vectors, zeros, vectors(rows), **options)["w"]
    np.testing.assert_allclose(merge(np.eye(3)), [0.5, 0.5, 0.5**0.5], rtol=1e-6)
    np.testing.assert_allclose(merge([[1, 0, 0], [3, 0, 0]], weights=[3, 1]), [1.5, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(merge([[0, 0, 0], [4, 0, 0]]), [2, 0, 0], rtol=1e-6)
    with pytest.raises(ValueError, match=r"weights must be 2 positive numbers; got \[1, 0\]"):
        merge([[1, 0, 0], [0, 1, 0]], weights=[1, 0])


def test_fisher_is_an_average_weighted_by_information():
    models = vectors()
    equal = [jax.tree.map(lambda x: np.full_like(x, 0.3), m) for m in models]
    np.testing.assert_allclose(flat(jitted(merge_fisher, models, equal)), TAUS.mean(axis=0), rtol=1e-5, atol=1e-7)
    information = np.array([[1, 0, 0.5, 2], [3, 0, 0.5, 0], [0, 0, 1, 2]], np.float32)
    merged = flat(jitted(merge_fisher, models, vectors(information), weights=[1, 2, 1]))
    w = np.maximum(information, 1e-8) * np.array([[1], [2], [1]])
    np.testing.assert_allclose(merged, (w * TAUS).sum(axis=0) / w.sum(axis=0), rtol=1e-5)


@pytest.fixture
def layers():
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(n, 3)) for n in (20, 7)]
    models = [
        {"kernel": rng.normal(size=(3, 2)).astype(np.float32), "bias": np.full(2, i, np.float32)} for i in range(2)
    ]
    return inputs, models


def test_regmean_is_least_squares(layers):
    inputs, models = layers
    grams = [{"kernel": jnp.asarray(x.T @ x, jnp.float32)} for x in inputs]
    merged = jitted(merge_regmean, models, grams, alpha=1, ridge=0)
    outputs = np.concatenate([x @ m["kernel"] for x, m in zip(inputs, models, strict=True)])
    expected, *_ = np.linalg.lstsq(np.concatenate(inputs), outputs, rcond=None)
    np.testing.assert_allclose(merged["kernel"], expected, rtol=2e-4)
    np.testing.assert_allclose(merged["bias"], 0.5)

    damped = [np.where(np.eye(3), x.T @ x, 0.4 * x.T @ x) for x in inputs]
    products = sum(g @ m["kernel"] for g, m in zip(damped, models, strict=True))
    merged = jitted(merge_regmean, models, grams, alpha=0.4, ridge=0)
    np.testing.assert_allclose(merged["kernel"], np.linalg.solve(sum(damped), products), rtol=2e-4)


def test_regmean_averages_what_never_occurred_and_takes_stacks(layers):
    _, models = layers
    gram = np.zeros((3, 3), np.float32)
    gram[0, 0] = 1
    stacked = [jax.tree.map(lambda x: np.stack([x, x + 1]), m) for m in models]
    grams = [{"kernel": np.stack([gram, np.eye(3, dtype=np.float32)])}] * 2
    merged = jitted(merge_regmean, stacked, grams)
    expected = (stacked[0]["kernel"] + stacked[1]["kernel"]) / 2
    np.testing.assert_allclose(merged["kernel"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: merge_average([]), "models must be at least one; got 0"),
        (lambda m: merge_average(m, [1, 2]), r"weights must be 3 finite numbers with a positive sum; got \[1.0, 2.0\]"),
        (lambda m: merge_average(m, [1, 1, np.inf]), "weights must be 3 finite numbers"),
        (lambda m: merge_average([{"n": np.arange(2)}]), "only floating-point tensors"),
        (lambda m: merge_task_arithmetic(m[0], []), "vectors must be at least one"),
        (lambda m: merge_ties(m[0], []), "vectors must be at least one"),
        (lambda m: merge_ties(m[0], m, density=0), r"density must be in \(0, 1\]; got 0"),
        (lambda m: merge_ties(m[0], m, scope="layer"), "scope must be"),
        (lambda m: merge_ties(m[0], m, zero_sum="negative"), "zero_sum must be"),
        (lambda m: dare(jax.random.key(0), m[0], 1.0), r"drop_rate must be in \[0, 1\); got 1.0"),
        (lambda m: dare(jax.random.key(0), m[0], 0.5, rescale="l2"), "rescale must be"),
        (lambda m: merge_slerp(m[0], m[1], 1.5), r"t must be in \[0, 1\]; got 1.5"),
        (lambda m: merge_slerp(m[0], {"a": m[1]["a"]}), "second must have the structure of first"),
        (lambda m: merge_fisher(m, m[:2]), "fishers must be one for each of 3 models; got 2"),
        (lambda m: merge_fisher([], []), "models must be at least one"),
        (lambda m: merge_fisher(m, m, floor=0), "floor must be > 0; got 0"),
        (lambda m: merge_regmean(m, [{}]), "grams must be one set of matrices for each of 3 models; got 1"),
        (lambda m: merge_regmean(m, [{}] * 3, alpha=2), r"alpha must be in \[0, 1\]; got 2"),
        (lambda m: merge_regmean(m, [{}] * 3, ridge=-1), "ridge must be >= 0; got -1"),
        (lambda m: merge_regmean(m, [{"c": np.eye(2)}] * 3), "grams 0 must be of the kernels .* got c"),
        (lambda m: merge_regmean(m, [{"b": np.eye(3)}] * 3), r"b must have shape \(2, 2\); got \(3, 3\)"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(vectors())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_not_merged(bad):
    good, spoilt = {"w": np.ones(3, np.float32)}, {"w": np.array([1, bad, 1], np.float32)}
    for merge in (
        lambda: merging.merge_average([good, spoilt]),
        lambda: merging.merge_slerp(good, spoilt),
        lambda: merging.merge_fisher([good, good], [good, spoilt]),
    ):
        with pytest.raises(ValueError, match=r"(models\[1\]|second|fishers\[1\]): w must be finite"):
            merge()


def test_large_numbers_are_merged_like_others():
    small, large = {"w": np.array([1.0, 2.0], np.float32)}, {"w": np.array([3.0, -2.0], np.float32)}
    np.testing.assert_allclose(jitted(merge_average, [small, large], weights=[1e308, 1e308])["w"], [2, 0])
    fishers = [{"w": np.array([3e38, 3e38], np.float32)}, {"w": np.array([3e38, 1e38], np.float32)}]
    np.testing.assert_allclose(jitted(merge_fisher, [small, large], fishers)["w"], [2, 1], rtol=1e-6)
    expected = jitted(merge_slerp, small, large)["w"]
    for scale in (1e38, 1e-25):
        scaled = [{"w": x["w"] * np.float32(scale)} for x in (small, large)]
        np.testing.assert_allclose(np.asarray(jitted(merge_slerp, *scaled)["w"]) / scale, expected, 1e-5, 1e-6)
    kernels = [{"w": x["w"][:, None]} for x in (small, large)]
    grams = [{"w": np.diag([3e38, 1e38]).astype(np.float32)}, {"w": np.diag([3e38, 3e38]).astype(np.float32)}]
    np.testing.assert_allclose(jitted(merge_regmean, kernels, grams)["w"], [[2], [-1]], rtol=1e-5)


def test_a_result_that_overflows_is_named():
    base, vector = {"w": np.full(2, 6e4, np.float16)}, {"w": np.full(2, 6e4, np.float32)}
    for merge in (
        lambda: merge_task_arithmetic(base, [vector], 1.0),
        lambda: merge_average([base, {"w": -base["w"]}], [2, -1]),
    ):
        with pytest.raises(ValueError, match="w must be finite after merging; it overflows in float16"):
            merge()


def test_tensors_without_rows_are_merged():
    shapes = {"layers": {"w": (0, 2)}, "e": (0, 3), "b": (2,)}
    tree = jax.tree.map(lambda shape: np.ones(shape, np.float32), shapes, is_leaf=lambda x: isinstance(x, tuple))
    for merge in (
        lambda tree: merge_slerp(tree, tree),
        lambda tree: merge_ties(tree, [tree]),
        lambda tree: merge_ties(tree, [tree], scope="tensor"),
    ):
        assert jax.tree.map(np.shape, jitted(merge, tree)) == shapes
