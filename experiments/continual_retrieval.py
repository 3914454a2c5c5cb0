"""Continual retrieval: MiniLM over five domains, and what it does to old domains and to their indices.

The domains come one after another: German captions of photographs and their English ones, definitions and their words,
docstrings and their functions, questions about health and their answers, and captions of the same photograph. After
each, nDCG@10 is measured on all domains seen so far, for pairs that were not trained on: once with all texts encoded
anew, and once with new queries against the index that the model built right after that domain, as for who cannot encode
a corpus again after every update. No paper claims figures of this stream; asked is which methods lose less than
training task after task.

The last layers of MiniLM are trained; the states below them never change, so they are computed once. Methods share
data, order, batches, steps and the learning rate; the hypernetwork, whose parameters are others, has a rate of its own.
Nothing is chosen by results. A seed draws the training pairs and the batches; tests are the same for all.

    python -m experiments.continual_retrieval --preset small
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxemb
from experiments.lib import suite
from experiments.lib.domains import DOMAINS, pairs_of, shuffled
from experiments.lib.experiment import Values
from experiments.lib.last_layers import States, cut, states_of
from experiments.lib.suite import Claim, Experiment, Measure
from jaxemb.continual import (
    Evaluate,
    Experience,
    embedding_score,
    embedding_stream,
    index_compatibility,
    joint,
    mean_over,
    metrics,
    plots,
    run_stream,
)
from jaxemb.continual.streams import COLLECTION
from jaxemb.embedder import Embedder
from jaxemb.evaluate import RetrievalSet
from jaxemb.losses import info_nce
from jaxemb.merging import merge_average
from jaxemb.recipes.offline_model import default_model
from jaxemb.train import TrainState, apply_transform
from jaxemb.transforms import (
    Adapted,
    HypernetworkConfig,
    Transform,
    at_task,
    experience_replay,
    hypernetwork,
    identity,
    lwf,
    mas,
    merge_after_task,
)


@dataclasses.dataclass(frozen=True)
class Preset(suite.Preset):
    """How much is trained and tested.

    Attributes:
      pairs: of each domain, for training.
      tests: pairs of each domain; every query is searched for among all documents.
      epochs: passes over the pairs of a domain.
      layers: the last ones, which are trained.
      batch_size: pairs in a step.
      length: tokens of a text.
      learning_rate: of all but the hypernetwork.
    """

    pairs: int = 500
    tests: int = 300
    epochs: int = 2
    layers: int = 2
    batch_size: int = 32
    length: int = 32
    learning_rate: float = 2e-4


@dataclasses.dataclass(frozen=True)
class Method:
    """How the stream is learnt; the model is another where a method makes one."""

    transform: Transform
    model: Any = None


@dataclasses.dataclass(frozen=True)
class Arm(suite.Arm):
    """What is done.

    Attributes:
      method: from a setting to its method; None for no training.
      learning_rate: None for that of the preset.
      of_task: every domain has weights of its own, and the test knows its domain.
      at_once: all domains are one.
    """

    method: Callable[["Data"], Method] | None
    learning_rate: float | None = None
    of_task: bool = False
    at_once: bool = False


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A model of last layers that encodes the texts whose states are known."""

    model: Any
    rows: Mapping[str, int]
    states: States

    def encode(self, texts: Sequence[str], *, prompt_name: str | None = None) -> np.ndarray:
        wanted = np.array([self.rows[text] for text in texts])
        parts = [np.resize(part, _ROWS) for part in np.split(wanted, range(_ROWS, len(wanted), _ROWS))]
        found = [_forward(self.model, jax.tree.map(lambda a, part=part: a[part], self.states)) for part in parts]
        return np.concatenate(found)[: len(texts)]


_ROWS = 128  # of texts at a time


@jax.jit
def _forward(model: Any, states: States) -> jax.Array:
    return model(states)


@dataclasses.dataclass(frozen=True)
class Data:
    """The stream, the model to start from, and what the tests' texts are for the layers below it."""

    model: Embedder
    stream: list[Experience]
    encoder: Callable[[Any], Encoder]
    batch_size: int


