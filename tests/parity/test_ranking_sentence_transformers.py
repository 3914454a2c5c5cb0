"""Losses of rerankers against sentence-transformers' cross-encoder losses, on given scores: value and gradient."""

import functools

import jax
import numpy as np
import pytest

from jaxemb.losses import margin_mse_scores, ranking

torch = pytest.importorskip("torch")
cross_encoder = pytest.importorskip("sentence_transformers.cross_encoder")
reference = pytest.importorskip("sentence_transformers.cross_encoder.losses")
schemes = pytest.importorskip("sentence_transformers.cross_encoder.losses.lambda_loss")

LENGTHS = [5, 2, 1, 4]
MASK = np.arange(5)[None, :] < np.asarray(LENGTHS)[:, None]
SCORES = np.random.default_rng(0).standard_normal(MASK.shape, np.float32)
GRADES = np.random.default_rng(1).integers(0, 4, MASK.shape).astype(np.float32)


class GivenScores(cross_encoder.CrossEncoder):
    """A cross-encoder that reads the index of a score as its text."""

    num_labels = 1
    device = torch.device("cpu")

    def __init__(self, scores):
        torch.nn.Module.__init__(self)
        self.scores = torch.tensor(scores, requires_grad=True)

    def preprocess(self, pairs, **_):
        return {"index": torch.tensor([document for _, document in pairs])}

    def forward(self, features):
        return {"scores": self.scores.reshape(-1)[features["index"]][:, None]}


def as_lists(array):
    return [torch.tensor(row[:n]) for row, n in zip(array, LENGTHS, strict=True)]


def documents(shape=MASK.shape):
    return np.arange(np.prod(shape)).reshape(shape)


def assert_same(ours, make, inputs, labels, scores=SCORES):
    """Value and gradient of `ours(scores)` and of the module `make(model)` agree to 1e-5."""
    model = GivenScores(scores)
    expected = make(model)(inputs, labels)
    expected.backward()
    value, gradient = jax.value_and_grad(lambda s: ours(s).mean())(scores)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, model.scores.grad.numpy(), atol=1e-5)


def assert_same_lists(ours, make, labels):
    """The same for losses of ragged lists."""
    inputs = [[0] * len(LENGTHS), [list(row[:n]) for row, n in zip(documents(), LENGTHS, strict=True)]]
    assert_same(lambda s: ours(s, labels, MASK), make, inputs, as_lists(labels))


@pytest.mark.parametrize("weighting", [None, "ndcg_loss1", "ndcg_loss2", "lambda_rank", "ndcg_loss2pp"])
@pytest.mark.parametrize("options", [{}, {"k": 2, "sigma": 2.0, "log": "natural"}], ids=str)
def test_lambda_loss(weighting, options):
    scheme = {
        None: schemes.NoWeightingScheme,
        "ndcg_loss1": schemes.NDCGLoss1Scheme,
        "ndcg_loss2": schemes.NDCGLoss2Scheme,
        "lambda_rank": schemes.LambdaRankScheme,
        "ndcg_loss2pp": schemes.NDCGLoss2PPScheme,
    }[weighting]()
    theirs = {"reduction_log" if name == "log" else name: value for name, value in options.items()}
    assert_same_lists(
        functools.partial(ranking.lambda_loss, weighting=weighting or "none", **options),
        lambda model: reference.LambdaLoss(model, weighting_scheme=scheme, **theirs),
        GRADES,
    )


def test_the_weight_of_ndcg_loss2_in_its_mixture():
    assert_same_lists(
        functools.partial(ranking.lambda_loss, weighting=functools.partial(ranking.ndcg_loss2pp, mu=3.0)),
        lambda model: reference.LambdaLoss(model, weighting_scheme=schemes.NDCGLoss2PPScheme(mu=3.0)),
        GRADES,
    )


def test_rank_net():
    assert_same_lists(ranking.rank_net, reference.RankNetLoss, GRADES)


