import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxemb
from jaxemb.data import batches, from_list
from jaxemb.evaluate import read_beir
from jaxemb.retrieval import hard_negatives, mine_hard_negatives

# One query at 0 degrees; documents on the circle, whose cosines with it are known. The first is the positive.
ANGLES = np.radians([25, 5, 20, 30, 40, 60, 90, 120])
QUERY = np.float32([[1, 0]])
CIRCLE = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1).astype(np.float32)  # .906 .996 .940 .866 .766 .5 0 -.5
POSITIVE = np.array([[0, 0]])


def mined(positives=POSITIVE, queries=QUERY, **options):
    return hard_negatives(queries, CIRCLE, positives, **options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 2, 3]),
        ({"num_negatives": 1}, [1]),
        ({"range_min": 2}, [3, 4, 5]),
        ({"max_score": 0.9}, [3, 4, 5]),
        ({"max_score": 0.9, "range_min": 1, "num_negatives": 2}, [4, 5]),  # skips of those that remain
        ({"min_score": 0.9}, [1, 2, -1]),
        ({"absolute_margin": 0.0}, [3, 4, 5]),
        ({"absolute_margin": 0.1}, [4, 5, 6]),  # .866 + .1 > .906
        ({"relative_margin": 0.05}, [4, 5, 6]),  # .866 > .95 * .906 = .861
        ({"relative_margin": 0.04}, [3, 4, 5]),  # .866 < .96 * .906 = .870
        ({"percentile": 50}, [3, 4, 5]),  # of one positive: its score
        ({"range_max": 3}, [1, 2, 3]),
        ({"range_max": 3, "absolute_margin": 0.0}, [3, -1, -1]),  # ranks 1 to 3, and one for the positive
        ({"num_negatives": 10**9}, [1, 2, 3, 4, 5, 6, 7]),  # all but the positive, so lists of n are there
        ({"num_negatives": 10**9, "range_min": 5}, [6, 7]),
        ({"num_negatives": 10**9, "include_positives": True}, [1, 2, 0, 3, 4, 5, 6, 7]),
        ({"include_positives": True}, [1, 2, 0]),
        ({"metric": "dot"}, [1, 2, 3]),
        ({"metric": "euclidean", "max_score": -0.5}, [3, 4, 5]),  # |q - x| = 2 sin(angle / 2): .518 at 30, .684 at 40
    ],
    ids=str,
)
def test_which_negatives_are_taken(options, expected):
    found = mined(**options)
    assert found.ids.tolist() == [expected] and found.ids.dtype == np.int32
    there = found.ids[0] >= 0
    assert (found.scores[0, ~there] == -np.inf).all()
    if options.get("metric") != "euclidean":
        np.testing.assert_allclose(found.scores[0, there], np.cos(ANGLES[found.ids[0, there]]), atol=1e-6)
        np.testing.assert_allclose(found.positive_scores, np.cos(ANGLES[:1]), atol=1e-6)


def test_the_lowest_positive_sets_the_margin():
    found = mined(np.array([[0, 1], [0, 4]]), absolute_margin=0.0)
    assert found.ids.tolist() == [[5, 6, 7]]  # all between the positives of .996 and .766 go
    assert found.discarded == {"absolute_margin": 3}


def test_a_relative_margin_of_a_negative_score_lowers_the_threshold():
    corpus = np.float32([[-0.5, 0.75**0.5], [-0.48, (1 - 0.48**2) ** 0.5], [-0.53, (1 - 0.53**2) ** 0.5]])
    found = hard_negatives(QUERY, corpus, POSITIVE, relative_margin=0.05, num_negatives=2)
    assert found.ids.tolist() == [[2, -1]]  # -.48 > -.5 - .025, which (1 - m) s_pos = -.475 would keep


def test_the_percentile_is_that_of_all_positives():
    queries = np.repeat(QUERY, 3, axis=0)
    positives = np.array([[0, 3], [1, 4], [2, 6]])  # scores .866, .766, 0: the median is .766
    found = mined(positives, queries, percentile=50, num_negatives=2)
    assert found.ids.tolist() == [[4, 5], [5, 6], [4, 5]]
    assert found.discarded == {"percentile": 3 + 4 + 4}
    assert mined(positives, queries, percentile=0, num_negatives=1).ids.tolist() == [[6], [6], [7]]


def test_discarded_counts_what_each_condition_removes():
    found = mined(max_score=0.95, min_score=0.1, absolute_margin=0.0)
    assert found.discarded == {"absolute_margin": 2, "max_score": 0, "min_score": 2}


