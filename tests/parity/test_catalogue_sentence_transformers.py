"""The catalogue of losses against sentence-transformers, open_clip and pytorch-metric-learning.

What none of them has is written out in PyTorch. `test_losses_sentence_transformers.py` has InfoNCE and CoSENT.
"""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxemb import losses

torch = pytest.importorskip("torch")
reference = pytest.importorskip("sentence_transformers.sentence_transformer.losses")

N, DIM, K = 12, 16, 3


def embeddings(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def assert_same(ours, theirs, arrays):
    """The mean of `ours(*arrays)` and the scalar `theirs(*tensors)` agree to 1e-5, and so do their gradients."""
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    expected = theirs(*tensors)
    expected.backward()

    def mean(arrays):
        values = ours(*arrays)
        assert values.shape == arrays[0].shape[:1] and values.dtype == jnp.float32
        return values.mean()

    value, gradients = jax.jit(jax.value_and_grad(mean))(arrays)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5, atol=1e-5)
    assert any(np.any(np.asarray(gradient)) for gradient in gradients)
    for gradient, tensor in zip(gradients, tensors, strict=True):
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=1e-5, atol=1e-5)


class Identity(torch.nn.Module):
    """A model whose embeddings are given."""

    device = torch.device("cpu")

    def forward(self, features):
        return features


def columns(*tensors):
    """What such a model takes, for losses that call it."""
    return [{"sentence_embedding": x} for x in tensors]


def on_embeddings(loss, labels=None):
    """A sentence-transformers loss as a function of embeddings, without a model."""
    labels = None if labels is None else torch.as_tensor(labels)
    return lambda *tensors: loss.compute_loss_from_embeddings(list(tensors), labels)


@pytest.mark.parametrize("dim", [DIM, 7], ids=["even", "odd"])
def test_angle(dim):
    scores = np.random.default_rng(1).integers(0, 5, N).astype(np.float32)
    assert_same(
        lambda u, v: losses.angle(u, v, scores),
        on_embeddings(reference.AnglELoss(None), scores),
        list(embeddings(2, N, dim)),
    )


def test_angle_with_negatives():
    assert_same(
        lambda queries, documents, *hard: losses.angle_with_negatives(queries, documents, jnp.stack(hard, axis=1)),
        on_embeddings(reference.AnglELoss(None)),
        list(embeddings(2 + K, N, DIM)),
    )


METRICS = {"cosine": "COSINE_DISTANCE", "euclidean": "EUCLIDEAN"}


@pytest.mark.parametrize(("distance", "margin"), [("cosine", 0.5), ("cosine", 1.2), ("euclidean", 6.0)])
def test_contrastive(distance, margin):
    labels = np.arange(N) % 2
    metric = getattr(reference.SiameseDistanceMetric, METRICS[distance])
    assert_same(
        lambda u, v: losses.contrastive(u, v, labels, margin=margin, distance=distance),
        on_embeddings(reference.ContrastiveLoss(None, distance_metric=metric, margin=margin), labels),
        list(embeddings(2, N, DIM)),
    )


@pytest.mark.parametrize("labels", [np.arange(N) % 2, np.arange(N) % 3, np.ones(N, int), np.zeros(N, int)], ids=str)
@pytest.mark.parametrize(("distance", "margin"), [("cosine", 1.2), ("euclidean", 6.0)])
@pytest.mark.filterwarnings("ignore:OnlineContrastiveLoss expects binary labels")  # a label of 2 is ignored by both
def test_online_contrastive(distance, margin, labels):
    metric = getattr(reference.SiameseDistanceMetric, METRICS[distance])
    assert_same(
        lambda u, v: losses.online_contrastive(u, v, labels, margin=margin, distance=distance),
        on_embeddings(reference.OnlineContrastiveLoss(None, distance_metric=metric, margin=margin), labels),
        list(embeddings(2, N, DIM)),
    )


