"""Fine-tunes MiniLM for code search in Python's standard library: the quickstart's recipe, over several seeds.

    python -m experiments.code_search --preset small
    jaxemb train experiments/code_search.py --out runs/code_search --set learning_rate=1e-4

The learning rate is chosen on the validation modules with the first seed; the test modules are only looked at with
the chosen one. What limits the gain is looked for by training on shares of the data and by the length of the functions.
"""

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import common
from jaxemb.compilation import enable_persistent_cache
from jaxemb.data import Tokenizer
from jaxemb.evaluate import RetrievalScores, metrics
from jaxemb.recipes.offline_model import default_model
from jaxemb.recipes.quickstart import Pair, evaluate, pairs, run
from jaxemb.sentence_embedder import SentenceEmbedder
from jaxemb.train import fit

_REPORTED = ("ndcg@10", "mrr@10", "recall@1", "recall@5", "recall@10", "recall@50")


@dataclasses.dataclass(frozen=True)
class Preset:
    """How much is tried, and on how much data."""

    learning_rates: tuple[float, ...]
    seeds: int
    options: Mapping[str, Any]  # of the recipe, beside the learning rate, the seed and the share
    shares: tuple[float, ...] = ()  # of the training pairs, for the learning curve


PRESETS = {
    "smoke": Preset((1e-4, 2e-4), seeds=1, options={"steps": 3, "batch_size": 16, "limit": 64}),
    "small": Preset((1e-4, 2e-4), seeds=3, options={}, shares=(0.5,)),
    "paper": Preset(
        (5e-5, 1e-4, 2e-4, 4e-4),
        seeds=10,
        options={"steps": 230, "batch_size": 128, "max_length": 256, "train_length": 256},
        shares=(0.125, 0.25, 0.5),
    ),
}


def trained(**options: Any) -> tuple[SentenceEmbedder, Mapping[str, float]]:
    """The model that the recipe gives, and its last validation; the run's files are not kept."""
    with tempfile.TemporaryDirectory() as directory:
        result = fit(run(**options), directory, progress=False)
        return result.embedder, result.metrics


def main() -> None:
    name, preset, seeds, out = common.arguments("code_search", __doc__.split("\n")[0], PRESETS)
    enable_persistent_cache()
    test = pairs("test", preset.options.get("limit"))
    base = run(**preset.options).embedder()
    before = evaluate(base, test)
    print(f"before: {before.means()['ndcg@10']:.4f} on {len(test)} questions", flush=True)

    selection, models = [], []
    for rate in preset.learning_rates:
        embedder, validation = trained(**preset.options, learning_rate=rate)
        selection.append({"learning_rate": rate, "ndcg@10": validation["validation/ndcg@10"]})
        models.append(embedder)
        print(f"learning rate {rate:g}: {validation['validation/ndcg@10']:.4f} on the validation modules", flush=True)
    best = int(np.argmax([row["ndcg@10"] for row in selection]))
    chosen, first = preset.learning_rates[best], models[best]

    after = []
    for seed in range(seeds):
        embedder = first if seed == 0 else trained(**preset.options, learning_rate=chosen, seed=seed)[0]
        after.append(evaluate(embedder, test))
        print(f"seed {seed}: {after[-1].means()['ndcg@10']:.4f}", flush=True)
    curve = {}
    for share in preset.shares:
        embedder, _ = trained(**preset.options, learning_rate=chosen, share=share)
        curve[share] = evaluate(embedder, test).means()["ndcg@10"]
        print(f"{share:.1%} of the training pairs: {curve[share]:.4f}", flush=True)
    curve |= {0.0: before.means()["ndcg@10"], 1.0: float(np.mean([scores.means()["ndcg@10"] for scores in after]))}

    results = {measure: _compare(before, after, measure) for measure in _REPORTED}
    tokens = np.array([len(ids) for ids in Tokenizer.from_directory(default_model().path)([p["body"] for p in test])])
    results_by_length = _by_length(before, after, tokens, base.max_length)
    common.write_results(
        out,
        {
            "preset": name,
            "seeds": seeds,
            "options": dict(preset.options),
            "learning_rate": chosen,
            "selection": selection,
            "questions": len(test),
            "results": results,
            "ndcg@10_by_share_of_training_pairs": {str(share): curve[share] for share in sorted(curve)},
            "ndcg@10_by_length": results_by_length,
        },
        _table(results, results_by_length, curve, chosen, seeds, test),
        _figure(before, after, curve),
    )
    print(f"results are in {out}")


