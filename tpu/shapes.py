"""Encoders with random weights and batches of made-up texts: what a step costs depends on shapes alone.

To train for real with a config of this directory, give its `Run` an embedder such as
`lambda: jaxemb.load("google-bert/bert-base-uncased", dtype="bfloat16")` and your own `data`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import grain
import jax
import numpy as np

from jaxemb.embedder import Embedder
from jaxemb.encoders import Transformer, TransformerConfig
from jaxemb.types import Tokens


@dataclasses.dataclass(frozen=True)
class Untokenized:
    """What a run asks of an embedder, without a tokenizer."""

    model: Any

    def replace(self, **changes) -> "Untokenized":
        return dataclasses.replace(self, **changes)


def bert(dim: int, layers: int, *, vocab_size: int, dropout: float) -> Untokenized:
    """A BERT with random weights that computes in bf16 and recomputes its layers in the backward pass."""
    config = TransformerConfig(
        vocab_size=vocab_size,
        dim=dim,
        layers=layers,
        heads=dim // 64,
        mlp_dim=4 * dim,
        position_table=512,
        token_types=2,
        dropout=dropout,
        attention_dropout=dropout,
        dtype="bfloat16",
        remat=True,
    )
    return Untokenized(Embedder(encoder=Transformer.init(jax.random.key(0), config)))


def records(texts_per_record: Mapping[str, int], size: int, length: int):
    """Batches without end of `size` records: for each column so many texts per record, all of full length."""

    def texts(rows: int) -> Tokens:
        ids = np.broadcast_to(np.arange(1000, 1000 + length, dtype=np.int32), (rows, length))
        return Tokens(ids, np.ones_like(ids), np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length)))

    def batch(indices) -> dict[str, Any]:
        columns = {name: texts(size * count) for name, count in texts_per_record.items()}
        return columns | {"id": np.asarray(indices, np.int32)}

    return grain.MapDataset.range(size).repeat().batch(size, batch_fn=batch).to_iter_dataset()
