"""What `matryoshka_2d` and `starbucks` have in common: data, training of a model, and its quality at every size.

"sts": the STS-Benchmark's pairs and CoSENT. "nli": pairs of SICK's training set and of Breaking NLI that follow or
contradict, as many of both, and the loss of AnglE, `CoSENT + 20 InfoNCE + angle`, all with a scale of 20; in the
in-batch negatives, all other sentences of the batch, only pairs that follow have a part. Measured is Spearman's
correlation of the cosine, of pairs of which no sentence was trained on.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import jaxemb
from experiments.lib import datasets, similarity, suite
from experiments.lib.experiment import Values
from experiments.lib.suite import Measure
from jaxemb.data import batches, from_list, read
from jaxemb.embedder import Embedder
from jaxemb.encode import plan
from jaxemb.evaluate import StsSet
from jaxemb.losses import angle, cosent, info_nce
from jaxemb.objectives import ColumnsObjective, matryoshka, on_columns
from jaxemb.recipes.offline_model import default_model
from jaxemb.sentence_embedder import SentenceEmbedder
from jaxemb.train import adamw, train

Size = tuple[int, int]  # layers, dim
LENGTH = 64  # tokens of a sentence in training
COLUMNS = ("sentence1", "sentence2", "scores")


@dataclasses.dataclass(frozen=True)
class Preset(suite.Preset):
    """How a model is trained and tested.

    Attributes:
      model: a directory or hub id; "" for all-MiniLM-L6-v2. A final normalisation is left out: the softmax of the
        components of unit vectors is uniform, whatever they are.
      sizes: (layers, dim) at which it is measured, the last one the full size.
      steps: of all arms, of batches of so many pairs.
      learning_rate: the one that `stsb` chose for training at full size, on pairs that were held out; all take it.
      tests: pairs of every test set, drawn at random; None for all.
      pretraining: steps on `text_corpora`, where an arm has them, and texts in each.
    """

    model: str = ""
    sizes: tuple[Size, ...] = ((1, 32), (2, 64), (3, 128), (6, 384))
    steps: int = 100
    batch_size: int = 16
    learning_rate: float = 1e-4
    tests: int | None = 300
    pretraining: tuple[int, int] = (60, 16)


def powers(sizes: Sequence[Size]) -> tuple[int, ...]:
    """The powers of two from 8 on that are below the full dimension: the lengths of 2D Matryoshka as published."""
    return tuple(2**power for power in range(3, 16) if 2**power < sizes[-1][1])


@dataclasses.dataclass(frozen=True)
class Arm(suite.Arm):
    """How the sizes are trained.

    Attributes:
      objective: from that of one size and the preset to that of all; None for a model of each size by itself, which has
        these layers only and whose loss sees these dimensions only.
      start: `(preset, embedder, seed) -> model` to begin with; None for the embedder's.
    """

    objective: Callable[[ColumnsObjective, Preset], ColumnsObjective] | None
    start: Callable[[Preset, SentenceEmbedder, int], Embedder] | None = None


@dataclasses.dataclass(frozen=True)
class Data:
    """The model, the loss of one size, the pairs, the tests and their sentences' tokens."""

    embedder: SentenceEmbedder
    objective: ColumnsObjective
    pairs: StsSet
    tests: Mapping[str, StsSet]
    texts: Sequence[str]
    tokens: Sequence[np.ndarray]
    sizes: tuple[Size, ...]


def data(preset: Preset, dataset: str, seed: int) -> Data:
    embedder = jaxemb.load(preset.model or default_model().path)
    embedder = embedder.replace(model=dataclasses.replace(embedder.model, heads=()))
    pairs, every, loss = {
        "sts": lambda: (similarity.stsb("train"), similarity.stsb("train"), cosent),
        "nli": lambda: (nli(seed), similarity.joined(labelled()), angle_of_labels),
    }[dataset]()
    unseen = {name: similarity.unseen(some, every) for name, some in similarity.tests().items()}
    tests = similarity.sampled(unseen, preset.tests)
    texts = similarity.texts_of(tests)
    objective = on_columns(loss, "sentence1", "sentence2", others=["scores"])
    return Data(embedder, objective, pairs, tests, texts, embedder.tokenizer(texts, LENGTH), preset.sizes)


@functools.cache
def labelled() -> tuple[StsSet, StsSet]:
    """The pairs that contradict, with the score 0, and those that follow, with 1; neutral ones are left out."""
    found: tuple[list, list] = ([], [])
    sick = ("sick", "SICK_train.txt.gz"), ("sentence_A", "sentence_B", "entailment_judgment"), "tsv"
    breaking = ("nli", "breaking_nli.jsonl.gz"), ("sentence1", "sentence2", "gold_label"), "jsonl"
    for path, (first, second, label), format in (sick, breaking):
        columns = {"first": first, "second": second, "label": label}
        source = read(datasets.data_dir(*path), format=format, columns=columns)
        for record in source.__getitems__(range(len(source))):
            if (of := record["label"].lower()) in ("contradiction", "entailment"):
                found[of == "entailment"].append((record["first"], record["second"]))
    return tuple(StsSet(*zip(*rows, strict=True), np.full(len(rows), float(i))) for i, rows in enumerate(found))


def nli(seed: int) -> StsSet:
    """Those that follow, and as many random ones that contradict."""
    contradict, follow = labelled()
    return similarity.joined(
        [similarity.select(contradict, datasets.sample(len(contradict), len(follow), seed)), follow]
    )


