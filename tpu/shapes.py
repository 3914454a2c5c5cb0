"""What the configs of this directory have in common: pretrained encoders and files of records, or stand-ins for both.

What a step costs depends on shapes alone, so that random weights and made-up texts are enough to compile a run.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh

import jaxemb
from jaxemb.data import SPECIAL_TOKENS, Tokenizer, batches, read
from jaxemb.sentence_embedder import SentenceEmbedder
from jaxemb.types import Tokens


def pretrained(model: str, dropout: float, mesh: Mesh) -> Callable[[], SentenceEmbedder]:
    """Loads a model onto a mesh, to compute in bf16 and to recompute its layers in the backward pass."""
    options = {"dtype": "bfloat16", "remat": "full", "dropout": dropout, "attention_dropout": dropout, "mesh": mesh}
    return lambda: jaxemb.load(model, **options)


def tokenized(file: str, columns: Sequence[str], size: int, length: int):
    """Batches of `size` records of a file, all texts padded to `length`: each process reads its own records alone."""
    return lambda embedder: batches(
        read(file), embedder.tokenizer, columns, batch_size=size, max_length=length, buckets=(length,)
    )


def bert(dim: int, layers: int, *, vocab_size: int, dropout: float) -> SentenceEmbedder:
    """A BERT of random weights, otherwise as `pretrained` would load it; its tokenizer knows no word."""
    config = {
        "vocab_size": vocab_size,
        "hidden_size": dim,
        "num_hidden_layers": layers,
        "num_attention_heads": dim // 64,
        "intermediate_size": 4 * dim,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }
    tokenizer = Tokenizer.word_piece(SPECIAL_TOKENS)
    return jaxemb.new("bert", config, tokenizer, key=jax.random.key(0), dtype="bfloat16", remat="full")


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
