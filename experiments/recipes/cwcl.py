"""CWCL's recipe: a multilingual transformer learns to give German captions the vectors of a frozen English model.

jaxemb train experiments/recipes/cwcl.py --out runs/cwcl --set batch_size=512
jaxemb compile experiments/recipes/cwcl.py --topology v5e:16x16
"""

import jaxemb
from experiments.cwcl import objective, weighted
from experiments.lib import datasets
from jaxemb.data import batches, from_list
from jaxemb.recipes.offline_model import default_model
from jaxemb.train import Run, adamw
from jaxemb.transforms import trained_temperature


def run(
    *,
    model: str | None = None,
    batch_size: int = 16_384,
    chunk: int = 2_048,
    steps: int = 500,
    learning_rate: float = 1e-4,
    max_length: int = 64,
    seed: int = 0,
    limit: int | None = None,
) -> Run:
    """A multilingual tower: a transformer learns to give German captions the vectors that MiniLM gives English ones.

    As the English captions are never altered, their vectors are computed once, before training.

    Args:
      model: the learned tower at the start, a directory or hub id; None takes all-MiniLM-L6-v2.
      batch_size: pairs per step, of Multi30k's 29,000.
      chunk: rows that go through the learned tower at a time.
      steps: optimiser steps.
      learning_rate: the highest one, after the warm-up.
      max_length: tokens of a caption.
      seed: of the order of the pairs and of dropout.
      limit: use so many random pairs only.
    """
    german, english = (datasets.multi30k(language, limit) for language in ("de", "en"))

    def data(embedder):
        texts = batches(
            from_list([{"german": text} for text in german]),
            embedder.tokenizer,
            ("german",),
            batch_size=batch_size,
            max_length=max_length,
            buckets=(max_length,),
            seed=seed,
        )
        return texts.map(datasets.WithColumns({"english": datasets.vectors(english)}))

    return Run(
        embedder=lambda: jaxemb.load(model or default_model().path),
        data=data,
        objective=objective(weighted, chunk=chunk),
        optimizer=adamw(learning_rate, steps),
        transform=trained_temperature(),
        steps=steps,
        seed=seed,
        options={"model": model, "batch_size": batch_size, "learning_rate": learning_rate, "limit": limit},
    )
