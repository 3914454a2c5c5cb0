"""HyperInterval: boxes of weights from boxes of task embeddings, on streams of digits (Krukowski et al. 2024).

    python -m experiments.hyperinterval --preset small            # scikit-learn's digits
    python -m experiments.hyperinterval --preset split_mnist      # Split MNIST, the published setting, one seed: hours
    python -m experiments.hyperinterval --preset permuted_mnist   # Permuted MNIST, shortened, one seed: two hours
    python -m experiments.hyperinterval --preset paper            # both, published, five seeds: a GPU

Two streams. "permuted": ten permutations of the pixels, ten classes. "split": five pairs of classes, of which the label
says only which of the two, so that all tasks share two logits. A hypernetwork is told the task, except where it makes
one model for all ("universal"); the others have one model anyway. Every task has a new Adam, and the last model counts;
the published code keeps that of the best validation batch.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common, images
from jaxemb.classifiers.linear import Classifier
from jaxemb.compilation import enable_persistent_cache
from jaxemb.continual import Experience, accuracy, metrics, permuted, run_stream, split_by_class
from jaxemb.continual.plots import score_matrix, scores_over_tasks
from jaxemb.encoders import Mlp
from jaxemb.interval import worst_case_logits
from jaxemb.objectives import classification
from jaxemb.train import TrainState, apply_transform
from jaxemb.transforms import Trained, Transform, at_task, ewc, identity, task_predictor
from jaxemb.transforms.continual.hyper_interval import (
    HyperIntervalConfig,
    at_box,
    at_universal,
    boxes_of,
    generated_weights,
    hyper_interval,
    make_interval_logits,
)
from jaxemb.transforms.continual.hypernetwork import put
from jaxemb.transforms.continual.intercontinet import InterContiNetConfig, InterContiNetParams, intercontinet

Stream = Literal["permuted", "split"]
_TOLERANCE = 1e-4  # of float32, in counting what lies outside of a bound


@dataclasses.dataclass(frozen=True)
class Setting:
    """How one stream is learnt.

    Attributes:
      steps: of every task.
      batch_size: records of a step.
      target: sizes of the target network's hidden layers.
      arms: by method, fields of `HyperIntervalConfig`; or None for one of the other methods.
    """

    steps: int
    batch_size: int
    target: tuple[int, ...]
    arms: Mapping[str, Mapping[str, Any] | None]


@dataclasses.dataclass(frozen=True)
class Preset:
    """The streams' settings, of which data, and the seeds."""

    seeds: int
    streams: Mapping[Stream, Setting]
    data: Literal["digits", "mnist"] = "digits"
    per_class: int | None = None  # training records of each class
    keep: bool = False  # checkpoints after every task, to go on from
    samples: int = 100  # of every box, to look for what is outside of bounds


_OTHERS = {"fine-tuning": None, "EWC": None, "InterContiNet": None}
_PERMUTED = {"embed_dim": 24, "hidden": (100,), "gamma": 0.5, "beta": 0.01}
_NESTED = {"embed_dim": 24, "hidden": (100,), "gamma": 5.0, "beta": 0.01, "nesting": "cos"}
_DIGITS: Mapping[Stream, Setting] = {
    "permuted": Setting(
        steps=500,
        batch_size=64,
        target=(64, 64),
        arms={
            "HyperInterval": _PERMUTED,
            "HyperInterval, beta 0": {**_PERMUTED, "beta": 0.0},
            "hypernetwork": {**_PERMUTED, "gamma": 0.0},
            **_OTHERS,
        },
    ),
    "split": Setting(
        steps=500,
        batch_size=64,
        target=(64, 64),
        arms={
            "HyperInterval": _PERMUTED,
            "HyperInterval, beta 0": {**_PERMUTED, "beta": 0.0},
            "HyperInterval, nested": _NESTED,
            **_OTHERS,
        },
    ),
}
_SPLIT_MNIST = Setting(
    steps=2000,
    batch_size=128,
    target=(400, 400),
    arms={"HyperInterval": {"embed_dim": 72, "hidden": (75, 75), "gamma": 1.0, "beta": 0.01}},
)
_NESTED_SPLIT_MNIST = {"embed_dim": 24, "hidden": (100,), "gamma": 10.0, "beta": 0.001, "nesting": "cos"}
_PERMUTED_MNIST = Setting(
    steps=5000,
    batch_size=128,
    target=(1000, 1000),
    arms={
        "HyperInterval": {"embed_dim": 24, "hidden": (100, 100), "gamma": 0.5, "beta": 0.01},
        "HyperInterval, nested": {
            "embed_dim": 24,
            "hidden": (100, 100),
            "gamma": 5.0,
            "beta": 0.005,
            "nesting": "cos",
        },
        **_OTHERS,
    },
)
# 53 instead of 206 million weights of the hypernetwork, and 600 instead of 5000 steps of each task.
_SHORT_PERMUTED_MNIST = dataclasses.replace(
    _PERMUTED_MNIST,
    steps=600,
    arms={"HyperInterval": {**_PERMUTED, "hidden": (100, 25)}},
)

