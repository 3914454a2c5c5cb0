import numpy as np
import pytest

from jaxemb.trees import by_path, chosen, map_with_path, replaced, selects

TREE = {"encoder": {"layers": [{"kernel": np.ones(2)}, {"kernel": np.zeros(2)}]}, "head": (np.arange(3), None)}
PATHS = ["encoder.layers.0.kernel", "encoder.layers.1.kernel", "head.0"]


def test_leaves_are_called_by_dotted_paths():
    assert list(by_path(TREE)) == PATHS
    assert by_path(TREE)["head.0"] is TREE["head"][0]
    assert list(by_path(TREE, lambda node: node is None)) == [*PATHS, "head.1"]
    assert list(by_path(TREE, lambda node: isinstance(node, list))) == ["encoder.layers", "head.0"]
    assert map_with_path(lambda path, leaf: path, TREE)["head"] == ("head.0", None)


@pytest.mark.parametrize("where", [r"kernel$", lambda path: path.startswith("encoder")])
def test_leaves_are_chosen_by_expression_or_function(where):
    assert list(filter(selects(where), PATHS)) == PATHS[:2] == list(chosen(TREE, where))
    changed = by_path(replaced(TREE, where, lambda path, leaf: leaf + 1))
    np.testing.assert_array_equal(changed["encoder.layers.0.kernel"], [2, 2])
    assert changed["head.0"] is TREE["head"][0]


def test_nothing_chosen_says_what_there_is():
    assert list(chosen(TREE, "")) == PATHS
    with pytest.raises(ValueError, match=r"where must choose at least one array; 'bias' chooses none of encoder\.lay"):
        chosen(TREE, "bias")


def test_leaves_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"two leaves of the tree are called 'a\.b'"):
        by_path({"a": {"b": 1}, "a.b": 2})
