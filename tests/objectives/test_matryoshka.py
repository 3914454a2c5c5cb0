"""Matryoshka, adaptive layers, both and Starbucks: worked numbers, formulas in NumPy, sampling, and the shared pass."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from scipy.stats import chisquare
from tiny_run import distance, pair_batch, tiny_model

from jaxemb.embedder import Normalize
from jaxemb.losses import info_nce
from jaxemb.objectives import (
    adaptive_layers,
    alignment_kl,
    compressed,
    espresso,
    matryoshka,
    matryoshka_2d,
    on_columns,
    starbucks,
)

BATCH = {"id": np.arange(4)}
L, D = 3, 8
ALL = {name: np.random.default_rng(i).normal(size=(4, 1, L, D)).astype(np.float32) for i, name in enumerate("qd")}
WHOLE = {name: e[:, :, -1] for name, e in ALL.items()}


def plain(q, d):
    """A loss of cosines, in NumPy and JAX alike."""
    return 1 - (q * d).sum(axis=-1) / ((q * q).sum(axis=-1) * (d * d).sum(axis=-1)) ** 0.5


def kl(student, teacher, temperature=1.0):
    t, s = log_softmax(teacher / temperature, axis=-1), log_softmax(student / temperature, axis=-1)
    return (np.exp(t) * (t - s)).sum(axis=-1)


OBJECTIVE = on_columns(plain, "q", "d")


def losses_of(objective, embeddings, batch=BATCH, key=None):
    """`objective.losses`, by one program."""
    return np.asarray(jax.jit(objective.losses)(embeddings, batch, key))


def summed_gradient(objective, embeddings):
    """The gradient of the sum of the losses, by one program."""
    return jax.device_get(jax.jit(jax.grad(lambda e: objective.losses(e, BATCH, None).sum()))(embeddings))


# Worked numbers


def test_alignment_by_hand():
    student, teacher = np.float32([0.0, 0.0]), np.float32([np.log(3.0), 0.0])
    kl = jax.jit(alignment_kl)
    np.testing.assert_allclose(kl(student, teacher), 0.130812, atol=1e-6)
    np.testing.assert_allclose(kl(teacher, student), 0.143841, atol=1e-6)
    np.testing.assert_allclose(4 * np.asarray(kl(student, teacher, temperature=2.0)), 0.145363, atol=1e-6)


def test_prefixes_by_hand():
    embeddings = {"q": np.float32([[[3.0, 4, 0]]]), "d": np.float32([[[3.0, 0, 4]]])}
    for dim, expected in ((1, 1.0), (2, 0.6), (3, 0.36)):
        seen = matryoshka(on_columns(lambda q, d: (q * d).sum(-1), "q", "d"), [dim])
        np.testing.assert_allclose(losses_of(seen, embeddings, {"id": np.arange(1)}), [expected], atol=1e-6)


@pytest.mark.parametrize(("kl_weight", "expected"), [(1.0, 0.871938), (0.0, 0.313262 + 0.503204)])
def test_starbucks_on_scores_by_hand(kl_weight, expected):
    shallow, full = np.array([[1.0, 9], [0, 9]]), np.eye(2)
    embeddings = {name: np.stack([shallow, full], axis=1)[:, None].astype(np.float32) for name in "qd"}
    loss = functools.partial(info_nce, temperature=1.0, similarity="dot")
    sizes = ((1, 1), (2, 2))
    objective = starbucks(on_columns(loss, "q", "d"), sizes, kl_weight=kl_weight, kl_on="scores", normalize=False)
    losses = losses_of(objective, embeddings, {"id": np.arange(2)})
    np.testing.assert_allclose(np.mean(losses), expected, atol=1e-6)


# Formulas


def test_matryoshka_sums_over_prefixes():
    objective = matryoshka(OBJECTIVE, [8, 2, 5], [1.0, 3.0, 0.5])
    expected = sum(w * plain(WHOLE["q"][:, 0, :d], WHOLE["d"][:, 0, :d]) for d, w in ((8, 1), (2, 3), (5, 0.5)))
    np.testing.assert_allclose(losses_of(objective, WHOLE), expected, rtol=1e-5)


def test_adaptive_layers_weigh_and_align():
    objective = adaptive_layers(
        OBJECTIVE, last_weight=2.0, prior_weight=3.0, layer_weighting="log", kl_weight=0.7, kl_temperature=0.5
    )
    expected = 2 * plain(WHOLE["q"][:, 0], WHOLE["d"][:, 0])
    for n in (1, 2):
        q, d = (ALL[name][:, 0, n - 1] for name in "qd")
        expected = expected + 3 / (1 + np.log(1 + n)) / 2 * plain(q, d)
        both = (kl(q, WHOLE["q"][:, 0], 0.5) + kl(d, WHOLE["d"][:, 0], 0.5)) / 2
        expected = expected + 0.7 * 0.5 * both
    np.testing.assert_allclose(losses_of(objective, ALL), expected, rtol=1e-4)


def test_starbucks_on_components():
    objective = starbucks(OBJECTIVE, ((1, 2), (2, 5), (3, 8)), kl_weight=0.3)
    expected = plain(WHOLE["q"][:, 0], WHOLE["d"][:, 0])
    for n, dim in ((1, 2), (2, 5)):
        q, d = (ALL[name][:, 0, n - 1, :dim] for name in "qd")
        both = (kl(q, WHOLE["q"][:, 0, :dim]) + kl(d, WHOLE["d"][:, 0, :dim])) / 2
        expected = expected + plain(q, d) + 0.3 * both
    np.testing.assert_allclose(losses_of(objective, ALL), expected, rtol=1e-4)


def test_starbucks_with_the_teacher_not_detached_is_the_loss_of_the_authors_code():
    """For similarity: all texts' components in one batch of KL, whose gradient goes to the full size, too."""
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(e, requires_grad=True) for name, e in ALL.items()}
    at = lambda n, dim: [t[:, 0, n - 1, :dim] for t in tensors.values()]
    theirs = (1 - torch.cosine_similarity(*at(3, 8))).mean()
    for n, dim in ((1, 2), (2, 5)):
        student, teacher = (torch.cat(at(layer, dim)) for layer in (n, 3))
        kl = torch.nn.KLDivLoss(reduction="batchmean")(student.log_softmax(dim=1), teacher.softmax(dim=1))
        theirs = theirs + (1 - torch.cosine_similarity(*at(n, dim))).mean() + 0.3 * kl
    theirs.backward()
    objective = starbucks(OBJECTIVE, ((1, 2), (2, 5), (3, 8)), kl_weight=0.3, detach_teacher=False)
    np.testing.assert_allclose(losses_of(objective, ALL).mean(), theirs.item(), rtol=1e-5)
    for name, gradient in summed_gradient(objective, ALL).items():
        np.testing.assert_allclose(gradient / 4, tensors[name].grad.numpy(), rtol=1e-4, atol=1e-6)


