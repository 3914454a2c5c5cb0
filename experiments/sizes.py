"""What `matryoshka_2d` and `starbucks` have in common: two settings, and models measured at every size.

"sts": MiniLM, without its final normalisation, is fine-tuned on the STS-Benchmark with CoSENT; measured is Spearman's
correlation of the cosine, on pairs of which no sentence was trained on. "intents": a transformer of four layers learns
BANKING77 from random weights with in-batch negatives; measured is how often a query of the test set has the intent of
its nearest neighbour in the training set. The second is the one of the specifications, whose figures it repeats.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tokenizers
from scipy.stats import spearmanr

import jaxemb
from experiments import common, stsb
from jaxemb.data import Tokenizer, batches, pad
from jaxemb.embedder import Embedder
from jaxemb.encode import plan
from jaxemb.files import write_figure
from jaxemb.losses import cosent, info_nce
from jaxemb.nn import unit
from jaxemb.objectives import ColumnsObjective, matryoshka, matryoshka_2d, on_columns
from jaxemb.recipes.offline_model import default_model
from jaxemb.sentence_embedder import SentenceEmbedder
from jaxemb.train import adamw, train

Name = Literal["sts", "intents"]
Size = tuple[int, int]  # layers, dim
Grid = dict[str, list[list[float | None]]]  # by set: quality x 100 at [layers][dims]; None if not measured
Grids = dict[Name, dict[str, list[Grid]]]  # by setting and method, of each seed
Rows = dict[Name, dict[str, list[dict[str, float]]]]  # the same, of `at_sizes`

_LENGTH = {"sts": 64, "intents": 20}  # tokens of a text in training
_WORDS = 3000  # of the vocabulary that is made for the intents


@dataclasses.dataclass(frozen=True)
class Training:
    """How one setting is trained.

    Attributes:
      sizes: (layers, dim), the last one the full size; their dims are those of the other methods, too.
      steps: of all methods and sizes.
      limit: of every evaluation set, pairs or queries.
      records: that are trained on, or of each intent; None for all.
      pretraining: steps of masked autoencoding, where a method has it.
    """

    sizes: tuple[Size, ...]
    steps: int
    learning_rate: float
    batch_size: int = 32
    limit: int | None = None
    records: int | None = None
    pretraining: int = 0

    @property
    def layers(self) -> range:
        """All numbers of layers."""
        return range(1, self.sizes[-1][0] + 1)

    @property
    def dims(self) -> tuple[int, ...]:
        """The dims of the sizes."""
        return tuple(dim for _, dim in self.sizes)


MINILM_SIZES = ((1, 32), (2, 64), (3, 128), (6, 384))
SMALL_SIZES = ((1, 12), (2, 24), (3, 48), (4, 96))
# Learning rate and steps (one epoch) of "sts" are what `stsb` chose on a slice of the training set, those of "intents"
# the specification's.
SMALL: Mapping[Name, Training] = {
    "sts": Training(sizes=MINILM_SIZES, steps=179, learning_rate=1e-4, limit=200),
    "intents": Training(sizes=SMALL_SIZES, steps=400, learning_rate=1e-3, pretraining=500),
}
SMOKE: Mapping[Name, Training] = {
    "intents": Training(sizes=((1, 12), (4, 96)), steps=2, learning_rate=1e-3, limit=77, records=3, pretraining=1),
}
PAPER: Mapping[Name, Training] = {
    "sts": Training(sizes=MINILM_SIZES, steps=1436, learning_rate=5e-5, batch_size=16),
    "intents": Training(sizes=SMALL_SIZES, steps=400, learning_rate=1e-3, pretraining=10_000),
}


@dataclasses.dataclass(frozen=True)
class Preset:
    """The settings, and how they are trained."""

    trainings: Mapping[Name, Training]
    seeds: int = 3
    keep: bool = True  # what is measured, to go on from; see `measured`


PRESETS = {
    "smoke": Preset(SMOKE, seeds=1, keep=False),
    "small": Preset(SMALL),
    "paper": Preset(PAPER, seeds=5),
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """Data, model and measure of one setting; see `sts` and `intents`.

    Attributes:
      training: how it is trained.
      start: the model to train, of a seed.
      objective: the loss at one size.
      data: training batches without end, of a model and a seed.
      training_texts: what pre-training reads.
      texts: all that is encoded to measure a model.
      quality: of the vectors of these texts, `[N, dim]`, of unit length, by set.
    """

    training: Training
    start: Callable[[int], SentenceEmbedder]
    objective: ColumnsObjective
    data: Callable[[SentenceEmbedder, int], Iterable[Mapping[str, Any]]]
    training_texts: Sequence[str]
    texts: Sequence[str]
    quality: Callable[[np.ndarray], dict[str, float]]

    def trained(
        self, objective: ColumnsObjective, seed: int, *, layers: int | None = None, start: Embedder | None = None
    ) -> Grid:
        """Of the model (`start` if given) after training with this objective, with the first `layers` only if given."""
        embedder = self.start(seed)
        model = (embedder.model if start is None else start).truncate(layers)
        t = self.training
        data = itertools.islice(self.data(embedder, seed), t.steps)
        state = train(model, objective, adamw(t.learning_rate, t.steps), data, seed=seed)
        return self.measured(embedder.replace(model=state.model))

    def measured(self, embedder: SentenceEmbedder) -> Grid:
        """Quality x 100 at every number of layers and dims, by set."""
        model, layers = embedder.model, range(1, embedder.model.depth + 1)
        at_layers = jax.jit(lambda model, tokens: model.at_layers(tokens, layers))
        vectors = np.zeros((len(layers), len(self.texts), model.dim), np.float32)
        length = embedder.max_length
        for batch in plan(embedder.tokenizer(self.texts, length), batch_tokens=1024, max_length=length):
            vectors[:, batch.indices] = np.asarray(at_layers(model, batch.tokens))[batch.slots].swapaxes(0, 1)
        cells = [
            [self.quality(np.asarray(unit(jax.numpy.asarray(x[:, :dim])))) for dim in self.training.dims]
            for x in vectors
        ]
        return {name: [[100 * cell[name] for cell in row] for row in cells] for name in cells[0][0]}


def setting(name: Name, training: Training) -> Setting:
    """The setting of this name."""
    return {"sts": sts, "intents": intents}[name](training)


def sts(training: Training) -> Setting:
    """MiniLM on the STS-Benchmark; its development set, SICK's test set, and the years of STS 2012-2015."""
    source = stsb.train_set().select(range(min(training.records or 10**9, len(stsb.train_set()))))
    pairs = source.__getitems__(range(len(source)))
    sets = stsb.by_year({n: stsb.unseen(s, pairs) for n, s in stsb.evaluation_sets().items()}, training.limit)
    texts = list(dict.fromkeys(text for s in sets.values() for text in (*s.first, *s.second)))
    row = {text: i for i, text in enumerate(texts)}
    rows = {name: ([row[t] for t in s.first], [row[t] for t in s.second], s.scores) for name, s in sets.items()}

    def start(seed: int) -> SentenceEmbedder:
        embedder = jaxemb.load(default_model().path)
        # The softmax of components of vectors of unit length is uniform, whatever they are.
        return embedder.replace(model=dataclasses.replace(embedder.model, heads=()))

    def data(embedder: SentenceEmbedder, seed: int):
        return batches(
            source,
            embedder.tokenizer,
            ("sentence1", "sentence2", "scores"),
            batch_size=training.batch_size,
            max_length=_LENGTH["sts"],
            seed=seed,
            pack=True,
            row_multiple=4,
        )

    def quality(vectors: np.ndarray) -> dict[str, float]:
        cosines = lambda a, b: (vectors[a] * vectors[b]).sum(axis=1)
        return {name: float(spearmanr(cosines(a, b), s).statistic) for name, (a, b, s) in rows.items()}

    objective = on_columns(cosent, "sentence1", "sentence2", others=["scores"])
    trained_on = list(dict.fromkeys(pair[column] for pair in pairs for column in ("sentence1", "sentence2")))
    return Setting(training, start, objective, data, trained_on, texts, quality)


