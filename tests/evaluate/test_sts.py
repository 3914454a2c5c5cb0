import dataclasses
import gzip

import numpy as np
import pytest

from jaxemb import similarity
from jaxemb.evaluate import metrics, read_sts, sts, sts_evaluator
from jaxemb.evaluate.sts import StsSet


class Table:
    """Encodes a text as the vector given for it."""

    def __init__(self, vectors):
        self.vectors, self.asked = vectors, []

    def encode(self, texts, *, prompt_name=None):
        self.asked.append(prompt_name)
        return np.array([self.vectors[text] for text in texts], np.float32)


VECTORS = {"east": [1, 0], "north": [0, 2], "north-east": [3, 3], "west": [-1, 0], "nowhere": [0, 0]}
FIRST, SECOND, SCORES = ["east", "east", "east", "north"], ["north", "north-east", "west", "nowhere"], [2, 5, 0, 1]


def test_correlations_of_each_similarity():
    result = sts(Table(VECTORS), FIRST, SECOND, SCORES, similarities=("cosine", "dot", "euclidean", "manhattan"))
    similarities = {
        "cosine": [0, np.sqrt(0.5), -1, 0],
        "dot": [0, 3, -1, 0],
        "euclidean": [-np.sqrt(5), -np.sqrt(13), -2, -2],
        "manhattan": [-3, -5, -2, -2],
    }
    for name, values in similarities.items():
        assert result[f"{name}_spearman"] == pytest.approx(metrics.spearman(values, SCORES), abs=1e-6)
        assert result[f"{name}_pearson"] == pytest.approx(metrics.pearson(values, SCORES), abs=1e-6)


@pytest.mark.parametrize("kind", similarity.PAIRED)
def test_narrow_types_do_not_overflow(kind):
    a, b = np.random.default_rng(0).integers(-128, 128, (2, 5, 9)).astype(np.int8)
    of_pairs = similarity.PAIRED[kind]
    np.testing.assert_allclose(of_pairs(a, b), of_pairs(a.astype(np.float64), b.astype(np.float64)), rtol=1e-5)
    np.testing.assert_allclose(of_pairs(a, b), similarity.similarity(a, b, kind).diagonal(), rtol=1e-4)


def test_evaluator_measures_a_set_with_the_prompt_asked_for():
    model = Table(VECTORS)
    evaluate = sts_evaluator(StsSet(FIRST, SECOND, np.array(SCORES)), prompt_name="query")
    assert evaluate(model) == sts(model, FIRST, SECOND, SCORES)
    assert model.asked == ["query", None]


@pytest.mark.parametrize(
    ("message", "arguments", "options"),
    [
        (r"one entry per pair; got 4, 4 and \(3,\)", (FIRST, SECOND, SCORES[:3]), {}),
        (r"one entry per pair; got 4, 4 and \(4, 1\)", (FIRST, SECOND, np.ones((4, 1))), {}),
        ("scores must be finite; that of pair 2 is not", (FIRST, SECOND, [1, 2, np.nan, 3]), {}),
        (r"similarities must be among .*; got \['angle'\]", (FIRST, SECOND, SCORES), {"similarities": ["angle"]}),
        ("at least two pairs", (FIRST[:1], SECOND[:1], SCORES[:1]), {}),
    ],
)
def test_bad_arguments_are_named(message, arguments, options):
    with pytest.raises(ValueError, match=message):
        sts(Table(VECTORS), *arguments, **options)


def test_embeddings_that_are_not_finite_are_named():
    with pytest.raises(ValueError, match=r"1 of 8 embeddings of the sentences are not finite.*number 6: 'west'"):
        sts(Table(VECTORS | {"west": [np.nan, 0]}), FIRST, SECOND, SCORES)


def test_embeddings_of_the_wrong_shape_are_named():
    class Flat:
        def encode(self, texts, *, prompt_name=None):
            return np.zeros(len(texts))

    with pytest.raises(ValueError, match=r"must give \[8, D\] for the sentences; got \(8,\)"):
        sts(Flat(), FIRST, SECOND, SCORES)


