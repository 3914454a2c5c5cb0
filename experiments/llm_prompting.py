"""Prompting: sentence embeddings of a language model that is not trained for them.

What a causal model is about to say of a text is a better vector of it than the mean of its states: PromptEOL (Jiang
et al. 2023, arXiv 2307.16645) asks for one word, pretended chain of thought and knowledge (Zhang et al. 2024,
arXiv 2404.03921) ask with an introduction, MetaEOL (Lei et al. 2024, arXiv 2402.18458) asks eight questions, Echo
(Springer et al. 2024, arXiv 2402.15449) reads the text twice, and token prepending (Fu et al. 2024, arXiv 2412.11556)
lets early tokens see the end. The papers' figures are those of Llama-2-7B, means over seven sets.

Here the model is SmolLM2-135M-Instruct, without a chat template. Layers are the papers' own: the last but one of
pretended chain of thought and knowledge, and of the plain PromptEOL that these are compared with; MetaEOL's task
descriptions are ours. The control has PromptEOL's frame without its question. Nothing is trained and nothing is chosen
by results. A seed is a random sample of pairs, and no two seeds share a pair, so that intervals are over pairs of the
set: of the STS-Benchmark's development set (its test set is not among the data), of SICK's test set, and of all test
pairs of STS 2012 to 2015 together; the STS-Benchmark took some of its pairs from these.

    python -m experiments.llm_prompting --preset small
"""

import dataclasses
import functools

import numpy as np

import jaxemb
from experiments.lib import datasets, suite
from experiments.lib.suite import Claim, Experiment, Measure, Reported
from jaxemb.evaluate import StsSet, read_sts, sts
from jaxemb.prompting import (
    ECHO,
    KNOWLEDGE,
    META_EOL,
    PRETENDED_COT,
    PROMPT_EOL,
    TOKEN_MEAN,
    WEIGHTED_MEAN,
    Prepending,
    Prompted,
    PromptTemplate,
)
from jaxemb.sentence_embedder import SentenceEmbedder


@dataclasses.dataclass(frozen=True)
class Preset(suite.Preset):
    """How many pairs of a set a seed draws."""

    pairs: int = 150


@dataclasses.dataclass(frozen=True)
class Arm(suite.Arm):
    """How texts are embedded.

    Attributes:
      templates: one, or several whose vectors are averaged.
      prepending: token prepending.
    """

    templates: tuple[PromptTemplate, ...]
    prepending: Prepending | None = None


@functools.cache
def decoder() -> SentenceEmbedder:
    return jaxemb.load(datasets.model_dir("smollm2-135m-instruct"), pooling="lasttoken")


@functools.cache
def pairs(dataset: str) -> StsSet:
    """All pairs of a set."""
    if dataset == "STS-B":
        path = datasets.data_dir("stsb_multi", "stsb-en-dev.csv.gz")
        return read_sts(path, names=("sentence1", "sentence2", "score"))
    if dataset == "SICK":
        columns = ("sentence_A", "sentence_B", "relatedness_score")
        return read_sts(datasets.data_dir("sick", "SICK_test_annotated.txt.gz"), columns, format="tsv")
    files = sorted(datasets.data_dir("sts12_15").glob("*.test.tsv.gz"))
    every = [read_sts(file, names=("score", "sentence1", "sentence2")) for file in files]
    texts = [[text for part in every for text in getattr(part, side)] for side in ("first", "second")]
    return StsSet(*texts, np.concatenate([part.scores for part in every]))


def data(preset: Preset, dataset: str, seed: int) -> StsSet:
    """The seed's own pairs of the set: no other seed has one of them."""
    whole = pairs(dataset)
    rows = np.random.default_rng(0).permutation(len(whole))[seed * preset.pairs : (seed + 1) * preset.pairs]
    return StsSet([whole.first[i] for i in rows], [whole.second[i] for i in rows], whole.scores[rows])


def measure(preset: Preset, data: StsSet, arm: Arm, seed: int) -> dict[str, float]:
    encoder = Prompted(decoder(), arm.templates, arm.prepending)
    return {"spearman": 100 * sts(encoder, data.first, data.second, data.scores)["cosine_spearman"]}


ASKED = dataclasses.replace(PROMPT_EOL, layer=-2)
FRAME = PromptTemplate('This sentence : "{text}"', layer=-2)
LLAMA = lambda figure: Reported(f"{figure} (Llama-2-7B, seven sets)", confirmed=True)
MEAN, LAST, PENULTIMATE = "mean of tokens", "PromptEOL, last layer", "PromptEOL, last but one"
EXPERIMENT = Experiment(
    name="llm_prompting",
    about=__doc__,
    presets={
        "smoke": Preset(datasets=("STS-B", "SICK", "STS12-15"), seeds=2, pairs=8),
        "small": Preset(datasets=("STS-B", "SICK", "STS12-15")),
        "paper": Preset(datasets=("STS-B", "SICK", "STS12-15"), seeds=10),
    },
    arms={
        MEAN: Arm(templates=(TOKEN_MEAN,), paper=LLAMA("47.06"), prototype={"STS-B": "53.9"}),
        "weighted mean": Arm(templates=(WEIGHTED_MEAN,), prototype={"STS-B": "60.0"}),
        "Echo": Arm(templates=(ECHO,), paper=LLAMA("66.05"), prototype={"STS-B": "68.3"}),
        LAST: Arm(templates=(PROMPT_EOL,), paper=LLAMA("70.03"), prototype={"STS-B": "77.2"}),
        PENULTIMATE: Arm(templates=(ASKED,), prototype={"STS-B": "79.4"}),
        "control, no question": Arm(templates=(FRAME,)),
        "token prepending": Arm(
            templates=(ASKED,), prepending=Prepending(), paper=LLAMA("77.19"), prototype={"STS-B": "78.8"}
        ),
        "pretended chain of thought": Arm(templates=(PRETENDED_COT,), paper=LLAMA("76.86")),
        "knowledge": Arm(templates=(KNOWLEDGE,), paper=LLAMA("77.14"), prototype={"STS-B": "80.9"}),
        "MetaEOL": Arm(templates=META_EOL, on=("STS-B",), paper=LLAMA("75.96")),  # eight times the work
    },
    data=data,
    measure=measure,
    measures={"spearman": Measure("Spearman x 100")},
    claims=(
        Claim("Asking for one word is better than the mean of states", LAST, ">", MEAN, paper=LLAMA("22.97")),
        Claim("Reading twice is better than the mean", "Echo", ">", MEAN, paper=LLAMA("18.99")),
        Claim("and weights by position are", "weighted mean", ">", MEAN),
        Claim("Asking is better than reading twice", LAST, ">", "Echo", paper=LLAMA("3.98")),
        Claim("The layer before the last is better", PENULTIMATE, ">", LAST),
        Claim("by the question, not by its frame", PENULTIMATE, ">", "control, no question"),
        Claim("Knowledge helps", "knowledge", ">", PENULTIMATE, paper=LLAMA("7.11, of the last layer")),
        Claim(
            "so does a chain of thought",
            "pretended chain of thought",
            ">",
            PENULTIMATE,
            paper=LLAMA("6.83, of the last layer"),
        ),
        Claim("so do eight questions", "MetaEOL", ">", LAST, paper=LLAMA("5.93")),
        Claim("so does token prepending", "token prepending", ">", PENULTIMATE, paper=LLAMA("7.16")),
    ),
    describe=lambda data: f"{len(data)} pairs of each seed",
)

if __name__ == "__main__":
    suite.main(EXPERIMENT)