def test_cosine_similarity_mse():
    scores = np.random.default_rng(1).uniform(0, 1, N).astype(np.float32)
    assert_same(
        lambda u, v: losses.cosine_similarity_mse(u, v, scores),
        on_embeddings(reference.CosineSimilarityLoss(None), scores),
        list(embeddings(2, N, DIM)),
    )


@pytest.mark.parametrize(
    ("features", "vectors"),
    [(("both", "difference"), 3), (("both", "difference", "product"), 4), (("difference",), 1)],
    ids=["default", "all", "difference"],
)
def test_softmax_nli(features, vectors):
    labels = np.arange(N) % 3
    theirs = reference.SoftmaxLoss(
        Identity(),
        DIM,
        num_labels=3,
        concatenation_sent_rep="both" in features,
        concatenation_sent_difference="difference" in features,
        concatenation_sent_multiplication="product" in features,
    )

    def from_embeddings(u, v, kernel, bias):
        weights = {"classifier.weight": kernel.T, "classifier.bias": bias}
        return torch.func.functional_call(theirs, weights, (columns(u, v), torch.as_tensor(labels)))

    u, v = embeddings(2, N, DIM)
    kernel, bias = embeddings(vectors * DIM, 3, seed=1), embeddings(3, seed=2)
    assert_same(
        lambda u, v, kernel, bias: losses.softmax_nli(u, v, labels, kernel=kernel, bias=bias, features=features),
        from_embeddings,
        [u, v, kernel, bias],
    )


LABELS = np.array([0, 0, 1, 1, 2, 2, 2, 0, 1, 3, 3, 0])
TRIPLET_METRICS = {
    "euclidean": reference.BatchHardTripletLossDistanceFunction.euclidean_distance,
    "cosine": reference.BatchHardTripletLossDistanceFunction.cosine_distance,
}
SIMILARITY_AND_MARGIN = pytest.mark.parametrize(
    ("similarity", "margin"), [("euclidean", 5.0), ("euclidean", 0.5), ("cosine", 0.2)]
)


@SIMILARITY_AND_MARGIN
def test_triplet(similarity, margin):
    metric = getattr(reference.TripletDistanceMetric, similarity.upper())
    theirs = reference.TripletLoss(None, distance_metric=metric, triplet_margin=margin)
    assert_same(
        lambda a, p, n: losses.triplet(a, p, n, margin=margin, similarity=similarity),
        lambda *tensors: theirs.compute_loss_from_embeddings(list(tensors), None),
        list(embeddings(3, N, DIM)),
    )


@SIMILARITY_AND_MARGIN
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (losses.batch_all_triplet, reference.BatchAllTripletLoss),
        (losses.batch_hard_triplet, reference.BatchHardTripletLoss),
        (losses.batch_semi_hard_triplet, reference.BatchSemiHardTripletLoss),
    ],
    ids=["all", "hard", "semi_hard"],
)
def test_batch_triplets(ours, theirs, similarity, margin):
    assert_same(
        lambda x: ours(x, LABELS, margin=margin, similarity=similarity),
        on_embeddings(theirs(None, distance_metric=TRIPLET_METRICS[similarity], margin=margin), LABELS),
        [embeddings(N, DIM)],
    )


@pytest.mark.parametrize("similarity", ["euclidean", "cosine"])
def test_batch_hard_triplet_with_soft_margin(similarity):
    metric = TRIPLET_METRICS[similarity]
    assert_same(
        lambda x: losses.batch_hard_triplet(x, LABELS, soft_margin=True, similarity=similarity),
        on_embeddings(reference.BatchHardSoftMarginTripletLoss(None, distance_metric=metric), LABELS),
        [embeddings(N, DIM)],
    )


def test_batch_all_triplet_is_the_triplet_margin_loss_of_pytorch_metric_learning():
    metric_losses = pytest.importorskip("pytorch_metric_learning.losses")
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    distance = distances.LpDistance(normalize_embeddings=False)
    theirs = metric_losses.TripletMarginLoss(margin=1.0, distance=distance)  # averages the triplets that violate it
    assert_same(
        lambda x: losses.batch_all_triplet(x, LABELS, margin=1.0),
        lambda x: theirs(x, torch.as_tensor(LABELS)),
        [embeddings(N, DIM)],
    )


