import numpy as np

from experiments import stsb
from experiments.common import Spread, markdown_table
from jaxemb.evaluate import StsSet
from jaxemb.train import load_run


def records(*pairs):
    return [{"sentence1": a, "sentence2": b, "scores": 1.0} for a, b in pairs]


def sentences(records, keep):
    return {
        " ".join(r[c].lower().split())
        for r, k in zip(records, keep, strict=True)
        if k
        for c in ("sentence1", "sentence2")
    }


def test_the_held_out_slice_shares_no_sentence_with_the_rest():
    rng = np.random.default_rng(0)
    training = records(*((f"Text {a}", f"text  {b}") for a, b in rng.integers(0, 400, (300, 2))))
    held_out = stsb.held_out_slice(training, share=0.2)
    assert 0 < held_out.sum() <= 60
    assert not sentences(training, held_out) & sentences(training, ~held_out)
    np.testing.assert_array_equal(held_out, stsb.held_out_slice(training, share=0.2))


def test_unseen_pairs_have_no_sentence_of_the_training_set():
    pairs = StsSet(["A cat.", "a  DOG.", "new"], ["new", "other", "other"], np.array([1.0, 2.0, 3.0]))
    left = stsb.unseen(pairs, records(("a dog.", "x"), ("y", "z")))
    assert (left.first, left.second, left.scores.tolist()) == (["A cat.", "new"], ["new", "other"], [1.0, 3.0])


def test_the_file_is_a_run_config(data_dir):
    run = load_run(stsb.__file__, {"learning_rate": 1e-5, "epochs": 2})
    assert run.steps == 2 * (5749 // 32)
    assert run.options["learning_rate"] == 1e-5


def test_spread_over_seeds():
    spread = Spread.of([0.1, 0.2, 0.3])
    assert f"{spread:.2f}" == "0.20 ± 0.10"
    assert f"{spread:+.1f}" == "+0.2 ± 0.1"
    assert f"{Spread.of([0.5]):.1f}" == "0.5"


def test_markdown_table():
    assert markdown_table(["set", "n"], [["dev", 3]]) == "| set | n |\n| --- | ---: |\n| dev | 3 |\n"
