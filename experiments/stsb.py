"""STS-Benchmark: MiniLM is fine-tuned with CoSENT.

CoSENT (Su 2022) ranks the pairs of a batch by their scores. Claimed here is no paper's figure: sentence-transformers
reports the loss for training, not this experiment. Asked is whether fine-tuning on scored pairs helps an embedder that
is already good, on the STS-Benchmark itself (its development set, as the test set is not among the data), and on SICK
and STS 2012-2015, of which only pairs count of which no sentence was trained on ("unseen"): the STS-Benchmark was drawn
from these very sets. The control trains on the same pairs with their scores shuffled.

The learning rate is chosen on a tenth of the training pairs that shares no sentence with the rest, never on the
development set; the control takes what was chosen before for the true scores, 1e-4. A seed draws the order of the
pairs, dropout, and the shuffled scores.

    python -m experiments.stsb --preset small
    jaxemb train experiments/stsb.py --out runs/stsb --set learning_rate=2e-5
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping

import numpy as np

import jaxemb
from experiments.lib import datasets, similarity, suite
from experiments.lib.suite import Claim, Experiment, Measure
from jaxemb.data import Source, batches, from_list, tfds
from jaxemb.evaluate import StsSet, sts_evaluator
from jaxemb.losses import cosent
from jaxemb.objectives import on_columns
from jaxemb.recipes.offline_model import default_model
from jaxemb.train import Run, adamw, train

COLUMNS = ("sentence1", "sentence2", "scores")
LENGTH = 64  # tokens in training; of 11,498 sentences one is longer


@dataclasses.dataclass(frozen=True)
class Preset(suite.Preset):
    """How much is trained, and tested: the development set's pairs, and those of every other set; None for all."""

    batch_size: int = 32
    pairs: int | None = None
    dev: int | None = None
    tests: int | None = 300


@dataclasses.dataclass(frozen=True)
class Arm(suite.Arm):
    """How MiniLM is fine-tuned; not at all for no epochs. `shuffled`: with the scores of other pairs."""

    epochs: int = 0
    learning_rate: float = 0.0
    shuffled: bool = False


@dataclasses.dataclass(frozen=True)
class Data:
    """Training pairs, and tests."""

    pairs: StsSet
    tests: Mapping[str, StsSet]


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
    if source is None:
        columns = {"sentence1": "sentence1", "sentence2": "sentence2", "scores": "score"}
        source = tfds("stsb/en", "train", manual_dir=datasets.data_dir("stsb_multi"), columns=columns)
    steps = epochs * (len(source) // batch_size)
    sizes = {"batch_size": batch_size, "max_length": LENGTH, "pack": True, "row_multiple": 4}
    return Run(
        embedder=lambda: jaxemb.load(default_model().path),
        data=lambda embedder: batches(source, embedder.tokenizer, COLUMNS, **sizes, seed=seed),
        objective=on_columns(functools.partial(cosent, scale=scale), "sentence1", "sentence2", others=["scores"]),
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


def data(preset: Preset, dataset: str, seed: int) -> Data:
    training, every = training_pairs(preset), similarity.tests()
    unseen = {name: similarity.unseen(pairs, training) for name, pairs in every.items()}
    own = {"STS-B dev": every["STS-B dev"], "STS-B dev, unseen": unseen.pop("STS-B dev")}
    return Data(training, {**similarity.sampled(own, preset.dev), **similarity.sampled(unseen, preset.tests)})


def held_out(preset: Preset, dataset: str) -> Data:
    """A tenth of the training pairs is the test, under the name of the measure that decides."""
    training = training_pairs(preset)
    out = similarity.held_out(training)
    rest, some = (similarity.select(training, np.flatnonzero(which)) for which in (~out, out))
    return Data(rest, {"STS-B dev": some})


def training_pairs(preset: Preset) -> StsSet:
    return similarity.sampled({"train": similarity.stsb("train")}, preset.pairs)["train"]


def measure(preset: Preset, data: Data, arm: Arm, seed: int) -> dict[str, float]:
    scores = data.pairs.scores
    if arm.shuffled:
        scores = np.random.default_rng(seed).permutation(scores)
    source = from_list(similarity.records(dataclasses.replace(data.pairs, scores=scores)))
    options = {"learning_rate": arm.learning_rate, "epochs": arm.epochs, "batch_size": preset.batch_size}
    embedder = jaxemb.load(default_model().path)
    if arm.epochs:
        recipe = run(**options, seed=seed, source=source)
        found = itertools.islice(recipe.data(embedder), recipe.steps)
        state = train(embedder.model, recipe.objective, recipe.optimizer, found, seed=seed)
        embedder = embedder.replace(model=state.model)
    values = similarity.measured(embedder, data.tests)
    others = [value for name, value in values.items() if not name.startswith("STS-B dev")]
    return {**values, **({"others": np.mean(others)} if others else {})}


def describe(data: Data) -> str:
    return f"{len(data.pairs):,} training pairs; tests: {similarity.described(data.tests)}"


BEFORE, TUNED, SHUFFLED, DEV = "before", "CoSENT", "control, scores shuffled", "STS-B dev"
EXPERIMENT = Experiment(
    name="stsb",
    about=__doc__,
    presets={
        "smoke": Preset(datasets=("stsb",), seeds=1, batch_size=16, pairs=64, dev=24, tests=24),
        "small": Preset(datasets=("stsb",), seeds=3),
        "paper": Preset(datasets=("stsb",), seeds=10, tests=None),
    },
    arms={
        BEFORE: Arm(),
        TUNED: Arm(epochs=1, grid={"learning_rate": (5e-5, 1e-4, 2e-4)}),
        SHUFFLED: Arm(epochs=1, learning_rate=1e-4, shuffled=True),
    },
    data=data,
    measure=measure,
    measures={
        DEV: Measure("STS-B dev, Spearman x 100", 2),
        "STS-B dev, unseen": Measure("unseen pairs of it", 2),
        "others": Measure("mean of the other sets", 2),
        **{name: Measure(name, 2) for name in ("SICK test", "STS12", "STS13", "STS14", "STS15")},
    },
    claims=(
        Claim("Fine-tuning on scored pairs helps on pairs of their kind", TUNED, ">", BEFORE),
        Claim("also where no sentence was seen", TUNED, ">", BEFORE, "STS-B dev, unseen"),
        Claim("by the scores", TUNED, ">", SHUFFLED),
        Claim("and on other sets", TUNED, ">", BEFORE, "others"),
        Claim("but not on SICK", TUNED, "<", BEFORE, "SICK test"),
    ),
    describe=describe,
    held_out=held_out,
)

if __name__ == "__main__":
    suite.main(EXPERIMENT)