def test_espresso():
    """The formula in NumPy; signs as scikit-learn's `svd_flip` has them: the largest entry is positive."""

    def alignment(n, dim):
        x = np.concatenate([ALL[name][:, 0, n - 1] for name in "qd"])
        u, s, _ = np.linalg.svd(softmax(x.T @ x / np.sqrt(D), axis=-1))
        c = x @ (u * np.sign(u[np.abs(u).argmax(axis=0), np.arange(D)]) * s)[:, :dim]
        of_texts = ((x[:, :dim] - c) ** 2).mean(axis=-1) + 2.0 * kl(x[:, :dim], c, 2.0)
        return of_texts.reshape(2, 4).mean(axis=0)

    small = lambda n: plain(*(ALL[name][:, 0, n - 1, :3] for name in "qd")) + alignment(n, 3)
    expected = plain(WHOLE["q"][:, 0], WHOLE["d"][:, 0]) + small(3) + (small(1) + small(2) / (1 + np.log(2))) / 2
    objective = espresso(OBJECTIVE, 3, kl_temperature=2.0)
    np.testing.assert_allclose(losses_of(objective, ALL), expected, rtol=1e-4)
    assert all(np.abs(g).max() > 0 for g in summed_gradient(objective, ALL).values())
    plainly = espresso(OBJECTIVE, 3, layers=[0, 1], layer_weighting="log", compress=False)
    part = lambda n: plain(*(ALL[name][:, 0, n, :3] for name in "qd"))
    expected = plain(WHOLE["q"][:, 0], WHOLE["d"][:, 0]) + part(2) + (part(0) + part(1) / (1 + np.log(2))) / 2
    np.testing.assert_allclose(losses_of(plainly, ALL), expected, rtol=1e-5)


