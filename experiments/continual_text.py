"""Continual learning of intents: a transformer's last layers over splits of BANKING77 and CLINC150, one stream for all.

No paper claims this table: it is where the continual methods of the library meet on text. The intents of a set come in
tasks. After each, a question is classified among all intents seen so far (ACC, and AIA, its mean over time) and among
those of its task (the task known); F is how much the latter falls after a task was learnt. The last layers of MiniLM
and a linear layer over the intents are trained; the states below them never change, so they are computed once.

Methods share data, their order, and the number of passes over them, but not what is trained: HyperInterval makes
low-rank changes of the queries and values, and the linear layer, with bounds that are relaxed; PRD has a projection and
prototypes for the linear layer, and a contrastive loss; NMC trains nothing. In training all intents seen so far compete
in the softmax, and in one row those of the task alone, as in experiments/nmc_baseline.py. Of every row that is trained
the learning rate, and of EWC and LwF the weight, are chosen by ACC on training questions that the run which is tried
does not learn from. Other settings are fixed, and not all are the papers': PRD's prototypes have the rate 0.1, and of
what HyperInterval's network gives a tenth is added. A seed draws the order of the intents and the questions, of each
intent as many as the preset says, for training as for the test.

    python -m experiments.continual_text --preset small
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxemb
from experiments.lib import datasets, suite
from experiments.lib.last_layers import cut, states_of
from experiments.lib.suite import Claim, Experiment, Measure
from jaxemb.classifiers import NMCState, nmc_logits
from jaxemb.classifiers.linear import Classifier
from jaxemb.continual import Experience, Predict, accuracy, joint, metrics, run_stream, split_by_class
from jaxemb.continual.plots import scores_over_tasks
from jaxemb.encoders import Mlp
from jaxemb.objectives import Objective, classification, supervised_contrastive
from jaxemb.recipes.offline_model import default_model
from jaxemb.train import TrainState
from jaxemb.transforms import (
    Adapted,
    HyperIntervalConfig,
    HyperIntervalState,
    Transform,
    ewc,
    experience_replay,
    find_state,
    hyper_interval,
    identity,
    lwf,
    nmc,
    prd,
    prototype_prediction,
    task_predictor,
)

TASKS = {"banking77": 7, "clinc150": 10}


@dataclasses.dataclass(frozen=True)
class Preset(suite.Preset):
    """How much is done: questions of each intent, for training and tests (None: all), passes, MiniLM's last layers."""

    per_intent: int | None = 10
    tests: int | None = 5
    epochs: int = 3
    layers: int = 1
    batch_size: int = 16


@dataclasses.dataclass(frozen=True)
class Arm(suite.Arm):
    """How a stream is learnt.

    Attributes:
      make: the method.
      learning_rate: of AdamW.
      weight: of what a method adds to the loss, if it has one.
      compete: which intents compete in training, see `run_stream`.
    """

    make: Callable[["Setting", "Arm"], "Method"]
    learning_rate: float = 1e-4
    weight: float = 0.0
    compete: Literal["seen", "task"] = "seen"


MAX_LENGTH = 24


def data(preset: Preset, dataset: str, seed: int, validate: bool = False) -> "Setting":
    """The stream of a set, its classes in an order of the seed's, and the model to start from.

    With `validate` it is tested on 10 other training questions of each intent, at its end alone.
    """
    embedder = jaxemb.load(default_model().path)
    lower, upper = cut(embedder.model, preset.layers)
    columns = lambda texts, labels: {"input": states_of(embedder, lower, texts, MAX_LENGTH), "label": labels}
    if validate:
        texts, labels = datasets.intents(dataset, "train")
        sizes = [min(preset.per_intent or 25, 25), 10]  # the rarest intent has 35
        parts = [([texts[i] for i in rows], labels[rows]) for rows in datasets.per_class(labels, sizes, seed)]
    else:
        sizes = {"train": preset.per_intent, "test": preset.tests}
        parts = [datasets.intents(dataset, split, size, seed) for split, size in sizes.items()]
    train, test = (columns(*part) for part in parts)
    classes, dim = 1 + int(train["label"].max()), embedder.model.dim
    order = np.random.default_rng(seed).permutation(classes).tolist()
    stream = split_by_class(train, test, TASKS[dataset], order=order)
    return Setting(
        model=Classifier.init(jax.random.key(seed), upper, dim, classes),
        stream=stream,
        classes=classes,
        dim=dim,
        batch_size=preset.batch_size,
        over_time=not validate,
    )