def intents(training: Training) -> Setting:
    """Four layers of 96 dimensions on BANKING77: a batch is two queries of each intent, one step all intents."""
    queries, labels = common.intents("banking77", "train", training.records)
    asked, wanted = common.intents("banking77", "test", training.limit and -(-training.limit // 77))
    tokenizer = word_tokenizer(queries)
    ids = tokenizer(queries, _LENGTH["intents"])
    of_intent = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    # BERT without token types.
    config = {"dim": 96, "n_layers": 4, "n_heads": 4, "hidden_dim": 192, "max_position_embeddings": _LENGTH["intents"]}

    def start(seed: int) -> SentenceEmbedder:
        return jaxemb.new("distilbert", config, tokenizer, key=jax.random.key(seed))

    def data(embedder: SentenceEmbedder, seed: int) -> Iterator[dict[str, Any]]:
        rng = np.random.default_rng(seed)
        tokens = lambda rows: pad([ids[i] for i in rows], length=_LENGTH["intents"])
        while True:
            rows = np.stack([rng.choice(some, 2, replace=False) for some in of_intent])
            yield {"id": rows[:, 0], "query": tokens(rows[:, 0]), "document": tokens(rows[:, 1])}

    def quality(vectors: np.ndarray) -> dict[str, float]:
        known, new = vectors[: len(queries)], vectors[len(queries) :]
        return {"BANKING77": float(np.mean(labels[np.argmax(new @ known.T, axis=1)] == wanted))}

    objective = on_columns(functools.partial(info_nce, temperature=0.05), "query", "document")
    return Setting(training, start, objective, data, queries, [*queries, *asked], quality)


def word_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """A tokenizer of the lower-cased words that are in the texts at least twice, with [CLS] in front of each text."""
    special = {role: f"[{role.upper()}]" for role in ("pad", "unk", "cls", "mask")}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token=special["unk"]))
    backend.normalizer = tokenizers.normalizers.Lowercase()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.train_from_iterator(
        texts,
        tokenizers.trainers.WordLevelTrainer(
            vocab_size=_WORDS, min_frequency=2, special_tokens=list(special.values()), show_progress=False
        ),
    )
    ids = {role: backend.get_vocab()[token] for role, token in special.items()}
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", ids["cls"])]
    )
    return Tokenizer(backend, special_ids=ids)


