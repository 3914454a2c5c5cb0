import contextlib
import gzip
import json

import numpy as np
import pytest

from jaxemb.evaluate import read_beir, retrieval, retrieval_evaluator, retrieval_per_query, score_run
from jaxemb.evaluate.retrieval import RetrievalSet

QRELS = {"q": {"d1": 2, "d2": 1, "d5": 1, "d9": 0}}
RUN = {"q": {"d2": 0.9, "d7": 0.8, "d1": 0.7, "d4": 0.6}}


def test_worked_example():
    scores = score_run(RUN, QRELS, ks=(1, 3, 10)).means()
    expected = {
        "ndcg@3": 0.63879,
        "map@10": 0.55556,
        "map@1": 0.33333,
        "recall@3": 0.66667,
        "precision@10": 0.2,
        "mrr@10": 1.0,
    }
    assert {name: round(scores[name], 5) for name in expected} == expected
    assert score_run(RUN, QRELS, ks=(1,), map_denominator="min_k_relevant").means()["map@1"] == 1.0


@pytest.mark.parametrize(("tie_break", "expected"), [("trec", 0.5), ("lower_id", 1.0)])
@pytest.mark.parametrize("other", [0.5, 0.50000001])
def test_scores_equal_in_f32_are_ordered_by_id(tie_break, expected, other):
    run = {"q": {"d1": 0.5, "d2": other}}
    assert score_run(run, {"q": {"d1": 1}}, tie_break=tie_break).means()["mrr@10"] == expected


def test_queries_in_only_one_of_run_and_qrels_are_left_out_and_counted():
    scores = score_run(RUN | {"x": {"d1": 1.0}, "y": {}}, QRELS | {"z": {"d1": 1}})
    assert scores.query_ids == ("q",)
    assert (scores.unjudged_queries, scores.missing_queries) == (2, 1)


@pytest.mark.parametrize(
    ("queries", "qrels", "message"),
    [
        (["q"], {}, "queries must be a mapping"),
        ({"q": "a"}, {"q": ["d"]}, r"qrels\['q'\] must be a mapping; got list \['d'\]"),
        ({"q": "a"}, {"q": {"d": "x"}}, r"qrels\['q'\]\['d'\] must be a number; got str 'x'"),
        ({"q": "a"}, {"q": {"d": True}}, r"qrels\['q'\]\['d'\] must be a number; got bool True"),
        ({1: "a"}, {"1": {"d": 1}}, "queries must be by ids that are strings; got int 1"),
    ],
)
def test_a_collection_is_checked_when_it_is_made(queries, qrels, message):
    with pytest.raises(TypeError, match=message):
        RetrievalSet(queries, {"d": "b"}, qrels)


def test_summary_is_json_with_errors_and_intervals():
    run = {f"q{i}": {"d1": 1.0, "d2": float(i)} for i in range(4)}
    qrels = {f"q{i}": {"d1": 1} for i in range(4)}
    summary = json.loads(json.dumps(score_run(run, qrels, ks=(10,)).summary()))
    assert summary["queries"] == 4
    mrr = summary["metrics"]["mrr@10"]
    assert mrr["low"] <= mrr["mean"] == 0.625 <= mrr["high"]
    np.testing.assert_allclose(mrr["standard_error"], 0.125)
    assert score_run(RUN, QRELS).summary()["metrics"]["mrr@10"]["standard_error"] is None


class Letters:
    """Encodes a text as its numbers of a, b and c."""

    def __init__(self):
        self.prompts, self.asked = {}, []

    def encode(self, texts, *, prompt_name=None):
        self.asked.append(prompt_name)
        return np.array([[text.count(letter) for letter in "abc"] for text in texts], np.float32)


QUERIES = {"qa": "a", "qb": "b", "unjudged": "c"}
CORPUS = {"d1": "aaa", "d2": "aab", "d3": "bb", "d4": "c", "d5": "bb"}


def test_retrieval_ranks_the_corpus_for_the_judged_queries():
    qrels = {"qa": {"d2": 1}, "qb": {"d3": 1}, "elsewhere": {"d1": 1}, "unjudged": {}}
    scores = retrieval_per_query(Letters(), QUERIES, CORPUS, qrels, ks=(1, 2))
    assert scores.query_ids == ("qa", "qb")
    np.testing.assert_array_equal(scores.values["mrr@2"], [0.5, 0.5])  # d1 is nearer to qa; d5 ties with d3
    assert (scores.unjudged_queries, scores.missing_queries, scores.missing_documents) == (1, 1, 0)
    ascending = retrieval_per_query(Letters(), QUERIES, CORPUS, qrels, ks=(2,), tie_break="lower_id")
    np.testing.assert_array_equal(ascending.values["mrr@2"], [0.5, 1.0])


