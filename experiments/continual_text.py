"""Continual learning of intents: MiniLM over splits of BANKING77 and CLINC150, eight methods on one stream.

    python -m experiments.continual_text --preset small     # BANKING77; the preset clinc150 is as large

The classes of a set come in tasks. After each, a test question is classified among all classes seen so far
(class-incremental) and among those of its task (task-incremental); F is how much the latter falls after a task was
learnt. The last layers of MiniLM and a linear layer over the classes are trained; the states below them never change,
so they are computed once. Methods share data, order, batches, steps and optimiser; their own settings are those of
their papers; the learning rate and the weight of EWC were chosen on training questions of BANKING77 that are not used
here.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxemb
from experiments import common
from experiments.last_layers import cut, states_of
from jaxemb.classifiers import NMCState, nmc_logits
from jaxemb.classifiers.linear import Classifier
from jaxemb.compilation import enable_persistent_cache
from jaxemb.continual import (
    Evaluate,
    Experience,
    Predict,
    accuracy,
    joint,
    mean_over,
    metrics,
    run_stream,
    split_by_class,
)
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


@dataclasses.dataclass(frozen=True)
class Preset:
    """How much is trained, and on how much data."""

    tasks: Mapping[str, int]  # by set
    per_intent: Mapping[str, int | None]  # questions of each intent, for training and as many for the test
    epochs: int
    seeds: int
    layers: int = 1  # the last ones, which are trained
    batch_size: int = 16
    learning_rate: float = 1e-4


PRESETS = {
    "smoke": Preset(tasks={"banking77": 7}, per_intent={"banking77": 2}, epochs=1, seeds=1),
    "small": Preset(tasks={"banking77": 7}, per_intent={"banking77": 20}, epochs=3, seeds=3),
    "clinc150": Preset(tasks={"clinc150": 10}, per_intent={"clinc150": 10}, epochs=3, seeds=3),
    "paper": Preset(
        tasks={"banking77": 7, "clinc150": 15},
        per_intent={"banking77": None, "clinc150": None},
        epochs=5,
        seeds=5,
        layers=6,
    ),
}
MAX_LENGTH = 24


def make_setting(preset: Preset, name: str, seed: int) -> "Setting":
    """The stream of a set, its classes in an order of the seed's, and the model to start from."""
    embedder = jaxemb.load(default_model().path)
    lower, upper = cut(embedder.model, preset.layers)
    read = functools.partial(common.intents, name, per_intent=preset.per_intent[name])
    columns = lambda texts, labels: {"input": states_of(embedder, lower, texts, MAX_LENGTH), "label": labels}
    train, test = (columns(*read(split)) for split in ("train", "test"))
    classes, dim = 1 + int(train["label"].max()), embedder.model.dim
    order = np.random.default_rng(seed).permutation(classes).tolist()
    stream = split_by_class(train, test, preset.tasks[name], order=order)
    return Setting(
        model=Classifier.init(jax.random.key(seed), upper, dim, classes),
        stream=stream,
        classes=classes,
        dim=dim,
        batch_size=preset.batch_size,
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


@dataclasses.dataclass(frozen=True)
class Method:
    """How a stream is learnt: a transform, and how it predicts; what is None is that of the setting."""

    transform: Transform
    predict: Predict | None = None
    objective: Objective = _CLASSIFICATION
    model: Any = None
    learning_rate: float | None = None
    predict_task: Predict | None = None  # when the task is known; None for `predict`
    one_task: bool = False  # all tasks at once


def finetune(setting: Setting) -> Method:
    """Nothing against forgetting."""
    return Method(identity())


def all_at_once(setting: Setting) -> Method:
    """The upper bound: one task with all the data."""
    return Method(identity(), one_task=True)


def with_ewc(setting: Setting) -> Method:
    """Online elastic weight consolidation."""
    return Method(ewc(1e4, mode="online"))


def with_lwf(setting: Setting) -> Method:
    """Learning without forgetting; one head of all old classes."""
    return Method(lwf(1.0, classes=setting.classes))


def with_replay(setting: Setting) -> Method:
    """Experience replay of two records per class, as many in a step as there are new ones."""
    return Method(experience_replay(2 * setting.classes, setting.batch_size, setting.stream[0].train))


def with_nmc(setting: Setting) -> Method:
    """The nearest class mean of the features of MiniLM as it is."""

    def predict(state: TrainState, inputs: Any, number: jax.Array) -> jax.Array:
        return nmc_logits(find_state(state, NMCState), state.model.features(inputs))

    return Method(nmc(setting.classes, setting.dim), predict)


def with_prd(setting: Setting) -> Method:
    """Prototype-Sample Relation Distillation; the two views of a question are two draws of dropout."""
    projection = Mlp.init(jax.random.key(0), (setting.dim, setting.dim, 128), final_activation=False)
    transform = prd(setting.classes, setting.dim, learning_rate=0.1)
    return Method(
        transform,
        prototype_prediction(transform),
        supervised_contrastive(("input", "input"), temperature=0.1, base_temperature=0.07),
        model=dataclasses.replace(setting.model, head=projection),
    )


def with_hyper_interval(setting: Setting) -> Method:
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

    return Method(transform, infer, predict_task=of_task, model=model, learning_rate=1e-3)


METHODS: Mapping[str, Callable[[Setting], Method]] = {
    "fine-tuning": finetune,
    "EWC": with_ewc,
    "LwF": with_lwf,
    "ER": with_replay,
    "PRD": with_prd,
    "HyperInterval": with_hyper_interval,
    "NMC, frozen": with_nmc,
    "joint": all_at_once,
}


def scores(preset: Preset, setting: Setting, method: Method, seed: int) -> dict[str, Any]:
    """Average accuracies after the last task, forgetting, and the accuracy matrices, in per cent."""
    make = functools.partial(accuracy, transform=method.transform, batch_size=512)
    evaluate: dict[str, Evaluate] = {
        "class": make(method.predict, "class"),
        "task": make(method.predict_task or method.predict, "task"),
    }
    stream = setting.stream
    if method.one_task:
        evaluate = {name: mean_over(stream, score) for name, score in evaluate.items()}
        stream = [joint(stream)]
    result = run_stream(
        stream,
        setting.model if method.model is None else method.model,
        method.objective,
        optax.adamw(method.learning_rate or preset.learning_rate, weight_decay=0.01),
        method.transform,
        epochs=preset.epochs,
        batch_size=setting.batch_size,
        evaluate=evaluate,
        reset_optimizer=True,
        future=False,
        seed=seed,
    )
    matrices = {name: 100 * matrix for name, matrix in result.R.items()}
    forgotten = 0.0 if method.one_task else metrics.forgetting(matrices["task"])
    values = {name: metrics.average_accuracy(matrix) for name, matrix in matrices.items()} | {"forgetting": forgotten}
    return values | {"matrices": {k: m.tolist() for k, m in matrices.items()}, "seconds": float(result.seconds.sum())}


def main() -> None:
    """Runs every method on every set and writes the results."""
    name, preset, seeds, out = common.arguments("continual_text", (__doc__ or "").splitlines()[0], PRESETS)
    enable_persistent_cache()
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for data, tasks in preset.tasks.items():
        results[data] = {method: [] for method in METHODS}
        for seed in range(seeds):
            setting = make_setting(preset, data, seed)
            for method, make in METHODS.items():
                result = scores(preset, setting, make(setting), seed)
                results[data][method].append(result)
                measured = ", ".join(f"{measure} {result[measure]:.1f}" for measure in _MEASURES)
                print(
                    f"{data}, {tasks} tasks, seed {seed}: {method}: {measured}, {result['seconds']:.0f} s", flush=True
                )
    spreads = {
        data: {
            method: common.spreads([{measure: run[measure] for measure in _MEASURES} for run in runs])
            for method, runs in methods.items()
        }
        for data, methods in results.items()
    }
    about = {"preset": name, **dataclasses.asdict(preset), "seeds": seeds}
    common.write_results(
        out, {**about, "results": spreads, "runs": results}, _table(preset, spreads, seeds), _figure(results)
    )
    print(f"results are in {out}")


_MEASURES = {
    "class": "class-incremental accuracy, %",
    "task": "task-incremental accuracy, %",
    "forgetting": "forgetting, points",
}


def _table(preset: Preset, results: Mapping[str, Mapping[str, Mapping[str, common.Spread]]], seeds: int) -> str:
    text = (
        "# Continual learning of intents with MiniLM\n\n"
        f"{preset.epochs} epochs on each task; trained: {preset.layers} of MiniLM's six "
        "layers, the last. After the last task, on the test questions of all tasks; mean ± standard deviation over "
        f"{seeds} seeds, which draw the order of the classes. Forgetting is that of task-incremental accuracy.\n"
    )
    for data, methods in results.items():
        rows = [(method, *(f"{values[measure]:.1f}" for measure in _MEASURES)) for method, values in methods.items()]
        questions = (
            "all questions" if preset.per_intent[data] is None else f"{preset.per_intent[data]} questions per intent"
        )
        text += f"\n{data}, {preset.tasks[data]} tasks, {questions}:\n\n" + common.markdown_table(
            ("", *_MEASURES.values()), rows
        )
    return text


def _figure(results: Mapping[str, Mapping[str, list[dict[str, Any]]]]):
    """By set: the class-incremental accuracy over the tasks seen, after each of them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(6 * len(results), 4), squeeze=False)
    for axis, (data, methods) in zip(axes[0], results.items(), strict=True):
        for method, runs in methods.items():
            matrices = np.array([run["matrices"]["class"] for run in runs])
            if matrices.shape[-1] == 1:
                axis.axhline(matrices.mean(), color="black", linestyle=":", label=method)
                continue
            after = [matrices[:, i, : i + 1].mean() for i in range(matrices.shape[-1])]
            axis.plot(range(1, len(after) + 1), after, marker="o", markersize=3, label=method)
        axis.set(title=data, xlabel="tasks learnt", ylabel="accuracy over the classes seen, %")
        axis.grid(alpha=0.3)
    axes[0][-1].legend(fontsize=8)
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    main()
