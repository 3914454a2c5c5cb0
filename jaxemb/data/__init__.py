"""From files to batches: records, columns, tokenising, packing, shuffling, mixing."""

from jaxemb.data.batches import Batch, batches
from jaxemb.data.class_examples import class_examples, similar_pairs
from jaxemb.data.columns import Column, Layout, Number, Text, TextPair, Vector
from jaxemb.data.definitions import Definitions, read_dictionary, read_wordnet
from jaxemb.data.files import RecordError
from jaxemb.data.mixtures import Mixture, merge_small, mixture
from jaxemb.data.packing import bucket, length_buckets, marked, pack, pad, padding_share, row_bucket
from jaxemb.data.records import Source, concatenate, from_list, huggingface, read
from jaxemb.data.samplers import GroupByLabel, GroupByLength, NoDuplicates, Sampler
from jaxemb.data.streams import Stream, from_iterable, stream
from jaxemb.data.tfds import tfds
from jaxemb.data.tokenizer import SPECIAL_TOKENS, Encoded, Tokenizer

__all__ = [
    "SPECIAL_TOKENS",
    "Batch",
    "Column",
    "Definitions",
    "Encoded",
    "GroupByLabel",
    "GroupByLength",
    "Layout",
    "Mixture",
    "NoDuplicates",
    "Number",
    "RecordError",
    "Sampler",
    "Source",
    "Stream",
    "Text",
    "TextPair",
    "Tokenizer",
    "Vector",
    "batches",
    "bucket",
    "class_examples",
    "concatenate",
    "from_iterable",
    "from_list",
    "huggingface",
    "length_buckets",
    "marked",
    "merge_small",
    "mixture",
    "pack",
    "pad",
    "padding_share",
    "read",
    "read_dictionary",
    "read_wordnet",
    "row_bucket",
    "similar_pairs",
    "stream",
    "tfds",
]