@given(seed=st.integers(0, 1000), n=st.integers(1, 6), low=st.integers(0, 4))
def test_random_sampling_draws_from_the_range(seed, n, low):
    random = np.random.default_rng(seed)
    queries, corpus = random.standard_normal((7, 4), np.float32), random.standard_normal((30, 4), np.float32)
    positives = np.stack([np.arange(7), random.integers(0, 30, 7)], axis=1)
    options = {"range_min": low, "range_max": low + 12, "max_score": 0.6}
    pool = hard_negatives(queries, corpus, positives, num_negatives=12, **options)
    draw = lambda seed: hard_negatives(
        queries, corpus, positives, num_negatives=n, sampling_strategy="random", seed=seed, **options
    )
    found = draw(seed)
    np.testing.assert_array_equal(found.ids, draw(seed).ids)
    for ids, scores, allowed in zip(found.ids, found.scores, pool.ids, strict=True):
        taken = ids[ids >= 0]
        assert set(taken) <= set(allowed[allowed >= 0]) and len(set(taken)) == len(taken)
        assert len(taken) == min(n, np.count_nonzero(allowed >= 0))  # all that are there, before any is missing
        assert (np.diff(scores[ids >= 0]) <= 0).all()


def test_random_sampling_depends_on_the_seed():
    options = {"range_max": 7, "sampling_strategy": "random"}
    assert len({tuple(mined(seed=seed, **options).ids[0].tolist()) for seed in range(20)}) > 5


def test_rescoring_replaces_scores_and_order():
    asked = []

    def rescore(queries, documents):
        asked.extend(zip(queries.tolist(), documents.tolist(), strict=True))
        return -np.abs(documents - 3.2)  # document 3 is best, then 4, 2, 5; the positive has -3.2

    found = mined(rescore=rescore, absolute_margin=0.0)
    assert found.ids.tolist() == [[7, -1, -1]]  # only that is further off than the positive
    found = mined(rescore=rescore, num_negatives=2)
    assert found.ids.tolist() == [[3, 4]] and found.positive_scores == pytest.approx([-3.2])
    np.testing.assert_allclose(found.scores, [[-0.2, -0.8]], atol=1e-6)
    assert set(asked) == {(0, document) for document in range(8)}  # the positive as well, but once
    assert len(asked) == 2 * 8


def test_no_positives_and_no_queries_are_fine():
    assert mined(np.zeros((0, 2), int)).ids.tolist() == [[1, 2, 0]]
    assert mined(np.zeros((0, 2), int), np.zeros((0, 2), np.float32)).ids.shape == (0, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_negatives": 0}, "num_negatives must be at least 1; got 0"),
        ({"range_min": -1}, "range_min must be at least 0; got -1"),
        (
            {"range_min": 5, "range_max": 7},
            "range_max must leave num_negatives = 3 candidates after range_min = 5; got 7",
        ),
        ({"sampling_strategy": "best"}, "sampling_strategy must be one of .*; got 'best'"),
        ({"percentile": 101}, r"percentile must be in \[0, 100\]; got 101"),
        ({"relative_margin": np.nan}, "relative_margin must be a number; got nan"),
        ({"metric": "manhattan"}, "metric must be one of .*; got 'manhattan'"),
        ({"positives": np.array([0])}, r"positives must be integers \[P, 2\]; got int64 \(1,\)"),
        ({"positives": np.zeros((1, 2))}, r"positives must be integers \[P, 2\]; got float64"),
        (
            {"positives": np.array([[0, 1], [0, 8]])},
            r"positives\[1\] must name one of 1 queries and one of 8 documents; got \[0, 8\]",
        ),
        ({"positives": np.zeros((0, 2), int), "absolute_margin": 0.1}, "a margin needs positives; query 0 has none"),
        ({"positives": np.zeros((0, 2), int), "percentile": 10}, "percentile: there are no positives"),
        ({"rescore": lambda q, d: np.zeros(2)}, r"rescoring 7 pairs must give a score each; got \(2,\)"),
        ({"rescore": lambda q, d: d * np.nan}, "rescoring gave a score that is not finite: nan"),
    ],
)
def test_what_cannot_be_mined_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        mined(**options)


# Texts

WORDS = {
    "north": [0, 1],
    "north-east": [1, 1],
    "east": [1, 0.1],
    "south": [-0.1, -1],
    "?north": [0.1, 1],
    "?east": [1, 0],
}
RECORDS = [{"query": "?east", "positive": "east"}, {"query": "?north", "positive": "north"}]
CORPUS = ["south", "north-east", "north", "south"]


class Words:
    def __init__(self):
        self.prompts, self.calls = {"query": "?"}, []

    def encode(self, texts, *, prompt=None, prompt_name=None):
        self.calls.append((list(texts), prompt, prompt_name))
        prompt = self.prompts.get(prompt_name, "") if prompt is None else prompt
        return np.float32([WORDS[prompt + text] for text in texts])