def test_what_is_compressed_keeps_the_strongest_dependencies():
    """Of components that are copies of one another, one direction keeps all."""
    signal = np.random.default_rng(0).normal(size=(50, 1)).astype(np.float32)
    x = np.concatenate([signal, signal, 0.01 * np.ones((50, 2), np.float32)], axis=1)
    kept = np.asarray(jax.jit(lambda x: compressed(x, 1))(10 * x))
    assert abs(np.corrcoef(kept[:, 0], signal[:, 0])[0, 1]) > 0.999
    assert np.all(np.asarray(jax.jit(jax.grad(lambda x: compressed(x, 1).sum()))(x)) == 0)


@pytest.mark.parametrize("detach", [True, False])
def test_the_teacher_is_detached(detach):
    """Without losses of its own, the last layer learns from the alignment alone."""
    objective = adaptive_layers(OBJECTIVE, last_weight=0.0, detach_teacher=detach)
    gradients = summed_gradient(objective, ALL)
    assert (np.abs(gradients["q"][:, :, -1]).max() == 0) == detach
    assert np.all(np.abs(gradients["q"][:, :, :-1]).max(axis=(0, 1, 3)) > 0)


def test_targets_are_cut_along():
    objective = matryoshka(
        on_columns(lambda q, t: (q * t).sum(-1), "q", others=["t"]), [3], targets=["t"], normalize=False
    )
    target = np.arange(32.0, dtype=np.float32).reshape(4, 8)
    losses = losses_of(objective, {"q": WHOLE["q"]}, BATCH | {"t": target})
    np.testing.assert_allclose(losses, (WHOLE["q"][:, 0, :3] * target[:, :3]).sum(-1), rtol=1e-5)


# Sampling


def test_every_layer_and_length_is_drawn_as_often_as_others():
    """One program: loss values tell which pair was drawn."""
    dims = (2, 4, 6)
    objective = matryoshka_2d(OBJECTIVE, dims, kl_weight=0.0)
    values = jax.jit(jax.vmap(lambda key: objective.losses(ALL, BATCH, key)[0]))(
        jax.random.split(jax.random.key(0), 3000)
    )
    at = lambda n, d: plain(ALL["q"][0, 0, n, :d], ALL["d"][0, 0, n, :d])
    pairs = list(itertools.product(range(L - 1), dims))
    expected = np.array([at(2, 8) + at(n, 8) + at(2, d) + at(n, d) for n, d in pairs])
    nearest = np.abs(np.asarray(values)[:, None] - expected).argmin(axis=1)
    np.testing.assert_allclose(values, expected[nearest], rtol=1e-4)
    assert chisquare(np.bincount(nearest, minlength=len(pairs))).pvalue > 1e-3


def test_draws_without_replacement():
    objective = matryoshka(OBJECTIVE, [2, 4], dims_per_step=1)
    both = matryoshka(OBJECTIVE, [2, 4], dims_per_step=2)
    every = losses_of(both, WHOLE, key=jax.random.key(0))
    np.testing.assert_allclose(every, losses_of(matryoshka(OBJECTIVE, [2, 4]), WHOLE), rtol=1e-6)
    assert not np.allclose(losses_of(objective, WHOLE, key=jax.random.key(0)), every)


# With a model


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradient(objective, model, batch):

    def mean(model):
        losses, outputs = objective(model, batch, None)
        return losses.mean(), outputs

    return jax.value_and_grad(mean, has_aux=True)(model)


EMBED = jax.jit(lambda model, tokens: model(tokens))


def test_one_pass_gives_what_truncated_models_give():
    model = tiny_model(layers=3)
    sizes = ((1, 4), (3, 16))
    together = jax.jit(lambda model, tokens: model.at_sizes(tokens, sizes))(model, pair_batch(range(4))["query"])
    for (layers, dim), found in zip(sizes, together, strict=True):
        alone = EMBED(model.truncate(layers, dim), pair_batch(range(4))["query"])
        np.testing.assert_allclose(found, alone, atol=1e-5)


