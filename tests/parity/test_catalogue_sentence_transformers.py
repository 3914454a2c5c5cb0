"""The catalogue of losses against sentence-transformers, open_clip and pytorch-metric-learning.

What none of them has is written out in PyTorch. `test_losses_sentence_transformers.py` has InfoNCE and CoSENT.
"""

import functools
import importlib.util
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from libraries import Library, torch

from jaxemb import losses

pytest_plugins = ["losses_oracle"]

reference = Library("sentence_transformers.sentence_transformer.losses")
metric_losses = Library("pytorch_metric_learning.losses")
distances = Library("pytorch_metric_learning.distances")

N, DIM, K = 12, 16, 3


def slow(*values):
    """Another case of a kind that the default run has one of."""
    return pytest.param(*values, marks=pytest.mark.slow)


def embeddings(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.fixture
def assert_same(agree):
    """The mean of `ours(*arrays)` and the scalar `theirs(*tensors)` agree to 1e-5, and so do their gradients."""

    def compare(ours, theirs, arrays):
        def mean(*arrays):
            values = ours(*arrays)
            assert values.shape == arrays[0].shape[:1] and values.dtype == jnp.float32
            return values.mean()

        agree(mean, theirs, arrays)

    return compare


def identity():
    """A model whose embeddings are given."""

    class Identity(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, features):
            return features

    return Identity()


def columns(*tensors):
    """What such a model takes, for losses that call it."""
    return [{"sentence_embedding": x} for x in tensors]


def on_embeddings(make, labels=None):
    """The sentence-transformers loss `make()` as a function of embeddings, without a model."""
    tensor = lambda: None if labels is None else torch.as_tensor(labels)
    return lambda *tensors: make().compute_loss_from_embeddings(list(tensors), tensor())


@pytest.mark.parametrize("dim", [DIM, 7], ids=["even", "odd"])
def test_angle(assert_same, dim):
    scores = np.random.default_rng(1).integers(0, 5, N).astype(np.float32)
    assert_same(
        lambda u, v: losses.angle(u, v, scores),
        on_embeddings(lambda: reference.AnglELoss(None), scores),
        list(embeddings(2, N, dim)),
    )


def test_angle_with_negatives(assert_same):
    assert_same(
        lambda queries, documents, *hard: losses.angle_with_negatives(queries, documents, jnp.stack(hard, axis=1)),
        on_embeddings(lambda: reference.AnglELoss(None)),
        list(embeddings(2 + K, N, DIM)),
    )


METRICS = {"cosine": "COSINE_DISTANCE", "euclidean": "EUCLIDEAN"}


@pytest.mark.parametrize(("distance", "margin"), [("cosine", 1.2), ("euclidean", 6.0), slow("cosine", 0.5)])
def test_contrastive(assert_same, distance, margin):
    labels = np.arange(N) % 2
    metric = lambda: getattr(reference.SiameseDistanceMetric, METRICS[distance])
    assert_same(
        lambda u, v: losses.contrastive(u, v, labels, margin=margin, distance=distance),
        on_embeddings(lambda: reference.ContrastiveLoss(None, distance_metric=metric(), margin=margin), labels),
        list(embeddings(2, N, DIM)),
    )


@pytest.mark.parametrize(
    "labels", [np.arange(N) % 3, np.ones(N, int), slow(np.arange(N) % 2), slow(np.zeros(N, int))], ids=str
)
@pytest.mark.parametrize(("distance", "margin"), [("cosine", 1.2), ("euclidean", 6.0)])
@pytest.mark.filterwarnings("ignore:OnlineContrastiveLoss expects binary labels")  # a label of 2 is ignored by both
def test_online_contrastive(assert_same, distance, margin, labels):
    metric = lambda: getattr(reference.SiameseDistanceMetric, METRICS[distance])
    assert_same(
        lambda u, v: losses.online_contrastive(u, v, labels, margin=margin, distance=distance),
        on_embeddings(lambda: reference.OnlineContrastiveLoss(None, distance_metric=metric(), margin=margin), labels),
        list(embeddings(2, N, DIM)),
    )


def test_cosine_similarity_mse(assert_same):
    scores = np.random.default_rng(1).uniform(0, 1, N).astype(np.float32)
    assert_same(
        lambda u, v: losses.cosine_similarity_mse(u, v, scores),
        on_embeddings(lambda: reference.CosineSimilarityLoss(None), scores),
        list(embeddings(2, N, DIM)),
    )


@pytest.mark.parametrize(
    ("features", "vectors"),
    [(("both", "difference"), 3), (("both", "difference", "product"), 4), (("difference",), 1)],
    ids=["default", "all", "difference"],
)
def test_softmax_nli(assert_same, features, vectors):
    labels = np.arange(N) % 3
    theirs = lambda: reference.SoftmaxLoss(
        identity(),
        DIM,
        num_labels=3,
        concatenation_sent_rep="both" in features,
        concatenation_sent_difference="difference" in features,
        concatenation_sent_multiplication="product" in features,
    )

    def from_embeddings(u, v, kernel, bias):
        weights = {"classifier.weight": kernel.T, "classifier.bias": bias}
        return torch.func.functional_call(theirs(), weights, (columns(u, v), torch.as_tensor(labels)))

    u, v = embeddings(2, N, DIM)
    kernel, bias = embeddings(vectors * DIM, 3, seed=1), embeddings(3, seed=2)
    assert_same(
        lambda u, v, kernel, bias: losses.softmax_nli(u, v, labels, kernel=kernel, bias=bias, features=features),
        from_embeddings,
        [u, v, kernel, bias],
    )


LABELS = np.array([0, 0, 1, 1, 2, 2, 2, 0, 1, 3, 3, 0])


def triplet_metric(similarity):
    return getattr(reference.BatchHardTripletLossDistanceFunction, f"{similarity}_distance")


SIMILARITY_AND_MARGIN = pytest.mark.parametrize(
    ("similarity", "margin"), [("euclidean", 5.0), slow("euclidean", 0.5), ("cosine", 0.2)]
)


@SIMILARITY_AND_MARGIN
def test_triplet(assert_same, similarity, margin):
    metric = lambda: getattr(reference.TripletDistanceMetric, similarity.upper())
    assert_same(
        lambda a, p, n: losses.triplet(a, p, n, margin=margin, similarity=similarity),
        on_embeddings(lambda: reference.TripletLoss(None, distance_metric=metric(), triplet_margin=margin)),
        list(embeddings(3, N, DIM)),
    )


@SIMILARITY_AND_MARGIN
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (losses.batch_all_triplet, "BatchAllTripletLoss"),
        (losses.batch_hard_triplet, "BatchHardTripletLoss"),
        (losses.batch_semi_hard_triplet, "BatchSemiHardTripletLoss"),
    ],
    ids=["all", "hard", "semi_hard"],
)
def test_batch_triplets(assert_same, ours, theirs, similarity, margin):
    loss = lambda: getattr(reference, theirs)(None, distance_metric=triplet_metric(similarity), margin=margin)
    assert_same(
        lambda x: ours(x, LABELS, margin=margin, similarity=similarity),
        on_embeddings(loss, LABELS),
        [embeddings(N, DIM)],
    )


