"""Measures of forgetting and transfer against Avalanche 0.6.0.

`avalanche_0_6_0.json` holds random matrices R, b of accuracies in steps of 1/20, and what `StreamForgetting`,
`StreamBWT` and `StreamForwardTransfer` of `avalanche.evaluation.metrics` say after the last task: every accuracy was
given to them as 20 predictions, in the order of hooks of training with an evaluation of all tasks before the first and
after each. (Avalanche cannot be installed beside what the other tests need.)
"""

import json
from pathlib import Path

import pytest

from jaxemb.continual import metrics

CASES = json.loads((Path(__file__).parent / "avalanche_0_6_0.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{len(case['b'])} tasks")
def test_measures_are_those_of_avalanche(case):
    assert metrics.forgetting(case["R"], "avalanche") == pytest.approx(case["forgetting"])
    assert metrics.backward_transfer(case["R"]) == pytest.approx(case["bwt"])
    assert metrics.forward_transfer(case["R"], case["b"]) == pytest.approx(case["fwt"])
