"""Self Positioning: one model from task models, by a search on a small probe set for how much of each to keep.

Li et al. 2024 (arXiv 2410.15035) claim 0.7 points on MTEB above joint training, which suffers from tasks that conflict
and from unequal data. The search here is the paper's as a reader's notes quote it (the paper itself could not be read):
lam times the iterated SLERP of the task vectors, with learned weights. "Our simplex", lam times a convex combination of
them, is what this library took the paper for at first. The probe losses are divided by their first values, as else that
of STS, CoSENT, is most of their sum; an arm is without.

Digits: scikit-learn's, upright and turned by 90 and by 180 degrees, for which there are 800, 150 and 40 images; a
perceptron is trained with SupCon, first on 150 images in all rotations, and from there once for every task. Measured is
precision@10 among the test images of the rotation. Texts: the last layer of MiniLM, for medical answers (MedQuAD,
nDCG@10), STS (the STS-Benchmark's development set, Spearman), and questions of one intent (BANKING77, mAP@39), with
many pairs of the first and few of the last. Probes are training records that no task model has seen; one arm's are
records that they have. All joint training takes as many steps as the task models together, in batches of one task each;
"resampled" draws the tasks alike. As a merge by search has seen the probe records, so has "joint, with the probe".
The one scalar is the best of ten for the sum of the task vectors, by the same losses on the same probe. Nothing is
chosen on tests. A seed draws splits, batches and first weights; of texts the tests are the same random samples.

    python -m experiments.self_positioning --preset small
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxemb
from experiments import gistembed_labels
from experiments.lib import datasets, images, suite
from experiments.lib.last_layers import States, cut, states_of
from experiments.lib.suite import Claim, Experiment, Measure, Reported
from jaxemb.encoders import Mlp
from jaxemb.evaluate import metrics, read_beir, read_sts
from jaxemb.losses import cosent, info_nce, masks, supcon
from jaxemb.merging import (
    SelfPositioning,
    apply_task_vectors,
    collect_grams,
    interference_report,
    merge_average,
    merge_regmean,
    merge_slerp_vectors,
    merge_ties,
    self_position,
    task_vector,
)
from jaxemb.objectives import Objective
from jaxemb.recipes.offline_model import default_model
from jaxemb.retrieval import topk_search
from jaxemb.similarity import PAIRED
from jaxemb.train import train

DIGITS, TEXTS = "digits", "texts"
LENGTH = 16  # tokens of a text; answers are cut there
NAMES = ("sentence1", "sentence2", "score")
SCALES = tuple(round(0.1 * i, 1) for i in range(1, 11))
Records = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Preset(suite.Preset):
    """How much is trained, and on how much data.

    Attributes:
      digit_steps: of the start and of the three tasks.
      pairs, steps: training pairs of texts of the three tasks, and steps on them.
      held_out: pairs of each for the probe.
      tests: questions, pairs and questions that are tested.
      search: steps of a search.
    """

    digit_steps: tuple[int, int, int, int] = (300, 1500, 400, 150)
    pairs: tuple[int, int, int] = (1000, 400, 231)
    steps: tuple[int, int, int] = (60, 24, 24)
    held_out: int = 200
    tests: int | None = 300
    layers: int = 1
    batch_size: int = 16
    learning_rate: float = 3e-4
    search: int = 40


@dataclasses.dataclass(frozen=True)
class Task:
    """Records to train on, records of the probe, and steps of training."""

    fitted: Records
    probe: Records
    steps: int


@dataclasses.dataclass(frozen=True)
class Data:
    """What is merged, and how it is scored.

    Attributes:
      start: the model that every task begins with.
      tasks: by name, that with most records first.
      batch: from records to what the objective reads.
      objective: the loss of a batch of any task.
      score: of a model, in percent, by task.
      learning_rate, batch_size, probe_size: of training, and records of a task in a step of the search.
      models, vectors: of the tasks, trained.
    """

    start: Any
    tasks: Mapping[str, Task]
    batch: Callable[[Records], dict[str, Any]]
    objective: Objective
    score: Callable[[Any], dict[str, float]]
    learning_rate: float
    batch_size: int
    probe_size: int
    models: tuple[Any, ...] = ()
    vectors: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class Arm(suite.Arm):
    """A model: `make(data, arm, preset, seed)`.

    Attributes:
      task: the number of the one whose model it is.
      probe: joint training has the probe records too.
      alike: joint training draws all tasks alike.
      search: of a search, all but the number of its steps.
      seen: the search's probe are records that the task models have seen.
    """

    make: Callable[..., Any]
    task: int = 0
    probe: bool = False
    alike: bool = False
    search: SelfPositioning = dataclasses.field(default_factory=lambda: SelfPositioning(normalize="initial"))
    seen: bool = False


def data(preset: Preset, dataset: str, seed: int) -> Data:
    """The setting, with its task models."""
    setting = (digits if dataset == DIGITS else texts)(preset, seed)
    models = tuple(
        learn(setting, setting.start, drawn(setting, [(task.fitted, 1.0)], seed), task.steps, seed)
        for task in setting.tasks.values()
    )
    vector = jax.jit(task_vector)
    return dataclasses.replace(setting, models=models, vectors=tuple(vector(m, setting.start) for m in models))


def learn(data: Data, model: Any, batches: Iterator[dict[str, Any]], steps: int, seed: int) -> Any:
    """The model after so many steps of Adam."""
    batches = itertools.islice(batches, steps)
    return train(model, data.objective, optax.adam(data.learning_rate), batches, seed=seed).model


def drawn(
    data: Data, parts: list[tuple[Records, float]], seed: int, size: int | None = None
) -> Iterator[dict[str, Any]]:
    """Random batches of one of the parts each, which come as often as their weights say."""
    rng, size = np.random.default_rng(seed), size or data.batch_size
    shares = np.array([weight for _, weight in parts]) / sum(weight for _, weight in parts)
    while True:
        records = parts[rng.choice(len(parts), p=shares)][0]
        count = len(records["label"])
        rows = rng.choice(count, min(size, count), replace=False)
        yield data.batch({name: column[rows] for name, column in records.items()})


# What an arm makes.


def start(data: Data, arm: Arm, preset: Preset, seed: int) -> Any:
    return data.start


def alone(data: Data, arm: Arm, preset: Preset, seed: int) -> Any:
    return data.models[arm.task]


def joint(data: Data, arm: Arm, preset: Preset, seed: int) -> Any:
    """Trained on batches of all tasks."""
    with_probe = lambda task: {name: np.concatenate([column, task.probe[name]]) for name, column in task.fitted.items()}
    parts = [with_probe(task) if arm.probe else task.fitted for task in data.tasks.values()]
    weighted = [(records, 1.0 if arm.alike else float(len(records["label"]))) for records in parts]
    return learn(data, data.start, drawn(data, weighted, seed), sum(task.steps for task in data.tasks.values()), seed)


def average(data: Data, arm: Arm, preset: Preset, seed: int) -> Any:
    return jax.jit(merge_average)(data.models)


def slerp(data: Data, arm: Arm, preset: Preset, seed: int) -> Any:
    return jax.jit(merge_slerp_vectors)(data.start, data.vectors)


def ties(data: Data, arm: Arm, preset: Preset, seed: int) -> Any:
    return jax.jit(merge_ties)(data.start, data.vectors)


def regmean(data: Data, arm: Arm, preset: Preset, seed: int) -> Any:
    forward = lambda model, batch: data.objective(model, batch, None)[1]
    of = lambda task: itertools.islice(drawn(data, [(task.fitted, 1.0)], seed, data.probe_size), 4)
    grams = [collect_grams(forward, m, list(of(t))) for m, t in zip(data.models, data.tasks.values(), strict=True)]
    return merge_regmean(data.models, grams)


def one_scalar(data: Data, arm: Arm, preset: Preset, seed: int) -> Any:
    """`start + scale sum of the vectors`, whose scale has the least probe loss, each task's in units of its first."""
    batches = {name: list(itertools.islice(b, 8)) for name, b in probes(data, arm, seed).items()}
    mean = jax.jit(lambda model, batch: jnp.mean(data.objective(model, batch, None)[0]))
    merge = jax.jit(lambda scale: apply_task_vectors(data.start, data.vectors, jnp.ones(len(data.vectors)), scale))
    models = [merge(scale) for scale in SCALES]
    losses = np.array([[np.mean([mean(m, b) for b in rows]) for rows in batches.values()] for m in models])
    return models[int(np.argmin((losses / losses[0]).mean(axis=1)))]


