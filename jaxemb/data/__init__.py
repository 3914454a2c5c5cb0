"""From files to batches: records, tokenising, packing, shuffling, mixing."""

from jaxemb.data.batches import Batch, Mixture, Number, Text, batches, mixture
from jaxemb.data.packing import bucket, pack, pad, padding_share, row_bucket
from jaxemb.data.records import RecordError, Source, from_list, huggingface, read, tfds
from jaxemb.data.tokenizer import Encoded, Tokenizer

__all__ = [
    "Batch",
    "Encoded",
    "Mixture",
    "Number",
    "RecordError",
    "Source",
    "Text",
    "Tokenizer",
    "batches",
    "bucket",
    "from_list",
    "huggingface",
    "mixture",
    "pack",
    "pad",
    "padding_share",
    "read",
    "row_bucket",
    "tfds",
]