@pytest.mark.slow
def test_chunks_give_the_same_and_outputs_are_the_full_embeddings():
    model, batch = tiny_model(layers=3), pair_batch(range(4))
    sizes = ((1, 4), (3, 16))
    whole = starbucks(on_columns(distance, "query", "document"), sizes)
    chunked = starbucks(on_columns(distance, "query", "document", chunk=3), sizes)
    ((value, outputs), gradient), ((value_2, _), gradient_2) = (
        value_and_gradient(objective, model, batch) for objective in (whole, chunked)
    )
    np.testing.assert_allclose(value, value_2, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, gradient_2)
    assert outputs["query"].shape == (4, 16)
    np.testing.assert_allclose(outputs["query"], EMBED(model, batch["query"]), atol=1e-5)


def test_a_shallow_size_gives_deeper_layers_no_gradient():
    model, batch = tiny_model(layers=3), pair_batch(range(4))
    objective = adaptive_layers(on_columns(distance, "query", "document"), [1], last_weight=0.0)
    gradient = value_and_gradient(objective, model, batch)[1]
    of_layer = np.abs(gradient.encoder.layers.mlp.up.kernel).max(axis=(1, 2))
    assert of_layer[0] > 0 and not of_layer[1:].any()


# Bad arguments


def traced(objective):
    """Calls it without compiling anything."""
    jax.eval_shape(objective, tiny_model(), BATCH, None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: matryoshka(OBJECTIVE, []), "dims must be one or more numbers >= 1"),
        (lambda: matryoshka(OBJECTIVE, [4, 0]), "dims must be one or more numbers >= 1"),
        (lambda: matryoshka(OBJECTIVE, [4], [1, 2]), "one entry per dim"),
        (lambda: matryoshka(OBJECTIVE, [4], dims_per_step=2), "dims_per_step must be in 1..1"),
        (lambda: jax.eval_shape(matryoshka(OBJECTIVE, [9]).losses, WHOLE, BATCH, None), "dims must be in 1..8"),
        (lambda: adaptive_layers(OBJECTIVE, [1, 1]), "layers must be distinct"),
        (lambda: adaptive_layers(OBJECTIVE, layer_weighting="cubic"), "layer_weighting must be one of"),
        (lambda: adaptive_layers(OBJECTIVE, kl_temperature=0.0), "kl_temperature > 0"),
        (lambda: traced(adaptive_layers(OBJECTIVE, [2])), "layers must be before the last, 2"),
        (lambda: espresso(OBJECTIVE, 0), "dim must be >= 1"),
        (lambda: jax.eval_shape(espresso(OBJECTIVE, 9).losses, ALL, BATCH, None), "dim must be in 1..8"),
        (lambda: traced(espresso(OBJECTIVE, 4, layers=[2])), "layers must be before the last, 2"),
        (lambda: starbucks(OBJECTIVE, ((1, 4), (2, 4))), "both strictly increasing"),
        (lambda: traced(starbucks(OBJECTIVE, ((1, 4), (2, 8)))), r"full size \(2, 16\)"),
        (lambda: starbucks(OBJECTIVE, ((1, 4),), kl_on="vectors"), "kl_on must be"),
        (lambda: tiny_model().at_sizes(pair_batch(range(1))["query"], ((3, 4),)), "layers must be in 0..2"),
        (lambda: tiny_model().truncate(0), "layers must be in 1..2"),
        (lambda: tiny_model().truncate(dim=17), "dim must be in 1..16"),
    ],
)
def test_names_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_wants_an_embedder():
    with pytest.raises(TypeError, match="an Embedder; got str"):
        adaptive_layers(OBJECTIVE)("model", BATCH, None)


@pytest.mark.parametrize("of", [adaptive_layers, functools.partial(starbucks, sizes=((1, 4), (2, 16)))])
def test_layers_are_aligned_before_a_model_gives_unit_length(of):
    """Its loss sees unit length, as its users do; the alignment sees what it is without."""
    bare = tiny_model()
    model, batch = dataclasses.replace(bare, heads=(Normalize(),)), pair_batch(range(4))
    run = lambda objective: jax.jit(lambda model: objective(model, batch, None))
    with_cosine = run(of(on_columns(plain, "query", "document")))
    (losses, outputs), (expected, of_bare) = with_cosine(model), with_cosine(bare)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(outputs["query"], axis=-1), 1, rtol=1e-5)
    assert outputs["query"].shape == of_bare["query"].shape and np.all(np.linalg.norm(of_bare["query"], axis=-1) > 1.1)
    with_dot, _ = run(of(on_columns(lambda q, d: 1 - (q * d).sum(axis=-1), "query", "document")))(model)
    np.testing.assert_allclose(with_dot, expected, rtol=1e-5)
