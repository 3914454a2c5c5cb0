import pytest

from jaxemb.data import class_examples, similar_pairs

TEXTS, LABELS = ["a1", "a2", "a3", "b1", "b2", "c1"], ["a", "a", "a", "b", "b", "c"]


def test_positives_are_of_the_class_and_negatives_of_others():
    seen = set()
    for seed in range(30):
        records = class_examples(TEXTS, LABELS, negatives=2, seed=seed)
        assert [record["query"] for record in records] == TEXTS[:5]  # c1 is alone
        for record in records:
            query, positive, negatives = record["query"], record["positive"], record["negatives"]
            assert positive[0] == query[0] and positive != query
            assert len(set(negatives)) == 2 and all(text[0] != query[0] for text in negatives)
            seen |= {(query, other) for other in (positive, *negatives)}
    assert seen == {(a, b) for a in TEXTS[:5] for b in TEXTS if a != b}
    assert len(class_examples(TEXTS, LABELS)[0]["negatives"]) == 3  # all that there are


def test_by_label():
    records = class_examples(TEXTS, LABELS, negatives=1, by_label=True)
    assert [record["positive"] for record in records] == LABELS
    assert all(record["negatives"][0] in {"a", "b", "c"} - {record["positive"]} for record in records)


def test_similar_pairs_go_both_ways():
    found = similar_pairs(["a", "b", "c"], ["x", "y", "z"], [4.0, 3.9, 5.0])
    assert [(record["query"], record["positive"]) for record in found] == [
        ("a", "x"),
        ("x", "a"),
        ("c", "z"),
        ("z", "c"),
    ]


def test_refusals():
    with pytest.raises(ValueError, match="labels must be one for each of the 2 texts; got 1"):
        class_examples(["a", "b"], [1])
    with pytest.raises(ValueError, match="at least two classes"):
        class_examples(["a", "b"], [1, 1])
    with pytest.raises(ValueError, match="of the same pairs; got 1, 2 and 1"):
        similar_pairs(["a"], ["b", "c"], [1.0])
