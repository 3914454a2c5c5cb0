"""From files to batches: records, tokenising, packing, shuffling, mixing."""

from jaxemb.data.packing import bucket, pack, pad, padding_share, row_bucket
from jaxemb.data.tokenizer import Encoded, Tokenizer

__all__ = ["Encoded", "Tokenizer", "bucket", "pack", "pad", "padding_share", "row_bucket"]
