import pytest

from jaxemb.train import RunLog, read_metrics
from jaxemb.train.logging import headlines


def test_plain_lines_where_there_is_no_terminal(tmp_path, capsys):
    with RunLog(tmp_path, steps=100) as log:
        log.advance(10)
        log.write(10, {"train/loss": 1.23456, "train/records_per_second": 512.0})
        log.write(10, {"sts/spearman": 0.875})
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("step 10/100  train/loss 1.235  train/records_per_second 512  left 0:00:")
    assert second == "step 10/100  sts/spearman 0.875"


def test_of_many_results_a_line_shows_the_main_ones(tmp_path, capsys):
    retrieval = {f"{name}@{k}": 0.5 for name in ("ndcg", "mrr", "recall") for k in (1, 3, 5, 10)}
    code = {f"code/{name}": value for name, value in retrieval.items()}
    with RunLog(tmp_path, steps=8) as log:
        log.write(4, code)
        log.write(4, {**code, "sts/cosine_pearson": 0.25, "sts/cosine_spearman": 0.125})
    (other := tmp_path / "other").mkdir()
    with RunLog(other, steps=8, best="code/recall@3") as log:
        log.write(4, code)
    first, second, third = capsys.readouterr().err.splitlines()
    start = "step 4/8  code/ndcg@10 0.5  "
    assert first == start + "code/ndcg@1 0.5  code/ndcg@3 0.5  code/ndcg@5 0.5  (8 more in metrics.jsonl)"
    assert second.startswith(start + "sts/cosine_spearman 0.125  ") and second.endswith("  (10 more in metrics.jsonl)")
    assert third.startswith("step 4/8  code/recall@3 0.5  code/ndcg@10 0.5  ")
    assert all(len(line) > 12 for line in read_metrics(tmp_path))
    assert headlines({"a/x": 1.0}) == ["a/x"] and headlines({}) == []


def test_a_bar_on_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    with RunLog(tmp_path, steps=100) as log:
        log.advance(10)
        log.write(10, {"train/loss": 1.23456, "train/records_per_second": 5120.0})
        log.write(10, {"sts/spearman": 0.875})
    shown = capsys.readouterr().err
    assert "10/100" in shown and "loss 1.2346" in shown and "5,120 pairs/s" in shown and "sts/spearman 0.875" in shown


def test_nothing_when_not_wanted(tmp_path, capsys):
    with RunLog(tmp_path, steps=100, progress=False) as log:
        log.write(10, {"train/loss": 1.0})
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("resumed_at", "kept"), [(None, []), (0, [0]), (2, [0, 1, 2]), (9, [0, 1, 2, 3])])
def test_keeps_the_lines_up_to_the_resumed_step(tmp_path, resumed_at, kept):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "tr')
    with RunLog(tmp_path, steps=10, resumed_at=resumed_at, progress=False) as log:
        log.write(10, {"x": 1.0})
    assert [line["step"] for line in read_metrics(tmp_path)] == [*kept, 10]
