"""Starbucks' and 2D Matryoshka's recipe: a BERT-base is fine-tuned on triplets of NLI, to be cut to several sizes.

jaxemb train experiments/recipes/sizes.py --out runs/starbucks --set data=all-nli.parquet
"""

import dataclasses
from typing import Literal

import jaxemb
from experiments.lib import similarity
from experiments.sizes import PAPER, Size, labelled, powers
from jaxemb.data import batches, from_list, read
from jaxemb.evaluate import sts_evaluator
from jaxemb.losses import info_nce
from jaxemb.objectives import matryoshka_2d, on_columns, starbucks
from jaxemb.recipes.offline_model import default_model
from jaxemb.train import Run, adamw

MINILM: tuple[Size, ...] = ((1, 32), (2, 64), (3, 128), (6, 384))


def run(
    *,
    data: str | None = None,
    model: str | None = None,
    method: Literal["starbucks", "2d"] = "starbucks",
    sizes: tuple[Size, ...] | None = None,
    batch_size: int = 128,
    steps: int = 4_358,
    learning_rate: float = 5e-5,
    max_length: int = 128,
    chunk: int | None = None,
    seed: int = 0,
) -> Run:
    """The published recipe of SRL, or that of 2D Matryoshka on the same data.

    Published are "bert-base-uncased" and the 557,850 triplets of all-nli, once.

    Args:
      data: a file of records (see `jaxemb.data.read`) with the columns "query", "document" and, or not, "negative";
        None for the pairs of SICK and Breaking NLI of which one sentence follows from the other.
      model: the model to fine-tune, a directory or hub id; None for all-MiniLM-L6-v2.
      method: see above.
      sizes: (layers, dim), the last one the full size; None for MiniLM's without a model, or else the published ones.
      batch_size: records per step.
      steps: optimiser steps.
      learning_rate: the highest one, after the warm-up.
      max_length: tokens of a text.
      chunk: rows that go through the model at a time; None for all.
      seed: of the order of the records, of dropout, and of the sizes that are drawn.

    Raises:
      ValueError: for another method.
    """
    if method not in ("starbucks", "2d"):
        raise ValueError(f"method must be 'starbucks' or '2d'; got {method!r}")
    sizes = sizes or (PAPER["sizes"] if model else MINILM)
    if data is None:
        follow = labelled()[1]
        texts = zip(follow.first, follow.second, strict=True)
        source = from_list([{"query": first, "document": second} for first, second in texts])
    else:
        source = read(data)
    columns = tuple(name for name in ("query", "document", "negative") if name in source[0])
    negatives = {"negatives": "negative"} if "negative" in columns else {}
    of_one = on_columns(info_nce, "query", "document", chunk=chunk, **negatives)

    def embedder():
        loaded = jaxemb.load(model or default_model().path)
        return loaded.replace(model=dataclasses.replace(loaded.model, heads=()))

    return Run(
        embedder=embedder,
        data=lambda e: batches(source, e.tokenizer, columns, batch_size=batch_size, max_length=max_length, seed=seed),
        objective=starbucks(of_one, sizes, kl_weight=0.3, detach_teacher=False)
        if method == "starbucks"
        else matryoshka_2d(of_one, powers(sizes), detach_teacher=False),
        optimizer=adamw(learning_rate, steps),
        steps=steps,
        evaluators={"dev": sts_evaluator(similarity.stsb("dev"))},
        evaluate_every=min(steps, 500),
        checkpoint_every=min(steps, 500),
        seed=seed,
        options={"data": data, "model": model, "method": method, "sizes": [list(size) for size in sizes]},
    )