def separately_trained(setting: Setting, seed: int) -> Grid:
    """Of a model for each size, which has these layers only and is trained at this size only; None elsewhere.

    The full size is left out, as that is "fine-tuning".
    """
    t = setting.training
    grids: Grid = {}
    for layers, dim in t.sizes[:-1]:
        at = t.dims.index(dim)
        for name, rows in setting.trained(matryoshka(setting.objective, (dim,)), seed, layers=layers).items():
            grid = grids.setdefault(name, [[None] * len(t.dims) for _ in t.layers])
            grid[layers - 1][at] = rows[-1][at]
    return grids


Method = Callable[[Setting, int], Grid]  # of a seed

METHODS: Mapping[str, Method] = {
    "fine-tuning": lambda s, seed: s.trained(s.objective, seed),
    "Matryoshka": lambda s, seed: s.trained(matryoshka(s.objective, s.training.dims), seed),
    # As published: a layer before the last and a length below the full one, drawn for each step.
    "2D Matryoshka": lambda s, seed: s.trained(matryoshka_2d(s.objective, s.training.dims[:-1]), seed),
    "separately trained": separately_trained,
}


def measured(
    trainings: Mapping[Name, Training],
    methods: Callable[[Training], Mapping[str, Method]],
    seeds: int,
    keep: bool,
) -> Grids:
    """The grids of all settings, methods and seeds.

    With `keep`, each is kept under `runs/experiments/sizes` and not measured again; delete it after a change of the
    code. So the experiments share theirs, and one that was interrupted goes on.
    """
    grids: Grids = {}
    for name, training in trainings.items():
        here = setting(name, training)
        for seed, (method, measure) in itertools.product(range(seeds), methods(training).items()):
            digest = hashlib.sha256(repr((training, method, seed)).encode()).hexdigest()[:12]
            path = common.REPOSITORY / "runs" / "experiments" / "sizes" / f"{name}-{digest}.json"
            began = time.perf_counter()
            if keep and path.exists():
                grid = json.loads(path.read_text())
            else:
                grid = measure(here, seed)
                if keep:
                    common.write(path, json.dumps(grid))
            grids.setdefault(name, {}).setdefault(method, []).append(grid)
            row = {size: f"{value:.2f}" for size, value in at_sizes(grid, training).items()}
            print(f"{name}, seed {seed}, {method}, {time.perf_counter() - began:.0f} s: {row}", flush=True)
    return grids