def data(preset: Preset, dataset: str, seed: int) -> Data:
    embedder = jaxemb.load(default_model().path, dropout=0.0, attention_dropout=0.0)
    lower, upper = cut(embedder.model, preset.layers)
    states = lambda texts: states_of(embedder, lower, texts, preset.length)
    domains, tested = {}, []
    for name in DOMAINS:
        train, test = pairs_of(name)
        train, test = shuffled(train, seed)[: preset.pairs], test[: preset.tests]
        columns = {side: states([pair[i] for pair in train]) for i, side in enumerate(("query", "document"))}
        ids = [f"{i:04}" for i in range(len(test))]
        queries, documents = ({i: pair[side] for i, pair in zip(ids, test, strict=True)} for side in (0, 1))
        domains[name] = (columns, RetrievalSet(queries, documents, {i: {i: 1} for i in ids}))
        tested += [text for pair in test for text in pair]
    rows = {text: row for row, text in enumerate(dict.fromkeys(tested))}
    encoder = functools.partial(Encoder, rows=rows, states=states(list(rows)))
    return Data(upper, embedding_stream(domains), encoder, preset.batch_size)


def objective(model: Any, batch: Mapping[str, Any], key: jax.Array | None):
    """InfoNCE against the batch's other documents."""
    both = jax.tree.map(lambda *parts: jnp.concatenate(parts), batch["query"], batch["document"])
    query, document = jnp.split(model(both, key=key), 2)
    return info_nce(query, document), {"query": query, "document": document}