def test_mega_batch_margin():
    theirs = reference.MegaBatchMarginLoss(None, use_mini_batched_version=False)
    queries = embeddings(N, DIM)
    documents = queries + embeddings(N, DIM, seed=1)  # so that both terms are at work
    assert_same(
        losses.mega_batch_margin,
        lambda q, d: theirs.calculate_loss([[q], [d]]),
        [queries, documents.astype(np.float32)],
    )


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, 3.0)])
def test_orthogonal_regularization(weights):
    theirs = reference.GlobalOrthogonalRegularizationLoss(None, mean_weight=weights[0], second_moment_weight=weights[1])
    assert_same(
        lambda *columns: losses.orthogonal_regularization(
            *columns, mean_weight=weights[0], second_moment_weight=weights[1]
        ),
        lambda *columns: sum(theirs.compute_loss_from_embeddings(list(columns)).values()),
        list(embeddings(3, N, DIM) + 0.5),
    )


@pytest.mark.parametrize("teacher_shape", [(N,), (N, 1), (N, 2), (N, K), (N, K + 1)], ids=str)
def test_margin_mse(teacher_shape):
    n_hard = K if teacher_shape[-1] in (K, K + 1) else 1
    teacher = embeddings(*teacher_shape, seed=1)
    assert_same(
        lambda queries, documents, *hard: losses.margin_mse(queries, documents, jnp.stack(hard, axis=1), teacher),
        on_embeddings(reference.MarginMSELoss(None), teacher),
        list(embeddings(2 + n_hard, N, DIM)),
    )


@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (2.0, 2.0), (0.5, 3.0)], ids=str)
def test_distill_kl(temperatures):
    student_temperature, teacher_temperature = temperatures
    teacher = embeddings(N, K + 1, seed=1)
    theirs = reference.DistillKLDivLoss(
        None, student_temperature=student_temperature, teacher_temperature=teacher_temperature
    )
    assert_same(
        lambda queries, documents, *hard: losses.distill_kl(
            queries,
            documents,
            jnp.stack(hard, axis=1),
            teacher,
            student_temperature=student_temperature,
            teacher_temperature=teacher_temperature,
        ),
        on_embeddings(theirs, teacher),
        list(embeddings(2 + K, N, DIM)),
    )


@pytest.mark.parametrize("one_teacher", [False, True])
@pytest.mark.parametrize("metric", ["cosine", "mse", "l2"])
def test_embed_distill(metric, one_teacher):
    teacher = embeddings(N, DIM, seed=1) if one_teacher else embeddings(N, 2, DIM, seed=1)
    theirs = reference.EmbedDistillLoss(None, distance_metric=metric)
    teachers = [torch.as_tensor(teacher if one_teacher else teacher[:, i]) for i in range(2)]
    assert_same(
        lambda x: losses.embed_distill(x, teacher, metric=metric),
        lambda x: theirs.compute_loss_from_embeddings([x[:, 0], x[:, 1]], teachers),
        [embeddings(N, 2, DIM)],
    )


def test_m3_kd_is_flag_embeddings():
    """FlagEmbedding's definition in PyTorch: one cross-entropy per own passage, earlier ones hidden, query-major."""
    group, temperature = K + 1, 0.1
    teacher = embeddings(N, group, seed=1)

    def theirs(queries, documents, *hard):
        normalize = torch.nn.functional.normalize
        passages = torch.stack([documents, *hard], dim=1).reshape(N * group, DIM)
        scores = normalize(queries, dim=-1) @ normalize(passages, dim=-1).T / temperature
        weights = torch.softmax(torch.as_tensor(teacher), dim=-1)
        hidden, loss = torch.zeros(N, N * group, dtype=torch.bool), 0.0
        for g in range(group):
            targets = torch.arange(N) * group + g
            entropies = torch.nn.functional.cross_entropy(
                scores.masked_fill(hidden, torch.finfo(scores.dtype).min), targets, reduction="none"
            )
            loss = loss + (weights[:, g] * entropies).mean()
            hidden = hidden.clone()
            hidden[torch.arange(N), targets] = True
        return loss

    assert_same(
        lambda queries, documents, *hard: losses.m3_kd(
            queries, documents, jnp.stack(hard, axis=1), teacher, temperature=temperature
        ),
        theirs,
        list(embeddings(2 + K, N, DIM)),
    )