def _compare(before: RetrievalScores, after: Sequence[RetrievalScores], measure: str) -> dict[str, Any]:
    """A measure before and after, and its change with the standard error over questions of the mean over seeds."""
    old = before.values[measure]
    gain = np.mean([scores.values[measure] - old for scores in after], axis=0)
    return {
        "before": float(old.mean()),
        "before_standard_error": metrics.standard_error(old),
        "after": common.Spread.of(scores.values[measure].mean() for scores in after),
        "change": float(gain.mean()),
        "change_standard_error": metrics.standard_error(gain),
        "change_relative": float(gain.mean() / old.mean()),
    }


def _by_length(
    before: RetrievalScores, after: Sequence[RetrievalScores], tokens: np.ndarray, max_length: int
) -> dict[str, dict[str, float]]:
    """nDCG@10 of the functions that the model reads whole, and of those that are cut."""
    groups = {f"up to {max_length} tokens": tokens <= max_length, f"cut at {max_length} tokens": tokens > max_length}
    mean = np.mean([scores.values["ndcg@10"] for scores in after], axis=0)
    return {
        group: {
            "questions": int(member.sum()),
            "before": float(before.values["ndcg@10"][member].mean()),
            "after": float(mean[member].mean()),
        }
        for group, member in groups.items()
        if member.any()
    }


def _table(
    results: Mapping[str, Any],
    by_length: Mapping[str, Mapping[str, float]],
    curve: Mapping[float, float],
    learning_rate: float,
    seeds: int,
    test: Sequence[Pair],
) -> str:
    rows = [
        (
            measure,
            f"{r['before']:.4f} ± {r['before_standard_error']:.4f}",
            f"{r['after']:.4f}",
            f"{r['change']:+.4f} ± {r['change_standard_error']:.4f}",
            f"{r['change_relative']:+.1%}",
        )
        for measure, r in results.items()
    ]
    lengths = [(group, r["questions"], f"{r['before']:.4f}", f"{r['after']:.4f}") for group, r in by_length.items()]
    shares = [(f"{share:.1%}", f"{curve[share]:.4f}") for share in sorted(curve)]
    return (
        "# MiniLM fine-tuned for code search in Python's standard library\n\n"
        f"{len(test)} questions about held-out modules. Before and change: ± one standard error over the questions; "
        f"after: mean ± standard deviation over {seeds} seed(s). The learning rate {learning_rate:g} was chosen on the "
        "validation modules.\n\n"
        + common.markdown_table(("measure", "before", "after", "change", "relative"), rows)
        + "\n## What limits it\n\nnDCG@10 by the share of the training pairs:\n\n"
        + common.markdown_table(("share", "nDCG@10"), shares)
        + "\nand by the length of the function that is looked for:\n\n"
        + common.markdown_table(("function", "questions", "before", "after"), lengths)
    )


def _figure(before: RetrievalScores, after: Sequence[RetrievalScores], curve: Mapping[float, float]):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    ks = sorted(int(name.removeprefix("recall@")) for name in before.values if name.startswith("recall@"))
    for runs, label, colour in (([before], "before", "grey"), (after, "after", "tab:blue")):
        recalls = np.array([[scores.values[f"recall@{k}"].mean() for k in ks] for scores in runs])
        left.errorbar(ks, recalls.mean(0), recalls.std(0), fmt="o-", color=colour, label=label, capsize=3)
    left.set_xscale("log")
    left.set_xticks(ks, list(map(str, ks)))
    left.minorticks_off()
    left.set(xlabel="k", ylabel="recall@k", title="held-out modules")
    left.legend()
    shares = sorted(curve)
    right.plot([100 * share for share in shares], [curve[share] for share in shares], "o-")
    right.set(xlabel="% of the training pairs", ylabel="nDCG@10", title="learning curve")
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    main()
