"""Pooling and attention: the five designs of an embedding model from a decoder, by one recipe.

Tang and Yang 2024 (arXiv 2409.02727) fine-tune Mistral-7B with five pairs of a pooling and an attention mask. They find
the pooling over all layers with bidirectional attention (design 5) best on similarity and retrieval, significantly by
Wilcoxon's signed-rank test over data sets; that no pooling beats the last token's state (design 1) on clustering and
classification; and little of either with Qwen2-0.5B.

Here a small decoder is trained from scratch to predict the next token of the training sentences of the STS-Benchmark
in eleven languages, then each design is fine-tuned with InfoNCE (temperature 0.05) on pairs of one language with a
score of 4 or more, all weights, with one learning rate. The table is of the mean over the languages' development
sets; the test sets are not among the data. The figure `wilcoxon` has, for every two arms, the test over the eleven
languages' scores, each the mean over seeds, with Holm's correction; the languages are translations of the same pairs,
so that its p are too small. Claims are judged over seeds, which draw the first weights, of the decoder too, and the
batches. Controls: the mean of tokens with either attention, and design 5 without layers, on the mean of the last one.
Nothing is chosen by results.

    python -m experiments.pooling_and_attention --preset small
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tokenizers

import jaxemb
from experiments.lib import datasets, suite
from experiments.lib.suite import Claim, Experiment, Measure
from jaxemb.data import Tokenizer, pad
from jaxemb.evaluate import StsSet, paired_significance, read_sts, sts
from jaxemb.losses import info_nce
from jaxemb.objectives import on_columns
from jaxemb.pooling import LatentQueries, Mean, Pooling, pooling_design
from jaxemb.pretraining import LanguageHead, LanguageModel, language_modelling, seeing_both_ways
from jaxemb.sentence_embedder import SentenceEmbedder
from jaxemb.train import adamw, train

SMOKE: dict[str, Any] = {"datasets": ("STS-B",), "seeds": 1, "decoder_steps": 2, "steps": 2, "batch_size": 8}
SMOKE |= {"dim": 16, "layers": 2, "vocabulary": 300, "sample": 60}
LANGUAGES = ("de", "en", "es", "fr", "it", "ja", "nl", "pl", "pt", "ru", "zh")
LENGTH = 32


@dataclasses.dataclass(frozen=True)
class Preset(suite.Preset):
    """The decoder's sizes, and how long it and the designs are trained; `sample` pairs of each split (None: all)."""

    dim: int = 128
    layers: int = 4
    vocabulary: int = 16_000
    decoder_steps: int = 600
    steps: int = 200
    batch_size: int = 64
    latents: int = 64
    sample: int | None = None


@dataclasses.dataclass(frozen=True)
class Arm(suite.Arm):
    """A design: `(key, dim, layers, sizes) -> pooling, whether attention is causal`."""

    design: Callable[[jax.Array, int, int, Mapping[str, int]], tuple[Pooling, bool]]


@dataclasses.dataclass(frozen=True)
class Data:
    """A decoder that predicts the next token, the pairs of training and the tests by language."""

    decoder: SentenceEmbedder
    pairs: list[tuple[str, str]]
    tests: Mapping[str, StsSet]


def data(preset: Preset, dataset: str, seed: int) -> Data:
    trains, tests = ({lang: part(lang, split, preset.sample) for lang in LANGUAGES} for split in ("train", "dev"))
    tested = {text for test in tests.values() for text in (*test.first, *test.second)}
    every = [
        (a, b, score)
        for one in trains.values()
        for a, b, score in zip(one.first, one.second, one.scores, strict=True)
        if not {a, b} & tested
    ]
    texts = list(dict.fromkeys(text for a, b, _ in every for text in (a, b)))
    return Data(pretrained(texts, preset, seed), [(a, b) for a, b, score in every if score >= 4], tests)


def part(language: str, split: str, sample: int | None) -> StsSet:
    path = datasets.data_dir("stsb_multi", f"stsb-{language}-{split}.csv.gz")
    whole = read_sts(path, names=("sentence1", "sentence2", "score"))
    rows = datasets.sample(len(whole), sample)
    return StsSet([whole.first[i] for i in rows], [whole.second[i] for i in rows], whole.scores[rows])


def pretrained(texts: Sequence[str], preset: Preset, seed: int) -> SentenceEmbedder:
    """A Llama of the preset's sizes, trained to predict the next token of the texts, each of which ends in </s>."""
    backend = tokenizers.ByteLevelBPETokenizer()
    backend.train_from_iterator(texts, preset.vocabulary, special_tokens=["<pad>", "</s>"], show_progress=False)
    backend._tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        "$A </s>", special_tokens=[("</s>", 1)]
    )
    sizes = {"hidden_size": preset.dim, "num_hidden_layers": preset.layers, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 4 * preset.dim}
    new = jaxemb.new("llama", sizes, Tokenizer.of(backend), key=jax.random.key(seed), max_length=LENGTH)
    steps, rng = preset.decoder_steps, np.random.default_rng(seed)
    rows = (rng.choice(len(texts), preset.batch_size, replace=False) for _ in range(steps))
    read = lambda rows: pad(new.tokenizer([texts[i] for i in rows], LENGTH), length=LENGTH)
    batches = ({"id": own.astype(np.int32), "text": read(own)} for own in rows)
    model = LanguageModel(new.model, LanguageHead())
    state = train(model, language_modelling("text"), adamw(2e-3, steps), batches, seed=seed)
    return new.replace(model=state.model.embedder)


