"""Training on several sources, one of them a stream, with an objective for each."""

import pytest
from test_loop import CrashError, crash, stopping_at
from tiny_run import assert_bitwise_equal, toy_objective, toy_run

from jaxemb.data import batches, from_iterable, from_list, mixture
from jaxemb.objectives import by_source
from jaxemb.train import fit

RECORDS = [{"score": i % 5 / 5} for i in range(40)]


def data(embedder):
    sources = mixture({"listed": from_list(RECORDS), "streamed": from_iterable(RECORDS)}, {"listed": 1, "streamed": 2})
    return batches(sources, None, ["score"], batch_size=8, max_length=8, window=16)


def halved(model, batch, key):
    losses, outputs = toy_objective(model, batch, key)
    return losses / 2, outputs


def run(**changes):
    return toy_run(data=data, objective=by_source({"listed": toy_objective, "streamed": halved}), **changes)


def test_a_run_that_was_cut_ends_with_the_same_bits(tmp_path):
    whole = fit(run(), tmp_path / "whole", progress=False)
    with pytest.raises(CrashError):
        fit(run(evaluators={"toy": stopping_at(3, crash)}), tmp_path / "cut", progress=False)
    (tmp_path / "cut" / "run.json").unlink()  # the evaluator differs
    assert_bitwise_equal(fit(run(), tmp_path / "cut", progress=False).state, whole.state)
    assert whole.metrics["toy/error"] < 2.0