def test_list_net():
    assert_same_lists(ranking.list_net, reference.ListNetLoss, GRADES)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(ranking.list_mle, reference.ListMLELoss), (ranking.p_list_mle, reference.PListMLELoss)]
)
def test_list_mle(ours, theirs):
    # Distinct labels: their sort leaves open in which order equal ones come; ours keeps the list's.
    distinct = np.random.default_rng(2).permutation(20).reshape(MASK.shape).astype(np.float32)
    assert_same_lists(ours, lambda model: theirs(model, respect_input_order=False), distinct)
    # By default theirs does not look at the labels and takes the lists as ordered.
    descending = np.broadcast_to(np.arange(5, 0, -1, dtype=np.float32), MASK.shape)
    assert_same_lists(ours, theirs, descending)


@pytest.mark.parametrize("alpha", [1.0, 2.5])
def test_adr_mse(alpha):
    assert_same_lists(
        functools.partial(ranking.adr_mse, temperature=1 / alpha),
        lambda model: reference.ADRMSELoss(model, alpha=alpha),
        GRADES,
    )


@pytest.mark.parametrize("positive_weight", [1.0, 3.0])
def test_bce(positive_weight):
    labels = (GRADES[:, :1] / 3).astype(np.float32)
    assert_same(
        lambda s: ranking.bce(s, labels, positive_weight=positive_weight),
        lambda model: reference.BinaryCrossEntropyLoss(model, pos_weight=torch.tensor(positive_weight)),
        [[0] * 4, list(range(4))],
        torch.tensor(labels),
        SCORES[:, :1],
    )


def test_mse():
    assert_same(
        lambda s: ranking.mse(s, GRADES[:, :1]),
        reference.MSELoss,
        [[0] * 4, list(range(4))],
        torch.tensor(GRADES[:, :1]),
        SCORES[:, :1],
    )


@pytest.mark.parametrize("labels", [np.array([0, 4, 2, 2]), np.full(MASK.shape, 0.2, np.float32)], ids=["int", "soft"])
def test_cross_entropy(labels):
    class Classifier(GivenScores):
        def forward(self, features):
            return {"scores": self.scores[features["index"]]}

    model = Classifier(SCORES)
    expected = reference.CrossEntropyLoss(model)([[0] * 4, list(range(4))], torch.tensor(labels))
    expected.backward()
    value, gradient = jax.value_and_grad(lambda s: ranking.cross_entropy(s, labels).mean())(SCORES)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, model.scores.grad.numpy(), atol=1e-5)


@pytest.mark.parametrize("margins", [True, False])
def test_margin_mse(margins):
    labels = GRADES[:, :1] - GRADES[:, 1:] if margins else GRADES
    assert_same(
        lambda s: margin_mse_scores(s, labels),
        reference.MarginMSELoss,
        [[0] * 4, *documents().T.tolist()],
        torch.tensor(labels),
    )


def test_multiple_negatives():
    """Theirs scores the other queries' documents itself: in `pairs`, query i with each of the eight documents."""
    pairs = np.random.default_rng(3).standard_normal((4, 8)).astype(np.float32)  # positives, then hard negatives

    class Pairs(GivenScores):
        def preprocess(self, texts, **_):
            return {"index": torch.tensor([8 * query + document for query, document in texts])}

    def ours(scores):
        others = np.asarray(ranking.random_negatives(jax.random.key(0), 4, 100, columns=2))
        columns = np.concatenate([np.arange(4)[:, None], np.arange(4)[:, None] + 4, others], axis=1)
        return ranking.multiple_negatives(scores[np.arange(4)[:, None], columns])

    model = Pairs(pairs)
    theirs = reference.MultipleNegativesRankingLoss(model, num_negatives=None)
    expected = theirs([list(range(4)), list(range(4)), list(range(4, 8))], None)
    expected.backward()
    value, gradient = jax.value_and_grad(lambda s: ours(s).mean())(pairs)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, model.scores.grad.numpy(), atol=1e-5)