def searched(data: Data, arm: Arm, preset: Preset, seed: int) -> tuple[Any, dict[str, float]]:
    """Self Positioning, and what it keeps of every task vector."""
    vectors = dict(zip(data.tasks, data.vectors, strict=True))
    config = dataclasses.replace(arm.search, steps=preset.search)
    objectives = dict.fromkeys(data.tasks, data.objective)
    found = self_position(objectives, data.start, vectors, probes(data, arm, seed), config)
    kept = found.scale * found.coefficients
    return found.params, {f"kept {number}": float(c) for number, c in enumerate(kept, 1)}


def probes(data: Data, arm: Arm, seed: int) -> dict[str, Iterator[dict[str, Any]]]:
    """By task, batches of its probe without end."""
    of = lambda task: [(task.fitted if arm.seen else task.probe, 1.0)]
    return {name: drawn(data, of(task), seed + 1000, data.probe_size) for name, task in data.tasks.items()}


def measure(preset: Preset, data: Data, arm: Arm, seed: int) -> dict[str, float]:
    made = arm.make(data, arm, preset, seed)
    model, kept = made if isinstance(made, tuple) else (made, {})
    values = data.score(model)
    return {"mean": float(np.mean([*values.values()])), "worst": min(values.values()), **values, **kept}


# Digits.