def measure(preset: Preset, data: Data, arm: Arm, seed: int) -> dict[str, Any]:
    embedder = data.decoder
    sizes = {"latents": preset.latents, "heads": 4, "head_dim": preset.dim // 4}
    pooling, causal = arm.design(jax.random.key(seed), preset.dim, preset.layers, sizes)
    model = dataclasses.replace(embedder.model, pooling=pooling)
    model = model if causal else seeing_both_ways(model)
    objective = on_columns(functools.partial(info_nce, temperature=0.05), "first", "second")
    state = train(model, objective, adamw(5e-4, preset.steps), batches(data, preset, seed), seed=seed)
    tuned = embedder.replace(model=state.model)
    scores = {
        language: 100 * sts(tuned, test.first, test.second, test.scores)["cosine_spearman"]
        for language, test in data.tests.items()
    }
    return {"spearman": float(np.mean([*scores.values()])), "by language": scores}


def batches(data: Data, preset: Preset, seed: int) -> Iterator[dict[str, Any]]:
    rng, tokenizer = np.random.default_rng(seed), data.decoder.tokenizer
    for _ in range(preset.steps):
        rows = rng.choice(len(data.pairs), preset.batch_size, replace=False)
        sides = zip(*(data.pairs[i] for i in rows), strict=True)
        first, second = (pad(tokenizer(list(side), LENGTH), length=LENGTH) for side in sides)
        yield {"id": rows.astype(np.int32), "first": first, "second": second}


def describe(data: Data) -> str:
    tests = sum(len(test) for test in data.tests.values())
    return f"{len(data.pairs):,} training and {tests:,} test pairs of {len(data.tests)} languages"


def wilcoxon(found: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> dict[str, Any]:
    """A figure of the adjusted p of every two arms."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    (arms,) = found.values()
    mean = lambda seeds: {lang: float(np.mean([s["by language"][lang] for s in seeds])) for lang in LANGUAGES}
    scores = {arm: mean(seeds) for arm, seeds in arms.items()}
    compared = list(itertools.combinations(scores, 2))
    tests = paired_significance(*({f"{pair}": scores[pair[side]] for pair in compared} for side in (0, 1)))
    figure, axis = plt.subplots(figsize=(9, 7))
    shown = np.full((len(scores), len(scores)), np.nan)
    for a, b in compared:
        row, column, test = list(scores).index(a), list(scores).index(b), tests[f"{(a, b)}"]
        for i, j, sign in ((row, column, 1), (column, row, -1)):
            shown[i, j] = sign * test.effect
            axis.text(j, i, f"{sign * test.effect:+.2f}\np {test.adjusted:.3g}", ha="center", va="center", fontsize=7)
    axis.imshow(shown, cmap="RdBu", vmin=-1.5, vmax=1.5)
    axis.set_xticks(range(len(scores)), list(scores), rotation=40, ha="right")
    axis.set_yticks(range(len(scores)), list(scores))
    least = tests[f"{compared[0]}"].least_p
    axis.set_title(f"row above column: rank correlation, and p by Holm (of one test at least {least:.2g})", fontsize=9)
    figure.tight_layout()
    return {"wilcoxon": figure}


def numbered(number: int):
    return lambda key, dim, layers, sizes: pooling_design(number, key, dim, layers, **sizes)


def of_last_layer(key: jax.Array, dim: int, layers: int, sizes: Mapping[str, int]) -> tuple[Pooling, bool]:
    return LatentQueries.init(key, dim, first=Mean(), **sizes), False


ONE, TWO, THREE = "1 last token, causal", "2 latents of it, causal", "3 latents of all layers' last tokens, causal"
FOUR, FIVE = "4 latents of tokens, bidirectional", "5 latents of all layers' means, bidirectional"
LAST_LAYER = "control, 5 of the last layer alone"
EXPERIMENT = Experiment(
    name="pooling_and_attention",
    about=__doc__,
    presets={
        "smoke": Preset(**SMOKE, latents=4),
        "small": Preset(datasets=("STS-B",), seeds=3),
        "paper": Preset(datasets=("STS-B",), seeds=5, dim=256, layers=6, decoder_steps=6000, steps=2000, latents=256),
    },
    arms={
        ONE: Arm(design=numbered(1)),
        TWO: Arm(design=numbered(2)),
        THREE: Arm(design=numbered(3)),
        FOUR: Arm(design=numbered(4)),
        FIVE: Arm(design=numbered(5)),
        "mean of tokens, causal": Arm(design=lambda *_: (Mean(), True)),
        "mean of tokens, bidirectional": Arm(design=lambda *_: (Mean(), False)),
        LAST_LAYER: Arm(design=of_last_layer),
    },
    data=data,
    measure=measure,
    measures={"spearman": Measure("Spearman x 100, mean of eleven languages", 2)},
    claims=(
        Claim("Pooling all layers with bidirectional attention is best: better than the last token", FIVE, ">", ONE),
        Claim("and than pooling the last layer's tokens", FIVE, ">", FOUR),
        Claim("and than all layers with causal attention", FIVE, ">", THREE),
        Claim("by the layers", FIVE, ">", LAST_LAYER),
        Claim("Trained queries help over the mean", FOUR, ">", "mean of tokens, bidirectional"),
        Claim("Bidirectional attention helps", "mean of tokens, bidirectional", ">", "mean of tokens, causal"),
        Claim("A feed-forward on the last token helps", TWO, ">", ONE),
    ),
    describe=describe,
    plots=wilcoxon,
)

if __name__ == "__main__":
    suite.main(EXPERIMENT)
