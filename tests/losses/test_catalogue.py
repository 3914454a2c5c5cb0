"""The table of losses leaves none out."""

import inspect
import re
from pathlib import Path

from jaxemb import losses
from jaxemb.losses import ranking

DOCUMENT = Path(__file__).parents[2] / "docs" / "losses.md"


def test_the_table_has_every_loss():
    text = re.sub(r"(?s)^```.*?^```", "", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    named = {name for code in re.findall(r"`([^`]+)`", text) for name in re.findall(r"\w+", code)}
    assert {name for name in losses.__all__ if name.islower()} - named == set()
    weightings = {"ndcg_loss1", "ndcg_loss2", "ndcg_loss2pp", "lambda_rank"}
    functions = {name for name, f in vars(ranking).items() if getattr(f, "__module__", "") == ranking.__name__}
    losses_of_rerankers = {name for name in functions if not name.startswith("_")} - weightings - {"random_negatives"}
    assert losses_of_rerankers - named == set()


def test_arguments_are_called_what_the_table_says():
    rows = re.findall(
        r"^\|(.*)\|(.*)\|(.*)\|(.*)\|$", DOCUMENT.read_text(encoding="utf-8").partition("\nEvery loss")[0], re.M
    )
    names = lambda cell: re.findall(r"`(\w+)`", cell)
    checked = 0
    for functions, columns, *by_name in rows[2:]:
        for function in names(functions):
            arguments = list(inspect.signature(getattr(losses, function)).parameters)
            assert arguments[: len(names(columns))] == names(columns), function
            assert {name for cell in by_name for name in names(cell)} <= set(arguments), function
            checked += 1
    assert checked > 20
