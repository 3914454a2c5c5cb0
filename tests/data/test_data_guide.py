"""The programs of docs/data.md run."""

import gzip
import json
import re
import types
from pathlib import Path

import jax
import pytest
from tiny_run import tiny_model

GUIDE = Path(__file__).parent.parent.parent / "docs" / "data.md"
MODEL = tiny_model(vocab_size=80, position_table=128)


@pytest.fixture
def programs(tmp_path, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)


def write(name: str, record, count: int = 70) -> None:
    Path(name).write_text("".join(json.dumps(record(i)) + "\n" for i in range(count)))


def first(program: str, tokenizer) -> tuple[dict, dict]:
    """The program's names, and the first batches of its data by source."""
    names: dict = {}
    exec(program, names)
    found = {}
    for _, batch in zip(range(4), names["data"](types.SimpleNamespace(tokenizer=tokenizer)), strict=False):
        found[getattr(batch.get("source_name"), "text", None)] = batch
    return names, found


def test_mined_scores(programs, tokenizer):
    mined = {"query": "w1", "positive": "alpha w1", "negatives": ["beta", "gamma w2"], "scores": [0.9, 0.2, 0.1]}
    write("mined.jsonl", lambda i: mined)
    names, found = first(programs[0], tokenizer)
    losses, outputs = jax.eval_shape(names["objective"], MODEL, found[None], None)
    assert losses.shape == (32,) and outputs["negatives"].shape == (32, 2, 16)


def test_several_tasks(programs, tokenizer):
    write("nli.jsonl", lambda i: {"anchor": f"w{i}", "positive": f"alpha w{i}", "negative": f"beta w{i}"}, 900)
    rows = "".join(f"w{i},w{i},{i / 70}\n" for i in range(70))
    Path("stsb.csv").write_text("first,second,score\n" + rows)
    names, found = first(programs[1], tokenizer)
    assert set(found) == {"nli", "stsb"}
    for batch in found.values():
        assert jax.eval_shape(names["objective"], MODEL, batch, None)[0].shape == (64,)


def test_a_share_of_a_stream(programs, tokenizer):
    for part in range(2):
        lines = "".join(json.dumps({"query": f"w{i}", "document": "alpha"}) + "\n" for i in range(600))
        Path(f"corpus-{part}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    _, found = first(programs[2], tokenizer)
    assert found[None]["query"].ids.shape == (1024, 128) and len(programs) == 3