PRESETS = {
    "smoke": Preset(
        seeds=1,
        per_class=8,
        samples=4,
        streams={
            "split": dataclasses.replace(
                _DIGITS["split"],
                steps=6,
                batch_size=8,
                target=(8,),
                arms={"HyperInterval, nested": {**_NESTED, "hidden": (4,)}, "fine-tuning": None},
            )
        },
    ),
    "small": Preset(seeds=3, streams=_DIGITS),
    "split_mnist": Preset(seeds=1, data="mnist", streams={"split": _SPLIT_MNIST}, keep=True),
    "permuted_mnist": Preset(seeds=1, data="mnist", streams={"permuted": _SHORT_PERMUTED_MNIST}, keep=True),
    "paper": Preset(
        seeds=5,
        data="mnist",
        streams={
            "split": dataclasses.replace(
                _SPLIT_MNIST,
                arms={**_SPLIT_MNIST.arms, "HyperInterval, nested": _NESTED_SPLIT_MNIST, **_OTHERS},
            ),
            "permuted": _PERMUTED_MNIST,
        },
    ),
}

# The specification's reference run on digits: final accuracies in percent, of three seeds.
REFERENCE = {
    ("permuted", "HyperInterval"): "96.1 ± 0.6",
    ("permuted", "HyperInterval, beta 0"): "32.2 ± 2.7",
    ("permuted", "fine-tuning"): "34.9 ± 1.8",
    ("split", "HyperInterval"): "99.9",
    ("split", "HyperInterval, beta 0"): "97.9",
    ("split", "fine-tuning"): "83.8 ± 1.2",
    ("split", "HyperInterval, nested"): "91.5 ± 0.7",
    ("split", "HyperInterval, nested: universal"): "87.0 ± 1.0",
    ("split", "HyperInterval, nested: universal, point"): "83.2 ± 1.3",
}


