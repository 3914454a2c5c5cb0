import dataclasses

import numpy as np
import pytest
from scipy.stats import spearmanr

import jaxemb
from experiments import matryoshka_2d, sizes, starbucks
from experiments.lib import suite
from experiments.recipes import sizes as recipe
from jaxemb.train import fit


@pytest.mark.slow  # compiles train steps of six layers
def test_smoke_of_2d_matryoshka(smoke_cells, minilm, tmp_path):
    e = matryoshka_2d.EXPERIMENT
    table, summary = smoke_cells(e, matryoshka_2d.PLAIN, matryoshka_2d.TWO)
    plain, two = (record["values"] for record in summary["cells"].values())
    assert plain["smaller"] == plain["smallest"] < plain["full"] and plain["smaller"] != two["smaller"]
    assert len(plain["cells"]) == 12 and plain["every"] == pytest.approx(np.mean([c[2] for c in plain["cells"]]))
    assert "4,562 training pairs" in table and "1 layer, 32 dimensions" in table and "+10.1" in table
    assert (tmp_path / "results" / "sizes-nli.png").stat().st_size > 0


@pytest.mark.slow
def test_smoke_of_starbucks(smoke_cells, minilm):
    e = starbucks.EXPERIMENT
    some = dataclasses.replace(e, claims=[claim for claim in e.claims if claim.measure != "full"])
    _, summary = smoke_cells(some, starbucks.APART, starbucks.SRL, starbucks.SMAE)
    apart, *others = (record["values"] for record in summary["cells"].values())
    assert [cell[:2] for cell in apart["cells"]] == [[1, 32]] and "full" not in apart
    assert len({apart["smaller"], *(values["smaller"] for values in others)}) == 3


def test_as_many_pairs_follow_as_contradict(monkeypatch, data_dir):
    monkeypatch.setenv("JAXEMB_DATA", str(data_dir))
    contradict, follow = sizes.labelled()
    assert (len(contradict), len(follow)) == (665 + 7164, 1299 + 982)
    pairs = sizes.nli(seed=0)
    assert np.bincount(pairs.scores.astype(int)).tolist() == [2281, 2281]
    assert pairs.first[-1] == follow.first[-1] and pairs.second != sizes.nli(seed=1).second


def test_the_loss_of_labelled_pairs_is_that_of_angle():
    """The in-batch negatives as the authors have them: of 2N sentences, each told from all others; 0 for label 0."""
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 5, 8)).astype(np.float32)
    labels = np.array([1, 0, 1, 1, 0], np.float32)
    texts = np.stack([first, second], axis=1).reshape(10, 8)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    logits = 20 * texts @ texts.T
    np.fill_diagonal(logits, -np.inf)
    own = logits[np.arange(10), np.arange(10) ^ 1]
    in_batch = np.mean(np.repeat(labels, 2) * (np.log(np.exp(logits).sum(axis=1)) - own))
    rest = np.mean(sizes.cosent(first, second, labels) + sizes.angle(first, second, labels))
    found = np.mean(sizes.angle_of_labels(first, second, labels))
    np.testing.assert_allclose(found, rest + 20 * in_batch, rtol=1e-5)


@pytest.mark.slow
def test_quality_is_that_of_the_cut_model(tiny_minilm, monkeypatch, data_dir):
    monkeypatch.setenv("JAXEMB_DATA", str(data_dir))
    preset = sizes.Preset(datasets=("sts",), model=str(tiny_minilm), tests=20)
    data = sizes.data(preset, "sts", 0)
    depth, dim = data.embedder.model.depth, data.embedder.model.dim
    found = sizes.quality(data.embedder.model, data, [(1, dim // 2), (depth, dim)])
    cut = data.embedder.truncate(layers=1, dim=dim // 2)
    expected = []
    for pairs in data.tests.values():
        a, b = (cut.encode(list(texts), normalize=True) for texts in (pairs.first, pairs.second))
        expected.append(100 * spearmanr((a * b).sum(axis=1), pairs.scores).statistic)
    assert found[1, dim // 2] == pytest.approx(np.mean(expected), abs=0.2)  # ranks of nearly equal cosines may change


@pytest.mark.parametrize("experiment", [matryoshka_2d.EXPERIMENT, starbucks.EXPERIMENT])
def test_the_papers_sizes_are_those_of_bert(experiment):
    preset = experiment.presets["paper"]
    assert preset.sizes[-1] == (12, 768) and sizes.powers(preset.sizes) == (8, 16, 32, 64, 128, 256, 512)
    assert isinstance(preset, suite.Preset) and len(preset.sizes) - 1 <= len(sizes.PLACES)


@pytest.fixture
def triplets(tmp_path):
    lines = [f'{{"query": "q {i}", "document": "d {i}", "negative": "n {i}"}}\n' for i in range(8)]
    (tmp_path / "nli.jsonl").write_text("".join(lines))
    return str(tmp_path / "nli.jsonl")


def test_the_recipe_reads_triplets_or_the_pairs_that_follow(monkeypatch, data_dir, triplets):
    monkeypatch.setenv("JAXEMB_DATA", str(data_dir))
    assert recipe.run(data=triplets, model="x").options["sizes"][-1] == [12, 768]
    assert recipe.run(data=triplets).options["sizes"] == [[1, 32], [2, 64], [3, 128], [6, 384]]
    with pytest.raises(ValueError, match="method must be 'starbucks' or '2d'; got '3d'"):
        recipe.run(method="3d")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["starbucks", "2d"])
def test_the_full_recipe_trains(method, monkeypatch, data_dir, triplets, minilm, tmp_path):
    monkeypatch.setenv("JAXEMB_DATA", str(data_dir))
    jaxemb.load(minilm, layers=2).save(tmp_path / "two")
    options = {"model": str(tmp_path / "two"), "sizes": ((1, 8), (2, 384)), "batch_size": 4, "steps": 2}
    run = recipe.run(data=triplets, method=method, **options)
    fitted = fit(dataclasses.replace(run, evaluators={}), tmp_path / "run", progress=False)
    assert np.isfinite(fitted.embedder.encode(["a question"])).all()
