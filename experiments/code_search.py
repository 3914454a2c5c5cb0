"""Code search: MiniLM is fine-tuned on docstrings and functions of Python's standard library.

The recipe is that of the quickstart, in-batch negatives of one package, and no paper's. Asked is whether it helps to
find a function of modules that were not trained on by its docstring, how much of that the pairing of docstrings with
their functions gives (the control has functions of the same package, dealt to other docstrings), and what limits it:
the number of pairs, or functions that are longer than the model reads.

The learning rate is chosen on the validation modules; arms that differ in the data take the one that was chosen before
for all pairs, 1e-4. A seed draws the batches, and which pairs are dealt where.

    python -m experiments.code_search --preset small
    jaxemb train experiments/code_search.py --out runs/code_search --set learning_rate=1e-4
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.lib import suite
from experiments.lib.suite import Claim, Experiment, Measure
from jaxemb.data import batches, from_list, mixture
from jaxemb.recipes.quickstart import Pair, by_package, evaluate, pairs, run
from jaxemb.train import train

MEASURES = ("ndcg@10", "mrr@10", "recall@1", "recall@5", "recall@10", "recall@50")


@dataclasses.dataclass(frozen=True)
class Preset(suite.Preset):
    """How much is trained (`steps`, `batch_size`), how much of a text is read in training and in use, and how many
    pairs of a split there are, drawn at random; None for all."""

    steps: int = 46
    batch_size: int = 64
    train_length: int = 64
    max_length: int = 128
    limit: int | None = None


@dataclasses.dataclass(frozen=True)
class Arm(suite.Arm):
    """How MiniLM is fine-tuned: on a share of the pairs, not at all for 0. `dealt`: functions to other docstrings."""

    share: float = 0.0
    learning_rate: float = 1e-4
    dealt: bool = False


@dataclasses.dataclass(frozen=True)
class Data:
    """Pairs to train on, and to find."""

    pairs: Sequence[Pair]
    test: Sequence[Pair]


def data(preset: Preset, dataset: str, seed: int, split: str = "test") -> Data:
    return Data(*(some(pairs(name), preset.limit) for name in ("train", split)))


def held_out(preset: Preset, dataset: str) -> Data:
    """The validation modules are the test."""
    return data(preset, dataset, suite.CHOICE_SEED, "validation")


def some(records: Sequence[Pair], size: int | None, seed: int = 0) -> list[Pair]:
    """A random sample, in order."""
    return [records[i] for i in sorted(np.random.default_rng(seed).permutation(len(records))[:size])]


def groups(data: Data, arm: Arm, preset: Preset, seed: int) -> list[list[Pair]]:
    """What batches are drawn from: pairs by package, of which the control deals the functions anew."""
    training = some(data.pairs, round(arm.share * len(data.pairs)))
    found = by_package(training, preset.batch_size)
    if not arm.dealt:
        return found
    rng = np.random.default_rng(seed)
    dealt = [[group[i] for i in rng.permutation(len(group))] for group in found]
    together = lambda group, others: [{**a, "body": b["body"]} for a, b in zip(group, others, strict=True)]
    return list(map(together, found, dealt))


def measure(preset: Preset, data: Data, arm: Arm, seed: int) -> dict[str, Any]:
    sizes = {name: getattr(preset, name) for name in ("steps", "batch_size", "train_length", "max_length")}
    recipe = run(**sizes, learning_rate=arm.learning_rate, seed=seed)
    embedder = recipe.embedder()
    if arm.share:
        length = {"max_length": preset.train_length, "pack": 2 * preset.train_length, "row_multiple": 11}
        source = mixture([from_list(group) for group in groups(data, arm, preset, seed)])
        options = {"batch_size": preset.batch_size, "seed": seed, **length}
        found = itertools.islice(batches(source, embedder.tokenizer, ("query", "body"), **options), preset.steps)
        state = train(embedder.model, recipe.objective, recipe.optimizer, found, seed=seed)
        embedder = embedder.replace(model=state.model)
    scores = evaluate(embedder, data.test)
    tokens = np.array([len(ids) for ids in embedder.tokenizer([pair["body"] for pair in data.test])])
    ranked = 100 * np.asarray(scores.values["ndcg@10"])
    parts = {"whole": ranked[tokens <= preset.max_length], "cut": ranked[tokens > preset.max_length]}
    means = scores.means()
    return {name: 100 * means[name] for name in MEASURES} | {n: v.mean() for n, v in parts.items() if len(v)}


def describe(data: Data) -> str:
    return f"{len(data.pairs):,} training pairs, {len(data.test):,} questions"


BEFORE, TUNED, HALF, DEALT = "before", "fine-tuned", "on half of the pairs", "control, functions dealt anew"
EXPERIMENT = Experiment(
    name="code_search",
    about=__doc__,
    presets={
        "smoke": Preset(datasets=("stdlib",), seeds=1, steps=2, batch_size=8, limit=48, train_length=32, max_length=64),
        "small": Preset(datasets=("stdlib",), seeds=3, steps=32),
        "paper": Preset(datasets=("stdlib",), seeds=10, steps=230, batch_size=128, train_length=256, max_length=256),
    },
    arms={
        BEFORE: Arm(),
        TUNED: Arm(1.0, grid={"learning_rate": (1e-4, 2e-4)}),
        HALF: Arm(0.5),
        DEALT: Arm(1.0, dealt=True),
    },
    data=data,
    measure=measure,
    measures={
        **{name: Measure(f"{name}, %") for name in MEASURES},
        "whole": Measure("ndcg@10 of functions that are read whole"),
        "cut": Measure("of those that are cut"),
    },
    claims=(
        Claim("Fine-tuning helps to find functions of other modules", TUNED, ">", BEFORE),
        Claim("by which docstring a function has", TUNED, ">", DEALT),
        Claim("and the more pairs there are, the more", TUNED, ">", HALF),
        Claim("It helps functions that are read whole", TUNED, ">", BEFORE, "whole"),
        Claim("and those that are cut", TUNED, ">", BEFORE, "cut"),
    ),
    describe=describe,
    held_out=held_out,
)

if __name__ == "__main__":
    suite.main(EXPERIMENT)