def angle_of_labels(first: jax.Array, second: jax.Array, scores: jax.Array) -> jax.Array:
    """AnglE's loss of pairs with labels, f32 `[N]`, of `[N, D]`, `[N, D]` and `[N]`: each sentence of a pair with label
    1 is told from all others of the batch to find the other."""
    others = functools.partial(info_nce, temperature=1 / 20, directions=("q2d", "q2q"))
    in_batch = (others(first, second) + others(second, first)) / 2
    return cosent(first, second, scores) + 20 * scores * in_batch + angle(first, second, scores)


def measure(preset: Preset, data: Data, arm: Arm, seed: int) -> dict[str, Any]:
    model = arm.start(preset, data.embedder, seed) if arm.start else data.embedder.model
    if arm.objective is not None:
        every = [(n, dim) for n in range(1, preset.sizes[-1][0] + 1) for _, dim in preset.sizes]
        found = quality(trained(preset, data, model, arm.objective(data.objective, preset), seed), data, every)
    else:
        found = {}
        for layers, dim in preset.sizes[:-1]:
            small = trained(preset, data, model.truncate(layers), matryoshka(data.objective, (dim,)), seed)
            found |= quality(small, data, [(layers, dim)])
    values: dict[str, Any] = {"smaller": np.mean([found[size] for size in preset.sizes[:-1]])}
    values |= {name: found[size] for name, size in zip(PLACES, preset.sizes[:-1], strict=False)}
    if preset.sizes[-1] in found:
        values |= {"full": found[preset.sizes[-1]], "every": np.mean([*found.values()])}
    return values | {"cells": [[*size, value] for size, value in found.items()]}


def trained(preset: Preset, data: Data, model: Embedder, objective: ColumnsObjective, seed: int) -> Embedder:
    """The model after its steps."""
    options = {"batch_size": preset.batch_size, "max_length": LENGTH, "seed": seed, "pack": True, "row_multiple": 4}
    endless = batches(from_list(similarity.records(data.pairs)), data.embedder.tokenizer, COLUMNS, **options)
    optimizer = adamw(preset.learning_rate, preset.steps)
    return train(model, objective, optimizer, itertools.islice(endless, preset.steps), seed=seed).model


def quality(model: Embedder, data: Data, sizes: Sequence[Size]) -> dict[Size, float]:
    """At each size the mean over the test sets of Spearman's correlation x 100."""
    layers = sorted({n for n, _ in sizes})
    at_layers = jax.jit(lambda model, tokens: model.at_layers(tokens, layers))
    vectors = np.zeros((len(layers), len(data.texts), model.dim), np.float32)
    for batch in plan(data.tokens, batch_tokens=1024, max_length=LENGTH):
        vectors[:, batch.indices] = np.asarray(at_layers(model, batch.tokens))[batch.slots].swapaxes(0, 1)
    at = lambda n, dim: similarity.correlations(data.tests, data.texts, vectors[layers.index(n), :, :dim])
    return {(n, dim): float(np.mean([*at(n, dim).values()])) for n, dim in sizes}


def describe(data: Data) -> str:
    sizes = "; ".join(f"{n} layer{'s' * (n > 1)}, {dim} dimensions" for n, dim in data.sizes)
    return f"{len(data.pairs):,} training pairs; tests: {similarity.described(data.tests)}; sizes: {sizes}"


PLACES = ("smallest", "second", "third", "fourth", "fifth")
MEASURES = {
    "smaller": Measure("smaller sizes, mean", 2),
    **{place: Measure(f"{place} size", 2) for place in PLACES},
    "full": Measure("full size", 2),
    "every": Measure("all layers and dimensions, mean", 2),
}
PAPER: Mapping[str, Any] = {  # the authors' for few data; the sizes of Starbucks
    "model": "bert-base-uncased",
    "sizes": ((2, 32), (4, 64), (6, 128), (8, 256), (10, 512), (12, 768)),
    "steps": 1436,
    "learning_rate": 5e-5,
    "tests": None,
    "pretraining": (100_000, 512),
}


def heat_maps(found: Mapping[str, Mapping[str, Sequence[Values]]]) -> dict[str, Any]:
    """Of each data set a figure: of each arm the mean over the seeds, by layers and dimensions."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figures = {}
    for dataset, arms in found.items():
        figures[f"sizes-{dataset}"], axes = plt.subplots(1, len(arms), figsize=(3.4 * len(arms), 3.2), squeeze=False)
        means = {arm: np.mean([values["cells"] for values in seeds], axis=0) for arm, seeds in arms.items()}
        every = np.concatenate([*means.values()])
        layers, dims = (sorted({int(n) for n in every[:, column]}) for column in (0, 1))
        for axis, (arm, cells) in zip(axes[0], means.items(), strict=True):
            grid = np.full((len(layers), len(dims)), np.nan)
            for n, dim, value in cells:
                grid[layers.index(n), dims.index(dim)] = value
                axis.text(dims.index(dim), layers.index(n), f"{value:.1f}", ha="center", va="center", fontsize=7)
            axis.imshow(grid, origin="lower", vmin=every[:, 2].min(), vmax=every[:, 2].max(), aspect="auto", alpha=0.6)
            axis.set_xticks(range(len(dims)), list(map(str, dims)))
            axis.set_yticks(range(len(layers)), list(map(str, layers)))
            axis.set(title=arm, xlabel="dimensions", ylabel="layers")
        figures[f"sizes-{dataset}"].tight_layout()
    return figures
