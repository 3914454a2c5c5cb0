"""Losses of rerankers against sentence-transformers' cross-encoder losses, on given scores: value and gradient."""

import functools

import jax
import numpy as np
import pytest
from libraries import Library, torch

from jaxemb.losses import margin_mse_scores, ranking

pytest_plugins = ["losses_oracle"]

cross_encoder = Library("sentence_transformers.cross_encoder")
reference = Library("sentence_transformers.cross_encoder.losses")
schemes = Library("sentence_transformers.cross_encoder.losses.lambda_loss")

LENGTHS = [5, 2, 1, 4]
MASK = np.arange(5)[None, :] < np.asarray(LENGTHS)[:, None]
SCORES = np.random.default_rng(0).standard_normal(MASK.shape, np.float32)
GRADES = np.random.default_rng(1).integers(0, 4, MASK.shape).astype(np.float32)


def given_scores(scores, read=None):
    """A cross-encoder that reads the index of a score as its text; `read(scores, pairs)` reads otherwise."""

    class GivenScores(cross_encoder.CrossEncoder):
        num_labels = 1
        device = torch.device("cpu")

        def __init__(self):
            torch.nn.Module.__init__(self)

        def preprocess(self, pairs, **_):
            return {"pairs": pairs}

        def forward(self, features):
            by_index = lambda scores, pairs: scores.reshape(-1)[torch.tensor([d for _, d in pairs])][:, None]
            return {"scores": (read or by_index)(scores, features["pairs"])}

    return GivenScores()


def as_lists(array):
    return [torch.tensor(np.asarray(row[:n])) for row, n in zip(array, LENGTHS, strict=True)]


def documents(shape=MASK.shape):
    return np.arange(np.prod(shape)).reshape(shape)


@pytest.fixture
def assert_same(agree):
    """Value and gradient of `ours(scores)` and of the module `make(model)` agree to 1e-5."""

    def compare(ours, make, inputs, labels, scores=SCORES, read=None):
        tensor = lambda x: None if x is None else as_lists(x) if isinstance(x, Lists) else torch.tensor(x)
        theirs = lambda scores: make(given_scores(scores, read))(inputs, tensor(labels))
        agree(lambda scores: ours(scores).mean(), theirs, [scores])

    return compare


class Lists(np.ndarray):
    """Labels that the reference takes as ragged lists."""


@pytest.fixture
def assert_same_lists(assert_same):
    """The same for losses of ragged lists."""

    def compare(ours, make, labels):
        inputs = [[0] * len(LENGTHS), [list(row[:n]) for row, n in zip(documents(), LENGTHS, strict=True)]]
        assert_same(lambda s: ours(s, labels, MASK), make, inputs, labels.view(Lists))

    return compare


@pytest.mark.parametrize("weighting", [None, "ndcg_loss1", "ndcg_loss2", "lambda_rank", "ndcg_loss2pp"])
@pytest.mark.parametrize("options", [{}, {"k": 2, "sigma": 2.0, "log": "natural"}], ids=str)
def test_lambda_loss(assert_same_lists, weighting, options):
    scheme = {
        None: "NoWeightingScheme",
        "ndcg_loss1": "NDCGLoss1Scheme",
        "ndcg_loss2": "NDCGLoss2Scheme",
        "lambda_rank": "LambdaRankScheme",
        "ndcg_loss2pp": "NDCGLoss2PPScheme",
    }[weighting]
    theirs = {"reduction_log" if name == "log" else name: value for name, value in options.items()}
    assert_same_lists(
        functools.partial(ranking.lambda_loss, weighting=weighting or "none", **options),
        lambda model: reference.LambdaLoss(model, weighting_scheme=getattr(schemes, scheme)(), **theirs),
        GRADES,
    )


def test_the_weight_of_ndcg_loss2_in_its_mixture(assert_same_lists):
    assert_same_lists(
        functools.partial(ranking.lambda_loss, weighting=functools.partial(ranking.ndcg_loss2pp, mu=3.0)),
        lambda model: reference.LambdaLoss(model, weighting_scheme=schemes.NDCGLoss2PPScheme(mu=3.0)),
        GRADES,
    )