def digits(preset: Preset, seed: int) -> Data:
    whole = [
        np.concatenate(columns) for columns in zip(*[(c["input"], c["label"]) for c in images.digits()], strict=True)
    ]
    order = np.random.default_rng(seed).permutation(len(whole[1]))
    inputs, labels = whole[0][order, ..., 0], whole[1][order]
    first, *rows, test = np.split(np.arange(len(labels)), np.cumsum([150, 800, 150, 40, 100, 100, 100]))
    turned = {f"{90 * k}°": np.ascontiguousarray(np.rot90(inputs, k, axes=(1, 2))) for k in range(3)}
    part = lambda name, rows: {"input": turned[name][rows], "label": labels[rows]}
    embed = jax.jit(lambda model, x: model(x))

    def supervised(model: Any, batch: dict[str, Any], key: jax.Array | None):
        embeddings = model(batch["input"])
        return supcon(embeddings, batch["label"], temperature=0.1), {"embedding": embeddings}

    def score(model: Any) -> dict[str, float]:
        values = {}
        for name, pixels in turned.items():
            vectors = np.asarray(embed(model, pixels[test]))
            _, found = topk_search(vectors, vectors, 10, exclude_ids=np.arange(len(test))[:, None])
            values[name] = 100 * float((labels[test][found] == labels[test][:, None]).mean())
        return values

    steps = preset.digit_steps
    tasks = {
        name: Task(part(name, fitted), part(name, probe), count)
        for name, fitted, probe, count in zip(turned, rows[:3], rows[3:], steps[1:], strict=True)
    }
    begun = Mlp.init(jax.random.key(seed), [64, 128, 32], final_activation=False)
    setting = Data(begun, tasks, dict, supervised, score, 1e-3, 128, 40)
    parts = [(part(name, first), 1.0) for name in turned]
    return dataclasses.replace(setting, start=learn(setting, begun, drawn(setting, parts, seed), steps[0], seed))


# Texts.


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Texts, with the states of MiniLM's lower layers; training pairs by task; and tests, all by numbers of texts."""

    model: Any
    states: States
    pairs: Mapping[str, Records]
    questions: np.ndarray
    answers: np.ndarray
    right: np.ndarray  # bool [questions, answers]
    sts: Records
    intents: Records


