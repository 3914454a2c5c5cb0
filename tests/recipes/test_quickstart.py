"""The parts of the quickstart; the whole of it runs in `test_cli.py`."""

import numpy as np
import pytest

from jaxemb.recipes import quickstart


def _pairs(*modules: str) -> list[dict]:
    return [
        {"module": module, "path": f"{module}.py", "line": line, "query": f"does {line}", "body": f"return {line}"}
        for line, module in enumerate(modules)
    ]


def test_groups_are_packages_of_a_batch_or_more():
    records = _pairs("b.x", "a", "b.y", "c", "d.z", "e", "e")
    groups = quickstart.by_package(records, at_least=2)
    assert [[pair["module"] for pair in group] for group in groups] == [["a", "b.x", "b.y"], ["c", "d.z"], ["e", "e"]]


def test_a_last_group_that_is_too_small_joins_the_one_before():
    groups = quickstart.by_package(_pairs("a", "a", "b"), at_least=2)
    assert [len(group) for group in groups] == [3]
    assert [len(group) for group in quickstart.by_package(_pairs("a"), at_least=5)] == [1]


def test_every_question_has_its_own_code_as_the_answer():
    task = quickstart.search_task(_pairs("a", "a", "b"))
    assert task.qrels == {"a.py:0": {"a.py:0": 1}, "a.py:1": {"a.py:1": 1}, "b.py:2": {"b.py:2": 1}}
    assert task.queries["b.py:2"] == "does 2" and task.corpus["b.py:2"] == "return 2"


@pytest.mark.slow
def test_no_package_is_in_two_splits():
    packages = [{pair["module"].split(".")[0] for pair in quickstart.pairs(s)} for s in ("train", "validation", "test")]
    assert all(packages)
    assert not (packages[0] & packages[1] or packages[0] & packages[2] or packages[1] & packages[2])


@pytest.mark.slow
def test_several_thousand_pairs():
    sizes = [len(quickstart.pairs(split)) for split in ("train", "validation", "test")]
    assert sum(sizes) > 3000 and min(sizes) > 300
    assert len(quickstart.pairs("train", limit=7)) == 7


def test_pairs_are_those_of_a_split(monkeypatch):
    modules = ["email.x", "logging.x", "email.y", "json.x"]
    monkeypatch.setattr(quickstart, "_all_pairs", lambda: _pairs(*modules))
    found = [[pair["module"] for pair in quickstart.pairs(split)] for split in ("test", "validation")]
    assert found == [["email.x", "email.y"], ["logging.x"]]
    assert len(quickstart.pairs("test", limit=1)) == 1


@pytest.mark.parametrize("share", [0, -0.5, 1.1])
def test_a_share_is_in_0_to_1(share, monkeypatch):
    monkeypatch.setattr(quickstart, "_all_pairs", lambda: _pairs("email.x", "logging.x", "json.x"))
    run = quickstart.run(share=share)
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\]; got"):
        run.data(None)


def test_an_encoder_that_remembers_encodes_every_text_once():
    asked = []

    class Counting:
        def encode(self, texts, *, prompt_name=None):
            asked.extend(texts)
            return np.array([[len(text)] for text in texts], np.float32)

    encoder = quickstart._Remembering(Counting(), {"known": np.array([5.0], np.float32)})
    np.testing.assert_array_equal(encoder.encode(["known", "ab", "c"]), [[5], [2], [1]])
    np.testing.assert_array_equal(encoder.encode(["c", "known"]), [[1], [5]])
    assert asked == ["ab", "c"]


def test_examples_go_from_the_largest_rises_to_the_largest_falls():
    rng = np.random.default_rng(0)
    records = [
        {"module": "m", "qualname": f"f{i}", "query": f"what does number {i} do", "body": f"return {i}"}
        for i in range(40)
    ]
    places = {text: rng.normal(size=8).astype(np.float32) for pair in records for text in (pair["query"], pair["body"])}
    moved = {text: place + rng.normal(size=8).astype(np.float32) for text, place in places.items()}

    class Known:
        def __init__(self, vectors):
            self.vectors = vectors

        def encode(self, texts, *, prompt_name=None):
            return np.stack([self.vectors[text] for text in texts])

    examples = quickstart._examples(Known(places), Known(moved), records)
    changes = [example.rank_after / example.rank_before for example in examples]
    assert len(examples) == 5 and changes == sorted(changes) and changes[0] < 1 < changes[-1]
    for example in examples:
        for hits, rank in ((example.before, example.rank_before), (example.after, example.rank_after)):
            assert [hit.right for hit in hits] == [place + 1 == rank for place in range(5)]
            assert sorted((hit.score for hit in hits), reverse=True) == [hit.score for hit in hits]
    assert quickstart._examples(Known(places), Known(places), records) == []