def test_flag_embeddings_kl_div_is_distill_kl_plus_the_teachers_entropy():
    teacher = embeddings(N, K + 1, seed=1)
    targets = torch.softmax(torch.as_tensor(teacher), dim=-1)
    entropy = -(targets * targets.log()).sum(dim=-1).mean()
    assert_same(
        lambda scores: losses.distill_kl_scores(scores, teacher),
        lambda scores: -(torch.log_softmax(scores, dim=-1) * targets).sum(dim=-1).mean() - entropy,
        [embeddings(N, K + 1)],
    )


@pytest.fixture(scope="module")
def open_clip():
    """open_clip's loss.py, which needs torch alone; the package needs torchvision and timm as well."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        pytest.skip("open_clip is absent: pip install --no-deps open_clip_torch")
    spec = importlib.util.spec_from_file_location("open_clip_loss", Path(spec.origin).with_name("loss.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def unit(x):
    return torch.nn.functional.normalize(x, dim=-1)


def test_clip_distill(open_clip):
    teacher = embeddings(2, N, 5, seed=1)
    teacher_unit = [unit(torch.as_tensor(x)) for x in teacher]

    def theirs(images, texts, temperature):
        loss = open_clip.DistillClipLoss()
        return loss(unit(images), unit(texts), 1 / temperature, *teacher_unit, 1 / 0.1)[1]

    assert_same(
        lambda images, texts, temperature: losses.clip_distill(
            images, texts, *teacher, temperature=temperature, teacher_temperature=0.1
        ),
        theirs,
        [*embeddings(2, N, DIM), np.float32(0.2)],
    )


def test_contrastive_tension():
    labels = (np.arange(N) % 8 == 0).astype(np.float32)
    theirs = reference.ContrastiveTensionLoss(Identity())
    assert_same(
        lambda u, v: losses.contrastive_tension(u, v, labels),
        lambda u, v: theirs(columns(u, v), torch.as_tensor(labels)),
        list(embeddings(2, N, DIM) / 4),
    )


def test_contrastive_tension_in_batch():
    theirs = reference.ContrastiveTensionLossInBatchNegatives(Identity())

    def from_embeddings(u, v, log_scale):
        theirs.model1.forward, theirs.model2.forward = (lambda _: columns(u)[0]), (lambda _: columns(v)[0])
        return torch.func.functional_call(theirs, {"logit_scale": log_scale}, ([{}], None))

    assert_same(
        lambda u, v, log_scale: losses.contrastive_tension_in_batch(u, v, temperature=jnp.exp(-log_scale)),
        from_embeddings,
        [*embeddings(2, N, DIM), np.log(np.float32(20.0))],
    )


def test_symmetric_info_nce_is_clips(open_clip):
    assert_same(
        lambda images, texts, temperature: losses.symmetric_info_nce(images, texts, temperature=temperature),
        lambda images, texts, temperature: open_clip.ClipLoss()(unit(images), unit(texts), 1 / temperature),
        [*embeddings(2, N, DIM), np.float32(0.2)],
    )


def test_siglip(open_clip):
    assert_same(
        lambda images, texts, log_scale, bias: losses.siglip(images, texts, temperature=jnp.exp(-log_scale), bias=bias),
        lambda images, texts, log_scale, bias: open_clip.SigLipLoss()(unit(images), unit(texts), log_scale.exp(), bias),
        [*embeddings(2, N, DIM), np.log(np.float32(10.0)), np.float32(-10.0)],
    )


def test_supcon_is_pytorch_metric_learnings():
    metric_losses = pytest.importorskip("pytorch_metric_learning.losses")
    labels = np.append(LABELS[:-1], 9)  # the last is alone, and left out of the mean by both
    theirs = metric_losses.SupConLoss(temperature=0.1)
    assert_same(
        lambda x: losses.supcon(x, labels, temperature=0.1),
        lambda x: theirs(x, torch.as_tensor(labels)),
        [embeddings(N, DIM)],
    )


@pytest.mark.parametrize("n_hard", [0, 1])
@pytest.mark.parametrize(("strategy", "margin"), [("absolute", 0.0), ("absolute", 0.1), ("relative", 0.2)])
def test_gist(strategy, margin, n_hard):
    arrays = list(embeddings(2 + n_hard, N, DIM))
    guide = list(np.stack(arrays)[..., :5] + embeddings(2 + n_hard, N, 5, seed=1))
    theirs = reference.GISTEmbedLoss.__new__(reference.GISTEmbedLoss)
    torch.nn.Module.__init__(theirs)
    theirs.model = Identity()
    theirs.margin, theirs.margin_strategy, theirs.temperature = margin, strategy, 0.1
    theirs.contrast_anchors = theirs.contrast_positives = True
    theirs.must_retokenize = theirs.gather_across_devices = False
    theirs.similarity_fct, theirs.cross_entropy_loss = torch.nn.CosineSimilarity(dim=-1), torch.nn.CrossEntropyLoss()

    class Guide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embeddings = iter(guide)

        def forward(self, features):
            return {"sentence_embedding": torch.as_tensor(next(self.embeddings))}

    theirs.guide = Guide()
    assert_same(
        lambda *x: losses.gist(
            *x,
            guide_queries=guide[0],
            guide_documents=guide[1],
            guide_negatives=guide[2] if n_hard else None,
            temperature=0.1,
            margin=margin,
            strategy=strategy,
        ),
        lambda *x: theirs(columns(*x), None),
        arrays,
    )


@pytest.mark.parametrize("sigma", [None, 0.5])
def test_decoupled_contrastive_by_definition(sigma):
    def theirs(queries, documents):
        similarities = unit(queries) @ unit(documents).T
        positive, logits = similarities.diagonal(), similarities / 0.1
        hidden = torch.eye(N, dtype=torch.bool)
        weights = torch.ones(N) if sigma is None else 2 - torch.softmax(positive.detach() / sigma, dim=0) * N
        return (torch.logsumexp(logits.masked_fill(hidden, -torch.inf), dim=1) - weights * positive / 0.1).mean()

    assert_same(lambda q, d: losses.decoupled_contrastive(q, d, sigma=sigma), theirs, list(embeddings(2, N, DIM)))


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (0.9, 0.3)])
def test_hard_negative_nce_by_definition(alpha, beta):
    def theirs(queries, documents):
        logits = unit(queries) @ unit(documents).T / 0.2
        negative = ~torch.eye(N, dtype=torch.bool)
        hardness = torch.exp(beta * logits.detach()) * negative
        weights = (N - 1) * hardness / hardness.sum(dim=1, keepdim=True)
        positive = logits.diagonal()
        return (torch.log(alpha * positive.exp() + (weights * logits.exp()).sum(dim=1)) - positive).mean()

    assert_same(
        lambda q, d: losses.hard_negative_nce(q, d, temperature=0.2, alpha=alpha, beta=beta),
        theirs,
        list(embeddings(2, N, DIM)),
    )


def test_cwcl_by_definition():
    features = embeddings(N, 5, seed=1)

    def theirs(locked, learned):
        logits = unit(locked) @ unit(learned).T / 0.2
        weights = (1 + unit(torch.as_tensor(features)) @ unit(torch.as_tensor(features)).T) / 2
        aligned = (weights * torch.log_softmax(logits, dim=1)).sum(dim=1) / weights.sum(dim=1)
        return torch.nn.functional.cross_entropy(logits.T, torch.arange(N)) - aligned.mean()

    assert_same(
        lambda locked, learned: losses.cwcl(locked, learned, features, temperature=0.2),
        theirs,
        list(embeddings(2, N, DIM)),
    )
