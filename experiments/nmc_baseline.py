"""Nearest class means on a frozen encoder, the floor of continual learning (Janson et al. 2022).

    python -m experiments.nmc_baseline --preset small

Digits: raw pixels are the features, two classes per task; accuracies and forgetting must equal the reference to 1e-4.

Intents: MiniLM's frozen vectors of BANKING77 and CLINC150, whose classes come in tasks, in an order drawn by the seed.
Means, and means with one covariance (streaming LDA), see every training question once. Against them, a linear layer on
the same vectors: trained task after task (naive fine-tuning), and on all tasks at once. Nothing is chosen by results.

The preset `paper` is all four intent sets with five orders of classes. (The paper's own features, those of a ViT-B/16
on CIFAR-100, take a vision encoder.)
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments import common, images
from jaxemb import Classifier
from jaxemb.classifiers import nmc_init, nmc_logits, nmc_prequential, nmc_update, slda_init, slda_logits, slda_update
from jaxemb.compilation import enable_persistent_cache
from jaxemb.continual import Experience, accuracy, joint, metrics, run_stream, split_by_class
from jaxemb.continual.streams import count
from jaxemb.nn import Module, uniform_linear
from jaxemb.objectives import classification
from jaxemb.recipes.offline_model import HUB_ID
from jaxemb.transforms.continual.nmc import unit

BATCH = 16
SHRINKAGE = 1e-2


@dataclasses.dataclass(frozen=True)
class Preset:
    """How much is done."""

    tasks: Mapping[str, int]  # by set of intents
    seeds: int
    epochs: int = 5
    learning_rate: float = 1e-2
    per_intent: int | None = None  # training questions
    digit_seeds: int = 5


PRESETS = {
    "smoke": Preset(tasks={"banking77": 7}, seeds=1, epochs=1, per_intent=4, digit_seeds=1),
    "small": Preset(tasks={"banking77": 7, "clinc150": 10}, seeds=3),
    "paper": Preset(tasks={"banking77": 7, "clinc150": 10, "hwu64": 8, "snips": 7}, seeds=5),
}

# Digits, seeds 0 to 4: accuracy with Euclidean and cosine distance, mean over tasks, and forgetting.
REFERENCE = {
    "Euclidean": (0.9067, 0.9089, 0.8756, 0.9244, 0.9111),
    "cosine": (0.9067, 0.9067, 0.8756, 0.9289, 0.9111),
    "mean over tasks": (0.9064, 0.9089, 0.8752, 0.9243, 0.9108),
    "forgetting": (0.0414, 0.0578, 0.0661, 0.0386, 0.0413),
}
FINETUNED, JOINT = "linear layer, task after task", "linear layer, all at once"
SCORES = {"class": accuracy(scenario="class"), "task": accuracy(scenario="task")}
MEASURES = ("ACC", "AIA", "forgetting", "task ACC")


@dataclasses.dataclass(frozen=True)
class Head:
    """A classifier from sums over the features: pure functions, no training."""

    init: Callable[[int, int], Any]
    update: Callable[[Any, jax.Array, jax.Array], Any]
    logits: Callable[[Any, jax.Array], jax.Array]


HEADS = {
    "NMC, Euclidean": Head(nmc_init, jax.jit(nmc_update), jax.jit(nmc_logits)),
    "NMC, cosine": Head(
        nmc_init,
        jax.jit(lambda state, x, y: nmc_update(state, unit(x), y)),
        jax.jit(functools.partial(nmc_logits, metric="cosine")),
    ),
    "streaming LDA": Head(
        slda_init, jax.jit(slda_update), jax.jit(functools.partial(slda_logits, shrinkage=SHRINKAGE))
    ),
}


def stream(head: Head, tasks: Sequence[Experience]) -> tuple[np.ndarray, np.ndarray, float]:
    """One pass over the tasks.

    Returns:
      The accuracies after each task, `[T, T]`, among the classes seen and among those of the task, and the fraction of
      all test records that are right at the end.
    """
    classes, dim = len(tasks[0].classes), tasks[0].train["input"].shape[1]
    state, seen = head.init(classes, dim), np.zeros(classes, bool)
    by_class, by_task = np.full((2, len(tasks), len(tasks)), np.nan)
    together = joint(tasks).test  # all tests at once, so that one program serves
    inputs, owner = jnp.asarray(together["input"]), np.repeat(np.arange(len(tasks)), [count(t.test) for t in tasks])
    own = np.stack([task.classes for task in tasks])[owner]
    for i, task in enumerate(tasks):
        state = head.update(state, jnp.asarray(task.train["input"]), jnp.asarray(task.train["label"]))
        seen = seen | task.classes
        logits = np.asarray(head.logits(state, inputs))
        for matrix, mask in ((by_class, seen), (by_task, own)):
            hits = np.where(mask, logits, -np.inf).argmax(axis=1) == together["label"]
            matrix[i, : i + 1] = [hits[owner == j].mean() for j in range(i + 1)]
    sizes = [count(task.test) for task in tasks]
    return by_class, by_task, metrics.average_accuracy(by_class, weights=sizes)


def measured(by_class: np.ndarray, by_task: np.ndarray) -> dict[str, float]:
    """In percent."""
    values = (
        metrics.average_accuracy(by_class),
        metrics.average_incremental_accuracy(by_class),
        metrics.forgetting(by_class),
        metrics.average_accuracy(by_task),
    )
    return {name: 100 * value for name, value in zip(MEASURES, values, strict=True)}


def digits(seed: int) -> dict[str, float]:
    """The four numbers of the reference."""
    tasks = split_by_class(*(_flat(columns) for columns in images.digits(seed=seed)), 5)
    by_class, _, euclidean = stream(HEADS["NMC, Euclidean"], tasks)
    values = (
        euclidean,
        stream(HEADS["NMC, cosine"], tasks)[2],
        metrics.average_accuracy(by_class),
        metrics.forgetting(by_class),
    )
    return dict(zip(REFERENCE, values, strict=True))


@nnx.dataclass
class Given(Module):
    """The encoder whose features are its inputs."""

    def __call__(self, inputs: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        return inputs


def linear(tasks: Sequence[Experience], preset: Preset, seed: int, *, at_once: bool) -> dict[str, float]:
    """A linear layer trained on task after task, or on all at once."""
    classes, dim = len(tasks[0].classes), tasks[0].train["input"].shape[1]
    model = Classifier(Given(), uniform_linear(jax.random.key(seed), dim, classes))
    result = run_stream(
        [joint(tasks)] if at_once else tasks,
        model,
        classification(),
        optax.adam(preset.learning_rate),
        epochs=preset.epochs,
        batch_size=BATCH,
        evaluate={} if at_once else SCORES,
        future=False,
        seed=seed,
    )
    if not at_once:
        return measured(result.R["class"], result.R["task"])
    every = np.ones(classes, bool)
    everything, own = ([score(result.state, t, j, every) for j, t in enumerate(tasks)] for score in SCORES.values())
    return {"ACC": 100 * float(np.mean(everything)), "task ACC": 100 * float(np.mean(own))}


def intents(name: str, tasks: int, preset: Preset, seed: int) -> list[Experience]:
    """The set's questions as MiniLM's vectors, in tasks of classes in an order drawn by the seed."""

    def columns(split: str) -> dict[str, np.ndarray]:
        texts, labels = common.intents(name, split, preset.per_intent if split == "train" else None)
        return {"input": common.vectors(texts), "label": labels}

    train, test = columns("train"), columns("test")
    order = np.random.default_rng(seed).permutation(int(train["label"].max()) + 1)
    return split_by_class(train, test, tasks, order=order.tolist())


def prequential(tasks: Sequence[Experience], seed: int) -> float:
    """In percent: how often the nearest mean is right on the next 16 questions, before it learns from them."""
    rng, inputs, labels = np.random.default_rng(seed), [], []
    for task in tasks:
        order = rng.permutation(len(task.train["label"]))
        inputs.append(task.train["input"][order])
        labels.append(task.train["label"][order])
    x, y = np.concatenate(inputs), np.concatenate(labels)
    steps = len(y) // BATCH
    state = nmc_init(len(tasks[0].classes), x.shape[1])
    x, y = x[: steps * BATCH].reshape(steps, BATCH, -1), y[: steps * BATCH].reshape(steps, BATCH)
    return 100 * float(jnp.mean(nmc_prequential(state, jnp.asarray(x), jnp.asarray(y))[1]))


def main() -> None:
    name, preset, seeds, out = common.arguments("nmc_baseline", __doc__.split("\n")[0], PRESETS)
    enable_persistent_cache()
    of_digits = [digits(seed) for seed in range(preset.digit_seeds)]
    worst = max(abs(found[row] - REFERENCE[row][seed]) for seed, found in enumerate(of_digits) for row in REFERENCE)
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    online: dict[str, list[float]] = {}
    for data, number in preset.tasks.items():
        results[data] = {method: [] for method in (*HEADS, FINETUNED, JOINT)}
        online[data] = []
        for seed in range(seeds):
            tasks = intents(data, number, preset, seed)
            for method, head in HEADS.items():
                results[data][method].append(measured(*stream(head, tasks)[:2]))
            results[data][FINETUNED].append(linear(tasks, preset, seed, at_once=False))
            results[data][JOINT].append(linear(tasks, preset, seed, at_once=True))
            online[data].append(prequential(tasks, seed))
            print(f"{data}, seed {seed}: { {m: r[-1]['ACC'] for m, r in results[data].items()} }", flush=True)
    found = {
        "preset": name,
        **dataclasses.asdict(preset),
        "seeds": seeds,
        "encoder": HUB_ID.split("/")[-1],
        "digits": of_digits,
        "digits_largest_difference": worst,
        "results": {
            data: {method: common.spreads(values) for method, values in methods.items()}
            for data, methods in results.items()
        },
        "prequential": {data: common.Spread.of(values) for data, values in online.items()},
    }
    common.write_results(out, found, _table(found), _figure(results))
    print(f"results are in {out}")


def _table(found: Mapping[str, Any]) -> str:
    head = ["digits", *(f"seed {seed}" for seed in range(len(found["digits"])))]
    rows = [[row, *(f"{values[row]:.4f}" for values in found["digits"])] for row in REFERENCE]
    worst = found["digits_largest_difference"]
    text = "Digits, raw pixels / 16, 5 tasks of 2 classes, all seen classes compete:\n\n"
    text += common.markdown_table(head, rows)
    text += f"\nThe reference, to 1e-4, is {'reached' if worst <= 1e-4 else 'not reached'}: "
    text += f"the largest difference is {worst:.5f}.\n"
    for data, methods in found["results"].items():
        tasks = found["tasks"][data]
        text += f"\n{data}, {tasks} tasks, frozen {found['encoder']} (mean pooling, unit length), in percent, "
        text += f"{found['seeds']} orders of classes:\n\n"
        cell = lambda spread: f"{spread:.2f}" if spread else ""
        text += common.markdown_table(
            ["", *MEASURES], [[method, *(cell(values.get(m)) for m in MEASURES)] for method, values in methods.items()]
        )
        gap = methods["NMC, Euclidean"]["ACC"].mean - methods[FINETUNED]["ACC"].mean
        text += f"\nNMC {'beats' if gap > 0 else 'does not beat'} naive fine-tuning, by {gap:+.1f} points of ACC; a "
        text += f"head that knows the last task alone would have at most {100 / tasks:.1f}. "
        text += f"Prequential accuracy of NMC, task-free: {found['prequential'][data]:.2f}.\n"
    text += (
        "\nACC: mean accuracy over the tasks at the end, all classes competing. AIA: the mean over time of the mean "
    )
    text += "over the tasks so far. Forgetting: Chaudhry's; that of means is only the growth of the number of classes. "
    return text + "Task ACC: as ACC, with only the classes of the task competing.\n"


def _figure(results: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]):
    return common.dots(
        {
            f"{data}: ACC, %": {method: [value["ACC"] for value in values] for method, values in methods.items()}
            for data, methods in results.items()
        }
    )


def _flat(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"input": columns["input"].reshape(len(columns["label"]), -1), "label": columns["label"]}


if __name__ == "__main__":
    main()
