"""Checkpoints people already have: Hugging Face and sentence-transformers directories, read and written."""

from jaxemb.checkpoints.hub import resolve
from jaxemb.checkpoints.sentence_transformers import DirectoryFormat, load, load_encoder, save
from jaxemb.checkpoints.tensors import CheckpointError, read_tensors, write_tensors
from jaxemb.checkpoints.weights import CheckpointFormat, load_weights, save_weights

__all__ = [
    "CheckpointError",
    "CheckpointFormat",
    "DirectoryFormat",
    "load",
    "load_encoder",
    "load_weights",
    "read_tensors",
    "resolve",
    "save",
    "save_weights",
    "write_tensors",
]
