"""Ranking metrics against trec_eval, sentence-transformers and scikit-learn."""

import numpy as np
import pytest

from jaxemb.evaluate import metrics, retrieval_per_query, score_run, sts

KS = (1, 3, 10, 100)


def random_runs(n_queries, seed=0):
    """Graded runs with ties, unjudged documents, documents that were not found, and queries without relevant ones."""
    rng = np.random.default_rng(seed)
    run, qrels = {}, {}
    for query in range(n_queries):
        n, found, judged = rng.integers(1, 60), rng.integers(1, 40), rng.integers(1, 30)
        documents = [f"d{i}" for i in range(max(n, found, judged))]
        levels = rng.integers(-1, 4, judged) if query % 10 else np.zeros(judged, int)
        scores = rng.integers(0, 8, found) / 7
        qrels[f"q{query}"] = dict(
            zip(rng.choice(documents, judged, replace=False).tolist(), levels.tolist(), strict=True)
        )
        run[f"q{query}"] = dict(zip(rng.choice(documents, found, replace=False).tolist(), scores.tolist(), strict=True))
    return run, qrels


def test_trec_eval_on_random_graded_runs_with_ties():
    pytrec_eval = pytest.importorskip("pytrec_eval")
    run, qrels = random_runs(1000)
    cuts = ",".join(map(str, KS))
    names = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "precision": "P", "success": "success"}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {f"{name}.{cuts}" for name in names.values()} | {"recip_rank"})
    expected = theirs.evaluate(run)
    ours = score_run(run, qrels, ks=KS)
    assert set(ours.query_ids) == set(expected)
    for k in KS:
        for name, theirs_name in names.items():
            values = [expected[query][f"{theirs_name}_{k}"] for query in ours.query_ids]
            np.testing.assert_allclose(ours.values[f"{name}@{k}"], values, atol=1e-6, err_msg=f"{name}@{k}")
    reciprocal = [expected[query]["recip_rank"] for query in ours.query_ids]  # runs are shorter than 100
    np.testing.assert_allclose(ours.values["mrr@100"], reciprocal, atol=1e-6)


def test_scikit_learn_has_the_same_ndcg_and_average_precision_without_ties():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for _ in range(20):
        levels, scores = rng.integers(0, 3, 30), rng.permutation(30)
        gains = levels[np.argsort(-scores)]
        expected = sklearn_metrics.ndcg_score(levels[None], scores[None], k=10)
        np.testing.assert_allclose(metrics.ndcg_at_k(gains, levels, 10), expected)
        expected = sklearn_metrics.average_precision_score(levels > 0, scores)
        np.testing.assert_allclose(metrics.average_precision_at_k(gains, levels), expected)


class Vectors:
    """Encodes number n as row n."""

    def __init__(self, dim=16, rows=400):
        self.rows = np.random.default_rng(0).standard_normal((rows, dim)).astype(np.float32)

    def encode(self, texts, *, prompt_name=None, **options):
        return self.rows[[int(text) for text in texts]]


@pytest.mark.slow
def test_sentence_transformers_information_retrieval_evaluator():
    evaluation = pytest.importorskip("sentence_transformers.sentence_transformer.evaluation")
    util = pytest.importorskip("sentence_transformers.util")
    rng = np.random.default_rng(1)
    queries = {f"q{i}": str(i) for i in range(50)}
    corpus = {f"d{i}": str(i) for i in range(50, 400)}
    qrels = {query: {f"d{i}": 1 for i in rng.integers(50, 400, rng.integers(1, 30))} for query in queries}
    theirs = evaluation.InformationRetrievalEvaluator(
        queries,
        corpus,
        {query: set(documents) for query, documents in qrels.items()},
        accuracy_at_k=[1, 10],
        precision_recall_at_k=[1, 10],
        mrr_at_k=[10],
        ndcg_at_k=[10],
        map_at_k=[10],
        score_functions={"cos": util.cos_sim},
        write_csv=False,
    )

    class Model(Vectors):
        similarity_fn_name = "cosine"

        def encode_query(self, texts, **options):
            return self.encode(texts)

        encode_document = encode_query

    expected = theirs.compute_metrices(Model())["cos"]
    ours = retrieval_per_query(
        Vectors(), queries, corpus, qrels, ks=(1, 10), tie_break="lower_id", map_denominator="min_k_relevant"
    ).means()
    names = {
        "success": "accuracy@k",
        "precision": "precision@k",
        "recall": "recall@k",
        "ndcg": "ndcg@k",
        "mrr": "mrr@k",
        "map": "map@k",
    }
    compared = 0
    for name, theirs_name in names.items():
        for k, value in expected[theirs_name].items():
            np.testing.assert_allclose(ours[f"{name}@{k}"], value, rtol=1e-6, err_msg=f"{name}@{k}")
            compared += 1
    assert compared == 9


@pytest.mark.slow
def test_sentence_transformers_similarity_evaluator():
    evaluation = pytest.importorskip("sentence_transformers.sentence_transformer.evaluation")
    first, second = [[str(i) for i in range(start, start + 100)] for start in (0, 100)]
    scores = np.random.default_rng(2).random(100)
    names = ["cosine", "dot", "euclidean", "manhattan"]
    theirs = evaluation.EmbeddingSimilarityEvaluator(first, second, scores, similarity_fn_names=names, write_csv=False)

    class Model(Vectors):
        class model_card_data:  # the evaluator leaves its result there
            @staticmethod
            def set_evaluation_metrics(*args, **kwargs):
                pass

    expected = theirs(Model())
    ours = sts(Vectors(), first, second, scores, similarities=names)
    for name in names:
        for correlation in ("spearman", "pearson"):
            np.testing.assert_allclose(ours[f"{name}_{correlation}"], expected[f"{correlation}_{name}"], atol=1e-6)
