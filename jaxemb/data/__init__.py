"""From files to batches: records, tokenising, packing, shuffling, mixing."""

from jaxemb.data.batches import Batch, Mixture, Number, Text, batches, merge_small, mixture
from jaxemb.data.definitions import Definitions, read_dictionary, read_wordnet
from jaxemb.data.packing import bucket, length_buckets, pack, pad, padding_share, row_bucket
from jaxemb.data.records import RecordError, Source, concatenate, from_list, huggingface, read
from jaxemb.data.samplers import GroupByLabel, NoDuplicates, Sampler
from jaxemb.data.tfds import tfds
from jaxemb.data.tokenizer import Encoded, Tokenizer

__all__ = [
    "Batch",
    "Definitions",
    "Encoded",
    "GroupByLabel",
    "Mixture",
    "NoDuplicates",
    "Number",
    "RecordError",
    "Sampler",
    "Source",
    "Text",
    "Tokenizer",
    "batches",
    "bucket",
    "concatenate",
    "from_list",
    "huggingface",
    "length_buckets",
    "merge_small",
    "mixture",
    "pack",
    "pad",
    "padding_share",
    "read",
    "read_dictionary",
    "read_wordnet",
    "row_bucket",
    "tfds",
]
