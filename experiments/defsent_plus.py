"""DefSent+: sentence embeddings from nothing but a dictionary.

Liu 2024 (arXiv 2405.16153) projects a definition onto the embedding of its entry, which is the mean of the embeddings
of the entry's definitions, so that an entry may be anything; DefSent (Tsukagoshi et al. 2021) projects it onto the
word's row of a language model's head, so that entries are words of one token. Later stages begin anew with entries that
the stage before embeds; the last ones are made isotropic by ICA. Claimed is that similarities of sentences are better
than DefSent's, and that SimCSE's are when it is trained further. The paper's tables could not be read; DefSent's figure
is that of its repository (BERT-base, the mean of seven sets).

Here the encoder is the first two layers of all-MiniLM-L6-v2, which were part of an embedder but none ("raw"), or these
after SimCSE on sentences of `text_corpora` ("SimCSE"). As MiniLM has no head of a language model, one is trained on
the same sentences, with the encoder frozen. Entries are of the Open English WordNet; the papers have Oxford's and
WordNet's. All arms take as many steps from the same start, "its words" with DefSent's entries. Controls are masked
language modelling of the definitions, and DefSent+ towards entries whose embeddings are dealt to other entries. DefSent
and masked language modelling choose their learning rates on SICK's trial set; DefSent+ has that of its specification. A
seed draws the entries and the order of their definitions.

    python -m experiments.defsent_plus --preset small
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxemb
from experiments.lib import corpora, similarity, suite
from experiments.lib.suite import Claim, Experiment, Measure, Reported
from jaxemb import isotropy
from jaxemb.data import Definitions, Source, batches, from_list
from jaxemb.embedder import Dense, Embedder
from jaxemb.evaluate import StsSet
from jaxemb.losses import info_nce
from jaxemb.nn import Linear
from jaxemb.objectives import on_columns
from jaxemb.pretraining import (
    EntryPredictor,
    MaskedLanguageModel,
    definition_to_entry,
    definition_to_word,
    entry_embeddings,
    isotropic_entries,
    masked_language_modelling,
    word_pieces,
)
from jaxemb.recipes.offline_model import default_model
from jaxemb.sentence_embedder import SentenceEmbedder
from jaxemb.train import adamw, train
from jaxemb.transforms import frozen, progressive_separate_training


@dataclasses.dataclass(frozen=True)
class Preset(suite.Preset):
    """Where it starts, and how much is trained.

    Attributes:
      model: a directory or hub id; "" for the first two layers of MiniLM.
      entries: of each dictionary, drawn by the seed; None for all.
      steps: of every arm and stage; None for one pass over the definitions.
      learning_rate: of DefSent+.
      length: tokens of a definition.
      scale: standard deviation of isotropic components; None keeps the mean length of the entries.
      ica_iterations: at most; ICA warns if it has not converged by then.
      simcse, head: steps of SimCSE, and of the head's training where the model has none.
      tests: pairs of every test set, drawn at random; None for all.
    """

    model: str = ""
    entries: int | None = 2500
    steps: int | None = 100
    batch_size: int = 32
    learning_rate: float = 2e-5
    length: int = 32
    scale: float | None = None
    ica_iterations: int = 100
    simcse: int = 100
    head: int = 300
    tests: int | None = 500


@dataclasses.dataclass(frozen=True)
class Arm(suite.Arm):
    """How the encoder is trained.

    Attributes:
      method: "" for not at all, "masked", "word" (DefSent) or "entry" (DefSent+).
      stage: of DefSent+, from 1.
      isotropic: the entries of that stage are.
      words: the dictionary is the one whose entries are words of one token.
      shuffled: embeddings of the entries are those of others.
      learning_rate: None for that of DefSent+.
    """

    method: str = ""
    stage: int = 1
    isotropic: bool = False
    words: bool = False
    shuffled: bool = False
    learning_rate: float | None = None


@dataclasses.dataclass(frozen=True)
class Start:
    """An encoder of mean pooling without further heads, and the same with the head of a language model."""

    embedder: SentenceEmbedder
    language_model: MaskedLanguageModel


@dataclasses.dataclass(frozen=True)
class Data:
    """The start, the dictionaries, by name of the arm's, and the tests; and which stages are trained already."""

    start: Start
    entries: Definitions
    words: Definitions
    tests: Mapping[str, StsSet]
    stages: dict[int, Embedder] = dataclasses.field(default_factory=dict)


