"""Every loss of the catalogue is one program when called eagerly, and has reverse and forward mode."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from budget import Programs
from jax.sharding import Mesh
from jax.tree_util import Partial

from jaxemb import losses
from jaxemb.checks import finite, non_negative, positive
from jaxemb.losses import masks, ranking, soft_targets
from jaxemb.losses.program import one_program

N, K, D, T = 7, 2, 6, 3  # shapes that no other test has, so that nothing is compiled yet
RNG = np.random.default_rng(0)
A, B, C, E = RNG.standard_normal((4, N, D), np.float32)
HARD = RNG.standard_normal((N, K, D), np.float32)
SCORES = RNG.standard_normal((N, 1 + K), np.float32)
SQUARE = RNG.standard_normal((3, N, N), np.float32)
TOKENS, MORE_TOKENS = RNG.standard_normal((2, N, T, D), np.float32)
PRESENT = np.arange(T) < RNG.integers(1, T + 1, N)[:, None]
LABELS = np.array([0, 0, 1, 1, 2, 2, 2])
BINARY = LABELS % 2
RANKED = RNG.random((N, 1 + K), np.float32)
TEMPERATURES = {"temperature": 0.5, "teacher_temperature": 0.5}

#: Of each function: the arrays that it is differentiated in, and the rest of its arguments.
EXAMPLES = {
    "angle": ((A, B), {"scores": RANKED[:, 0]}),
    "angle_similarity": ((A, B), {}),
    "angle_with_negatives": ((A, B, HARD), {}),
    "batch_all_triplet": ((A,), {"labels": LABELS}),
    "batch_hard_triplet": ((A,), {"labels": LABELS}),
    "batch_semi_hard_triplet": ((A,), {"labels": LABELS}),
    "clip_distill": ((A, B, C, E), TEMPERATURES),
    "contrastive": ((A, B), {"labels": BINARY}),
    "contrastive_tension": ((A, B), {"labels": BINARY}),
    "contrastive_tension_in_batch": ((A, B), {}),
    "cosent": ((A, B), {"scores": RANKED[:, 0]}),
    "cosine": ((A, B), {}),
    "cosine_similarity_mse": ((A, B), {"scores": RANKED[:, 0]}),
    "csr_reconstruction": ((A, B, C, E), {}),
    "cwcl": ((A, B), {}),
    "decoupled_contrastive": ((A, B, HARD), {"sigma": 0.5}),
    "distill_kl": ((A, B, HARD), {"teacher_scores": SCORES}),
    "distill_kl_scores": ((SCORES,), {"teacher_scores": RANKED}),
    "dot": ((A, B), {}),
    "embed_distill": ((A,), {"teacher": B}),
    "euclidean": ((A, B), {}),
    "flops": ((A,), {"threshold": 2}),
    "gist": ((A, B, HARD), {"guide_queries": C, "guide_documents": E, "guide_negatives": HARD + 1}),
    "hard_negative_nce": ((A, B, HARD), {"beta": 0.3}),
    "info_nce": ((A, B, HARD), {"directions": ("q2d", "d2q", "q2q", "d2d")}),
    "k_sparse": ((A,), {"k": 2}),
    "m3_kd": ((A, B, HARD), {"teacher_scores": SCORES, "temperature": 0.5}),
    "m3_unified": (tuple(SQUARE), {}),
    "margin_mse": ((A, B, HARD), {"teacher_scores": SCORES}),
    "margin_mse_scores": ((SCORES,), {"teacher_scores": RANKED}),
    "maxsim": ((TOKENS,), {"query_mask": PRESENT, "documents": MORE_TOKENS, "document_mask": PRESENT}),
    "maxsim_candidates": (
        (TOKENS,),
        {"query_mask": PRESENT, "candidates": MORE_TOKENS[:, None], "candidate_mask": PRESENT[:, None]},
    ),
    "maxsim_info_nce": ((TOKENS,), {"query_mask": PRESENT, "documents": MORE_TOKENS, "document_mask": PRESENT}),
    "mega_batch_margin": ((A, B), {}),
    "memory_info_nce": ((A, B), {"memory": C, "ids": LABELS, "memory_ids": LABELS + 1}),
    "normalized_mse": ((A, B), {}),
    "online_contrastive": ((A, B), {"labels": BINARY}),
    "orthogonal_regularization": ((A, B), {}),
    "pair_ranking": ((A[:, 0],), {"scores": RANKED[:, 0]}),
    "progressive_info_nce": ((A, B, HARD), {"alpha": 2.0}),
    "progressive_weights": ((A[:, 0],), {"alpha": 2.0}),
    "prototype_logits": ((A, B), {}),
    "prototype_pull": ((A, B), {"labels": LABELS}),
    "relation_distillation": ((A, B), {"old_features": C, "old_prototypes": E, "groups": LABELS}),
    "siglip": ((A, B, HARD), {}),
    "soft_target_contrastive": ((A, B), {"targets": soft_targets.equal(LABELS)}),
    "softmax_nli": ((A, B), {"labels": BINARY, "kernel": RNG.standard_normal((3 * D, 2), np.float32)}),
    "supcon": ((A,), {"labels": LABELS}),
    "symmetric_info_nce": ((A, B), {}),
    "triplet": ((A, B, HARD), {}),
    "xtr": ((TOKENS,), {"query_mask": PRESENT, "documents": MORE_TOKENS, "document_mask": PRESENT, "k": 2}),
    "ranking.bce": ((SCORES,), {"labels": RANKED}),
    "ranking.mse": ((SCORES,), {"labels": RANKED}),
    "ranking.cross_entropy": ((SCORES,), {"labels": BINARY}),
    "ranking.multiple_negatives": ((SCORES,), {}),
    "ranking.list_net": ((SCORES,), {"labels": RANKED}),
    "ranking.list_mle": ((SCORES,), {"labels": RANKED}),
    "ranking.p_list_mle": ((SCORES,), {"labels": RANKED}),
    "ranking.adr_mse": ((SCORES,), {"labels": RANKED}),
    "ranking.rank_net": ((SCORES,), {"labels": RANKED}),
    "ranking.lambda_loss": ((SCORES,), {"labels": RANKED}),
}
#: One of each kind of loss is differentiated in the default run: a fused one, one of several gradients, the rest.
DIFFERENTIATED = ("info_nce", "supcon", "mega_batch_margin", "cosent", "maxsim", "ranking.lambda_loss")
NO_LOSSES = {"duplicates", "masks", "soft_targets", "ranking", "flops_ramp"}


def function_named(name):
    module, _, rest = name.rpartition(".")
    return getattr(ranking if module else losses, rest)


def test_the_table_has_every_loss():
    public = {name for name in losses.__all__ if name.islower()} - NO_LOSSES
    weightings = {"random_negatives", "ndcg_loss1", "ndcg_loss2", "ndcg_loss2pp", "lambda_rank"}
    of_rerankers = {name for name, f in vars(ranking).items() if getattr(f, "__module__", "") == ranking.__name__}
    of_rerankers = {f"ranking.{name}" for name in of_rerankers - weightings if not name.startswith("_")}
    assert public | of_rerankers == EXAMPLES.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_call_is_one_program(name):
    """What the function does to its arguments is one jitted call; nothing is compiled to see that."""
    floats, rest = EXAMPLES[name]
    call = function_named(name)
    equations = jax.make_jaxpr(lambda *floats: call(*floats, **rest))(*floats).eqns
    assert [equation.primitive.name for equation in equations] == ["jit"]


@pytest.fixture(scope="module")
def programs():
    return Programs()


@pytest.mark.parametrize("name", ["info_nce", "online_contrastive", pytest.param("gist", marks=pytest.mark.slow)])
def test_a_call_compiles_one_program_and_its_gradient_another(name, programs):
    floats, rest = EXAMPLES[name]
    call = lambda *floats: function_named(name)(*floats, **rest)
    before = programs.count
    value = call(*floats)
    assert programs.count == before + 1
    call(*floats)
    assert programs.count == before + 1
    again, pull = jax.vjp(call, *floats)
    np.testing.assert_allclose(again, value, rtol=1e-5, atol=1e-6)
    assert programs.count == before + 2  # the value and what its gradient needs
    pull(np.ones(value.shape, np.float32))
    assert programs.count == before + 3


def test_numbers_are_data_of_the_program(programs):
    mask = masks.near_positive(0.25)
    loss = lambda t, labels: losses.info_nce(A, B, temperature=t, mask=mask | masks.same_label(labels))
    first = loss(0.3, LABELS)
    before = programs.count
    assert not np.array_equal(loss(0.4, LABELS[::-1].copy()), first)
    np.testing.assert_array_equal(loss(0.3, LABELS), first)
    losses.info_nce(A, B, temperature=0.5, mask=masks.near_positive(0.25) | masks.same_label(LABELS))
    assert programs.count == before  # rules that compare equal are the same rule


def test_the_mesh_in_force_decides_the_program():
    """Eagerly without a mesh, under one, under another, and without again."""
    loss = lambda: losses.info_nce(A, B, HARD, temperature=0.3, directions=("q2d", "d2q"))
    expected = np.asarray(loss())
    for devices in (2, 8, 2):
        with jax.set_mesh(Mesh(np.asarray(jax.devices()[:devices]), "data")):
            found = loss()
            assert len(found.sharding.device_set) == devices
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert len(loss().sharding.device_set) == 1


SLOW = [name for name in EXAMPLES if name not in (*DIFFERENTIATED, *losses.SIMILARITIES)]


@pytest.mark.parametrize("name", [*DIFFERENTIATED, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_forward_mode_equals_reverse_mode(name):
    floats, rest = EXAMPLES[name]
    direction = tuple(np.cos(np.arange(x.size, dtype=np.float32)).reshape(x.shape) for x in floats)

    def loss(*floats):
        found = function_named(name)(*floats, **rest)
        found = found.losses if isinstance(found, tuple) else found
        return (found * jnp.arange(1.0, 1.0 + found.size).reshape(found.shape)).mean()

    @jax.jit
    def slopes():
        forward = jax.jvp(loss, floats, direction)[1]
        gradients = jax.grad(loss, tuple(range(len(floats))))(*floats)
        return forward, sum(jnp.vdot(g, d) for g, d in zip(gradients, direction, strict=True))

    np.testing.assert_allclose(*slopes(), rtol=1e-4, atol=1e-5)


def test_hessian_vector_products_of_info_nce():
    loss = lambda q: losses.info_nce(q, B, HARD, temperature=0.5, tile=3).mean()
    direction = np.cos(np.arange(A.size, dtype=np.float32)).reshape(A.shape)
    gradient = jax.jit(jax.grad(loss))
    step = 1e-2
    expected = (gradient(A + step * direction) - gradient(A - step * direction)) / (2 * step)
    np.testing.assert_allclose(jax.jit(lambda: jax.jvp(jax.grad(loss), (A,), (direction,))[1])(), expected, atol=2e-4)


def test_what_a_loss_is_mapped_over():
    """`jax.vmap` of value and gradient, and the gradient of `jax.vmap`."""
    loss = lambda q: losses.info_nce(q, B, temperature=0.5).mean()
    batch = np.stack([A, C])
    step = jax.jit(jax.value_and_grad(loss))
    one_by_one = [step(q) for q in batch]
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(loss)))(batch)
    np.testing.assert_allclose(values, [value for value, _ in one_by_one], rtol=1e-5)
    np.testing.assert_allclose(gradients, [gradient for _, gradient in one_by_one], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        jax.jit(jax.grad(lambda batch: jax.vmap(loss)(batch).sum()))(batch), gradients, rtol=1e-4, atol=1e-6
    )


def test_values_are_checked_before_anything_is_traced():
    traced = []

    @one_program(width=positive, shift=non_negative, place=finite)
    def scaled(x, *, width, shift=0.0, place=0.0):
        traced.append(x)
        return x * width + shift + place

    for options, message in (
        ({"width": 0.0}, "width must be > 0; got 0"),
        ({"width": np.float32("nan")}, "width must be > 0; got nan"),
        ({"width": 1.0, "shift": -1.0}, "shift must be >= 0; got -1"),
        ({"width": 1.0, "place": np.inf}, "place must be finite; got inf"),
        ({"width": np.ones(2)}, r"width must be one number; got an array of shape \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            scaled(A, **options)
    assert not traced
    np.testing.assert_allclose(scaled(A, width=2.0), 2 * A)
    np.testing.assert_allclose(jax.jit(lambda w: scaled(A, width=w))(-1.0), -A)  # what is traced has no value yet
    assert scaled.__name__ == "scaled"


def test_arguments_of_another_type_are_named():
    for arguments, options, message in (
        ((None, B), {}, "queries must be an array of real numbers; got NoneType None"),
        ((A, B), {"tile": 2.5}, "tile must be a whole number; got float 2.5"),
    ):
        with pytest.raises(TypeError, match=message):
            losses.info_nce(*arguments, **options)


def test_a_check_of_an_argument_that_is_not_there_is_refused():
    with pytest.raises(TypeError, match="scaled has no argument widht"):

        @one_program(widht=positive)
        def scaled(x, *, width):
            return x * width


def test_lists_of_numbers_are_data(programs):
    first = losses.mega_batch_margin(A.tolist(), B.tolist())
    before = programs.count
    losses.mega_batch_margin(C.tolist(), B.tolist())
    assert programs.count == before
    np.testing.assert_allclose(first, losses.mega_batch_margin(A, B), rtol=1e-6)


def test_a_similarity_with_weights_is_learned():
    """Its gradient is that of the logits written out."""
    weights = np.eye(D, dtype=np.float32) + 0.1 * A[:D]
    bilinear = lambda w, a, b: jnp.einsum("...nd,de,...me->...nm", a, w, b)

    def plain(w):
        return optax.softmax_cross_entropy_with_integer_labels(bilinear(w, A, B) / 0.5, np.arange(N)).mean()

    def ours(w):
        return losses.info_nce(A, B, temperature=0.5, similarity=Partial(bilinear, w), tile=3).mean()

    found, expected = jax.jit(lambda w: (jax.grad(ours)(w), jax.grad(plain)(w)))(weights)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_labels_beyond_32_bits_are_refused():
    """On the device 2**32 would be 0, and so the label of others."""
    labels = np.array([0, 2**32, 1, 1, 2, 2, 2])
    for call in (
        lambda: losses.batch_all_triplet(A, labels),
        lambda: masks.same_label(labels),
        lambda: soft_targets.equal(labels),
    ):
        with pytest.raises(ValueError, match="labels must be whole numbers of 32 bits; got 4294967296"):
            call()
