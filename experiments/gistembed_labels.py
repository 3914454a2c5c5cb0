"""GISTEmbed with a guide that knows the labels: what the masks do where false negatives are known.

Solatorio 2024 (arXiv 2402.16829) lets a stronger model, the guide, tell which in-batch negatives are false. Here it is
known which are: the pairs are of questions with one intent (BANKING77), so that of 256 pairs in a batch some negatives
have the intent of the query. This is not the paper's setting, which is that of experiments/gistembed.py.

Frozen MiniLM vectors go through a matrix that starts as the identity and is trained on one half of the training set.
The strong guide is another such matrix, trained on the other half with one pair of each intent in a batch, and so
without false negatives; the weak guide is the frozen vectors. The arms see the same pairs, a seed draws the halves and
the pairs, nothing is chosen by results. 1-NN is how often a test question's nearest other has its intent.

    python -m experiments.gistembed_labels --preset small
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib import datasets, suite
from experiments.lib.suite import Claim, Experiment, Measure
from jaxemb.evaluate import metrics
from jaxemb.losses import gist, info_nce, masks
from jaxemb.nn import Linear
from jaxemb.retrieval import topk_search
from jaxemb.similarity import unit_rows
from jaxemb.train import adamw, train

TEMPERATURE = 0.05  # the published recipe has 0.01
Loss = Callable[..., jax.Array]
"""From trained queries and documents, those of a guide, and labels, to losses `[N]`."""


@dataclasses.dataclass(frozen=True)
class Preset(suite.Preset):
    """How much is trained, on so many questions of each intent (None for all)."""

    steps: int = 150
    guide_steps: int = 200
    batch_size: int = 256
    per_intent: int | None = None


@dataclasses.dataclass(frozen=True)
class Arm(suite.Arm):
    """A loss (None for no training), and whose vectors guide it: the "strong" guide's, the "weak" one's, or "none"."""

    loss: Loss | None = None
    guide: str = "none"


@dataclasses.dataclass(frozen=True)
class Questions:
    """N questions: MiniLM's vectors `[N, 384]`, and the intents `[N]`."""

    vectors: np.ndarray
    labels: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> "Questions":
        return Questions(self.vectors[rows], self.labels[rows])

    def random_pairs(self, steps: int, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Rows of pairs of one intent, `[2, batch_size]`, with random questions first."""
        several = np.flatnonzero(np.bincount(self.labels)[self.labels] > 1)
        for _ in range(steps):
            yield np.stack(datasets.pairs(self.labels, rng.choice(several, batch_size), rng))

    def one_pair_per_intent(self, steps: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Rows of pairs, `[2, intents]`: of each intent one."""
        for _ in range(steps):
            shuffled = rng.permutation(len(self.labels))
            _, firsts = np.unique(self.labels[shuffled], return_index=True)
            yield np.stack(datasets.pairs(self.labels, shuffled[firsts], rng))


@dataclasses.dataclass(frozen=True)
class Data:
    """What is trained on, in which pairs `[steps, 2, N]`; the vectors of the guides; and the test."""

    training: Questions
    rows: np.ndarray
    guides: dict[str, np.ndarray]
    strong: Linear
    test: Questions


def data(preset: Preset, dataset: str, seed: int) -> Data:
    read = lambda split: datasets.intents(dataset, split, preset.per_intent)
    training, test = (Questions(datasets.vectors(texts), labels) for texts, labels in map(read, ("train", "test")))
    rng = np.random.default_rng(seed)
    half, other = (training[rows] for rows in np.array_split(rng.permutation(len(training.labels)), 2))
    strong = learn(mnrl, other, other.vectors, np.stack(list(other.one_pair_per_intent(preset.guide_steps, rng))))
    rows = np.stack(list(half.random_pairs(preset.steps, preset.batch_size, rng)))
    return Data(half, rows, {"strong": through(strong, half.vectors), "weak": half.vectors}, strong, test)


def learn(loss: Loss, questions: Questions, guide: np.ndarray, rows: np.ndarray) -> Linear:
    """The matrix after one step on each of the `rows` of pairs; `guide` has the guide's vectors of the questions."""

    def objective(model: Linear, batch: dict[str, Any], key: jax.Array | None):
        queries, documents = (model(batch[name]) for name in ("query", "document"))
        return loss(queries, documents, batch["guide_query"], batch["guide_document"], batch["label"]), {}

    made = (
        {
            "query": questions.vectors[first],
            "document": questions.vectors[second],
            "guide_query": guide[first],
            "guide_document": guide[second],
            "label": questions.labels[first],
        }
        for first, second in rows
    )
    optimizer = adamw(1e-3, len(rows), warmup=0, schedule="constant", max_grad_norm=None)
    return train(Linear(jnp.eye(questions.vectors.shape[1])), objective, optimizer, made).model


def through(model: Linear, vectors: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(lambda model, x: model(x))(model, vectors))


def measure(preset: Preset, data: Data, arm: Arm, seed: int) -> dict[str, float]:
    if arm.loss is None:
        model = data.strong if arm.guide == "strong" else Linear(jnp.eye(data.test.vectors.shape[1]))
        return nearest(through(model, data.test.vectors), data.test.labels)
    guide = data.guides.get(arm.guide, data.training.vectors)
    model = learn(arm.loss, data.training, guide, data.rows)
    found = nearest(through(model, data.test.vectors), data.test.labels)
    return found | (masked(guide, data.training.labels, data.rows) if arm.guide in data.guides else {})


def nearest(vectors: np.ndarray, labels: np.ndarray, k: int = 39) -> dict[str, float]:
    """In percent: how often a question's nearest other has its intent, and the mean average precision of the k next."""
    k = min(k, len(labels) - 1)
    _, found = topk_search(vectors, vectors, k, exclude_ids=np.arange(len(labels))[:, None])
    hits = (labels[found] == labels[:, None]).astype(np.int32)
    others = (labels[:, None] == labels) & ~np.eye(len(labels), dtype=bool)
    precision = metrics.average_precision_at_k(hits, others.astype(np.int32), k, denominator="min_k_relevant")
    return {"1-NN": 100 * float(hits[:, 0].mean()), "mAP@39": 100 * float(precision.mean())}


def masked(guide: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> dict[str, float]:
    """Which share, in percent, of the false and of the true negatives of the batches' q2d block a guide masks."""
    unit = unit_rows(guide)
    false, true = [], []
    for first, second in rows:
        cosine = unit[first] @ unit[second].T
        closer = cosine > np.diagonal(cosine)[:, None]
        same = labels[first][:, None] == labels[second]
        false.append(closer[same & ~np.eye(len(first), dtype=bool)])
        true.append(closer[~same])
    share = lambda masks: 100 * float(np.concatenate(masks).mean())
    return {"false masked": share(false), "true masked": share(true)}


def mnrl(queries, documents, guide_queries, guide_documents, labels):
    """In-batch negatives as they come."""
    return info_nce(queries, documents, temperature=TEMPERATURE)


def unguided(queries, documents, guide_queries, guide_documents, labels):
    """The blocks of GISTEmbed without its guide, the paper's ablation."""
    return info_nce(queries, documents, temperature=TEMPERATURE, directions=("q2d", "q2q", "p2p"))


def guided(queries, documents, guide_queries, guide_documents, labels):
    """GISTEmbed without its other queries and documents."""
    return info_nce(queries, documents, temperature=TEMPERATURE, mask=masks.guided(guide_queries, guide_documents))


def full(queries, documents, guide_queries, guide_documents, labels):
    """GISTEmbed."""
    guide = {"guide_queries": guide_queries, "guide_documents": guide_documents}
    return gist(queries, documents, **guide, temperature=TEMPERATURE)


def oracle(queries, documents, guide_queries, guide_documents, labels):
    """A guide that never errs."""
    return info_nce(queries, documents, temperature=TEMPERATURE, mask=masks.same_label(labels))


def arm(mean_average_precision: str, loss: Loss | None = None, guide: str = "none") -> Arm:
    return Arm(loss=loss, guide=guide, prototype={"banking77": f"mAP {mean_average_precision}"})


STRONG, WEAK = "GISTEmbed, strong guide", "GISTEmbed, weak guide"
EXPERIMENT = Experiment(
    name="gistembed_labels",
    about=__doc__,
    presets={
        "smoke": Preset(datasets=("banking77",), seeds=2, steps=4, guide_steps=4, batch_size=32, per_intent=8),
        "small": Preset(datasets=("banking77",), seeds=5),
        "paper": Preset(datasets=("banking77",), seeds=10),
    },
    arms={
        "frozen vectors": arm("42.83"),
        "strong guide itself": arm("61.34", guide="strong"),
        "MNRL": arm("60.73", mnrl),
        "no guide, with q2q and p2p": arm("60.30", unguided),
        "strong guide, q2d only": arm("63.43", guided, "strong"),
        STRONG: arm("64.12", full, "strong"),
        "true labels, q2d only": arm("64.41", oracle),
        "weak guide, q2d only": arm("56.65", guided, "weak"),
        WEAK: arm("57.20", full, "weak"),
    },
    data=data,
    measure=measure,
    measures={
        "mAP@39": Measure("mAP@39, %", 2),
        "1-NN": Measure("1-NN, %", 2),
        "false masked": Measure("false negatives masked, %"),
        "true masked": Measure("true negatives masked, %"),
    },
    claims=(
        Claim("A strong guide helps", STRONG, ">", "MNRL"),
        Claim("also for the nearest neighbour", STRONG, ">", "MNRL", "1-NN"),
        Claim("by its masks, not by the blocks it adds", STRONG, ">", "no guide, with q2q and p2p"),
        Claim("The model becomes better than its guide", STRONG, ">", "strong guide itself"),
        Claim("A weak guide helps", WEAK, ">", "MNRL"),
        Claim("also for the nearest neighbour", WEAK, ">", "MNRL", "1-NN"),
    ),
    describe=lambda data: f"{2 * len(data.training.labels):,} training and {len(data.test.labels):,} test questions",
)

if __name__ == "__main__":
    suite.main(EXPERIMENT)
