"""PEG's recipe on one device: 80,000 negatives for every query, 5 hard ones of its own among them.

    jaxemb train experiments/recipes/peg.py --out runs/peg --set chunk=512

That of a BERT-large on a pod slice is tpu/peg.py.
"""

from typing import Any

import jax
import numpy as np
import optax

import jaxemb
from experiments.lib import datasets
from experiments.peg import mined
from jaxemb.data import batches, from_list
from jaxemb.losses import masks, progressive_info_nce
from jaxemb.objectives import on_columns
from jaxemb.recipes.offline_model import default_model
from jaxemb.train import Run, adamw
from jaxemb.transforms import progressive_learning


def run(
    *,
    model: str | None = None,
    batch_size: int = 13_334,
    hard: int = 5,
    chunk: int = 1_024,
    alpha: tuple[float, float] = (0.0, 0.0),
    temperature: float = 0.02,
    steps: int = 500,
    learning_rate: float = 1e-4,
    max_length: int = 64,
    seed: int = 0,
    limit: int | None = None,
) -> Run:
    """A multilingual tower with 80,000 negatives per query on one device: German captions find English ones.

    Of each of 13,334 records a batch has the document and 5 hard negatives, all of them candidates for every query:
    80,004. Both sides are trained.

    Args:
      model: the model at the start, a directory or hub id; None takes all-MiniLM-L6-v2.
      batch_size: records per step, of Multi30k's 29,000.
      hard: hard negatives of a record, English captions that MiniLM finds close to its own.
      chunk: rows that go through the model at a time.
      alpha: of the weights, at the first and after the last step: (0, 0) weighs all records alike, (0, -8) trusts
        difficult ones ever less, for pairs of which some are wrong; experiments/results/peg has what they do.
      temperature: of the loss.
      steps: optimiser steps.
      learning_rate: the highest one, after the warm-up.
      max_length: tokens of a caption.
      seed: of the order of the pairs and of dropout.
      limit: use so many random pairs only.
    """
    german, english = (datasets.multi30k(language, limit) for language in ("de", "en"))

    def objective(model: Any, batch: dict[str, Any], key: jax.Array | None):
        mask = masks.duplicates(batch["query_number"], batch["document_number"], batch["negative_number"])

        def loss(queries: jax.Array, documents: jax.Array, negatives: jax.Array) -> jax.Array:
            return progressive_info_nce(
                queries, documents, negatives, alpha=batch["alpha"], temperature=temperature, mask=mask
            ).losses

        on_texts = on_columns(loss, "query", "document", negatives="negative", chunk=chunk)
        return on_texts(model, batch, key)

    def data(embedder):
        found = mined(datasets.vectors(english), hard, seed)
        number = {text: i for i, text in enumerate(dict.fromkeys([*german, *english]))}
        documents = np.array([number[text] for text in english], np.int32)
        numbers = {
            "query_number": np.array([number[text] for text in german], np.int32),
            "document_number": documents,
            "negative_number": documents[found],
        }
        records = [
            {"query": query, "document": document, "negative": [english[i] for i in rows]}
            for query, document, rows in zip(german, english, found, strict=True)
        ]
        tokenized = batches(
            from_list(records),
            embedder.tokenizer,
            ("query", "document", "negative"),
            batch_size=batch_size,
            max_length=max_length,
            buckets=(max_length,),
            seed=seed,
        )
        return tokenized.map(datasets.WithColumns(numbers))

    return Run(
        embedder=lambda: jaxemb.load(model or default_model().path),
        data=data,
        objective=objective,
        optimizer=adamw(learning_rate, steps),
        transform=progressive_learning(optax.linear_schedule(*alpha, steps)),
        steps=steps,
        seed=seed,
        options={"model": model, "batch_size": batch_size, "hard": hard, "alpha": list(alpha), "limit": limit},
    )