def average(grid: Grid) -> np.ndarray:
    """The mean over the sets, `[layers, dims]`; nan where there is None."""
    return np.mean(np.array(list(grid.values()), float), axis=0)


def at_sizes(grid: Grid, training: Training) -> dict[str, float]:
    """The mean over the sets at each of the sizes, by `name_of` it, and over all layers and dims, as "all sizes"."""
    cells = average(grid)
    values = {name_of(size): float(cells[size[0] - 1, training.dims.index(size[1])]) for size in training.sizes}
    return {name: x for name, x in {**values, "all sizes": float(cells.mean())}.items() if not math.isnan(x)}


def name_of(size: Size) -> str:
    """Such as "2 layers, 64"."""
    return f"{size[0]} layer{'s' if size[0] > 1 else ''}, {size[1]}"


def rows(grids: Grids, trainings: Mapping[Name, Training]) -> Rows:
    """`at_sizes` of all grids."""
    return {
        s: {m: [at_sizes(g, trainings[s]) for g in gs] for m, gs in methods.items()} for s, methods in grids.items()
    }


def claim(rows: Rows, setting: Name, method: str, base: str, size: str, least: float) -> dict[str, Any]:
    """How much better a method is than another at a size, paired by seed, and whether it is `least` so."""
    pairs = zip(rows[setting][method], rows[setting][base], strict=True)
    change = common.Spread.of(a[size] - b[size] for a, b in pairs)
    return {
        "setting": setting,
        "method": method,
        "against": base,
        "size": size,
        "change": change,
        "asked": least,
        "reached": change.mean >= least,
    }


ABOUT = (
    '"sts": MiniLM fine-tuned on the STS-Benchmark; Spearman\'s correlation, mean over STS-B dev, SICK test and the '
    'years of STS 2012-2015, of pairs of which no sentence was trained on. "intents": four layers of 96 dimensions, '
    "from random weights, on BANKING77; accuracy of the nearest neighbour. Papers have BERT-base and 940,000 triplets "
    "of NLI."
)


def tables(rows: Rows, reference: Mapping[Name, Mapping[str, Sequence[str]]]) -> str:
    """A table for each setting, with the rows of a reference where there is one."""
    text = ""
    for setting, methods in rows.items():
        sizes = list(next(iter(methods.values()))[0])
        spreads = {m: common.spreads(values) for m, values in methods.items()}
        lines = [[m, *(f"{row[s]:.2f}" if s in row else "" for s in sizes)] for m, row in spreads.items()]
        lines += [[f"reference: {m}", *values] for m, values in reference.get(setting, {}).items()]
        text += f"\n## {setting}\n\n" + common.markdown_table(["layers, dimensions", *sizes], lines)
    return text


def claims_table(claims: Sequence[Mapping[str, Any]]) -> str:
    """The claims, and whether they are reached."""
    header = ["setting", "method", "against", "size", "difference", "asked", "reached"]
    lines = [
        [c["setting"], c["method"], c["against"], c["size"], f"{c['change']:+.2f}", f"at least {c['asked']:+g}",
         "yes" if c["reached"] else "no"]
        for c in claims
    ]  # fmt: skip
    return common.markdown_table(header, lines)