@functools.cache
def start(preset: Preset, dataset: str) -> Start:
    """The same for all seeds."""
    embedder = jaxemb.load(preset.model) if preset.model else jaxemb.load(default_model().path, layers=2)
    embedder = embedder.replace(model=dataclasses.replace(embedder.model, heads=()), max_length=preset.length)
    source, tokenizer = from_list([{"text": text} for text in corpora.sentences()]), embedder.tokenizer
    if dataset == "SimCSE":
        objective = on_columns(functools.partial(info_nce, temperature=0.05), "text", "text")
        data = drawn(source, embedder, ("text",), preset, preset.simcse, seed=0, batch_size=64)
        embedder = embedder.replace(model=train(embedder.model, objective, adamw(3e-5, preset.simcse), data).model)
    language_model = MaskedLanguageModel.of(embedder, jax.random.key(0))
    if preset.head:
        objective = masked_language_modelling("text", word_pieces(tokenizer), tokenizer.special_ids["mask"])
        data = drawn(source, embedder, ("text",), preset, preset.head, seed=0)
        method = frozen(r"^embedder")
        language_model = train(language_model, objective, adamw(1e-3, preset.head), data, transform=method).model
    return Start(embedder, language_model)


def data(preset: Preset, dataset: str, seed: int, tests: Mapping[str, StsSet] | None = None) -> Data:
    begin, whole, rng = start(preset, dataset), corpora.wordnet(), np.random.default_rng(seed)
    words = np.array(sorted({record["entry"] for record in _records(whole.words(begin.embedder.tokenizer))}))
    some = (rng.permutation(rows)[: preset.entries] for rows in (np.arange(len(whole.entries)), words))
    return Data(begin, *map(whole.select, some), tests or similarity.sampled(similarity.tests(), preset.tests))


def held_out(preset: Preset, dataset: str) -> Data:
    """With SICK's trial set in place of the tests."""
    return data(preset, dataset, suite.CHOICE_SEED, {"SICK trial": similarity.sick("trial")})


def _records(source: Source) -> list[Any]:
    return source.__getitems__(range(len(source)))


def drawn(
    source: Source,
    embedder: SentenceEmbedder,
    columns: tuple[str, ...],
    preset: Preset,
    steps: int,
    seed: int,
    **options,
) -> Iterator[dict[str, Any]]:
    """So many batches, of texts of one length."""
    options = {"batch_size": preset.batch_size, "max_length": preset.length, "buckets": (preset.length,), **options}
    return itertools.islice(batches(source, embedder.tokenizer, columns, seed=seed, **options), steps)


def measure(preset: Preset, data: Data, arm: Arm, seed: int) -> dict[str, float]:
    model = data.start.embedder.model
    if arm.method == "entry":
        model = entered(preset, data, arm, seed)
    elif arm.method:
        model = modelled(preset, data, arm, seed)
    embedder = data.start.embedder.replace(model=model)
    scores = similarity.measured(embedder, data.tests)
    first = next(iter(data.tests.values()))
    vectors = embedder.encode(list(dict.fromkeys((*first.first, *first.second))), normalize=True)
    spread = {"mean cosine": isotropy.mean_cosine(vectors), "effective rank": isotropy.effective_rank(vectors)}
    return {"mean": np.mean([*scores.values()]), **scores, **spread}


def modelled(preset: Preset, data: Data, arm: Arm, seed: int) -> Embedder:
    """DefSent, or masked language modelling of the definitions."""
    definitions, tokenizer = data.words if arm.words else data.entries, data.start.embedder.tokenizer
    steps = preset.steps or len(definitions) // preset.batch_size
    if arm.method == "word":
        objective, source, columns = definition_to_word(), definitions.words(tokenizer), ("definition", "word")
        optimizer = adamw(arm.learning_rate, steps, schedule="constant", weight_decay=0, max_grad_norm=None)
        method = frozen(r"^head|^embedder\.encoder\.embeddings")
    else:
        mask = tokenizer.special_ids["mask"]
        objective = masked_language_modelling("definition", word_pieces(tokenizer), mask)
        source, columns, method = definitions.source(), ("definition",), None
        optimizer = adamw(arm.learning_rate, steps, warmup=0, weight_decay=0, eps=1e-6)
    found = drawn(source, data.start.embedder, columns, preset, steps, seed)
    return train(data.start.language_model, objective, optimizer, found, transform=method, seed=seed).model.embedder