@pytest.mark.parametrize("similarity", ["euclidean", "cosine"])
def test_batch_hard_triplet_with_soft_margin(assert_same, similarity):
    metric = lambda: triplet_metric(similarity)
    assert_same(
        lambda x: losses.batch_hard_triplet(x, LABELS, soft_margin=True, similarity=similarity),
        on_embeddings(lambda: reference.BatchHardSoftMarginTripletLoss(None, distance_metric=metric()), LABELS),
        [embeddings(N, DIM)],
    )


def test_batch_all_triplet_is_the_triplet_margin_loss_of_pytorch_metric_learning(assert_same):
    def theirs(x):  # averages the triplets that violate the margin
        distance = distances.LpDistance(normalize_embeddings=False)
        return metric_losses.TripletMarginLoss(margin=1.0, distance=distance)(x, torch.as_tensor(LABELS))

    assert_same(
        lambda x: losses.batch_all_triplet(x, LABELS, margin=1.0),
        theirs,
        [embeddings(N, DIM)],
    )


def test_mega_batch_margin(assert_same):
    theirs = lambda: reference.MegaBatchMarginLoss(None, use_mini_batched_version=False)
    queries = embeddings(N, DIM)
    documents = queries + embeddings(N, DIM, seed=1)  # so that both terms are at work
    assert_same(
        losses.mega_batch_margin,
        lambda q, d: theirs().calculate_loss([[q], [d]]),
        [queries, documents.astype(np.float32)],
    )


