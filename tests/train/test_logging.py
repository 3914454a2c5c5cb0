import pytest

from jaxemb.train import RunLog, read_metrics


def test_plain_lines_where_there_is_no_terminal(tmp_path, capsys):
    with RunLog(tmp_path, steps=100) as log:
        log.advance(10)
        log.write(10, {"train/loss": 1.23456, "train/records_per_second": 512.0})
        log.write(10, {"sts/spearman": 0.875})
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("step 10/100  train/loss 1.235  train/records_per_second 512  left 0:00:")
    assert second == "step 10/100  sts/spearman 0.875"


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
