"""What the configs of this directory have in common: pretrained encoders and files of records, or stand-ins for both.

What a step costs depends on shapes alone, so that random weights and made-up texts are enough to compile a run.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh

import jaxemb
from jaxemb.data import batches, read
from jaxemb.embedder import Embedder
from jaxemb.encoders import Transformer, TransformerConfig
from jaxemb.sentence_embedder import SentenceEmbedder
from jaxemb.types import Tokens


def pretrained(model: str, dropout: float, mesh: Mesh) -> Callable[[], SentenceEmbedder]:
    """Loads a model onto a mesh, to compute in bf16 and to recompute its layers in the backward pass."""
    options = {"dtype": "bfloat16", "remat": True, "dropout": dropout, "attention_dropout": dropout, "mesh": mesh}
    return lambda: jaxemb.load(model, **options)


def tokenized(file: str, columns: Sequence[str], size: int, length: int):
    """Batches of `size` records of a file, all texts padded to `length`: each process reads its own records alone."""
    return lambda embedder: batches(
        read(file), embedder.tokenizer, columns, batch_size=size, max_length=length, buckets=(length,)
    )


@dataclasses.dataclass(frozen=True)
class Untokenized:
    """What a run asks of an embedder, without a tokenizer."""

    model: Any

    def replace(self, **changes) -> "Untokenized":
        return dataclasses.replace(self, **changes)

    def save(self, path: Path) -> None:
        """Makes an empty directory: random weights are not worth keeping."""
        path.mkdir(exist_ok=True)


def bert(dim: int, layers: int, *, vocab_size: int, dropout: float) -> Untokenized:
    """A BERT of random weights, otherwise as `pretrained` would load it."""
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
    """Batches without end of `size` records: for each column so many texts per record, all of full length.

    Of several processes each gets its part of them.
    """
    part = size // jax.process_count()

    def texts(rows: int) -> Tokens:
        ids = np.broadcast_to(np.arange(1000, 1000 + length, dtype=np.int32), (rows, length))
        return Tokens(ids, np.ones_like(ids), np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length)))

    def batch(indices) -> dict[str, Any]:
        columns = {name: texts(part * count) for name, count in texts_per_record.items()}
        return columns | {"id": np.asarray(indices[:part], np.int32)}

    return grain.MapDataset.range(size).repeat().batch(size, batch_fn=batch).to_iter_dataset()
