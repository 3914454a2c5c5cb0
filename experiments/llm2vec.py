"""LLM2Vec: a decoder that learns to see both ways, then to tell texts apart, without labels.

BehnamGhader et al. 2024 (arXiv 2404.05961) remove the causal mask of a language model, train it to predict masked
tokens from the state before them (MNTP), then with SimCSE. On MTEB Mistral-7B goes from 42.46 (causal, weighted mean)
by 46.86 (bidirectional, mean) and 49.43 (MNTP) to 56.80 (SimCSE); Llama-3-8B falls from 43.98 to 30.56 when the mask
goes, and MNTP brings it to 48.84. Claimed is that MNTP repairs what removing the mask breaks, and that SimCSE gains on
top.

Here a small decoder is trained from scratch to predict the next token of the English training sentences of the
STS-Benchmark; all its weights are trained on, where the paper trains adapters. Measured is Spearman's correlation on
the development set, as the test set is not among the data; no label is used in training. Controls: as many more steps
of next-token prediction with the causal mask, and masked tokens predicted from their own place, without the shift that
fits what the decoder has learnt. A seed draws first weights, masks and batches. Nothing is chosen by results.

    python -m experiments.llm2vec --preset small
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from experiments import pooling_and_attention
from experiments.lib import suite
from experiments.lib.suite import Claim, Experiment, Measure, Reported
from jaxemb.data import pad
from jaxemb.embedder import Embedder
from jaxemb.evaluate import StsSet, sts
from jaxemb.losses import info_nce
from jaxemb.objectives import Objective, on_columns
from jaxemb.pooling import Mean, Pooling, WeightedMean
from jaxemb.pretraining import (
    LanguageHead,
    LanguageModel,
    language_modelling,
    mask_tokens,
    masked_next_tokens,
    seeing_both_ways,
    word_pieces,
)
from jaxemb.pretraining.masked_language_model import restored_losses
from jaxemb.sentence_embedder import SentenceEmbedder
from jaxemb.train import adamw, train

LENGTH, RATIO = pooling_and_attention.LENGTH, 0.2


@dataclasses.dataclass(frozen=True)
class Preset(pooling_and_attention.Preset):
    """As of `pooling_and_attention`; `steps` are those of MNTP, and of SimCSE."""

    vocabulary: int = 8000
    steps: int = 500


@dataclasses.dataclass(frozen=True)
class Arm(suite.Arm):
    """What is done to the decoder.

    Attributes:
      both_ways: remove the causal mask.
      first: what is trained then, of the decoder; None for nothing.
      contrast: train with SimCSE at last.
      pooling: how the vectors are made.
    """

    both_ways: bool = True
    first: Callable[[SentenceEmbedder], Objective] | None = None
    contrast: bool = False
    pooling: Pooling = dataclasses.field(default_factory=Mean)


@dataclasses.dataclass(frozen=True)
class Data:
    """The decoder, the sentences that it was trained on, and the test."""

    decoder: SentenceEmbedder
    texts: Sequence[str]
    test: StsSet


def data(preset: Preset, dataset: str, seed: int) -> Data:
    whole, test = (pooling_and_attention.part("en", split, preset.sample) for split in ("train", "dev"))
    tested = {*test.first, *test.second}
    texts = [text for text in dict.fromkeys([*whole.first, *whole.second]) if text not in tested]
    return Data(pooling_and_attention.pretrained(texts, preset, seed), texts, test)


def measure(preset: Preset, data: Data, arm: Arm, seed: int) -> dict[str, float]:
    model = dataclasses.replace(data.decoder.model, pooling=arm.pooling)
    model = seeing_both_ways(model) if arm.both_ways else model
    if arm.first is not None:
        objective, optimizer = arm.first(data.decoder), adamw(5e-4, preset.steps)
        state = train(
            LanguageModel(model, LanguageHead()), objective, optimizer, batches(data, preset, seed), seed=seed
        )
        model = state.model.embedder
    if arm.contrast:
        objective = on_columns(functools.partial(info_nce, temperature=0.05), "text", "text")
        model = train(
            with_dropout(model, 0.3), objective, adamw(1e-4, preset.steps), batches(data, preset, seed + 1), seed=seed
        ).model
    scores = sts(data.decoder.replace(model=model), data.test.first, data.test.second, data.test.scores)
    return {"spearman": 100 * scores["cosine_spearman"]}


def with_dropout(model: Embedder, rate: float) -> Embedder:
    """The model that drops weights of its attention in training, the only dropout of the paper's decoders."""
    encoder: Any = model.encoder
    config = dataclasses.replace(encoder.config, attention_dropout=rate)
    return dataclasses.replace(model, encoder=dataclasses.replace(encoder, config=config))