def test_the_evaluator_and_the_means_are_the_same_numbers():
    qrels = {"qa": {"d2": 1}, "qb": {"d3": 1}}
    expected = retrieval_per_query(Letters(), QUERIES, CORPUS, qrels, ks=(2,)).means()
    assert retrieval(Letters(), QUERIES, CORPUS, qrels, ks=(2,)) == expected
    assert retrieval_evaluator(RetrievalSet(QUERIES, CORPUS, qrels), ks=(2,))(Letters()) == expected
    assert set(expected) == {f"{name}@2" for name in ("ndcg", "map", "mrr", "recall", "precision", "success")}


def test_similarity_can_be_chosen_and_is_the_models_by_default():
    qrels = {"q": {"long": 1}}
    queries, corpus = {"q": "a"}, {"long": "aaaab", "same": "a"}
    assert retrieval(Letters(), queries, corpus, qrels, ks=(1,))["success@1"] == 0.0
    assert retrieval(Letters(), queries, corpus, qrels, ks=(1,), similarity="dot")["success@1"] == 1.0
    model = Letters()
    model.similarity_fn_name = "dot"
    assert retrieval(model, queries, corpus, qrels, ks=(1,))["success@1"] == 1.0


def test_prompts_are_taken_where_the_model_has_them():
    model = Letters()
    qrels = {"qa": {"d2": 1}}
    retrieval(model, QUERIES, CORPUS, qrels)
    model.prompts = {"query": "find: ", "passage": "text: "}
    retrieval(model, QUERIES, CORPUS, qrels)
    retrieval(model, QUERIES, CORPUS, qrels, query_prompt_name="passage", corpus_prompt_name="query")
    assert model.asked == [None, None, "query", "passage", "passage", "query"]


def test_documents_with_the_id_of_the_query_can_be_left_out():
    corpus = {"qa": "a", "d": "ab"}
    qrels = {"qa": {"d": 1}}
    assert retrieval(Letters(), {"qa": "a"}, corpus, qrels)["mrr@10"] == 0.5
    assert retrieval(Letters(), {"qa": "a"}, corpus, qrels, ignore_identical_ids=True)["mrr@10"] == 1.0


def test_judged_documents_that_are_not_in_the_corpus_count_as_relevant():
    qrels = {"qa": {"d1": 1, "gone": 1}}
    with pytest.warns(RuntimeWarning, match="1 judged documents are not in the corpus, such as .* no ranking can find"):
        scores = retrieval_per_query(Letters(), QUERIES, CORPUS, qrels, ks=(5,))
    assert scores.missing_documents == 1
    assert scores.means()["recall@5"] == 0.5
    with pytest.raises(ValueError, match=r"1 judged documents are not in the corpus, such as \['gone'\]"):
        retrieval(Letters(), QUERIES, CORPUS, qrels, strict=True)


@pytest.mark.parametrize(
    ("message", "arguments", "options"),
    [
        ("corpus must not be empty", (QUERIES, {}, {"qa": {"d1": 1}}), {}),
        (
            r"no query has judgements; queries: 3, such as \['qa'.*qrels: 1, such as \['q'\]",
            (QUERIES, CORPUS, QRELS),
            {},
        ),
        (r"ks must be cut-offs >= 1; got \(0,\)", (QUERIES, CORPUS, {"qa": {"d1": 1}}), {"ks": (0,)}),
        (r"'trec' or 'lower_id'; got 'random'", (QUERIES, CORPUS, {"qa": {"d1": 1}}), {"tie_break": "random"}),
    ],
)
def test_bad_arguments_are_named(message, arguments, options):
    with pytest.raises(ValueError, match=message):
        retrieval(Letters(), *arguments, **options)


def test_runs_with_nan_or_without_common_queries_are_named():
    with pytest.raises(ValueError, match="query 'q' has nan as score of 'd2'"):
        score_run({"q": {"d1": 0.1, "d2": float("nan")}}, QRELS)
    with pytest.raises(ValueError, match=r"no query in common; got \['x'\] and \['q'\]"):
        score_run({"x": {}}, QRELS)


@pytest.mark.parametrize(
    ("run", "qrels", "message"),
    [
        ({"q": {"d1": "1"}}, QRELS, r"run\['q'\]\['d1'\] must be a number; got str '1'"),
        ({"q": {"d1": 10**400}}, QRELS, r"run\['q'\] has a whole number that float64 cannot hold"),
        ({1: {"d1": 1.0}}, QRELS, "run must be by ids that are strings; got int 1"),
        ({"q": {None: 1.0}}, QRELS, r"run\['q'\] must be by ids that are strings; got NoneType None"),
        (RUN, {"q": {"d1": True}}, r"qrels\['q'\]\['d1'\] must be a number; got bool True"),
        (RUN, {"q": {1: 1}}, r"qrels\['q'\] must be by ids that are strings; got int 1"),
        (RUN, {"q": {"d1": 1, "d2": np.inf}}, r"qrels\['q'\]\['d2'\] must be a finite level; got inf"),
        (RUN, {"q": {"d1": 10**400}}, r"qrels\['q'\] has a whole number that float64 cannot hold"),
    ],
)
def test_ids_scores_and_levels_are_what_they_should_be(run, qrels, message):
    with pytest.raises((TypeError, ValueError), match=message):
        score_run(run, qrels)