_CLASSIFICATION = classification()


@dataclasses.dataclass(frozen=True)
class Setting:
    """One stream: its model, its tasks, and what the methods are told."""

    model: Any  # a Classifier
    stream: list[Experience]
    classes: int
    dim: int
    batch_size: int
    over_time: bool = True  # test after every task


@dataclasses.dataclass(frozen=True)
class Method:
    """How a stream is learnt: a transform, and how it predicts; what is None is that of the setting."""

    transform: Transform
    predict: Predict | None = None
    objective: Objective = _CLASSIFICATION
    model: Any = None
    predict_task: Predict | None = None  # when the task is known; None for `predict`
    one_task: bool = False  # all tasks at once


def finetune(setting: Setting, arm: Arm) -> Method:
    """Nothing against forgetting."""
    return Method(identity())


def all_at_once(setting: Setting, arm: Arm) -> Method:
    """The upper bound: one task with all the data."""
    return Method(identity(), one_task=True)


def with_ewc(setting: Setting, arm: Arm) -> Method:
    """Online elastic weight consolidation."""
    return Method(ewc(arm.weight, mode="online"))


def with_lwf(setting: Setting, arm: Arm) -> Method:
    """Learning without forgetting; one head of all old classes."""
    return Method(lwf(arm.weight, classes=setting.classes))


def with_replay(setting: Setting, arm: Arm) -> Method:
    """Experience replay of two records per class, as many in a step as there are new ones."""
    return Method(experience_replay(2 * setting.classes, setting.batch_size, setting.stream[0].train))


def with_nmc(setting: Setting, arm: Arm) -> Method:
    """The nearest class mean of the features of MiniLM as it is, by the published rule."""

    def predict(state: TrainState, inputs: Any, number: jax.Array) -> jax.Array:
        return nmc_logits(find_state(state, NMCState), state.model.features(inputs), "unit")

    return Method(nmc(setting.classes, setting.dim, metric="unit"), predict)


def with_prd(setting: Setting, arm: Arm) -> Method:
    """Prototype-Sample Relation Distillation; the two views of a question are two draws of dropout."""
    projection = Mlp.init(jax.random.key(0), (setting.dim, setting.dim, 128), final_activation=False)
    transform = prd(setting.classes, setting.dim, learning_rate=0.1)
    return Method(
        transform,
        prototype_prediction(transform),
        supervised_contrastive(("input", "input"), temperature=0.1, base_temperature=0.07),
        model=dataclasses.replace(setting.model, head=projection),
    )


def with_hyper_interval(setting: Setting, arm: Arm) -> Method:
    """HyperInterval, whose hypernetwork makes low-rank changes of the queries and values, and the classes' layer.

    With an unknown task it is the one whose prediction has the least entropy.
    """
    model = Adapted.init(jax.random.key(0), setting.model, rank=4)
    config = HyperIntervalConfig(
        tasks=len(setting.stream), where=r"^adapters|head", residual=True, scale=0.1, gamma=0.5, target="relaxed"
    )
    transform = hyper_interval(config)
    of_task = task_predictor(transform)
    masks = jnp.stack([task.classes for task in setting.stream])

    def infer(state: TrainState, inputs: Any, number: jax.Array) -> jax.Array:
        begun = find_state(state.method_state, HyperIntervalState).begun
        logits = jnp.stack([of_task(state, inputs, t) for t in range(len(masks))])
        likely = jax.nn.log_softmax(jnp.where(masks[:, None], logits, -1e30))
        entropy = -jnp.sum(jnp.exp(likely) * likely, axis=-1)
        task = jnp.argmin(jnp.where(jnp.arange(len(masks))[:, None] < begun, entropy, jnp.inf), axis=0)
        return jnp.take_along_axis(likely, task[None, :, None], axis=0)[0]

    return Method(transform, infer, predict_task=of_task, model=model)