@pytest.mark.parametrize("weights", [slow((1.0, 1.0)), (0.5, 3.0)])
def test_orthogonal_regularization(assert_same, weights):
    options = {"mean_weight": weights[0], "second_moment_weight": weights[1]}
    theirs = lambda: reference.GlobalOrthogonalRegularizationLoss(None, **options)
    assert_same(
        lambda *columns: losses.orthogonal_regularization(*columns, **options),
        lambda *columns: sum(theirs().compute_loss_from_embeddings(list(columns)).values()),
        list(embeddings(3, N, DIM) + 0.5),
    )


@pytest.mark.parametrize("teacher_shape", [(N,), (N, K + 1), slow((N, 1)), slow((N, 2)), slow((N, K))], ids=str)
def test_margin_mse(assert_same, teacher_shape):
    n_hard = K if teacher_shape[-1] in (K, K + 1) else 1
    teacher = embeddings(*teacher_shape, seed=1)
    assert_same(
        lambda queries, documents, *hard: losses.margin_mse(queries, documents, jnp.stack(hard, axis=1), teacher),
        on_embeddings(lambda: reference.MarginMSELoss(None), teacher),
        list(embeddings(2 + n_hard, N, DIM)),
    )


@pytest.mark.parametrize("temperatures", [(0.5, 3.0), slow((1.0, 1.0)), slow((2.0, 2.0))], ids=str)
def test_distill_kl(assert_same, temperatures):
    student_temperature, teacher_temperature = temperatures
    teacher = embeddings(N, K + 1, seed=1)
    theirs = lambda: reference.DistillKLDivLoss(
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


@pytest.mark.parametrize("one_teacher", [False, slow(True)])
@pytest.mark.parametrize("metric", ["cosine", "mse", "l2"])
def test_embed_distill(assert_same, metric, one_teacher):
    teacher = embeddings(N, DIM, seed=1) if one_teacher else embeddings(N, 2, DIM, seed=1)
    theirs = lambda: reference.EmbedDistillLoss(None, distance_metric=metric)
    teachers = lambda: [torch.as_tensor(teacher if one_teacher else teacher[:, i]) for i in range(2)]
    assert_same(
        lambda x: losses.embed_distill(x, teacher, metric=metric),
        lambda x: theirs().compute_loss_from_embeddings([x[:, 0], x[:, 1]], teachers()),
        [embeddings(N, 2, DIM)],
    )


def test_m3_kd_is_flag_embeddings(assert_same):
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


def test_flag_embeddings_kl_div_is_distill_kl_plus_the_teachers_entropy(assert_same):
    teacher = embeddings(N, K + 1, seed=1)

    def theirs(scores):
        targets = torch.softmax(torch.as_tensor(teacher), dim=-1)
        entropy = -(targets * targets.log()).sum(dim=-1).mean()
        return -(torch.log_softmax(scores, dim=-1) * targets).sum(dim=-1).mean() - entropy

    assert_same(
        lambda scores: losses.distill_kl_scores(scores, teacher),
        theirs,
        [embeddings(N, K + 1)],
    )


@functools.cache
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


def test_clip_distill(assert_same):
    teacher = embeddings(2, N, 5, seed=1)

    def theirs(images, texts, temperature):
        teacher_unit = [unit(torch.as_tensor(x)) for x in teacher]
        loss = open_clip().DistillClipLoss()
        return loss(unit(images), unit(texts), 1 / temperature, *teacher_unit, 1 / 0.1)[1]

    assert_same(
        lambda images, texts, temperature: losses.clip_distill(
            images, texts, *teacher, temperature=temperature, teacher_temperature=0.1
        ),
        theirs,
        [*embeddings(2, N, DIM), np.float32(0.2)],
    )


def test_contrastive_tension(assert_same):
    labels = (np.arange(N) % 8 == 0).astype(np.float32)
    theirs = lambda: reference.ContrastiveTensionLoss(identity())
    assert_same(
        lambda u, v: losses.contrastive_tension(u, v, labels),
        lambda u, v: theirs()(columns(u, v), torch.as_tensor(labels)),
        list(embeddings(2, N, DIM) / 4),
    )


def test_contrastive_tension_in_batch(assert_same):
    def from_embeddings(u, v, log_scale):
        theirs = reference.ContrastiveTensionLossInBatchNegatives(identity())
        theirs.model1.forward, theirs.model2.forward = (lambda _: columns(u)[0]), (lambda _: columns(v)[0])
        return torch.func.functional_call(theirs, {"logit_scale": log_scale}, ([{}], None))

    assert_same(
        lambda u, v, log_scale: losses.contrastive_tension_in_batch(u, v, temperature=jnp.exp(-log_scale)),
        from_embeddings,
        [*embeddings(2, N, DIM), np.log(np.float32(20.0))],
    )


def test_symmetric_info_nce_is_clips(assert_same):
    assert_same(
        lambda images, texts, temperature: losses.symmetric_info_nce(images, texts, temperature=temperature),
        lambda images, texts, temperature: open_clip().ClipLoss()(unit(images), unit(texts), 1 / temperature),
        [*embeddings(2, N, DIM), np.float32(0.2)],
    )


def test_siglip(assert_same):
    assert_same(
        lambda images, texts, log_scale, bias: losses.siglip(images, texts, temperature=jnp.exp(-log_scale), bias=bias),
        lambda images, texts, log_scale, bias: open_clip().SigLipLoss()(
            unit(images), unit(texts), log_scale.exp(), bias
        ),
        [*embeddings(2, N, DIM), np.log(np.float32(10.0)), np.float32(-10.0)],
    )


def test_supcon_is_pytorch_metric_learnings(assert_same):
    labels = np.append(LABELS[:-1], 9)  # the last is alone, and left out of the mean by both
    theirs = lambda: metric_losses.SupConLoss(temperature=0.1)
    assert_same(
        lambda x: losses.supcon(x, labels, temperature=0.1),
        lambda x: theirs()(x, torch.as_tensor(labels)),
        [embeddings(N, DIM)],
    )


@pytest.mark.parametrize("n_hard", [slow(0), 1])
@pytest.mark.parametrize(("strategy", "margin"), [("absolute", 0.0), ("absolute", 0.1), ("relative", 0.2)])
def test_gist(assert_same, strategy, margin, n_hard):
    arrays = list(embeddings(2 + n_hard, N, DIM))
    guide = list(np.stack(arrays)[..., :5] + embeddings(2 + n_hard, N, 5, seed=1))

    def make():
        theirs = reference.GISTEmbedLoss.__new__(reference.GISTEmbedLoss)
        torch.nn.Module.__init__(theirs)
        theirs.model = identity()
        theirs.margin, theirs.margin_strategy, theirs.temperature = margin, strategy, 0.1
        theirs.contrast_anchors = theirs.contrast_positives = True
        theirs.must_retokenize = theirs.gather_across_devices = False
        theirs.similarity_fct, theirs.cross_entropy_loss = (
            torch.nn.CosineSimilarity(dim=-1),
            torch.nn.CrossEntropyLoss(),
        )

        class Guide(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.embeddings = iter(guide)

            def forward(self, features):
                return {"sentence_embedding": torch.as_tensor(next(self.embeddings))}

        theirs.guide = Guide()
        return theirs

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
        lambda *x: make()(columns(*x), None),
        arrays,
    )


@pytest.mark.parametrize("sigma", [None, 0.5])
def test_decoupled_contrastive_by_definition(assert_same, sigma):
    def theirs(queries, documents):
        similarities = unit(queries) @ unit(documents).T
        positive, logits = similarities.diagonal(), similarities / 0.1
        hidden = torch.eye(N, dtype=torch.bool)
        weights = torch.ones(N) if sigma is None else 2 - torch.softmax(positive.detach() / sigma, dim=0) * N
        return (torch.logsumexp(logits.masked_fill(hidden, -torch.inf), dim=1) - weights * positive / 0.1).mean()

    assert_same(lambda q, d: losses.decoupled_contrastive(q, d, sigma=sigma), theirs, list(embeddings(2, N, DIM)))


@pytest.mark.parametrize(("alpha", "beta"), [slow(1.0, 0.0), (0.9, 0.3)])
def test_hard_negative_nce_by_definition(assert_same, alpha, beta):
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


def test_cwcl_by_definition(assert_same):
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
