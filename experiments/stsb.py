"""Fine-tunes MiniLM on the STS-Benchmark with CoSENT, and measures it there and on SICK and STS 2012-2015.

    python -m experiments.stsb --preset small
    jaxemb train experiments/stsb.py --out runs/stsb --set learning_rate=2e-5

The learning rate and the number of epochs are chosen on a slice of the training set, never on the development set; the
slice shares no sentence with the rest. Then the whole training set is trained on, once per seed. The other sets
are reported as they come out, up or down. As the STS-Benchmark was drawn from the very STS sets, their pairs with a
sentence of the training set are also left out ("unseen").
"""

import dataclasses
import itertools
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import jaxemb
from experiments import common
from jaxemb.compilation import enable_persistent_cache
from jaxemb.data import Source, batches, tfds
from jaxemb.evaluate import StsSet, read_sts, sts, sts_evaluator
from jaxemb.losses import cosent
from jaxemb.objectives import on_columns
from jaxemb.recipes.offline_model import default_model
from jaxemb.sentence_embedder import SentenceEmbedder
from jaxemb.train import Run, adamw, fit

_COLUMNS = {"sentence1": "sentence1", "sentence2": "sentence2", "scores": "score"}
_MAX_LENGTH = 64  # tokens in training; of 11,498 sentences one is longer
_FEWEST_PAIRS = 100  # of a set without its seen pairs; with fewer, a correlation says little


@dataclasses.dataclass(frozen=True)
class Preset:
    """How much is tried, and on how much data."""

    learning_rates: tuple[float, ...]
    epochs: tuple[int, ...]
    seeds: int
    batch_size: int = 32
    limit: int | None = None  # records of every set


PRESETS = {
    "smoke": Preset(learning_rates=(2e-5, 5e-5), epochs=(1,), seeds=1, limit=128),
    "small": Preset(learning_rates=(2e-5, 5e-5, 1e-4), epochs=(1,), seeds=3),
    "paper": Preset(learning_rates=(1e-5, 2e-5, 3e-5, 5e-5, 1e-4), epochs=(1, 2, 4, 8), seeds=10),
}


def train_set() -> Source:
    """The English training set."""
    return tfds("stsb/en", "train", manual_dir=common.data_dir() / "stsb_multi", columns=_COLUMNS)


