"""Continual learning of retrieval: MiniLM over five domains, and what it does to old domains and to their indices.

    python -m experiments.continual_retrieval --preset small

The domains come one after another: German captions of photographs and their English ones, definitions and their words,
docstrings and their functions, questions about health and their answers, and captions of the same photograph. After
each, nDCG@10 is measured on all domains seen so far, for pairs that were not trained on: once with all texts encoded
anew, and once with new queries against the index that the model built right after that domain, as for who cannot encode
a corpus again after every update.

The last layers of MiniLM are trained; the states below them never change, so they are computed once. Methods share
data, order, batches, steps and, but for the hypernetwork, the optimiser.
"""

import dataclasses
import functools
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxemb
from experiments import common
from experiments.defsent_plus import wordnet
from experiments.last_layers import States, cut, states_of
from experiments.lib import datasets
from jaxemb.compilation import enable_persistent_cache
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
from jaxemb.embedder import Embedder
from jaxemb.evaluate import RetrievalSet, read_beir
from jaxemb.files import write_figure
from jaxemb.losses import info_nce
from jaxemb.merging import merge_average
from jaxemb.recipes import quickstart
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

Pair = tuple[str, str]
"""A query and its document."""


@dataclasses.dataclass(frozen=True)
class Preset:
    """How much is trained and tested."""

    pairs: int  # of each domain, for training
    tests: int  # pairs of each domain; every query is searched for among all documents
    epochs: int
    seeds: int
    layers: int = 2  # the last ones, which are trained
    batch_size: int = 32
    length: int = 32  # tokens
    learning_rate: float = 2e-4


PRESETS = {
    "smoke": Preset(pairs=8, tests=8, epochs=1, seeds=1, batch_size=4, length=12),
    "small": Preset(pairs=500, tests=300, epochs=2, seeds=3),
    "paper": Preset(pairs=8000, tests=1000, epochs=3, seeds=5, layers=6, batch_size=128, length=128),
}


def german() -> tuple[list[Pair], list[Pair]]:
    """Captions of Multi30k in German, and the English ones that they translate."""
    return _divided(list(zip(datasets.multi30k("de"), datasets.multi30k("en"), strict=True)))


def dictionary() -> tuple[list[Pair], list[Pair]]:
    """Definitions of the Open English WordNet, the first of each word, and the words."""
    entries = wordnet()
    first: dict[int, str] = {}
    for text, entry in zip(entries.texts, entries.entry.tolist(), strict=True):
        first.setdefault(entry, text)
    return _divided([(text, entries.entries[entry]) for entry, text in first.items()])


def python() -> tuple[list[Pair], list[Pair]]:
    """Docstrings of Python's standard library, and the bodies of their functions; tests are other modules."""
    train, test = ([(p["query"], p["body"]) for p in quickstart.pairs(split)] for split in ("train", "test"))
    return _apart(train, test)


def medicine() -> tuple[list[Pair], list[Pair]]:
    """Questions of MedQuAD and their answers."""

    def read(split: str) -> list[Pair]:
        data = read_beir(common.data_dir() / "ir_medquad", split)
        return [(data.queries[query], data.corpus[next(iter(judged))]) for query, judged in data.qrels.items()]

    return _apart(read("train"), read("test"))


def captions() -> tuple[list[Pair], list[Pair]]:
    """The first two captions of every photograph of COCO's validation set."""
    with gzip.open(common.data_dir() / "coco_captions" / "captions_val2017.jsonl.gz", "rt", encoding="utf-8") as file:
        return _divided([tuple(json.loads(line)["captions"][:2]) for line in file])


DOMAINS: Mapping[str, Callable[[], tuple[list[Pair], list[Pair]]]] = {
    "German": german,
    "dictionary": dictionary,
    "Python": python,
    "medicine": medicine,
    "captions": captions,
}


@functools.cache
def pairs_of(domain: str) -> tuple[list[Pair], list[Pair]]:
    """Those for training and those for tests, which no seed changes."""
    return DOMAINS[domain]()