def measure(preset: Preset, data: Setting, arm: Arm, seed: int) -> dict[str, Any]:
    method, stream = arm.make(data, arm), data.stream
    score = lambda predict, scenario: accuracy(predict, scenario, transform=method.transform, batch_size=512)
    scores = {"class": score(method.predict, "class"), "task": score(method.predict_task or method.predict, "task")}
    over_time = data.over_time and not method.one_task
    result = run_stream(
        [joint(stream)] if method.one_task else stream,
        data.model if method.model is None else method.model,
        method.objective,
        optax.adamw(arm.learning_rate, weight_decay=0.01),
        method.transform,
        epochs=preset.epochs,
        batch_size=data.batch_size,
        evaluate=scores if over_time else {},
        compete=arm.compete,
        reset_optimizer=True,
        future=False,
        seed=seed,
    )
    every = np.ones(data.classes, bool)
    ends = lambda of: 100 * np.mean([of(result.state, task, t, every) for t, task in enumerate(stream)])
    values = {"ACC": ends(scores["class"]), "task ACC": ends(scores["task"])}
    if not over_time:
        return values
    R = {name: 100 * matrix for name, matrix in result.R.items()}
    values |= {"AIA": metrics.average_incremental_accuracy(R["class"]), "forgetting": metrics.forgetting(R["task"])}
    return values | {"accuracies": R["class"]}


def over_tasks(found: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> dict[str, Any]:
    """By set: the accuracy over the intents seen so far, after each task."""
    figures = {}
    for dataset, arms in found.items():
        matrices = {arm: [v["accuracies"] for v in seeds if "accuracies" in v] for arm, seeds in arms.items()}
        figures[f"{dataset}-over_tasks"] = scores_over_tasks({a: np.array(m) for a, m in matrices.items() if m})
    return figures


def describe(data: Setting) -> str:
    train, test = (sum(len(getattr(task, part)["label"]) for task in data.stream) for part in ("train", "test"))
    return f"{data.classes} intents in {len(data.stream)} tasks, {train:,} training and {test:,} test questions"


NMC, PRD, ER, JOINT = "NMC, frozen", "PRD", "ER", "joint"
FINETUNED, OWN = "fine-tuning", "fine-tuning, the task's intents alone"
RATES = {"learning_rate": (1e-4, 3e-4, 1e-3)}
TWO_RATES = {"learning_rate": (1e-4, 1e-3)}
EXPERIMENT = Experiment(
    name="continual_text",
    about=__doc__,
    presets={
        "smoke": Preset(datasets=("banking77",), seeds=1, per_intent=2, tests=2, epochs=1),
        "small": Preset(datasets=("banking77", "clinc150"), seeds=3),
        "paper": Preset(datasets=("banking77", "clinc150"), seeds=5, per_intent=None, tests=None, epochs=5, layers=5),
    },
    arms={
        FINETUNED: Arm(finetune, grid=RATES),
        OWN: Arm(finetune, grid=RATES, compete="task"),
        "EWC": Arm(with_ewc, grid={**TWO_RATES, "weight": (1e2, 1e4)}),
        "LwF": Arm(with_lwf, grid={**TWO_RATES, "weight": (1.0, 10.0)}),
        ER: Arm(with_replay, grid=RATES),
        PRD: Arm(with_prd, grid=RATES),
        "HyperInterval": Arm(with_hyper_interval, grid={"learning_rate": (3e-4, 1e-3, 3e-3)}),
        NMC: Arm(with_nmc),
        JOINT: Arm(all_at_once, grid=RATES),
    },
    data=data,
    measure=measure,
    measures={
        "ACC": Measure("ACC, %"),
        "AIA": Measure("AIA, %"),
        "task ACC": Measure("ACC, task known, %"),
        "forgetting": Measure("F, task known, points"),
    },
    claims=(
        Claim("Frozen class means do better than training task after task", NMC, ">", FINETUNED),
        Claim("and than training on the softmax of each task alone", NMC, ">", OWN),
        Claim("and than replay", NMC, ">", ER),
        Claim("and than PRD", NMC, ">", PRD),
        Claim("PRD does better than replay", PRD, ">", ER),
        Claim("Training on everything at once does better than frozen means", JOINT, ">", NMC),
    ),
    describe=describe,
    held_out=functools.partial(data, seed=suite.CHOICE_SEED, validate=True),
    plots=over_tasks,
)

if __name__ == "__main__":
    suite.main(EXPERIMENT)