def run(
    *,
    learning_rate: float = 2e-5,
    epochs: int = 4,
    batch_size: int = 32,
    scale: float = 20.0,
    seed: int = 0,
    source: Source | None = None,
    evaluate_on: StsSet | None = None,
) -> Run:
    """Fine-tuning of MiniLM with CoSENT.

    Args:
      learning_rate: the highest one, after the warm-up.
      epochs: times that every pair is seen.
      batch_size: pairs per step; each is compared with all others of the batch.
      scale: of CoSENT.
      seed: of the order of the pairs and of dropout.
      source: the pairs, with columns sentence1, sentence2 and scores; None for the whole training set.
      evaluate_on: pairs to measure the model on before and after.
    """
    source = train_set() if source is None else source
    steps = epochs * (len(source) // batch_size)
    return Run(
        embedder=lambda: jaxemb.load(default_model().path),
        data=lambda embedder: batches(
            source,
            embedder.tokenizer,
            tuple(_COLUMNS),
            batch_size=batch_size,
            max_length=_MAX_LENGTH,
            seed=seed,
            pack=True,
            row_multiple=4,
        ),
        objective=on_columns(
            lambda a, b, scores: cosent(a, b, scores, scale=scale), "sentence1", "sentence2", others=["scores"]
        ),
        optimizer=adamw(learning_rate, steps),
        steps=steps,
        evaluators={} if evaluate_on is None else {"sts": sts_evaluator(evaluate_on)},
        evaluate_every=steps,
        checkpoint_every=steps,
        keep=1,
        seed=seed,
        prng="rbg",
        options={"learning_rate": learning_rate, "epochs": epochs, "batch_size": batch_size, "scale": scale},
    )


def trained(run: Run) -> tuple[SentenceEmbedder, Mapping[str, float]]:
    """The model that the run gives, and its last evaluation; the run's files are not kept."""
    with tempfile.TemporaryDirectory() as directory:
        result = fit(run, directory)
        return result.embedder, result.metrics


def evaluation_sets(limit: int | None = None) -> dict[str, StsSet]:
    """The sets that are reported: the STS-Benchmark's development set, SICK's test set, and STS 2012-2015."""
    data = common.data_dir()
    names = ("sentence1", "sentence2", "score")
    sick = ("sentence_A", "sentence_B", "relatedness_score")
    sets = {
        "STS-B dev": read_sts(data / "stsb_multi" / "stsb-en-dev.csv.gz", names=names),
        "SICK test": read_sts(data / "sick" / "SICK_test_annotated.txt.gz", sick, format="tsv"),
    }
    for path in sorted((data / "sts12_15").glob("*.tsv.gz")):
        year, name, split, *_ = path.name.split(".")
        sets[f"STS{year[2:]} {name}{' train' if split == 'train' else ''}"] = read_sts(
            path, names=("score", "sentence1", "sentence2")
        )
    return {name: _subset(pairs, range(min(limit or len(pairs), len(pairs)))) for name, pairs in sets.items()}


def by_year(sets: Mapping[str, StsSet], limit: int | None = None) -> dict[str, StsSet]:
    """The test sets of each year of STS 2012-2015 together, and the other sets; the first `limit` pairs of each set."""
    groups: dict[str, list[StsSet]] = {}
    for name, pairs in sets.items():
        if len(pairs) and not name.endswith(" train"):
            first = _subset(pairs, range(min(limit or len(pairs), len(pairs))))
            groups.setdefault(name.split()[0] if name.startswith("STS1") else name, []).append(first)
    return {
        name: StsSet(
            [text for part in parts for text in part.first],
            [text for part in parts for text in part.second],
            np.concatenate([part.scores for part in parts]),
        )
        for name, parts in groups.items()
    }


def unseen(pairs: StsSet, training: Sequence[Mapping[str, Any]]) -> StsSet:
    """The pairs of which neither sentence is in the training set."""
    seen = {_normalized(record[column]) for record in training for column in ("sentence1", "sentence2")}
    new = [
        _normalized(a) not in seen and _normalized(b) not in seen
        for a, b in zip(pairs.first, pairs.second, strict=True)
    ]
    return _subset(pairs, np.flatnonzero(new).tolist())


def held_out_slice(training: Sequence[Mapping[str, Any]], share: float = 0.1, seed: int = 0) -> np.ndarray:
    """Which records are held out, bool `[N]`: about a `share`, without a sentence that another record has.

    Records are linked by the sentences they have in common; whole connected components are held out.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first, second = ([_normalized(record[column]) for record in training] for column in ("sentence1", "sentence2"))
    number = {text: i for i, text in enumerate(dict.fromkeys([*first, *second]))}
    edges = [number[text] for text in first], [number[text] for text in second]
    graph = coo_array((np.ones(len(training)), edges), shape=(len(number), len(number)))
    _, component = connected_components(graph, directed=False)
    component = component[edges[0]]
    sizes = np.bincount(component)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(sizes))
    chosen = order[np.cumsum(sizes[order]) <= share * len(training)]
    return np.isin(component, chosen)


def main() -> None:
    name, preset, seeds, out = common.arguments("stsb", __doc__.split("\n")[0], PRESETS)
    enable_persistent_cache()
    source = train_set()
    if preset.limit:
        source = source.select(range(preset.limit))
    training = source.__getitems__(range(len(source)))

    held_out = held_out_slice(training)
    fitted, slice_ = source.select(np.flatnonzero(~held_out).tolist()), source.select(np.flatnonzero(held_out).tolist())
    validation = _sts_set(slice_.__getitems__(range(len(slice_))))
    selection = []
    for rate, epochs in itertools.product(preset.learning_rates, preset.epochs):
        settings = {"learning_rate": rate, "epochs": epochs}
        _, metrics = trained(run(**settings, batch_size=preset.batch_size, source=fitted, evaluate_on=validation))
        selection.append({**settings, "spearman": metrics["sts/cosine_spearman"]})
        print(
            f"{len(fitted)} pairs, {settings}: {metrics['sts/cosine_spearman']:.4f} on the {len(validation)} held out"
        )
    chosen = max(selection, key=lambda row: row["spearman"])
    settings = {"learning_rate": chosen["learning_rate"], "epochs": chosen["epochs"]}

    sets = evaluation_sets(preset.limit)
    variants = {name: {"all": pairs, "unseen": unseen(pairs, training)} for name, pairs in sets.items()}
    before = _measure(jaxemb.load(default_model().path), variants)
    after = []
    for seed in range(seeds):
        embedder, _ = trained(run(**settings, batch_size=preset.batch_size, seed=seed, source=source))
        after.append(_measure(embedder, variants))
        print(f"seed {seed}: STS-B dev {before['STS-B dev']['all']:.4f} -> {after[-1]['STS-B dev']['all']:.4f}")

    results = {
        name: {
            variant: {
                "pairs": len(variants[name][variant]),
                "before": value,
                "after": common.Spread.of(model[name][variant] for model in after),
                "change": common.Spread.of(model[name][variant] - value for model in after),
            }
            for variant, value in values.items()
        }
        for name, values in before.items()
    }
    metrics = {"preset": name, **dataclasses.asdict(preset), "seeds": seeds}
    metrics |= {"training_pairs": len(source), "selection": selection, "chosen": settings, "spearman": results}
    common.write_results(out, metrics, _table(results, settings, seeds), _figure(results, selection))
    print(f"results are in {out}")


def _normalized(text: str) -> str:
    return " ".join(text.split()).casefold()


def _subset(pairs: StsSet, rows: Sequence[int]) -> StsSet:
    return StsSet([pairs.first[i] for i in rows], [pairs.second[i] for i in rows], pairs.scores[list(rows)])


def _sts_set(records: Sequence[Mapping[str, Any]]) -> StsSet:
    first, second, scores = ([record[column] for record in records] for column in _COLUMNS)
    return StsSet(first, second, np.asarray(scores, np.float64))


@dataclasses.dataclass(frozen=True)
class _Encoded:
    """An encoder that looks its texts up."""

    vectors: Mapping[str, np.ndarray]

    def encode(self, texts: Sequence[str], *, prompt_name: str | None = None) -> np.ndarray:
        return np.stack([self.vectors[text] for text in texts])


def _measure(embedder: SentenceEmbedder, variants: Mapping[str, Mapping[str, StsSet]]) -> dict[str, dict[str, float]]:
    """Spearman's correlation by set and variant, where there are enough pairs. Every text is encoded once."""
    every = [pairs for by_variant in variants.values() for pairs in by_variant.values()]
    texts = list(dict.fromkeys(text for pairs in every for text in (*pairs.first, *pairs.second)))
    encoded = _Encoded(dict(zip(texts, embedder.encode(texts), strict=True)))
    return {
        name: {
            variant: sts(encoded, pairs.first, pairs.second, pairs.scores)["cosine_spearman"]
            for variant, pairs in by_variant.items()
            if variant == "all" or len(pairs) >= _FEWEST_PAIRS
        }
        for name, by_variant in variants.items()
    }


def _table(results: Mapping[str, Any], settings: Mapping[str, Any], seeds: int) -> str:
    rows = []
    for name, by_variant in results.items():
        row = [name]
        for variant in ("all", "unseen"):
            r = by_variant.get(variant)
            row += [r["pairs"], f"{r['before']:.4f}", f"{r['after']:.4f}", f"{r['change']:+.4f}"] if r else ["–"] * 4
        rows.append(row)
    header = [
        "set",
        *(f"{column}{end}" for end in ("", ", unseen") for column in ("pairs", "before", "after", "change")),
    ]
    return (
        "# MiniLM fine-tuned on the STS-Benchmark with CoSENT\n\n"
        f"Spearman's correlation of the cosine, mean ± standard deviation over {seeds} seed(s). Learning rate "
        f"{settings['learning_rate']:g} and {settings['epochs']} epoch(s) were chosen on a slice of the training set. "
        f"*Unseen*: without the pairs that have a sentence in common with the training set (where {_FEWEST_PAIRS} or "
        "more are left).\n\n" + common.markdown_table(header, rows)
    )


def _figure(results: Mapping[str, Any], selection: Sequence[Mapping[str, float]]):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 6), width_ratios=(1, 1.6))
    for rate in sorted({row["learning_rate"] for row in selection}):
        rows = [row for row in selection if row["learning_rate"] == rate]
        left.plot([row["epochs"] for row in rows], [row["spearman"] for row in rows], "o-", label=f"{rate:g}")
    left.set(xlabel="epochs", ylabel="Spearman on the held-out slice of train", title="selection")
    left.legend(title="learning rate")
    places = np.arange(len(results))[::-1]
    for variant, shift, colour in (("all", 0.15, "tab:blue"), ("unseen", -0.15, "tab:orange")):
        shown = [(y, r[variant]["change"]) for y, r in zip(places, results.values(), strict=True) if variant in r]
        right.errorbar(
            [change.mean for _, change in shown],
            [y + shift for y, _ in shown],
            xerr=[change.std for _, change in shown],
            fmt="o",
            color=colour,
            label=f"{variant} pairs",
        )
    right.axvline(0, color="grey", linewidth=0.8)
    right.set_yticks(places, list(results))
    right.set(xlabel="change of Spearman after fine-tuning", title="evaluation")
    right.legend()
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    main()