def _divided(pairs: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    """For training, and a fifth of them, at most 1,000, for tests."""
    mixed = _shuffled(_unique(pairs))
    tests = min(1000, len(mixed) // 5)
    return mixed[tests:], mixed[:tests]


def _apart(train: list[Pair], test: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Without the training pairs whose query or document is one of the tests'."""
    test = _shuffled(_unique(test))
    queries, documents = ({pair[side] for pair in test} for side in (0, 1))
    return [pair for pair in _unique(train) if pair[0] not in queries and pair[1] not in documents], test


def _unique(pairs: Sequence[Pair]) -> list[Pair]:
    """Those whose query and document have not come before."""
    seen: tuple[set[str], set[str]] = (set(), set())
    kept = []
    for query, document in pairs:
        if query not in seen[0] and document not in seen[1]:
            kept.append((query, document))
        seen[0].add(query)
        seen[1].add(document)
    return kept


def _shuffled(pairs: Sequence[Pair], seed: int = 0) -> list[Pair]:
    return [pairs[i] for i in np.random.default_rng(seed).permutation(len(pairs))]


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
class Setting:
    """The stream, the model to start from, and what the tests' texts are for the layers below it."""

    model: Embedder
    stream: list[Experience]
    encoder: Callable[[Any], Encoder]
    batch_size: int


def make_setting(preset: Preset, seed: int) -> Setting:
    """Tests are the same for all seeds; training pairs are drawn by the seed."""
    embedder = jaxemb.load(default_model().path, dropout=0.0, attention_dropout=0.0)
    lower, upper = cut(embedder.model, preset.layers)
    states = lambda texts: states_of(embedder, lower, texts, preset.length)
    domains, tested = {}, []
    for name in DOMAINS:
        train, test = pairs_of(name)
        train, test = _shuffled(train, seed)[: preset.pairs], test[: preset.tests]
        columns = {side: states([pair[i] for pair in train]) for i, side in enumerate(("query", "document"))}
        ids = [f"{i:04}" for i in range(len(test))]
        queries, documents = ({i: pair[side] for i, pair in zip(ids, test, strict=True)} for side in (0, 1))
        domains[name] = (columns, RetrievalSet(queries, documents, {i: {i: 1} for i in ids}))
        tested += [text for pair in test for text in pair]
    rows = {text: row for row, text in enumerate(dict.fromkeys(tested))}
    encoder = functools.partial(Encoder, rows=rows, states=states(list(rows)))
    return Setting(upper, embedding_stream(domains), encoder, preset.batch_size)


def objective(model: Any, batch: Mapping[str, Any], key: jax.Array | None):
    """InfoNCE against the batch's other documents."""
    both = jax.tree.map(lambda *parts: jnp.concatenate(parts), batch["query"], batch["document"])
    query, document = jnp.split(model(both, key=key), 2)
    return info_nce(query, document), {"query": query, "document": document}


@dataclasses.dataclass(frozen=True)
class Method:
    """How the stream is learnt; `of_task` says that every domain has weights of its own, and the test its domain."""

    transform: Transform
    model: Any = None
    learning_rate: float | None = None
    of_task: bool = False
    one_task: bool = False


def with_mas(setting: Setting) -> Method:
    """Memory aware synapses of the queries' embeddings."""
    return Method(mas(1.0, output="query"))


def with_lwf(setting: Setting) -> Method:
    """Learning without forgetting of the batch's similarities."""
    return Method(lwf(1.0, target="similarities", outputs=("query", "document"), temperature=0.05))


def with_replay(setting: Setting) -> Method:
    """Experience replay of half a domain's pairs, as many in a step as there are new ones."""
    train = setting.stream[0].train
    pairs = len(train["query"].ids)
    return Method(experience_replay(pairs // 2, setting.batch_size, train, columns=("query", "document")))


def with_average(setting: Setting) -> Method:
    """After every domain, the mean of the models after each."""
    return Method(merge_after_task(lambda m: merge_average([m.current, m.previous], [1, m.number])))


def with_hypernetwork(setting: Setting) -> Method:
    """A hypernetwork makes low-rank changes of the queries and values for every domain."""
    model = Adapted.init(jax.random.key(0), setting.model, rank=4)
    config = HypernetworkConfig(tasks=len(setting.stream), hidden=(100,), where=r"^adapters", residual=True, scale=0.1)
    return Method(hypernetwork(config), model, learning_rate=1e-3, of_task=True)


METHODS: Mapping[str, Callable[[Setting], Method]] = {
    "fine-tuning": lambda setting: Method(identity()),
    "MAS": with_mas,
    "LwF": with_lwf,
    "ER": with_replay,
    "average of models": with_average,
    "hypernetwork, domain known": with_hypernetwork,
    "joint": lambda setting: Method(identity(), one_task=True),
}


@dataclasses.dataclass(frozen=True)
class OfTask:
    """Scores every domain with its own weights."""

    score: Any

    def remember(self, state: TrainState, experiences: Sequence[Experience], number: int) -> None:
        if hasattr(self.score, "remember"):
            self.score.remember(state, experiences, number)

    def __call__(self, state: TrainState, experience: Experience, number: int, seen: np.ndarray | None) -> float:
        return self.score(at_task(state, number), experience, number, seen)


def scores(preset: Preset, setting: Setting, method: Method, seed: int) -> dict[str, Any]:
    """nDCG@10 after the last domain in percent, and its matrices."""
    embed = lambda state: setting.encoder(apply_transform(method.transform, state))
    evaluate: dict[str, Evaluate] = {"new index": embedding_score(embed), "old index": index_compatibility(embed)}
    stream = setting.stream
    if method.of_task:
        evaluate = {name: OfTask(score) for name, score in evaluate.items()}
    if method.one_task:
        evaluate = {"new index": mean_over(stream, evaluate["new index"])}
        stream = [joint(stream)]
    result = run_stream(
        stream,
        setting.model if method.model is None else method.model,
        objective,
        optax.adamw(method.learning_rate or preset.learning_rate, weight_decay=0.01),
        method.transform,
        epochs=preset.epochs,
        batch_size=setting.batch_size,
        evaluate=evaluate,
        reset_optimizer=True,
        future=False,
        seed=seed,
    )
    new = result.R["new index"]
    values = {"new": metrics.average_accuracy(new)}
    if not method.one_task:
        values |= {
            "learnt": metrics.learning_accuracy(new),
            "forgetting": metrics.forgetting(new, "avalanche"),
            "old": metrics.average_accuracy(result.R["old index"]),
        }
    return {
        **{name: 100 * value for name, value in values.items()},
        "matrices": {name: R.tolist() for name, R in result.R.items()},
        "seconds": float(result.seconds.sum()),
    }


def untrained(setting: Setting) -> dict[str, Any]:
    """MiniLM as it is, whose indices stay valid."""
    score = embedding_score(lambda model: setting.encoder(model))
    found = [score(setting.model, task, number, None) for number, task in enumerate(setting.stream)]
    return {"new": float(100 * np.mean(found)), "old": float(100 * np.mean(found)), "by_domain": found}


_MEASURES = {
    "new": "nDCG@10, %",
    "learnt": "right after the domain",
    "forgetting": "forgetting, points",
    "old": "with the old indices",
}


def main() -> None:
    """Runs every method and writes the results."""
    name, preset, seeds, out = common.arguments("continual_retrieval", (__doc__ or "").splitlines()[0], PRESETS)
    enable_persistent_cache()
    runs: dict[str, list[dict[str, Any]]] = {"without training": []}
    for seed in range(seeds):
        setting = make_setting(preset, seed)
        runs["without training"].append(untrained(setting))
        for method, make in METHODS.items():
            runs.setdefault(method, []).append(scores(preset, setting, make(setting), seed))
            brief = ", ".join(f"{key} {value:.1f}" for key, value in _numbers(runs[method][-1]).items())
            print(f"seed {seed}: {method}: {brief}, {runs[method][-1]['seconds']:.0f} s", flush=True)
    results = {method: common.spreads([_numbers(run) for run in found]) for method, found in runs.items()}
    about = {"preset": name, **dataclasses.asdict(preset), "seeds": seeds, "domains": list(DOMAINS)}
    matrices = {
        method: np.stack([run["matrices"]["new index"] for run in found])
        for method, found in runs.items()
        if "learnt" in found[0]
    }
    figure = plots.scores_over_tasks(matrices, title="over the domains seen", score="nDCG@10")
    common.write_results(out, {**about, "results": results, "runs": runs}, _table(preset, results, runs), figure)
    for index in ("new index", "old index"):
        seeds_of = np.stack([run["matrices"][index] for run in runs["fine-tuning"]])
        heat = plots.score_matrix(seeds_of, list(DOMAINS), title=f"fine-tuning, {index}", score="nDCG@10")
        write_figure(out / f"fine-tuning-{index.replace(' ', '_')}.png", heat, dpi=100)
    print(f"results are in {out}")


def _numbers(run: Mapping[str, Any]) -> dict[str, float]:
    return {measure: run[measure] for measure in _MEASURES if measure in run}


def _table(
    preset: Preset, results: Mapping[str, Mapping[str, common.Spread]], runs: Mapping[str, Sequence[Mapping[str, Any]]]
) -> str:
    rows = [
        (method, *(f"{values[measure]:.1f}" if measure in values else "" for measure in _MEASURES))
        for method, values in results.items()
    ]
    final = lambda run: 100 * np.array(run["matrices"]["new index"][-1] if "matrices" in run else run["by_domain"])
    of_domains = {method: np.stack([final(run) for run in found]) for method, found in runs.items()}
    by_domain = [
        (method, *(f"{common.Spread.of(column):.1f}" for column in found.T))
        for method, found in of_domains.items()
        if found.shape[1] == len(DOMAINS)
    ]
    return (
        "# Continual learning of retrieval with MiniLM\n\n"
        f"{len(DOMAINS)} domains of up to {preset.pairs} training pairs, {preset.epochs} epochs on each; trained: the "
        f"last {preset.layers} of MiniLM's six layers. Tests: up to {preset.tests} pairs of each domain, every query "
        "among all of the domain's documents. Mean ± standard deviation over seeds, which draw the training pairs. The "
        "old index of a domain is that of the model right after it.\n\n"
        + common.markdown_table(("after the last domain", *_MEASURES.values()), rows)
        + "\nnDCG@10 of each domain in the order of training, after the last one, documents encoded anew:\n\n"
        + common.markdown_table(("", *DOMAINS), by_domain)
    )


if __name__ == "__main__":
    main()
