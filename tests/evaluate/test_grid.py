"""The grid of sizes: each cell is what evaluating the truncated model gives; the smallest good one is recommended."""

import json

import numpy as np
import pytest

import jaxemb
from jaxemb.cli import main
from jaxemb.evaluate import Cell, Grid, StsSet, grid, sts, sts_evaluator

PAIRS = StsSet(
    ["a man eats", "a cat sleeps", "rain falls", "two dogs"],
    ["a man is eating food", "the car is red", "it is raining", "a red house"],
    np.array([5.0, 1.0, 4.0, 0.0]),
)
CELLS = Grid(
    "ndcg@10",
    (
        Cell(4, 64, 0.80, 100.0, 256),
        Cell(4, 32, 0.79, 100.0, 128),
        Cell(2, 64, 0.78, 190.0, 256),
        Cell(2, 32, 0.70, 190.0, 128),
    ),
)


@pytest.mark.parametrize(
    ("max_loss", "size"), [(0.0, (4, 64)), (0.011, (4, 32)), (0.021, (2, 64)), (0.2, (2, 32)), (1.0, (2, 32))]
)
def test_the_smallest_within_a_loss(max_loss, size):
    best = CELLS.smallest(max_loss)
    assert (best.layers, best.dim) == size


def test_the_table_and_summary_say_all():
    lines = CELLS.table(0.021).splitlines()
    assert lines[1].split() == ["layers", "32", "64", "texts/s"]
    assert lines[2].split() == ["2", "0.7000", "0.7800", "190"]
    assert lines[4].split() == ["bytes", "128", "256"]
    assert (
        lines[5]
        == "smallest within 0.021 of 0.8000: 2 layers, 64 dimensions (0.7800), 1.9 x as fast, 100% of the index"
    )
    summary = json.loads(json.dumps(CELLS.summary(0.011)))
    assert summary["smallest"]["dim"] == 32 and len(summary["cells"]) == 4


def test_poor_sizes_are_told_what_trains_them():
    assert CELLS.advice(0.021) == [] and len(CELLS.table(0.021).splitlines()) == 6
    layers, dims = CELLS.advice(0.001)
    assert layers.startswith(
        "every smaller number of layers loses more: jaxemb.objectives.starbucks trains a few known sizes"
    )
    assert layers.endswith("; if it was trained so already, more steps or a larger max_loss")
    assert dims.startswith(
        "every smaller number of dimensions loses more: jaxemb.objectives.matryoshka trains them; if"
    )
    assert CELLS.advice(0.015) == [layers] and CELLS.table(0.001).splitlines()[-2:] == [layers, dims]


def test_a_cell_is_the_truncated_model(tiny_minilm):
    embedder = jaxemb.load(tiny_minilm)
    found = grid(embedder, sts_evaluator(PAIRS), "cosine_spearman", dims=[3])
    assert [(cell.layers, cell.dim, cell.bytes_per_vector) for cell in found.cells] == [(1, 384, 1536), (1, 3, 12)]
    for cell in found.cells:
        small = embedder.truncate(layers=cell.layers, dim=cell.dim)
        alone = sts(small, PAIRS.first, PAIRS.second, PAIRS.scores)["cosine_spearman"]
        assert cell.quality == pytest.approx(alone, abs=1e-6)
        assert cell.texts_per_second > 0


def test_the_command_prints_it(tiny_minilm, tmp_path, capsys):
    path = tmp_path / "pairs.csv"
    rows = zip(PAIRS.first, PAIRS.second, PAIRS.scores, strict=True)
    path.write_text("sentence1,sentence2,score\n" + "".join(f"{a},{b},{c}\n" for a, b, c in rows))
    arguments = [
        "evaluate",
        "--task",
        "sts",
        "--data",
        str(path),
        "--model",
        str(tiny_minilm),
        "--grid",
        "--dims",
        "3,8",
    ]
    assert main([*arguments, "--max-loss", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["task"] == "sts" and report["metric"] == "cosine_spearman"
    assert [cell["dim"] for cell in report["cells"]] == [384, 8, 3] and report["smallest"]["dim"] == 3
    assert main([*arguments, "--dim", "3"]) == 2
    assert "--dims" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "accuracy"}, "metric must be one of"),
        ({"metric": "cosine_spearman", "layers": [2]}, "layers must be in 1..1"),
        ({"metric": "cosine_spearman", "dims": [0]}, "dims must be in 1..384"),
    ],
)
def test_names_what_is_wrong(tiny_minilm, arguments, message):
    with pytest.raises(ValueError, match=message):
        grid(jaxemb.load(tiny_minilm), lambda encoder: {"cosine_spearman": 0.0}, **arguments)
    with pytest.raises(ValueError, match="max_loss must be >= 0"):
        CELLS.smallest(-0.1)
