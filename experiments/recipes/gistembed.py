"""GISTEmbed's recipe: a transformer is fine-tuned on tasks of pairs or triplets, with the vectors of a guide.

jaxemb train experiments/recipes/gistembed.py --out runs/gistembed --set data=medi/ --set batch_size=16
"""

from pathlib import Path

import numpy as np

import jaxemb
from experiments.lib import datasets
from jaxemb.data import Source, batches, concatenate, from_list, mixture, read
from jaxemb.evaluate import read_sts, sts_evaluator
from jaxemb.losses import gist
from jaxemb.objectives import on_columns
from jaxemb.recipes.offline_model import default_model
from jaxemb.train import Run, adamw


def run(
    *,
    data: str | None = None,
    model: str | None = None,
    guide: str | None = None,
    batch_size: int = 16,
    steps: int = 102_000,
    learning_rate: float = 5e-6,
    temperature: float = 0.01,
    max_length: int = 512,
    chunk: int | None = None,
    seed: int = 0,
) -> Run:
    """The published recipe: fine-tuning of a transformer, with the settings of GIST-small-Embedding-v0.

    That is model "BAAI/bge-small-en-v1.5" with guide "WhereIsAI/UAE-Large-V1" on MEDI and the triplets of MTEB's
    classification sets. The guide may have any tokenizer, as it embeds all texts once, before training.

    Args:
      data: a file of records (see `jaxemb.data.read`), or a directory of such files, one per task: then every batch is
        of one task. Their columns are "query", "document" and, or not, "negative". None for pairs of BANKING77.
      model: the model to fine-tune, a directory or hub id; None for all-MiniLM-L6-v2.
      guide: the guide, a directory or hub id; None for all-MiniLM-L6-v2.
      batch_size: records per step.
      steps: optimiser steps.
      learning_rate: the highest one, after the warm-up.
      temperature: of the loss.
      max_length: tokens of a text.
      chunk: rows that go through the model at a time; None for all.
      seed: of the order of the records and of dropout.
    """
    sources = _sources(data)
    columns = tuple(name for name in ("query", "document", "negative") if name in sources[0][0])
    negatives = {"negatives": "negative"} if "negative" in columns else {}

    def loss(queries, documents, negatives=None, *, guide_query, guide_document, guide_negative=None):
        return gist(
            queries,
            documents,
            negatives,
            guide_queries=guide_query,
            guide_documents=guide_document,
            guide_negatives=guide_negative,
            temperature=temperature,
        )

    def with_guide(embedder):
        every = concatenate(sources)
        records = every.__getitems__(range(len(every)))
        vectors = {f"guide_{name}": datasets.vectors([record[name] for record in records], guide) for name in columns}
        first = np.cumsum([0, *map(len, sources)])
        add = datasets.WithColumns(vectors)
        sizes = {"batch_size": batch_size, "max_length": max_length}
        tokenized = batches(mixture(sources), embedder.tokenizer, columns, **sizes, seed=seed)
        return tokenized.map(lambda batch: add({**batch, "id": first[batch["source"]].astype(np.int32) + batch["id"]}))

    sts = datasets.data_dir("stsb_multi", "stsb-en-dev.csv.gz")
    return Run(
        embedder=lambda: jaxemb.load(model or default_model().path),
        data=with_guide,
        objective=on_columns(
            loss, "query", "document", others=[f"guide_{name}" for name in columns], chunk=chunk, **negatives
        ),
        optimizer=adamw(learning_rate, steps),
        steps=steps,
        evaluators={"sts": sts_evaluator(read_sts(sts, names=("sentence1", "sentence2", "score")))},
        evaluate_every=min(steps, 1_500),
        checkpoint_every=min(steps, 1_500),
        best=("sts/cosine_spearman", "max"),
        seed=seed,
        options={"data": data, "model": model, "guide": guide, "batch_size": batch_size, "temperature": temperature},
    )


def _sources(data: str | None) -> list[Source]:
    if data is None:
        texts, labels = datasets.intents("banking77", "train")
        first, second = datasets.pairs(labels, np.arange(len(labels)), np.random.default_rng(0))
        return [from_list([{"query": texts[a], "document": texts[b]} for a, b in zip(first, second, strict=True)])]
    path = Path(data)
    return [read(file) for file in sorted(path.iterdir())] if path.is_dir() else [read(path)]