def test_texts_are_encoded_once_with_their_prompts():
    embedder, records = Words(), [{"query": r["query"][1:], "positive": r["positive"]} for r in RECORDS]
    found = mine_hard_negatives(embedder, from_list([*records, records[0]]), CORPUS, num_negatives=2)
    assert embedder.calls == [
        (["east", "north"], None, "query"),
        (["south", "north-east", "north", "east"], None, None),
    ]
    assert found.records("list") == [
        {"query": "east", "positive": "east", "negatives": ["north-east", "north"]},
        {"query": "north", "positive": "north", "negatives": ["north-east", "east"]},
    ]
    found = mine_hard_negatives(embedder, RECORDS, CORPUS, num_negatives=2, query_prompt="", corpus_prompt="")
    assert found.records()[0] == {"query": "?east", "positive": "east", "negative": "north-east"}
    assert embedder.calls[2] == (["?east", "?north"], "", None)


def test_other_columns_and_a_cross_encoder():
    asked = []

    def score(pairs):
        asked.extend(pairs)
        return [float(len(text)) for _, text in pairs]

    records = [{"q": r["query"], "a": r["positive"]} for r in RECORDS]
    found = mine_hard_negatives(
        Words(),
        records,
        CORPUS,
        query_column="q",
        positive_column="a",
        query_prompt="",
        cross_encoder=score,
        max_score=5,
    )
    assert found.records("labeled-list", output_scores=True) == [
        {"q": "?east", "a": ["east", "north", "south"], "scores": [4.0, 5.0, 5.0]},
        {"q": "?north", "a": ["north", "south", "east"], "scores": [5.0, 5.0, 4.0]},
    ]
    assert found.negatives.discarded == {"max_score": 2}
    assert ("?east", "north-east") in asked


def test_columns_that_are_kept():
    records = [{**record, "id": number} for number, record in enumerate(RECORDS)]
    corpus = [{"positive": text, "id": f"c{number}", "url": text[:1]} for number, text in enumerate(CORPUS)]
    options = {"num_negatives": 1, "query_prompt": ""}
    found = mine_hard_negatives(Words(), records, corpus, **options, keep=["id"])
    plain = mine_hard_negatives(Words(), RECORDS, CORPUS, **options)
    first, second = plain.records("list")
    assert (first["negatives"], second["negatives"]) == (["north-east"], ["north-east"])
    assert found.records("list") == [
        first | {"id": 0, "negatives_id": ["c1"]},
        second | {"id": 1, "negatives_id": ["c1"]},
    ]
    assert found.records()[1] == plain.records()[1] | {"id": 1, "negative_id": "c1"}
    assert found.records("n-tuple")[1] == plain.records("n-tuple")[1] | {"id": 1, "negative_1_id": "c1"}
    assert [(r["positive"], r["label"], r["id"]) for r in found.records("labeled-pair")] == [
        *(("east", 1, 0), ("north-east", 0, "c1")),
        *(("north", 1, 1), ("north-east", 0, "c1")),
    ]
    assert [record["id"] for record in found.records("labeled-list")] == [[0, "c1"], ["c2", "c1"]]
    for bad in ("url", "query"):
        with pytest.raises(
            ValueError, match=rf"keep must name further columns of the records, .*\['id'\]; got '{bad}'"
        ):
            mine_hard_negatives(Words(), records, corpus, keep=["id", bad])


def test_columns_of_a_pair_are_not_those_of_a_document_of_the_corpus():
    records = [{**record, "id": str(number)} for number, record in enumerate(RECORDS)]
    corpus = [{**RECORDS[0], "id": 99}, {"query": ["a list"], "positive": "north-east", "id": 98}]
    found = mine_hard_negatives(Words(), records, corpus, num_negatives=1, query_prompt="", keep=["id"])
    assert [(record["id"], record["negative_id"]) for record in found.records()] == [("0", 98), ("1", 98)]
    assert [record["id"] for record in found.records("labeled-pair")] == ["0", 98, "1", 98]