def test_rank_net(assert_same_lists):
    assert_same_lists(ranking.rank_net, lambda model: reference.RankNetLoss(model), GRADES)


def test_list_net(assert_same_lists):
    assert_same_lists(ranking.list_net, lambda model: reference.ListNetLoss(model), GRADES)


@pytest.mark.parametrize(("ours", "theirs"), [(ranking.list_mle, "ListMLELoss"), (ranking.p_list_mle, "PListMLELoss")])
def test_list_mle(assert_same_lists, ours, theirs):
    # Distinct labels: their sort leaves open in which order equal ones come; ours keeps the list's.
    distinct = np.random.default_rng(2).permutation(20).reshape(MASK.shape).astype(np.float32)
    assert_same_lists(ours, lambda model: getattr(reference, theirs)(model, respect_input_order=False), distinct)
    # By default theirs does not look at the labels and takes the lists as ordered.
    descending = np.broadcast_to(np.arange(5, 0, -1, dtype=np.float32), MASK.shape)
    assert_same_lists(ours, lambda model: getattr(reference, theirs)(model), descending)


@pytest.mark.parametrize("alpha", [1.0, 2.5])
def test_adr_mse(assert_same_lists, alpha):
    assert_same_lists(
        functools.partial(ranking.adr_mse, temperature=1 / alpha),
        lambda model: reference.ADRMSELoss(model, alpha=alpha),
        GRADES,
    )


@pytest.mark.parametrize("positive_weight", [1.0, 3.0])
def test_bce(assert_same, positive_weight):
    labels = (GRADES[:, :1] / 3).astype(np.float32)
    assert_same(
        lambda s: ranking.bce(s, labels, positive_weight=positive_weight),
        lambda model: reference.BinaryCrossEntropyLoss(model, pos_weight=torch.tensor(positive_weight)),
        [[0] * 4, list(range(4))],
        labels,
        SCORES[:, :1],
    )


def test_mse(assert_same):
    assert_same(
        lambda s: ranking.mse(s, GRADES[:, :1]),
        lambda model: reference.MSELoss(model),
        [[0] * 4, list(range(4))],
        GRADES[:, :1],
        SCORES[:, :1],
    )


@pytest.mark.parametrize("labels", [np.array([0, 4, 2, 2]), np.full(MASK.shape, 0.2, np.float32)], ids=["int", "soft"])
def test_cross_entropy(assert_same, labels):
    assert_same(
        lambda s: ranking.cross_entropy(s, labels),
        lambda model: reference.CrossEntropyLoss(model),
        [[0] * 4, list(range(4))],
        labels,
        read=lambda scores, pairs: scores[torch.tensor([d for _, d in pairs])],
    )


@pytest.mark.parametrize("margins", [True, False])
def test_margin_mse(assert_same, margins):
    labels = GRADES[:, :1] - GRADES[:, 1:] if margins else GRADES
    assert_same(
        lambda s: margin_mse_scores(s, labels),
        lambda model: reference.MarginMSELoss(model),
        [[0] * 4, *documents().T.tolist()],
        labels,
    )


def test_multiple_negatives(assert_same):
    """Theirs scores the other queries' documents itself: in `pairs`, query i with each of the eight documents."""
    pairs = np.random.default_rng(3).standard_normal((4, 8)).astype(np.float32)  # positives, then hard negatives

    read = lambda scores, texts: scores.reshape(-1)[torch.tensor([8 * q + d for q, d in texts])][:, None]

    others = np.asarray(ranking.random_negatives(jax.random.key(0), 4, 100, columns=2))

    def ours(scores):
        columns = np.concatenate([np.arange(4)[:, None], np.arange(4)[:, None] + 4, others], axis=1)
        return ranking.multiple_negatives(scores[np.arange(4)[:, None], columns])

    inputs = [list(range(4)), list(range(4)), list(range(4, 8))]
    theirs = lambda model: reference.MultipleNegativesRankingLoss(model, num_negatives=None)
    assert_same(ours, theirs, inputs, None, pairs, read)