def entered(preset: Preset, data: Data, arm: Arm, seed: int) -> Embedder:
    """DefSent+ after a stage; those before it are trained first, if no other arm has done so."""
    plain = not (arm.words or arm.shuffled or arm.isotropic)
    if plain and arm.stage in data.stages:
        return data.stages[arm.stage]
    before = data.start.embedder.model
    if arm.stage > 1:
        before = entered(preset, data, dataclasses.replace(arm, stage=arm.stage - 1, isotropic=False), seed)
    definitions = data.words if arm.words else data.entries
    entries = entry_embeddings(data.start.embedder.replace(model=before), definitions)
    if arm.isotropic:
        entries = isotropic_entries(entries, scale=preset.scale, max_iterations=preset.ica_iterations)
    if arm.shuffled:
        entries = np.random.default_rng(seed).permutation(entries)
    steps = preset.steps or len(definitions) // preset.batch_size
    rate = preset.learning_rate if arm.learning_rate is None else arm.learning_rate
    columns = ("definition", "entry")
    state = train(
        predictor(preset, data.start.embedder),
        definition_to_entry(),
        adamw(rate, steps, warmup=0, weight_decay=0, eps=1e-6),
        drawn(definitions.source(), data.start.embedder, columns, preset, steps, seed + 1000 * arm.stage),
        transform=progressive_separate_training(lambda stage, model: entries, entries.shape),
        seed=seed,
    )
    if plain:
        data.stages[arm.stage] = state.model.embedder
    return state.model.embedder


def predictor(preset: Preset, embedder: SentenceEmbedder) -> EntryPredictor:
    """The encoder with its projection; MiniLM's pooler is of the sixth layer, so that its first ones begin without."""
    if preset.model:
        return EntryPredictor.of(embedder)
    identity = Linear(jnp.eye(embedder.model.dim), jnp.zeros(embedder.model.dim))
    return EntryPredictor(embedder.model, Dense(linear=identity, activation="tanh"))


def describe(data: Data) -> str:
    counts = [f"{len(some.entries):,} entries with {len(some):,} definitions" for some in (data.entries, data.words)]
    return f"{counts[0]}, or {counts[1]} of words; tests: {similarity.described(data.tests)}"


BEFORE, MASKED, WORD = "before", "masked language modelling", "DefSent"
ONE, TWO, THREE = "DefSent+, stage 1", "DefSent+, stage 2", "DefSent+, stage 3, ICA"
SAME, SHUFFLED, RAW = "DefSent+, its words", "control, entries shuffled", ("raw",)
RATES = {"learning_rate": (2e-5, 1e-4)}
EXPERIMENT = Experiment(
    name="defsent_plus",
    about=__doc__,
    presets={
        "smoke": Preset(datasets=RAW, seeds=1, entries=40, steps=1, batch_size=8, head=1, simcse=1, tests=24),
        "small": Preset(datasets=("raw", "SimCSE"), seeds=3),
        "paper": Preset(
            datasets=("raw", "SimCSE"),
            model="bert-base-uncased",
            entries=None,
            steps=None,
            learning_rate=1.13e-5,
            length=150,
            scale=100.0,
            ica_iterations=1000,
            simcse=1600,
            head=0,
            tests=None,
        ),
    },
    arms={
        BEFORE: Arm(prototype={"raw": "55.98 (STS-B test)"}),
        MASKED: Arm("masked", grid=RATES),
        WORD: Arm("word", words=True, grid=RATES, on=RAW, paper=Reported("75.4 (BERT-base)", confirmed=True)),
        SAME: Arm("entry", words=True, on=RAW),
        ONE: Arm("entry", prototype={"raw": "59.54, 59.53 (STS-B test)"}),
        TWO: Arm("entry", 2, prototype={"raw": "60.31, 60.19 (STS-B test)"}),
        THREE: Arm("entry", 3, isotropic=True, on=RAW),
        SHUFFLED: Arm("entry", shuffled=True, on=RAW),
    },
    data=data,
    measure=measure,
    measures={
        "mean": Measure("Spearman x 100, mean of the sets", 2),
        **{name: Measure(name, 2) for name in ("STS-B dev", "SICK test", "STS12", "STS13", "STS14", "STS15")},
        "mean cosine": Measure("mean cosine", 3),
        "effective rank": Measure("effective rank", 1),
    },
    claims=(
        Claim("Similarities are better than DefSent's", TWO, ">", WORD),
        Claim("also with the same entries", SAME, ">", WORD),
        Claim("A model after SimCSE gains from it", TWO, ">", BEFORE, on=("SimCSE",)),
        Claim("and a raw one", TWO, ">", BEFORE, on=RAW),
        Claim("by the dictionary, not by more training on its texts", TWO, ">", MASKED),
        Claim("by which entry a definition has", ONE, ">", SHUFFLED),
        Claim("Entries of any kind are better than words", ONE, ">", SAME),
        Claim("Entries that a stage embeds are better than the first ones", TWO, ">", ONE),
        Claim("and isotropic ones better still", THREE, ">", TWO),
        Claim("Sentences spread", ONE, "<", BEFORE, "mean cosine"),
    ),
    describe=describe,
    held_out=held_out,
)

if __name__ == "__main__":
    suite.main(EXPERIMENT)