def heat_maps(grids: Grids, trainings: Mapping[Name, Training]):
    """A figure with a heat map, layers by dims, of each method's mean over seeds and sets; a row for each setting."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = max(map(len, grids.values()))
    figure, axes = plt.subplots(len(grids), columns, figsize=(3.6 * columns, 3.2 * len(grids)), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for row, (name, methods) in zip(axes, grids.items(), strict=True):
        means = {method: np.mean([average(grid) for grid in seeds], axis=0) for method, seeds in methods.items()}
        low, high = (f([f(mean) for mean in means.values()]) for f in (np.nanmin, np.nanmax))
        t = trainings[name]
        for axis, (method, mean) in zip(row, means.items(), strict=False):
            axis.set_axis_on()
            axis.imshow(mean, origin="lower", vmin=low, vmax=high, aspect="auto")
            for i, j in zip(*np.nonzero(~np.isnan(mean)), strict=True):
                dark = mean[i, j] < (low + high) / 2
                axis.text(j, i, f"{mean[i, j]:.1f}", ha="center", va="center", fontsize=7, color="w" if dark else "k")
            axis.set_xticks(range(len(t.dims)), list(map(str, t.dims)))
            axis.set_yticks(range(len(t.layers)), list(map(str, t.layers)))
            axis.set(title=f"{name}: {method}", xlabel="dimensions", ylabel="layers")
    figure.tight_layout()
    return figure


def curves(grids: Grids, trainings: Mapping[Name, Training]):
    """A figure with three panels for each setting: quality by layers at full width, by dims at full depth, and at the
    sizes; mean and standard deviation over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(grids), 3, figsize=(13, 3.8 * len(grids)), squeeze=False)
    for row, (name, methods) in zip(axes, grids.items(), strict=True):
        t = trainings[name]
        diagonal = np.array([(n - 1, t.dims.index(dim)) for n, dim in t.sizes]).T
        panels = (
            ("layers, full width", list(t.layers), lambda x: x[:, -1]),
            ("dimensions, all layers", list(t.dims), lambda x: x[-1]),
            ("layers, dimensions", t.sizes, lambda x, at=tuple(diagonal): x[at]),
        )
        for axis, (label, ticks, part) in zip(row, panels, strict=True):
            for colour, (method, seeds) in enumerate(methods.items()):
                values = np.array([part(average(grid)) for grid in seeds])
                spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(len(ticks))
                if not np.isnan(values).all():
                    axis.errorbar(
                        range(len(ticks)), values.mean(axis=0), spread, marker="o", capsize=2, label=method,
                        color=f"C{colour}",
                    )  # fmt: skip
            axis.set_xticks(range(len(ticks)), [str(tick).strip("()") for tick in ticks])
            axis.set(title=name, xlabel=label, ylabel="quality")
            axis.grid(alpha=0.3)
        row[-1].legend(fontsize=8)
    figure.tight_layout()
    return figure


def write_results(
    out: Path,
    metrics: Mapping[str, Any],
    about: str,
    grids: Grids,
    trainings: Mapping[Name, Training],
    reference: Mapping[Name, Mapping[str, Sequence[str]]],
    claims: Sequence[Mapping[str, Any]],
) -> None:
    """Writes `metrics.json`, `table.md`, heat maps (`figure.png`) and curves (`curves.png`)."""
    of_seeds = rows(grids, trainings)
    table = (
        f"{about}\n\nQuality x 100 at some sizes (layers, dimensions), and the mean over all numbers of layers and "
        f"dimensions; mean ± standard deviation over {metrics['seeds']} seed(s). {ABOUT}\n"
        + tables(of_seeds, reference)
        + "\n## Claims\n\nDifferences are paired by seed.\n\n"
        + claims_table(claims)
    )
    results = {s: {m: common.spreads(values) for m, values in ms.items()} for s, ms in of_seeds.items()}
    every = {**metrics, "results": results, "claims": list(claims), "grids": grids}
    common.write_results(out, every, table, heat_maps(grids, trainings))
    write_figure(out / "curves.png", curves(grids, trainings), dpi=120, bbox_inches="tight")
    print(f"results are in {out}")
