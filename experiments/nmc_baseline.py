"""NMC: nearest class means of a frozen encoder, against training the encoder task after task.

Janson et al. 2022 (arXiv 2210.04428) claim that the class means of a frozen pretrained encoder do as well as prompts
that are trained task after task in front of the same encoder, or better; here it is asked whether they do better. Their
encoder is a ViT-B/16, their stream CIFAR-100 in ten tasks. They report 83.70 (version 1) and 88.53 (version 2),
probably the accuracy after the last task (ACC), as is L2P's 83.83, and the average incremental accuracy (AIA), the mean
over time of the accuracy so far, which their program prints: 88.53 is not to be compared with 83.83. No AIA of L2P is
known to us, and a difference is reported nowhere.

Here the encoder is all-MiniLM-L6-v2 with mean pooling, without its last normalisation, and a stream is an intent set in
tasks. Means see every training question once, and nothing of them is tuned. Against them, of the same encoder with a
linear layer over the intents: the layer alone, the layer with LoRA, and with a soft prompt, trained task after task
with the softmax over the task's own intents; and the same on all tasks at once. The soft prompt is not L2P: it is one
prompt of 8 vectors for all questions, without L2P's pool of prompts and the keys that choose among them. Learning rates
and epochs are chosen by ACC on training questions that the run does not learn from. A seed draws the order of the
intents and the questions, of each intent as many as the preset says. All classes seen so far compete, but for the last
column.

    python -m experiments.nmc_baseline --preset small
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

import jaxemb
from experiments.lib import datasets, suite
from experiments.lib.suite import Claim, Experiment, Measure, Reported
from jaxemb import Classifier
from jaxemb.classifiers import NMCState, SldaState, nmc_logits, slda_init, slda_logits, slda_update
from jaxemb.continual import Experience, Predict, accuracy, joint, metrics, run_stream, split_by_class
from jaxemb.continual.streams import count
from jaxemb.data import pad
from jaxemb.nn import Module
from jaxemb.objectives import classification
from jaxemb.recipes.offline_model import default_model
from jaxemb.train import TrainState
from jaxemb.transforms import Transform, Variables, find_state, identity, lora, nmc, prompts
from jaxemb.transforms.base import nothing

TASKS = {"banking77": 7, "clinc150": 10}
LENGTH = 24  # tokens of a question; of ten one has more


@dataclasses.dataclass(frozen=True)
class Preset(suite.Preset):
    """How much is done: questions of each intent, for training and tests (None: all); `short`: one pass over a task."""

    per_intent: int | None = 15
    tests: int | None = None
    short: bool = False


@dataclasses.dataclass(frozen=True)
class Arm(suite.Arm):
    """How a stream is learnt.

    Attributes:
      method: from the numbers of classes and dimensions to the transform.
      predict: None for the model as trained.
      frozen: it takes the frozen encoder's features, which are computed once.
      at_once: all tasks are one.
      learning_rate: None if there is no training, but one pass over the records.
      epochs: passes over the training questions of a task.
    """

    method: Callable[[int, int], Transform]
    predict: Predict | None = None
    frozen: bool = False
    at_once: bool = False
    learning_rate: float | None = None
    epochs: int = 1


@dataclasses.dataclass(frozen=True)
class Data:
    """A stream in tokens and in features of the frozen encoder, that encoder with a new layer, and when to test."""

    tokens: list[Experience]
    features: list[Experience]
    model: Classifier
    over_time: bool = True  # after every task


@nnx.dataclass
class Given(Module):
    """The encoder whose features are its inputs."""

    def __call__(self, inputs: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        return inputs


def data(preset: Preset, dataset: str, seed: int, validate: bool = False) -> Data:
    """The stream of a seed; with `validate` it is tested on 10 other training questions of each intent, at its end."""
    embedder = jaxemb.load(default_model().path)
    encoder = dataclasses.replace(embedder.model, heads=())
    texts, labels = datasets.intents(dataset, "train")
    sizes = [min(preset.per_intent or 25, 25), 10] if validate else [preset.per_intent]  # the rarest intent has 35
    parts = [([texts[i] for i in rows], labels[rows]) for rows in datasets.per_class(labels, sizes, seed)]
    columns = []
    for some, theirs in parts if validate else [*parts, datasets.intents(dataset, "test", preset.tests, seed)]:
        tokens = pad(embedder.tokenizer(some, LENGTH), length=LENGTH)
        columns.append({"input": tokens, "features": encoded(encoder, tokens), "label": theirs})
    classes = int(labels.max()) + 1
    order = np.random.default_rng(seed).permutation(classes).tolist()
    of = lambda name: ({"input": part[name], "label": part["label"]} for part in columns)
    streams = (split_by_class(*of(name), TASKS[dataset], order=order) for name in ("input", "features"))
    return Data(*streams, Classifier.init(jax.random.key(seed), encoder, encoder.dim, classes), not validate)


def encoded(encoder: Any, tokens: Any, rows: int = 256) -> np.ndarray:
    """The features of tokens, `[N, D]`."""
    call, total = jax.jit(lambda encoder, tokens: encoder(tokens)), len(tokens.ids)
    take = lambda start: jax.tree.map(lambda a: np.take(a, range(start, start + rows), 0, mode="clip"), tokens)
    return np.concatenate([call(encoder, take(start)) for start in range(0, total, rows)])[:total]


def measure(preset: Preset, data: Data, arm: Arm, seed: int) -> dict[str, float]:
    dim, classes = data.model.head.kernel.shape
    transform, tasks = arm.method(classes, dim), data.features if arm.frozen else data.tokens
    score = functools.partial(accuracy, arm.predict, transform=transform, batch_size=256)
    scores = {"ACC": score(scenario="class"), "task ACC": score(scenario="task")}
    training, over_time = arm.learning_rate is not None, data.over_time and not arm.at_once
    result = run_stream(
        [joint(tasks)] if arm.at_once else tasks,
        dataclasses.replace(data.model, encoder=Given()) if arm.frozen else data.model,
        classification(),
        optax.adam(arm.learning_rate if training else 0.0),
        transform,
        epochs=1 if preset.short else arm.epochs,
        batch_size=16 if training else 1,
        evaluate={"ACC": scores["ACC"]} if over_time else {},
        compete="task",
        reset_optimizer=True,
        future=False,
        seed=seed,
    )
    ends = lambda of: np.mean([of(result.state, task, t, np.ones(classes, bool)) for t, task in enumerate(tasks)])
    values = {name: ends(of) for name, of in scores.items()}
    if over_time:
        values["AIA"] = metrics.average_incremental_accuracy(result.R["ACC"])
        values["forgetting"] = metrics.forgetting(result.R["ACC"])
    return {name: 100 * value for name, value in values.items()}


def means(metric: str, **reported: Any) -> Arm:
    """Nearest class means."""
    predict = lambda state, x, number: nmc_logits(find_state(state, NMCState), state.model.features(x), metric)
    return Arm(lambda classes, dim: nmc(classes, dim, metric=metric), predict, frozen=True, **reported)


def covariance(classes: int, dim: int) -> Transform:
    """Streaming LDA: the means with one covariance."""
    update = lambda context, params, state: slda_update(state, context.outputs["features"], context.batch["label"])
    return Transform(lambda key, model: Variables(state=slda_init(classes, dim)), trains=nothing, after_step=update)


def discriminant(state: TrainState, x: jax.Array, number: jax.Array) -> jax.Array:
    return slda_logits(find_state(state, SldaState), state.model.features(x), shrinkage=1e-2)


def describe(data: Data) -> str:
    train, test = (sum(count(getattr(task, part)) for task in data.tokens) for part in ("train", "test"))
    tasks = f"{len(data.tokens[0].classes)} intents in {len(data.tokens)} tasks"
    return f"{tasks}, {train:,} training and {test:,} test questions"


HEAD = r"^head\."
TRAINED = {
    "linear layer": (lambda classes, dim: identity(), True, (1e-3, 3e-3, 1e-2, 3e-2)),
    "LoRA": (lambda classes, dim: lora(8, train=HEAD), False, (1e-3, 3e-3)),
    "soft prompt": (lambda classes, dim: prompts(8, train=HEAD), False, (3e-3, 1e-2)),
}


def trained(name: str, at_once: bool = False, epochs: tuple[int, ...] = (3, 10), **options: Any) -> Arm:
    method, frozen, rates = TRAINED[name]
    return Arm(method, frozen=frozen, at_once=at_once, grid={"learning_rate": rates, "epochs": epochs}, **options)


NMC, LORA, PROMPT = "NMC, unit (the paper's)", "LoRA, task after task", "soft prompt (not L2P), task after task"
LINEAR, BANKING = "linear layer, task after task", ("banking77",)
LORA_AT_ONCE, PROMPT_AT_ONCE = "LoRA, all at once", "soft prompt, all at once"
ARMS = {
    NMC: means(
        "unit", paper=Reported("83.70 (ACC), 88.53 (AIA) on Split CIFAR-100; ACC of L2P 83.83, DualPrompt 86.51")
    ),
    "NMC, Euclidean": means("euclidean"),
    "NMC, cosine": means("cosine"),
    "streaming LDA": Arm(covariance, discriminant, frozen=True),
    LINEAR: trained("linear layer"),
    LORA: trained("LoRA", on=BANKING),
    PROMPT: trained("soft prompt", on=BANKING),
    "linear layer, all at once": trained("linear layer", at_once=True),
    LORA_AT_ONCE: trained("LoRA", at_once=True, epochs=(3,), on=BANKING),
    PROMPT_AT_ONCE: trained("soft prompt", at_once=True, epochs=(3,), on=BANKING),
}
EXPERIMENT = Experiment(
    name="nmc_baseline",
    about=__doc__,
    presets={
        "smoke": Preset(datasets=BANKING, seeds=2, per_intent=2, tests=2, short=True),
        "small": Preset(datasets=("banking77", "clinc150"), seeds=3, tests=5),
        "paper": Preset(datasets=("banking77", "clinc150"), seeds=5, per_intent=None),
    },
    arms=ARMS,
    data=data,
    measure=measure,
    measures={
        "ACC": Measure("ACC, %"),
        "AIA": Measure("AIA, %"),
        "forgetting": Measure("forgetting, points"),
        "task ACC": Measure("ACC, task known, %"),
    },
    claims=(
        Claim(
            "Frozen class means do better than a trained soft prompt",
            NMC,
            ">",
            PROMPT,
            paper=Reported("competitive or even better; by our subtraction -0.1 to L2P, -2.8 to DualPrompt"),
        ),
        Claim("also on average over time", NMC, ">", PROMPT, "AIA"),
        Claim("and better than LoRA", NMC, ">", LORA),
        Claim("and than a linear layer trained task after task", NMC, ">", LINEAR),
        Claim("A soft prompt learns, if all tasks come at once", PROMPT_AT_ONCE, ">", PROMPT),
        Claim("and adds to the linear layer", PROMPT_AT_ONCE, ">", "linear layer, all at once"),
        Claim("Means are better as they are than renormalised (iCaRL)", NMC, ">", "NMC, cosine"),
        Claim("A covariance adds to the means", "streaming LDA", ">", NMC),
        Claim("Training on all tasks at once does better", LORA_AT_ONCE, ">", NMC),
    ),
    describe=describe,
    held_out=functools.partial(data, seed=suite.CHOICE_SEED, validate=True),
)

if __name__ == "__main__":
    suite.main(EXPERIMENT)
