"""Contrastive training of a BERT-base at any batch size, for rehearsals and as a start for a run of your own.

    jaxemb rehearse tpu/bert_base.py --topology v5e:8x8

The weights are random and the texts are made up: what a step costs depends on shapes alone. To train for real, replace
`embedder` by `lambda: jaxemb.load("google-bert/bert-base-uncased", dtype="bfloat16")` and `data` by your own.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import grain
import jax
import numpy as np

from jaxemb.embedder import Embedder
from jaxemb.encoders import Transformer, TransformerConfig
from jaxemb.losses import info_nce
from jaxemb.objectives import on_columns
from jaxemb.train import Run, adamw
from jaxemb.types import Tokens


@dataclasses.dataclass(frozen=True)
class Untokenized:
    """What a run asks of an embedder, without a tokenizer."""

    model: Any

    def replace(self, **changes) -> "Untokenized":
        return dataclasses.replace(self, **changes)


def bert_base(dropout: float) -> Untokenized:
    """BERT-base with random weights, computing in bf16."""
    config = TransformerConfig(
        vocab_size=30522,
        dim=768,
        layers=12,
        heads=12,
        mlp_dim=3072,
        position_table=512,
        token_types=2,
        dropout=dropout,
        attention_dropout=dropout,
        dtype="bfloat16",
        remat=True,
    )
    return Untokenized(Embedder(encoder=Transformer.init(jax.random.key(0), config)))


def texts(rows: int, length: int) -> Tokens:
    """Made-up texts of full length."""
    ids = np.broadcast_to(np.arange(1000, 1000 + length, dtype=np.int32), (rows, length))
    return Tokens(ids, np.ones_like(ids), np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length)))


def records(columns: Mapping[str, int], size: int, length: int):
    """Batches without end of `size` records; each column has so many texts per record."""

    def batch(indices) -> dict[str, Any]:
        made = {name: texts(size * per_record, length) for name, per_record in columns.items()}
        return made | {"id": np.asarray(indices, np.int32)}

    return grain.MapDataset.range(size).repeat().batch(size, batch_fn=batch).to_iter_dataset()


def run(batch_size=65_536, length=128, dropout=0.0, steps=1000, learning_rate=1e-4, prng="rbg"):
    return Run(
        embedder=functools.partial(bert_base, dropout),
        data=lambda embedder: records({"query": 1, "document": 1}, batch_size, length),
        objective=on_columns(info_nce, "query", "document"),
        optimizer=adamw(learning_rate, steps),
        steps=steps,
        prng=prng,
    )