def with_replay(data: Data) -> Method:
    """Experience replay of half a domain's pairs, as many in a step as there are new ones."""
    train = data.stream[0].train
    pairs = len(train["query"].ids)
    return Method(experience_replay(pairs // 2, data.batch_size, train, columns=("query", "document")))


def with_hypernetwork(data: Data) -> Method:
    """A hypernetwork makes low-rank changes of the queries and values for every domain."""
    model = Adapted.init(jax.random.key(0), data.model, rank=4)
    config = HypernetworkConfig(tasks=len(data.stream), hidden=(100,), where=r"^adapters", residual=True, scale=0.1)
    return Method(hypernetwork(config), model)


@dataclasses.dataclass(frozen=True)
class OfTask:
    """Scores every domain with its own weights."""

    score: Any

    def remember(self, state: TrainState, experiences: Sequence[Experience], number: int) -> None:
        if hasattr(self.score, "remember"):
            self.score.remember(state, experiences, number)

    def __call__(self, state: TrainState, experience: Experience, number: int, seen: np.ndarray | None) -> float:
        return self.score(at_task(state, number), experience, number, seen)


def measure(preset: Preset, data: Data, arm: Arm, seed: int) -> dict[str, Any]:
    """nDCG@10 after the last domain in percent, of each domain, and over time."""
    if arm.method is None:  # indices stay valid
        score = embedding_score(lambda model: data.encoder(model))
        final = np.array([score(data.model, task, number, None) for number, task in enumerate(data.stream)])
        return {
            **_percent({"new": final.mean(), "old": final.mean()}),
            **_percent(dict(zip(DOMAINS, final, strict=True))),
        }
    method, stream = arm.method(data), data.stream
    embed = lambda state: data.encoder(apply_transform(method.transform, state))
    evaluate: dict[str, Evaluate] = {"new": embedding_score(embed), "old": index_compatibility(embed)}
    if arm.of_task:
        evaluate = {name: OfTask(score) for name, score in evaluate.items()}
    if arm.at_once:
        evaluate, stream = {"new": mean_over(stream, evaluate["new"])}, [joint(stream)]
    result = run_stream(
        stream,
        data.model if method.model is None else method.model,
        objective,
        optax.adamw(preset.learning_rate if arm.learning_rate is None else arm.learning_rate, weight_decay=0.01),
        method.transform,
        epochs=preset.epochs,
        batch_size=data.batch_size,
        evaluate=evaluate,
        reset_optimizer=True,
        future=False,
        seed=seed,
    )
    new = result.R["new"]
    values = {"new": metrics.average_accuracy(new)}
    if arm.at_once:
        return _percent(values)
    values |= {
        "learnt": metrics.learning_accuracy(new),
        "forgetting": metrics.forgetting(new, "avalanche"),
        "old": metrics.average_accuracy(result.R["old"]),
    }
    matrices = {f"R {name}": result.R[name] for name in evaluate}
    return {**_percent(values), **_percent(dict(zip(DOMAINS, new[-1], strict=True))), **matrices}


def _percent(values: Mapping[str, float]) -> dict[str, float]:
    return {name: 100 * float(value) for name, value in values.items()}


def describe(data: Data) -> str:
    train, test = (sum(sizes) for sizes in zip(*map(_sizes, data.stream), strict=True))
    return f"{len(data.stream)} domains, {train:,} training pairs, {test:,} test pairs, each among those of its domain"


def _sizes(task: Experience) -> tuple[int, int]:
    return len(task.train["query"].ids), len(task.test[COLLECTION].queries)


def over_time(found: Mapping[str, Mapping[str, Sequence[Values]]]) -> dict[str, Any]:
    """nDCG@10 over the domains seen, and of fine-tuning by domain and time, with either index."""
    figures = {}
    for arms in found.values():
        of = lambda arm, name, arms=arms: np.stack([np.array(values[f"R {name}"], float) for values in arms[arm]])
        trained = {arm: of(arm, "new") for arm, seeds in arms.items() if "R new" in seeds[0]}
        figures["over_domains"] = plots.scores_over_tasks(trained, title="over the domains seen", score="nDCG@10")
        for name in ("new", "old") if TUNED in trained else ():
            title = f"{TUNED}, {name} index"
            figures[f"{name}_index"] = plots.score_matrix(of(TUNED, name), list(DOMAINS), title=title, score="nDCG@10")
    return figures


BEFORE, TUNED, AVERAGE, JOINT = "without training", "fine-tuning", "average of models", "all domains at once"
MAS, LWF, REPLAY, HYPER = "MAS", "LwF", "ER", "hypernetwork"
EXPERIMENT = Experiment(
    name="continual_retrieval",
    about=__doc__,
    presets={
        "smoke": Preset(datasets=("domains",), seeds=1, pairs=8, tests=8, epochs=1, batch_size=4, length=12),
        "small": Preset(datasets=("domains",), seeds=3),
        "paper": Preset(
            datasets=("domains",), seeds=5, pairs=8000, tests=1000, epochs=3, layers=6, batch_size=128, length=128
        ),
    },
    arms={
        BEFORE: Arm(None),
        TUNED: Arm(lambda data: Method(identity())),
        MAS: Arm(lambda data: Method(mas(1.0, output="query"))),
        LWF: Arm(lambda data: Method(lwf(1.0, target="similarities", outputs=("query", "document"), temperature=0.05))),
        REPLAY: Arm(with_replay),
        AVERAGE: Arm(
            lambda data: Method(merge_after_task(lambda m: merge_average([m.current, m.previous], [1, m.number])))
        ),
        HYPER: Arm(with_hypernetwork, learning_rate=1e-3, of_task=True, scenario="domain known"),
        JOINT: Arm(lambda data: Method(identity()), at_once=True),
    },
    data=data,
    measure=measure,
    measures={
        "new": Measure("nDCG@10, %"),
        "learnt": Measure("right after the domain"),
        "forgetting": Measure("forgetting, points"),
        "old": Measure("with the old indices"),
        **{name: Measure(name) for name in DOMAINS},
    },
    claims=(
        Claim("The mean of the models after each domain forgets less", AVERAGE, "<", TUNED, "forgetting"),
        Claim("and is better after the last", AVERAGE, ">", TUNED),
        Claim("also than training on all domains at once", AVERAGE, ">", JOINT),
        Claim("Memory aware synapses are better than fine-tuning", MAS, ">", TUNED),
        Claim("Replay is", REPLAY, ">", TUNED),
        Claim("Learning without forgetting is", LWF, ">", TUNED),
        Claim("A hypernetwork forgets less", HYPER, "<", TUNED, "forgetting"),
        Claim("With the old indices fine-tuning is still better than none", TUNED, ">", BEFORE, "old"),
    ),
    describe=describe,
    plots=over_time,
)

if __name__ == "__main__":
    suite.main(EXPERIMENT)