def test_a_cut_off_beyond_the_last_document_takes_no_memory():
    run = RUN | {"x": {np.str_("d1"): np.float16(1)}}
    far, near = (score_run(run, QRELS | {"x": {"d1": 1}}, ks=(k,)).means() for k in (10**9, 10))
    assert far["ndcg@1000000000"] == near["ndcg@10"]
    assert far["precision@1000000000"] == pytest.approx(near["precision@10"] / 10**8)


def write_beir(directory, compress):
    opener, end = (gzip.open, ".gz") if compress else (open, "")
    (directory / "qrels").mkdir()
    files = {
        "corpus.jsonl": [{"_id": "d1", "title": "On a", "text": "aaa"}, {"_id": 2, "title": "", "text": "b"}],
        "queries.jsonl": [{"_id": "q1", "text": "a?", "metadata": {}}],
    }
    for name, records in files.items():
        with opener(directory / f"{name}{end}", "wt") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
    with opener(directory / "qrels" / f"dev.tsv{end}", "wt") as file:
        file.write("query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\t2\t0\n")


@pytest.mark.parametrize("compress", [False, True])
def test_read_beir(tmp_path, compress):
    write_beir(tmp_path, compress)
    data = read_beir(tmp_path, "dev")
    assert data == RetrievalSet({"q1": "a?"}, {"d1": "On a aaa", "2": "b"}, {"q1": {"d1": 2, "2": 0}})


def test_read_beir_names_what_is_missing_or_malformed(tmp_path):
    write_beir(tmp_path, compress=False)
    with pytest.raises(FileNotFoundError, match=r"no test.tsv \(or .gz\) in .*qrels; there is \['dev.tsv'\]"):
        read_beir(tmp_path)
    with open(tmp_path / "qrels" / "dev.tsv", "a") as file:
        file.write("q1\td1\thigh\n")
    with pytest.raises(ValueError, match=r"dev.tsv:4: .*'score'.*'high'"):
        read_beir(tmp_path, "dev")
    with open(tmp_path / "corpus.jsonl", "a") as file:
        file.write('{"_id": "d1", "text": "again"}\n')
    with pytest.raises(ValueError, match="id 'd1' comes twice"):
        read_beir(tmp_path, "dev")
    (tmp_path / "corpus.jsonl").write_text('{"id": "d1", "text": "again"}\n')
    with pytest.raises(ValueError, match=r"record 0 must have '_id' and 'text'; got \['id', 'text'\]"):
        read_beir(tmp_path, "dev")
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d1", "text": ["again"]}\n')
    with pytest.raises(TypeError, match=r"corpus.jsonl: 'text' of 'd1' must be a string; got list"):
        read_beir(tmp_path, "dev")
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d1", "text": "\\ud83d"}\n')
    with pytest.raises(ValueError, match=r"corpus.jsonl: 'text' of 'd1' has a lone surrogate"):
        read_beir(tmp_path, "dev")


def test_read_beir_reads_the_published_sets(data_dir):
    data = read_beir(data_dir / "ir_cranfield")
    assert (len(data.corpus), len(data.queries), sum(map(len, data.qrels.values()))) == (1400, 225, 1612)
    data = read_beir(data_dir / "xquad" / "de", qrels=data_dir / "xquad" / "qrels.tsv.gz")
    assert (len(data.corpus), len(data.queries), len(data.qrels)) == (240, 1190, 1190)


def test_scores_that_single_precision_cannot_hold_are_named():
    """They would all be infinite, and so equal."""
    with pytest.raises(ValueError, match=r"query 'q' has 1e\+299 as score of 'd2'; expected a float32"):
        score_run({"q": {"d1": 1e300, "d2": 1e299}}, {"q": {"d1": 1}})


def test_a_document_with_two_levels_is_named(tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d", "text": "x"}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "x"}\n')
    for level, outcome in ((1, contextlib.nullcontext()), (2, pytest.raises(ValueError, match="have several levels"))):
        (tmp_path / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\nq\td\t1\nq\td\t{level}\n")
        with outcome:
            assert read_beir(tmp_path, qrels=tmp_path / "test.tsv").qrels == {"q": {"d": 1}}


def test_an_evaluator_refuses_its_data_when_it_is_made():
    queries, corpus, qrels = {"q": "a?"}, {"d": "a"}, {"q": {"d": 1}}
    with pytest.raises(ValueError, match="corpus must not be empty"):
        retrieval_evaluator(RetrievalSet(queries, {}, qrels))
    with pytest.raises(ValueError, match="no query has judgements; queries: 1"):
        retrieval_evaluator(RetrievalSet(queries, corpus, {"p": {"d": 1}}))
    with pytest.raises(ValueError, match=r"ks must be cut-offs >= 1; got \(0,\)"):
        retrieval_evaluator(RetrievalSet(queries, corpus, qrels), ks=(0,))
    with pytest.raises(TypeError, match="'cutoffs'"):
        retrieval_evaluator(RetrievalSet(queries, corpus, qrels), cutoffs=(10,))
