import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy.special import rel_entr, softmax

from jaxemb.losses import prototype_logits, prototype_pull, relation_distillation

RNG = np.random.default_rng(0)
F, OLD_F = RNG.normal(size=(2, 8, 5)).astype(np.float32)
P, OLD_P = RNG.normal(size=(2, 7, 5)).astype(np.float32)
GROUPS = np.array([0, 3, 0, -1, 3, 3, 0])  # tasks 0 and 3; class 3 is new
EYE = np.eye(2, dtype=np.float32)


def by_definition(axis, temperature=1.0, normalize=False):
    """The loss in float64, from SciPy's terms of the divergence."""
    length = lambda x: np.linalg.norm(x, axis=1, keepdims=True)

    def scores(f, p):
        f, p = f.astype(np.float64), p.astype(np.float64)
        return (f / length(f) if normalize else f) @ (p / length(p)).T / temperature

    new, old, total = scores(F, P), scores(OLD_F, OLD_P), 0.0
    for task in (0, 3):
        mine = task == GROUPS
        if axis == "class":
            total += rel_entr(softmax(old[:, mine], axis=1), softmax(new[:, mine], axis=1)).sum(axis=1).mean()
        else:
            total += rel_entr(softmax(old[:, mine], axis=0), softmax(new[:, mine], axis=0)).sum(axis=0).mean()
    return total


def test_pull_worked_by_hand():
    pull = lambda f, p: prototype_pull(f, p, np.array([1]))[0]
    f, p = np.array([[3.0, 4.0]]), np.array([[0.0, 2.0], [1.0, 0.0]])
    value, (to_features, to_prototypes) = jax.jit(jax.value_and_grad(pull, (0, 1)))(f, p)
    np.testing.assert_allclose(value, 0.4, rtol=1e-6)
    np.testing.assert_array_equal(to_features, 0)
    np.testing.assert_allclose(to_prototypes, [[0, 0], [0, -0.8]], atol=1e-7)


def test_relations_worked_by_hand():
    f, old_f = np.array([[0, 1], [0, 2], [1, 0]], np.float32), np.array([[1, 0]] * 3, np.float32)
    loss = jax.jit(lambda p: relation_distillation(f, p, old_f, EYE, np.array([0, 0])))
    for p in (EYE, EYE * np.array([[2.0], [1.0]], np.float32)):  # the length of p does not count
        np.testing.assert_allclose(loss(p), [0.462117, 1.006842, 0.0], atol=1e-6)


@pytest.mark.parametrize("axis", ["class", "sample"])
@pytest.mark.parametrize("options", [{}, {"temperature": 2.0, "normalize": True}])
def test_relations_are_the_sum_over_tasks_by_definition(axis, options):
    losses = jax.jit(lambda *arrays: relation_distillation(*arrays, GROUPS, relation_axis=axis, **options))(
        F, P, OLD_F, OLD_P
    )
    assert losses.shape == (8,)
    np.testing.assert_allclose(losses.mean(), by_definition(axis, **options), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("axis", ["class", "sample"])
def test_an_unchanged_model_has_no_loss_and_no_gradient_and_devices_do_not_matter(axis):
    loss = lambda f, p, old_f, old_p: relation_distillation(f, p, old_f, old_p, GROUPS, relation_axis=axis).mean()
    step = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))
    value, gradients = step(F, P, F, P)
    assert abs(value) < 1e-6
    jax.tree.map(lambda g: np.testing.assert_allclose(g, 0, atol=1e-6), gradients)

    value, gradients = step(F, P, OLD_F, OLD_P)
    assert np.all(np.any(gradients[0], axis=1)) and not np.any(gradients[2]) and not np.any(gradients[3])
    np.testing.assert_array_equal(np.any(gradients[1], axis=1), GROUPS >= 0)
    mesh = Mesh(jax.devices()[:8], "data")
    rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    sharded = step(*jax.device_put((F, P, OLD_F, OLD_P), (rows, whole, rows, whole)))
    assert len(sharded[1][0].sharding.device_set) == 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), sharded, (value, gradients))


def test_logits_are_cosines_of_the_classes_that_compete():
    logits = jax.jit(prototype_logits)(F, P, GROUPS >= 0)
    cosines = (F @ P.T) / np.linalg.norm(F, axis=1)[:, None] / np.linalg.norm(P, axis=1)
    np.testing.assert_allclose(logits, np.where(GROUPS >= 0, cosines, -np.inf), rtol=1e-5)


def test_what_is_wrong_is_named():
    relate = lambda **change: relation_distillation(
        **{"features": F, "prototypes": P, "old_features": OLD_F, "old_prototypes": OLD_P, "groups": GROUPS} | change
    )
    for call, message in (
        (
            lambda: prototype_pull(F, P[:, :4], np.zeros(8, int)),
            r"prototypes .* D = 5 as in features; got \(7, 4\)",
        ),
        (lambda: prototype_pull(F, P, np.zeros(7, int)), r"labels must be \[N\] with N = 8 as in features; got \(7,\)"),
        (lambda: prototype_pull(F, P, np.full(8, 7)), r"labels must be in 0..6; got 7"),
        (lambda: prototype_pull(F, 0 * P, np.zeros(8, int)), "must not be zero vectors; that of class 0 is"),
        (
            lambda: relate(old_features=OLD_F[:4]),
            r"old_features must be .* N = 8, D = 5 as in features; got \(4, 5\)",
        ),
        (lambda: relate(groups=GROUPS[:4]), r"groups must be \[C\] with C = 7 as in prototypes; got \(4,\)"),
        (lambda: relate(groups=GROUPS + 9), r"groups must be whole numbers in -1..6; got \[9, 12"),
        (lambda: relate(relation_axis="task"), "must be 'class' or 'sample'; got 'task'"),
        (lambda: relate(temperature=0.0), "temperature must be > 0; got 0"),
        (lambda: relate(features=F[:1], old_features=F[:1], relation_axis="sample"), "two samples at least; got 1"),
        (lambda: prototype_logits(F, P, np.ones(8, bool)), r"classes must be \[C\] or \[N, C\] with .*; got \(8,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
