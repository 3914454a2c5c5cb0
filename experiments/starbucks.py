"""Starbucks: the sizes that will be used, all at every step, and pre-training for them.

Zhuang et al. 2024 (arXiv 2410.13230) train a fixed list of sizes, layers and dimensions, at every step (SRL), where 2D
Matryoshka draws one, and precede that by masked autoencoding by the same sizes (SMAE). Claimed is that SRL does better
than 2D Matryoshka and as well as a model trained for each size, and that SMAE adds to it. The paper's figures are those
of its repository: BERT-base, NLI, the mean over seven STS sets and the five sizes below the full one.

Here all-MiniLM-L6-v2 is fine-tuned on the STS-Benchmark with CoSENT, the authors' setting for few data. "As
published" has their weight of KL, 0.3 with a temperature of 1, and a teacher into which its gradient flows. 2D
Matryoshka is their baseline, too, that of sentence-transformers. SMAE starts from MiniLM, which already is an embedder,
with a new head, and reads sentences of `text_corpora` (Brown, MASC, Wikipedia); its control takes as many steps of
masked language modelling on the same sentences. The paper's begins with a language model and reads a sample of FineWeb,
512 texts a step. Arms share pairs, order, steps and the learning rate, which was chosen for training at full size (by
`stsb`). A seed draws the order of pairs and sentences, dropout, and what is hidden.

    python -m experiments.starbucks --preset small
    jaxemb train experiments/recipes/sizes.py --out runs/starbucks --set data=all-nli.parquet
"""

import itertools
from typing import Any

import jax

from experiments import sizes
from experiments.lib import corpora, suite
from experiments.lib.suite import Claim, Experiment, Reported
from experiments.sizes import PAPER, Arm, Preset
from jaxemb.data import batches, from_list
from jaxemb.embedder import Embedder
from jaxemb.objectives import adaptive_layers, matryoshka, starbucks
from jaxemb.pretraining import (
    MaskedAutoEncoder,
    MaskedLanguageModel,
    masked_autoencoding,
    masked_language_modelling,
    word_pieces,
)
from jaxemb.sentence_embedder import SentenceEmbedder
from jaxemb.train import adamw, train

TOKENS = 48  # of a sentence in pre-training


def pretrained(preset: Preset, embedder: SentenceEmbedder, seed: int, by_sizes: bool) -> Embedder:
    """The embedder's model after masked autoencoding by the sizes, or masked language modelling of the full one."""
    steps, texts = preset.pretraining
    tokenizer, whole = embedder.tokenizer, MaskedLanguageModel.of(embedder, jax.random.key(seed))
    names = ("text", word_pieces(tokenizer), tokenizer.special_ids["mask"])
    source = from_list([{"text": sentence} for sentence in corpora.sentences()])
    options: dict[str, Any] = {"batch_size": texts, "max_length": TOKENS, "buckets": (TOKENS,), "seed": seed}
    data = itertools.islice(batches(source, tokenizer, ("text",), **options), steps)
    optimizer = adamw(1e-4, steps, warmup=0.05, schedule="cosine", weight_decay=0.001)
    if not by_sizes:
        return train(whole, masked_language_modelling(*names), optimizer, data, seed=seed).model.embedder
    objective = masked_autoencoding(*names, preset.sizes)
    return train(MaskedAutoEncoder.of(whole), objective, optimizer, data, seed=seed).model.language_model.embedder


def two_d(of_one, preset: Preset):
    """The paper's baseline, that of sentence-transformers: a layer and a length, which may be the full one, are drawn
    at every step (there another length for the last layer)."""
    lengths = matryoshka(of_one, [dim for _, dim in preset.sizes], dims_per_step=1)
    layers = range(preset.sizes[-1][0])
    return adaptive_layers(lengths, layers, layers_per_step=1, kl_temperature=0.3, detach_teacher=False)


def srl(of_one, preset: Preset):
    return starbucks(of_one, preset.sizes, kl_weight=0.3, detach_teacher=False)


PLAIN, TWO, APART, SRL = "full size only, cut", "2D Matryoshka", "a model for each size", "SRL, as published"
NO_KL, SMAE, MLM = "without KL", "SMAE, then SRL", "masked LM, then SRL"
read = lambda figures: Reported(figures, confirmed=True)
EXPERIMENT = Experiment(
    name="starbucks",
    about=__doc__,
    presets={
        "smoke": Preset(
            datasets=("sts",),
            seeds=1,
            steps=1,
            batch_size=8,
            sizes=((1, 32), (6, 384)),
            tests=24,
            pretraining=(1, 2),
        ),
        "small": Preset(datasets=("sts",), seeds=3),
        "paper": Preset(datasets=("sts",), seeds=5, **PAPER),
    },
    arms={
        PLAIN: Arm(lambda of_one, p: of_one, paper=read("62.1; full 81.0")),
        TWO: Arm(two_d, paper=read("72.1; full 79.6")),
        APART: Arm(None, paper=read("75.5; full 81.0")),
        SRL: Arm(srl, paper=read("76.2; full 80.1")),
        NO_KL: Arm(lambda of_one, p: starbucks(of_one, p.sizes, kl_weight=0)),
        SMAE: Arm(srl, lambda *of: pretrained(*of, by_sizes=True), paper=read("78.1; full 79.9")),
        MLM: Arm(srl, lambda *of: pretrained(*of, by_sizes=False)),
    },
    data=sizes.data,
    measure=sizes.measure,
    measures=sizes.MEASURES,
    claims=(
        Claim("A fixed list of sizes is better than drawn ones", SRL, ">", TWO, paper=read("+4.0")),
        Claim("also at the smallest", SRL, ">", TWO, "smallest", paper=read("+3.7")),
        Claim("It is on par with a model for each size", SRL, "≈", APART, margin=1.0, paper=read("+0.6")),
        Claim("SMAE adds to it", SMAE, ">", SRL, paper=read("+1.9")),
        Claim("by the sizes, not by more training on texts", SMAE, ">", MLM),
        Claim("It costs quality at full size", SRL, "<", PLAIN, "full", paper=read("-0.9")),
        Claim("KL helps", SRL, ">", NO_KL),
    ),
    describe=sizes.describe,
    plots=sizes.heat_maps,
)

if __name__ == "__main__":
    suite.main(EXPERIMENT)