def columns(preset: Preset, stream: Stream, seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Training and test records: "input" in [0, 1], `[N, pixels]`, and "label".

    Of digits a stratified quarter, which depends on the seed, is the test; MNIST has its own, and Permuted MNIST has
    images padded to 32 x 32.
    """
    if preset.data == "digits":
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        pixels, labels = load_digits(return_X_y=True)
        parts = train_test_split(pixels / 16, labels, test_size=0.25, stratify=labels, random_state=seed)
        sets = [{"input": x.astype(np.float32), "label": y.astype(np.int32)} for x, y in (parts[::2], parts[1::2])]
        if preset.per_class:
            sets = [_first(one, preset.per_class) for one in sets]
        return sets[0], sets[1]
    sides = 2 if stream == "permuted" else 0
    pad = lambda x: np.pad(x[..., 0], [(0, 0), (sides, sides), (sides, sides)]).reshape(len(x), -1)
    train, test = ({"input": pad(s["input"]), "label": s["label"]} for s in images.mnist(preset.per_class))
    return train, test


def _first(one: dict[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
    rows = np.concatenate([np.flatnonzero(one["label"] == c)[:number] for c in np.unique(one["label"])])
    return {name: values[rows] for name, values in one.items()}


def tasks_of(preset: Preset, stream: Stream, seed: int) -> list[Experience]:
    """Ten permutations, or five pairs of classes with labels 0 and 1."""
    train, test = columns(preset, stream, seed)
    if stream == "permuted":
        return permuted(train, test, 10, include_identity=False, seed=seed)
    local = lambda part: {"input": part["input"], "label": part["label"] % 2}
    return [
        Experience(task.name, local(task.train), local(task.test), classes=np.ones(2, bool))
        for task in split_by_class(train, test, 5)
    ]


def learn(
    preset: Preset, stream: Stream, method: str, seed: int, checkpoints: Path | None = None
) -> dict[str, dict[str, Any]]:
    """One run of a method; by row of the table, the accuracy matrix and the measures."""
    setting, tasks = preset.streams[stream], tasks_of(preset, stream, seed)
    classes, pixels = len(tasks[0].classes), tasks[0].train["input"].shape[1]
    keys = jax.random.split(jax.random.key(seed))
    encoder = Mlp.init(keys[1], (pixels, *setting.target))
    model = Classifier.init(keys[0], encoder, setting.target[-1], classes)
    fields = setting.arms[method]
    config = None if fields is None else HyperIntervalConfig(tasks=len(tasks), **fields)
    transform, optimizer = _other(method, setting) if config is None else (hyper_interval(config), optax.adam(1e-3))
    predict = None if config is None else task_predictor(transform)
    evaluate = {"accuracy": accuracy(predict, "domain", transform=transform)}
    if config is not None:
        evaluate["worst case"] = worst_case_accuracy(config, transform)
        if config.nesting == "cos":
            one = accuracy(transform=transform, scenario="domain")
            for name, radius in (("universal", "official"), ("universal, point", "point")):
                evaluate[name] = lambda state, *rest, r=radius: one(at_universal(config, state, radius=r), *rest)
    result = run_stream(
        tasks,
        model,
        classification(),
        optimizer,
        transform,
        steps=setting.steps,
        batch_size=setting.batch_size,
        evaluate=evaluate,
        seed=seed,
        reset_optimizer=True,
        future=False,
        checkpoints=checkpoints,
    )
    measured: dict[str, Any] = {"seconds_per_step": float(np.median(result.seconds)) / setting.steps}
    if config is not None:
        measured |= {
            "worst_case": float(100 * np.nanmean(result.R["worst case"][-1])),
            "residual": float(result.state.method_state.residual.max()),
            **violations(config, transform, result.state, tasks, preset.samples),
        }
    rows = {}
    for name, R in result.R.items():
        if name != "worst case":
            row = method if name == "accuracy" else f"{method}: {name}"
            final, after = 100 * metrics.average_accuracy(R), 100 * metrics.learning_accuracy(R)
            rows[row] = {"R": R.tolist(), "final": final, "after": after, **(measured if name == "accuracy" else {})}
    return rows


def _other(method: str, setting: Setting) -> tuple[Transform, optax.GradientTransformation]:
    """The method and its optimiser.

    EWC's weight is the best of 1, 5, 20, 100 on permuted digits with a seed that is not among those of the results. A
    fifth of InterContiNet's steps contract, with Adam at 0.1.
    """
    if method != "InterContiNet":
        return {"fine-tuning": identity(), "EWC": ewc(5.0)}[method], optax.adam(1e-3)
    rates = Trained("shift", InterContiNetParams("shift", "scale"))
    optimizer = optax.multi_transform({"shift": optax.adam(1e-3), "scale": optax.adam(0.1)}, rates)
    return intercontinet(InterContiNetConfig(contraction_steps=setting.steps // 5)), optimizer


def worst_case_accuracy(config: HyperIntervalConfig, transform: Transform):
    """An evaluator: how often the label's logit is the largest for all weights of the task's box."""
    logits = make_interval_logits(config, transform)

    def evaluate(state: TrainState, experience: Experience, number: int, seen) -> float:
        labels = experience.test["label"]
        lower, _, upper = logits(at_task(state, number), experience.test["input"])
        return float(np.mean(np.argmax(worst_case_logits(lower, upper, labels), axis=1) == labels))

    return evaluate


def violations(
    config: HyperIntervalConfig,
    transform: Transform,
    state: TrainState,
    tasks: Sequence[Experience],
    samples: int = 100,
) -> dict[str, int]:
    """How often a bound does not hold after the last task, of all that were looked at.

    Returns:
      "outside": weights of embeddings drawn from a task's box, and logits of weights drawn from its box, corners
      included, that are not within their bounds; "unsafe", with nesting: test records whose loss with the point
      universal weights is above their task's worst case; and the numbers looked at.
    """
    rng = np.random.default_rng(0)
    outside = checked = unsafe = records = 0
    interval_logits = make_interval_logits(config, transform)
    flat = lambda model: jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(model)])
    weights_at = jax.jit(lambda state: flat(apply_transform(transform, state)))
    logits_of = jax.jit(lambda model, theta, inputs: put(config, model, theta)(inputs))
    loss = optax.losses.softmax_cross_entropy_with_integer_labels
    for number, task in enumerate(tasks):
        embedding = jax.tree.map(lambda x: np.asarray(x[0]), boxes_of(config, state, [number]))
        weights = jax.tree.map(lambda x: np.asarray(x[0]), generated_weights(config, state, [number]))
        inputs, labels = task.test["input"][:200], task.test["label"][:200]
        lower, _, upper = np.asarray(interval_logits(at_task(state, number), inputs))
        for i in range(samples):
            draw = lambda n, i=i: rng.uniform(-1, 1, n) if i % 2 else rng.choice([-1.0, 1.0], n)
            share = draw(len(embedding.centre)).astype(np.float32)
            point = type(embedding)(embedding.centre + share * embedding.radius, np.zeros_like(embedding.radius))
            made = np.asarray(weights_at(at_box(state, jax.tree.map(jnp.asarray, point))))
            outside += int((np.abs(made - weights.centre) > weights.radius + _TOLERANCE).sum())
            theta = weights.centre + draw(len(weights.centre)).astype(np.float32) * weights.radius
            logits = np.asarray(logits_of(state.model, theta, inputs))
            outside += int(((logits < lower - _TOLERANCE) | (logits > upper + _TOLERANCE)).sum())
            checked += made.size + logits.size
        if config.nesting == "cos":
            universal = logits_of(state.model, weights_at(at_universal(config, state, radius="point")), inputs)
            worst = loss(worst_case_logits(lower, upper, labels), labels)
            unsafe += int((loss(universal, labels) > worst + _TOLERANCE).sum())
            records += len(labels)
    found = {"outside": outside, "bounds_checked": checked}
    return found | ({"unsafe": unsafe, "records_checked": records} if records else {})


def gates(results: Mapping[str, Mapping[str, Mapping[str, common.Spread]]]) -> dict[str, bool]:
    """The specification's gates on digits, and whether they are passed."""
    final = lambda stream, row: results[stream][row]["final"].mean
    outside = [m["outside"].mean for rows in results.values() for m in rows.values() if "outside" in m]
    split, nested = final("split", "HyperInterval"), final("split", "HyperInterval, nested: universal")
    plain, free = final("permuted", "HyperInterval"), final("permuted", "HyperInterval, beta 0")
    return {
        "permuted: HyperInterval at least 94": plain >= 94,
        "permuted: at least 50 above beta 0": plain - free >= 50,
        "split: HyperInterval at least 99": split >= 99,
        "split: universal at least 85": nested >= 85,
        "split: universal above fine-tuning": nested > final("split", "fine-tuning"),
        "nothing outside of its bound": not any(outside),
    }


def main() -> None:
    name, preset, seeds, out = common.arguments("hyperinterval", __doc__.split("\n")[0], PRESETS)
    enable_persistent_cache()
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for stream, setting in preset.streams.items():
        rows = runs.setdefault(stream, {})
        for seed in range(seeds):
            for method in setting.arms:
                kept = common.REPOSITORY / "runs" / "hyperinterval" / f"{name}-{stream}-{method}-{seed}"
                for row, measured in learn(preset, stream, method, seed, kept if preset.keep else None).items():
                    rows.setdefault(row, []).append(measured)
                    brief = {key: value for key, value in measured.items() if key != "R"}
                    print(f"{stream}, seed {seed}, {row}: {json.dumps(brief)}", flush=True)

    numbers = lambda measured: {key: value for key, value in measured.items() if key != "R"}
    results = {
        stream: {row: common.spreads([numbers(m) for m in seeds_of]) for row, seeds_of in rows.items()}
        for stream, rows in runs.items()
    }
    measured = {
        "preset": name,
        **dataclasses.asdict(preset),
        "seeds": seeds,
        "results": results,
        "accuracy_matrices": {s: {row: [m["R"] for m in ms] for row, ms in rows.items()} for s, rows in runs.items()},
    }
    if name == "small":
        measured["gates"] = gates(results)
    common.write_results(out, measured, _table(name, results, measured.get("gates")), _figure(runs))
    for stream, rows in runs.items():
        for row, ms in rows.items():
            if row.startswith("HyperInterval"):
                file = f"{stream}-{row}".lower().replace(" ", "_").replace(",", "").replace(":", "")
                score_matrix([m["R"] for m in ms], title=f"{stream}: {row}").savefig(out / f"{file}.png", dpi=100)
        matrices = {row: [m["R"] for m in ms] for row, ms in rows.items()}
        scores_over_tasks(matrices, title=stream).savefig(out / f"{stream}-over_tasks.png", dpi=100)
    print(f"results are in {out}")


def _table(name: str, results, passed: Mapping[str, bool] | None) -> str:
    text = (
        "# HyperInterval\n\nMean accuracy over the tasks in percent, after the last and right after each was learnt; "
    )
    text += "worst-case accuracy over the tasks' boxes of weights; how far the boxes of old tasks may have moved; "
    text += "bounds that did not hold. `±` is the standard deviation over seeds.\n"
    shown = lambda measured, key, spec: f"{measured[key]:{spec}}" if key in measured else ""
    for stream, rows in results.items():
        lines = []
        for row, measured in rows.items():
            line = [row, *(shown(measured, key, ".1f") for key in ("final", "after", "worst_case"))]
            line += [shown(measured, "residual", ".3f")]
            broken = sum(measured[key].mean for key in ("outside", "unsafe") if key in measured)
            line += [f"{broken:.0f}" if "outside" in measured else ""]
            if name == "small":
                line += [REFERENCE.get((stream, row), "")]
            lines.append(line)
        header = ["method", "final", "after learning", "worst case", "residual", "violations"]
        header += ["reference"] if name == "small" else []
        text += f"\n## {stream}\n\n" + common.markdown_table(header, lines)
    if name == "permuted_mnist":
        text += _SHORTENED
    if passed is not None:
        text += (
            "\nOn permuted digits the worst case grows with the tasks, and the accuracy after learning falls with it; "
            "without a box (hypernetwork) it does not. The official code does the same with these settings: on the "
            "first eight tasks of seed 0 its mean accuracy is 93.9, this library's 93.1. The reference's 96.1 was not "
            "reproduced with either.\n"
        )
        text += "\n" + "".join(f"- {gate}: {'passed' if ok else 'NOT passed'}\n" for gate, ok in passed.items())
    return text


_SHORTENED = (
    "\nShortened: 600 instead of 5000 steps of each task, and a hypernetwork of 53 instead of 206 million weights. The "
    "published setting is asked for at least 97.0; this run does not show whether it gets there. The regulariser holds "
    "the middles of old boxes, not their widths, so that the worst case grows with the tasks, as it does on digits.\n"
)


def _figure(runs):
    return common.dots(
        {
            f"{stream}: final accuracy": {row: [m["final"] for m in ms] for row, ms in rows.items()}
            for stream, rows in runs.items()
        }
        if len(runs) == 1
        else {
            f"{stream}: final accuracy": {row: [m["final"] for m in rows.get(row, [])] for row in _all_rows(runs)}
            for stream, rows in runs.items()
        }
    )


def _all_rows(runs) -> list[str]:
    return list(dict.fromkeys(row for rows in runs.values() for row in rows))


if __name__ == "__main__":
    main()