def test_read_sts_reads_csv_with_quotes_and_tsv_without(tmp_path):
    with gzip.open(tmp_path / "pairs.csv.gz", "wt") as file:
        file.write('"A man, a plan.","He said ""no"".",2.5\n')
    data = read_sts(tmp_path / "pairs.csv.gz", names=("sentence1", "sentence2", "score"))
    assert (list(data.first), list(data.second), data.scores.tolist()) == (["A man, a plan."], ['He said "no".'], [2.5])
    (tmp_path / "pairs.txt").write_text('id\ttext a\ttext b\trating\n1\tsay "a\tb\t4\n')
    data = read_sts(tmp_path / "pairs.txt", ("text a", "text b", "rating"), format="tsv")
    assert (list(data.first), data.scores.tolist(), len(data)) == (['say "a'], [4.0], 1)


def test_read_sts_names_the_line_of_a_bad_score(tmp_path):
    (tmp_path / "pairs.tsv").write_text("1\ta\tb\nnan\tc\td\n")
    with pytest.raises(ValueError, match=r"pairs.tsv:2: .*not a finite number: 'nan'"):
        read_sts(tmp_path / "pairs.tsv", names=("score", "sentence1", "sentence2"))


def test_read_sts_reads_the_published_sets(data_dir):
    names = ("sentence1", "sentence2", "score")
    assert len(read_sts(data_dir / "stsb_multi" / "stsb-en-dev.csv.gz", names=names)) == 1500
    sick = ("sentence_A", "sentence_B", "relatedness_score")
    assert len(read_sts(data_dir / "sick" / "SICK_trial.txt.gz", sick, format="tsv")) == 500
    files = sorted((data_dir / "sts12_15").glob("*.tsv.gz"))
    sets = [read_sts(path, names=("score", "sentence1", "sentence2")) for path in files]
    assert len(sets) == 20 and sum(map(len, sets)) == 12_092
    assert all(((data.scores >= 0) & (data.scores <= 5)).all() for data in sets)


def test_a_correlation_that_is_undefined_is_no_number():
    with pytest.raises(ValueError, match=r"scores must differ for a correlation; all 4 are 2\.0"):
        sts(Table(VECTORS), FIRST, SECOND, [2, 2, 2, 2])
    same = Table({text: [1.0, 0.0] for text in VECTORS})
    with pytest.warns(RuntimeWarning, match="undefined"):
        assert np.isnan(list(sts(same, FIRST, SECOND, SCORES).values())).all()


def test_the_rounding_of_texts_that_are_the_same_has_no_order():
    """Those of another batch, or another place in it, have other sums."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(20, 12)).astype(np.float32)
    again = vectors * (1 + np.finfo(np.float32).eps * rng.integers(-1, 2, vectors.shape)).astype(np.float32)
    model = Table({f"{n}{side}": v for side, rows in (("a", vectors), ("b", again)) for n, v in enumerate(rows)})
    texts = lambda side: [f"{n}{side}" for n in range(20)]
    with pytest.warns(RuntimeWarning, match="undefined"):
        found = sts(model, texts("a"), texts("b"), np.arange(20.0), similarities=("euclidean", "manhattan", "cosine"))
    assert np.isnan(list(found.values())).all(), found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first": FIRST[:1], "second": SECOND[:1], "scores": [2]}, "at least two pairs for a correlation; got 1"),
        ({"first": [], "second": [], "scores": []}, "at least two pairs for a correlation; got 0"),
        ({"first": FIRST[:3]}, r"one entry per pair; got 3, 4 and \(4,\)"),
        ({"scores": [1, np.nan, 2, 3]}, "scores must be finite; that of pair 1 is not"),
        ({"scores": [2, 2, 2, 2]}, "scores must differ"),
    ],
)
def test_an_evaluator_refuses_its_data_when_it_is_made(changes, message):
    data = dataclasses.replace(StsSet(FIRST, SECOND, np.array(SCORES)), **changes)
    with pytest.raises(ValueError, match=message):
        sts_evaluator(data)
    with pytest.raises(ValueError, match=message):
        sts(Table(VECTORS), data.first, data.second, data.scores)
    with pytest.raises(ValueError, match="similarities must be among"):
        sts_evaluator(StsSet(FIRST, SECOND, np.array(SCORES)), similarities=["angle"])
