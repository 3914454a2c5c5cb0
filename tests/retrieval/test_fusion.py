import pytest

from jaxemb.retrieval import min_max_fusion


def test_the_worked_example_of_the_specification():
    fused = min_max_fusion({"q": {"a": 3.0, "b": 1.0}}, {"q": {"b": 10.0, "c": 0.0}})
    assert fused == {"q": {"a": 0.5, "b": 0.5, "c": 0.0}}


def test_a_query_of_one_run_takes_its_scores_for_both():
    dense, sparse = {"q": {"a": 2.0, "b": 1.0, "c": 0.0}}, {"q": {}, "r": {"x": 5.0}}
    fused = min_max_fusion(dense, sparse, weight=0.25)
    assert fused == {"q": {"a": 1.0, "b": 0.5, "c": 0.0}, "r": {"x": 1.0}}


def test_the_weight_is_of_the_first():
    fused = min_max_fusion({"q": {"a": 1.0, "b": 0.0}}, {"q": {"a": 0.0, "b": 4.0}}, weight=0.75)
    assert fused == {"q": {"a": 0.75, "b": 0.25}}
    with pytest.raises(ValueError, match=r"weight must be in \[0, 1\]; got 2"):
        min_max_fusion({}, {}, weight=2)