@functools.lru_cache(maxsize=1)
def corpus(preset: Preset) -> Corpus:
    """The same for all seeds, which draw the probe from the pairs."""
    number: dict[str, int] = {}
    index = lambda texts: np.array([number.setdefault(text, len(number)) for text in texts])
    sizes = [count + preset.held_out for count in preset.pairs]
    medquad = {split: read_beir(datasets.data_dir("ir_medquad"), split) for split in ("train", "test")}
    taken, pairs = {}, {}
    for split, size in (("train", sizes[0]), ("test", preset.tests)):
        found = medquad[split]
        judged = [(q, d) for q, of in found.qrels.items() for d, gain in of.items() if gain]
        rows = [judged[i] for i in datasets.sample(len(judged), size)]
        taken[split] = [index([found.queries[q] for q, _ in rows]), index([found.corpus[d][:200] for _, d in rows])]
    first, second = taken["train"]
    pairs["retrieval"] = {"first": first, "second": second, "label": second, "score": np.full(len(first), np.nan)}
    answers, questions = (np.unique(taken["test"][i]) for i in (1, 0))
    right = np.zeros((len(questions), len(answers)), bool)
    right[np.searchsorted(questions, taken["test"][0]), np.searchsorted(answers, taken["test"][1])] = True
    for name, split, size in (("STS", "train", sizes[1]), ("test", "dev", preset.tests)):
        found = read_sts(datasets.data_dir("stsb_multi", f"stsb-en-{split}.csv.gz"), names=NAMES)
        kept = datasets.sample(len(found.scores), size)
        sides = [index([side[i] for i in kept]) for side in (found.first, found.second)]
        pairs[name] = {"first": sides[0], "second": sides[1], "label": sides[0], "score": found.scores[kept]}
    known, intents = datasets.intents("banking77", "train", -(-sizes[2] // 77))
    a, b = datasets.pairs(intents, np.arange(len(known)), np.random.default_rng(0))
    taken_rows = datasets.sample(len(a), sizes[2])
    numbers = index(known)
    first, second, label = numbers[a[taken_rows]], numbers[b[taken_rows]], intents[a[taken_rows]]
    pairs["intents"] = {"first": first, "second": second, "label": label, "score": np.full(len(first), np.nan)}
    asked, theirs = datasets.intents("banking77", "test", None if preset.tests is None else max(2, preset.tests // 77))
    asked = index(asked)
    embedder = jaxemb.load(default_model().path)
    lower, upper = cut(embedder.model, preset.layers)
    states = states_of(embedder, lower, list(number), LENGTH)
    sts = pairs.pop("test")
    return Corpus(upper, states, pairs, questions, answers, right, sts, {"rows": asked, "label": theirs})


def of_task(model: Any, batch: dict[str, Any], key: jax.Array | None):
    """CoSENT of pairs with scores, InfoNCE of others, where those of one label are no negatives."""
    a, b = model(batch["first"], key=key), model(batch["second"], key=key)
    graded = jnp.isfinite(batch["score"])
    score = jnp.where(graded, batch["score"], jnp.arange(len(graded), dtype=jnp.float32))
    contrastive = info_nce(a, b, temperature=0.05, mask=masks.same_label(batch["label"]))
    return jnp.where(graded, cosent(a, b, score), contrastive), {"first": a, "second": b}


def texts(preset: Preset, seed: int) -> Data:
    c, rng, tasks = corpus(preset), np.random.default_rng(seed), {}
    take = lambda rows: jax.tree.map(lambda column: column[rows], c.states)
    for (name, records), steps in zip(c.pairs.items(), preset.steps, strict=True):
        fitted, probe = np.split(rng.permutation(len(records["label"])), [-preset.held_out])
        part = lambda rows, records=records: {column: array[rows] for column, array in records.items()}
        tasks[name] = Task(part(fitted), part(probe), steps)

    def batch(records: Records) -> dict[str, Any]:
        sides = {side: take(records[side]) for side in ("first", "second")}
        return {**sides, "label": records["label"].astype(np.int32), "score": records["score"].astype(np.float32)}

    embed = jax.jit(lambda model, x: model(x))

    def encode(model: Any, rows: np.ndarray) -> np.ndarray:
        blocks = np.resize(rows, -(-len(rows) // 128) * 128).reshape(-1, 128)
        return np.concatenate([embed(model, take(block)) for block in blocks])[: len(rows)]

    def score(model: Any) -> dict[str, float]:
        unit = lambda rows: (lambda x: x / np.linalg.norm(x, axis=1, keepdims=True))(encode(model, rows))
        _, found = topk_search(unit(c.questions), unit(c.answers), 10)
        gains = np.take_along_axis(c.right, found, axis=1).astype(np.int32)
        cosine = PAIRED["cosine"](unit(c.sts["first"]), unit(c.sts["second"]))
        return {
            "retrieval": 100 * float(metrics.ndcg_at_k(gains, c.right.astype(np.int32), 10).mean()),
            "STS": 100 * metrics.spearman(cosine, c.sts["score"]),
            "intents": gistembed_labels.nearest(unit(c.intents["rows"]), c.intents["label"])["mAP@39"],
        }

    return Data(c.model, tasks, batch, of_task, score, preset.learning_rate, preset.batch_size, preset.batch_size)


def describe(data: Data) -> str:
    sizes = ", ".join(f"{len(task.fitted['label']):,} of {name}" for name, task in data.tasks.items())
    probe = len(next(iter(data.tasks.values())).probe["label"])
    report, upper = interference_report(data.vectors), np.triu_indices(len(data.tasks), 1)
    cosine, conflict = (np.asarray(x)[upper].mean() for x in (report.cosine, report.sign_conflict))
    return (
        f"records to train on: {sizes}, to probe {probe} of each; with one seed, pairs of task vectors have a cosine "
        f"of {cosine:.2f} and other signs in {conflict:.0%} of their entries"
    )


SP = "Self Positioning"
OURS, UNITS, SEEN = (f"{SP}, {what}" for what in ("our simplex", "losses as they are", "probe of seen records"))
JOINT, JOINT_PROBE, RESAMPLED = "joint", "joint, with the probe", "joint, resampled"
AVERAGE, SLERP, TIES, REGMEAN, SCALAR = (
    "average",
    "SLERP of the task vectors",
    "TIES",
    "RegMean",
    "one scalar by the probe",
)
SINGLE = tuple(f"{which} task alone" for which in ("first", "second", "third"))
GAIN = Reported("+0.7 (MTEB)")
EXPERIMENT = Experiment(
    name="self_positioning",
    about=__doc__,
    presets={
        "smoke": Preset(
            datasets=(DIGITS,),
            seeds=1,
            digit_steps=(3, 15, 4, 2),
            pairs=(96, 64, 154),
            steps=(3, 2, 2),
            held_out=32,
            tests=100,
            batch_size=16,
            search=12,
        ),
        "small": Preset(datasets=(DIGITS, TEXTS), seeds=5),
        "paper": Preset(
            datasets=(DIGITS, TEXTS),
            seeds=10,
            pairs=(11_000, 5_000, 5_000),
            steps=(3_000, 1_500, 1_500),
            held_out=500,
            tests=None,
            layers=6,
            batch_size=128,
            learning_rate=2e-5,
            search=500,
        ),
    },
    arms={
        "start": Arm(start),
        **{name: Arm(alone, task=number) for number, name in enumerate(SINGLE)},
        JOINT: Arm(joint),
        JOINT_PROBE: Arm(joint, probe=True),
        RESAMPLED: Arm(joint, alike=True),
        AVERAGE: Arm(average, prototype={DIGITS: "89.4"}),
        SLERP: Arm(slerp),
        TIES: Arm(ties),
        REGMEAN: Arm(regmean),
        SCALAR: Arm(one_scalar, prototype={DIGITS: "88.5 (the best of 0.4 to 1 on the test)"}),
        SP: Arm(searched),
        OURS: Arm(
            searched,
            search=SelfPositioning("simplex_scale", normalize="initial"),
            prototype={DIGITS: "89.6 (raw losses)"},
        ),
        UNITS: Arm(searched, search=SelfPositioning()),
        SEEN: Arm(searched, seen=True),
    },
    data=data,
    measure=measure,
    measures={
        "mean": Measure("mean, %"),
        "worst": Measure("worst task, %"),
        **{name: Measure(name) for name in ("0°", "90°", "180°", "retrieval", "STS", "intents")},
        **{f"kept {number}": Measure(f"kept of vector {number}", 2) for number in (1, 2, 3)},
    },
    claims=(
        Claim("Merging by search is better than joint training", SP, ">", JOINT, paper=GAIN),
        Claim("also if that has the probe records too", SP, ">", JOINT_PROBE),
        Claim("than joint training that draws all tasks alike", SP, ">", RESAMPLED),
        Claim("in the worst task", SP, ">", JOINT_PROBE, "worst"),
        Claim("than the average", SP, ">", AVERAGE),
        Claim("than SLERP with equal weights", SP, ">", SLERP),
        Claim("than TIES", SP, ">", TIES),
        Claim("than RegMean", SP, ">", REGMEAN),
        Claim("and than one scalar that the probe chooses", SP, ">", SCALAR),
        *(Claim(f"It is better than the {name.removesuffix(' alone')}'s model", SP, ">", name) for name in SINGLE),
        Claim("Losses in units of their first values help", SP, ">", UNITS),
        Claim("and a probe that no task model has seen", SP, ">", SEEN),
        Claim("The paper's SLERP is better than our simplex", SP, ">", OURS),
    ),
    describe=describe,
)

if __name__ == "__main__":
    suite.main(EXPERIMENT)