def batches(data: Data, preset: Preset, seed: int) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    for _ in range(preset.steps):
        rows = rng.choice(len(data.texts), preset.batch_size, replace=False)
        tokens = pad(data.decoder.tokenizer([data.texts[i] for i in rows], LENGTH), length=LENGTH)
        yield {"id": rows.astype(np.int32), "text": tokens}


def mask_id(decoder: SentenceEmbedder) -> int:
    return decoder.tokenizer.backend.token_to_id("_")  # as the paper has it


def mntp(decoder: SentenceEmbedder) -> Objective:
    return masked_next_tokens("text", word_pieces(decoder.tokenizer), mask_id(decoder), ratio=RATIO)


def unshifted(decoder: SentenceEmbedder) -> Objective:
    """Masked tokens from the states at their own places."""
    pieces, mask = word_pieces(decoder.tokenizer), mask_id(decoder)

    def objective(model: LanguageModel, batch: dict[str, Any], key: jax.Array | None):
        key = jax.random.key(0) if key is None else key
        seen, hidden = mask_tokens(batch["text"], key, pieces, mask, ratio=RATIO)
        return restored_losses(model.logits, model.embedder.encoder(seen), batch["text"], hidden), {}

    return objective


def next_tokens(decoder: SentenceEmbedder) -> Objective:
    return language_modelling("text")


CAUSAL, BIDIRECTIONAL, MNTP, BOTH = "causal, weighted mean", "bidirectional", "with MNTP", "with MNTP and SimCSE"
UNSHIFTED, MORE = "control, MNTP without its shift", "control, causal, more next tokens"
MISTRAL = lambda figure: Reported(f"{figure} (Mistral-7B, MTEB)", confirmed=True)
EXPERIMENT = Experiment(
    name="llm2vec",
    about=__doc__,
    presets={
        "smoke": Preset(**pooling_and_attention.SMOKE),
        "small": Preset(datasets=("STS-B",), seeds=3),
        "paper": Preset(
            datasets=("STS-B",), seeds=5, dim=256, layers=6, decoder_steps=6000, steps=1000, batch_size=128
        ),
    },
    arms={
        CAUSAL: Arm(both_ways=False, pooling=WeightedMean(), paper=MISTRAL("42.46")),
        "causal, mean": Arm(both_ways=False),
        BIDIRECTIONAL: Arm(paper=MISTRAL("46.86")),
        MNTP: Arm(first=mntp, paper=MISTRAL("49.43")),
        BOTH: Arm(first=mntp, contrast=True, paper=MISTRAL("56.80")),
        "with SimCSE alone": Arm(contrast=True),
        UNSHIFTED: Arm(first=unshifted),
        MORE: Arm(both_ways=False, first=next_tokens),
    },
    data=data,
    measure=measure,
    measures={"spearman": Measure("Spearman x 100")},
    claims=(
        Claim("MNTP helps the decoder that sees both ways", MNTP, ">", BIDIRECTIONAL, paper=MISTRAL("2.57")),
        Claim("and SimCSE on top", BOTH, ">", MNTP, paper=MISTRAL("7.37")),
        Claim("all of it over the causal decoder", BOTH, ">", CAUSAL, paper=MISTRAL("14.34")),
        Claim("Removing the mask alone helps", BIDIRECTIONAL, ">", CAUSAL, paper=MISTRAL("4.40")),
        Claim("MNTP helps by more than its steps", MNTP, ">", MORE),
        Claim("by its shift", MNTP, ">", UNSHIFTED),
        Claim("and prepares SimCSE", BOTH, ">", "with SimCSE alone"),
    ),
    describe=lambda data: f"{len(data.texts):,} training sentences and {len(data.test):,} test pairs",
)

if __name__ == "__main__":
    suite.main(EXPERIMENT)