@pytest.mark.parametrize(
    ("format", "columns", "scores", "twice"),
    [
        ("n-tuple", ["negative_1", "positive"], False, "negative_1"),
        ("n-tuple", ["query", "negative_2"], False, "negative_2"),
        ("n-tuple", ["query", "scores"], True, "scores"),
        ("n-tuple-scores", ["query", "scores"], False, "scores"),
        ("triplet", ["negative", "positive"], False, "negative"),
        ("labeled-pair", ["label", "positive"], False, "label"),
        ("labeled-pair", ["score", "positive"], True, "score"),
        ("labeled-list", ["query", "labels"], False, "labels"),
        ("list", ["scores", "positive"], True, "scores"),
        ("list", ["negatives", "positive"], False, "negatives"),
        ("list", ["negatives_id", "positive", "id"], False, "negatives_id"),
        ("triplet", ["query", "negative_id", "id"], False, "negative_id"),
        ("n-tuple", ["negative_2_id", "positive", "id"], False, "negative_2_id"),
        ("n-tuple", ["query", "positive", "negative_1"], False, "negative_1"),
        ("list", ["query", "positive", "id", "negatives_id"], False, "negatives_id"),
    ],
)
def test_columns_of_the_result_are_refused(format, columns, scores, twice):
    query, positive, *keep = columns
    records = [{query: r["query"], positive: r["positive"]} | dict.fromkeys(keep, 0) for r in RECORDS]
    names = {"query_column": query, "positive_column": positive, "keep": keep}
    found = mine_hard_negatives(Words(), records, CORPUS, num_negatives=2, query_prompt="", **names)
    with pytest.raises(ValueError, match=rf"the result \({format.removesuffix('-scores')}\) .* two columns '{twice}'"):
        found.records(format, output_scores=scores)
    other = "list" if format == "triplet" else "triplet"
    assert all({query, positive, *keep} <= record.keys() for record in found.records(other))


def test_positives_are_ranked_only_where_the_ranking_is_kept():
    found = mine_hard_negatives(Words(), RECORDS, CORPUS, query_prompt="", include_positives=True)
    assert found.records("list")[0]["negatives"][0] == "east"
    for name in ("triplet", "labeled-pair", "labeled-list"):
        with pytest.raises(ValueError, match=f"'{name}' cannot tell positives among the negatives; use 'n-tuple' or"):
            found.records(name)
    with pytest.raises(ValueError, match=r"output_format must be one of \['triplet', .* got 'pairs'"):
        found.records("pairs")


@pytest.mark.parametrize(
    ("records", "corpus", "message"),
    [
        ([], None, "records must not be empty"),
        (
            [*RECORDS, {"query": "a"}],
            None,
            r"record 2: expected a text in column 'positive'; got the columns \['query'\]",
        ),
        ([{"query": 5, "positive": "a"}], None, "record 0: expected a text in column 'query'; got int 5"),
        (
            [{"query": "q", "positive": " "}],
            None,
            "record 0: expected a text in column 'positive'; got ' ', which is blank",
        ),
        (RECORDS, ["a", None], r"corpus\[1\] must be a string or a mapping; got NoneType None"),
    ],
)
def test_records_without_texts_are_named(records, corpus, message):
    with pytest.raises((ValueError, TypeError), match=message):
        mine_hard_negatives(Words(), records, corpus)


@pytest.mark.slow
def test_real_negatives_are_near_and_train(minilm, data_dir):
    """Cranfield with MiniLM: the nearest documents that are not relevant and keep the margin."""
    data = read_beir(data_dir / "ir_cranfield")
    beginning = {document: text[:200] for document, text in list(data.corpus.items())[:150]}
    records = [
        {"query": text, "positive": beginning[document]}
        for query, text in list(data.queries.items())[:25]
        for document, level in data.qrels.get(query, {}).items()
        if level > 0 and document in beginning
    ]
    embedder, vectors = jaxemb.load(minilm), []

    class Remembering:
        def encode(self, texts, *, prompt_name):
            vectors.append(embedder.encode(texts, prompt_name=prompt_name))
            return vectors[-1]

    corpus = list(beginning.values())
    found = mine_hard_negatives(Remembering(), records, corpus, relative_margin=0.05, num_negatives=4, range_max=100)
    assert len(found.queries) > 10 and set(found.corpus) == set(corpus)
    similarity = vectors[0] @ vectors[1].T
    relevant = np.zeros(similarity.shape, bool)
    relevant[tuple(found.positives.T)] = True
    lowest = np.where(relevant, similarity, np.inf).min(axis=1)
    for q, ids in enumerate(found.negatives.ids):
        allowed = ~relevant[q] & (similarity[q] <= 0.95 * lowest[q])
        nearest = np.flatnonzero(allowed)[np.argsort(-similarity[q, allowed])][:4]
        np.testing.assert_allclose(similarity[q, ids], similarity[q, nearest], atol=1e-5)
    assert found.negatives.discarded["relative_margin"] > 0

    source = from_list(json.loads(json.dumps(found.records("list"))))
    columns = ("query", "positive", "negatives")
    batch = next(iter(batches(source, embedder.tokenizer, columns, batch_size=4, max_length=32)))
    assert batch["negatives"].ids.shape[0] == 16 and batch["positive"].ids.shape[0] == 4
